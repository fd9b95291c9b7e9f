//! What can go wrong between the hub and the stage, as sentences with the way out. None holds a token, or the address of
//! a signed download.

use std::{io, path::PathBuf, time::Duration};

use firn_llm::config::ConfigError;
use firn_stage::StageError;

/// Why a base could not be pulled.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HubError {
    /// The hub's address cannot be used.
    #[error("the hub's endpoint cannot be used: {reason}")]
    Endpoint {
        /// Why, and the way out.
        reason: String,
    },
    /// The token cannot be read.
    #[error("the token in {origin} cannot be used: {reason}")]
    Token {
        /// The file or the variable.
        origin: String,
        /// Why.
        reason: String,
    },
    /// The base is not on the stage, and nothing is to be fetched.
    #[error(
        "{repo} is not on the stage, and the hub is switched off here: put the checkpoint's files at {folder} on the \
         stage, or give --hub-online (a service inside SPCS also needs an external access integration for the hub)"
    )]
    Offline {
        /// As asked for.
        repo: String,
        /// Where it must lie on the stage.
        folder: String,
    },
    /// The hub shows nothing to a stranger.
    #[error(
        "the hub shows no {repo} to somebody without a token: check the name, and if it is private or gated set \
         HF_TOKEN or give --hub-token-file"
    )]
    NeedsToken {
        /// As asked for.
        repo: String,
    },
    /// The hub does not take the token.
    #[error("the hub refused the token in {origin} for {repo}: renew it, or give it the right to read that repository")]
    TokenRefused {
        /// As asked for.
        repo: String,
        /// The file or the variable.
        origin: String,
    },
    /// The owner must let people in first.
    #[error(
        "{repo} is gated: accept its terms on its page of the hub, and set HF_TOKEN or give --hub-token-file with a \
         token of that account"
    )]
    Gated {
        /// As asked for.
        repo: String,
    },
    /// No such repository.
    #[error("the hub has no model {repo}: check the name, or ask with a token that may see it")]
    NotFound {
        /// As asked for.
        repo: String,
    },
    /// No such branch, tag or commit.
    #[error("{repo} has no revision {revision}: name a branch, a tag or a commit that it has")]
    NoRevision {
        /// `org/name`.
        repo: String,
        /// As asked for.
        revision: String,
    },
    /// What is no checkpoint with safetensors.
    #[error(
        "{repo} has no model.safetensors, {found}: Firn reads safetensors as transformers writes them, never pickle. \
         Name a repository or a revision that has them, or convert it and put the files at {folder} on the stage"
    )]
    NoWeights {
        /// As asked for.
        repo: String,
        /// Weights that it has in other forms.
        found: String,
        /// Where files can be put by hand.
        folder: String,
    },
    /// A file that every base needs is not there.
    #[error("{repo} has no {file}, which Firn needs: {way_out}")]
    MissingFile {
        /// As asked for.
        repo: String,
        /// Its name.
        file: String,
        /// What to do.
        way_out: &'static str,
    },
    /// The index of the weights cannot be used.
    #[error("model.safetensors.index.json of {repo} cannot be used: {reason}; its owner must mend it")]
    Index {
        /// As asked for.
        repo: String,
        /// What is wrong.
        reason: String,
    },
    /// A model of a kind that Firn does not compute.
    #[error("{repo} cannot be used, and its weights were not fetched: {source}")]
    Model {
        /// As asked for.
        repo: String,
        /// Why.
        source: ConfigError,
    },
    /// More bytes than allowed.
    #[error("{what} of {repo} has {size} bytes, more than the limit of {limit}: name a smaller model")]
    TooLarge {
        /// As asked for.
        repo: String,
        /// A file, or all.
        what: String,
        /// Bytes.
        size: u64,
        /// Bytes.
        limit: u64,
    },
    /// The hub does not say what a file's bytes must be.
    #[error(
        "the hub names no {what} of {file}, so it cannot be checked: use the public hub, or a mirror that passes it on"
    )]
    Unchecked {
        /// Its name.
        file: String,
        /// Hash or size.
        what: &'static str,
    },
    /// A file has other bytes than the hub says.
    #[error(
        "{file} has the hash {found}, but the hub says {expected}: its bytes were changed on their way and are not kept. \
         Pull again; if it stays, ask who runs the mirror or proxy"
    )]
    Mismatch {
        /// Its name.
        file: String,
        /// Lower-case hex.
        expected: String,
        /// Lower-case hex.
        found: String,
    },
    /// A file has another size than the hub says.
    #[error(
        "{file} has {expected} bytes on the hub's list, but {host} sends {found}: pull again; if it stays, ask who runs \
         the mirror or proxy"
    )]
    Size {
        /// Its name.
        file: String,
        /// Who sent it.
        host: String,
        /// Bytes.
        expected: u64,
        /// Bytes, or more than expected.
        found: String,
    },
    /// An answer that no hub gives.
    #[error("{host} does not answer as a hub: {reason}; check --hub-endpoint")]
    NoHub {
        /// Who answered.
        host: String,
        /// What is wrong.
        reason: String,
    },
    /// The hub sends its callers somewhere that they do not go.
    #[error("{host} redirects {what} {reason}: check --hub-endpoint, and what is between here and the hub")]
    Redirect {
        /// Who answered.
        host: String,
        /// What was asked for.
        what: String,
        /// Where to.
        reason: String,
    },
    /// The hub or its storage has an error, or too much to do.
    #[error("{host} answers {status} to the request for {what}; pull again later, and it goes on from what is here")]
    Status {
        /// Who answered.
        host: String,
        /// What was asked for.
        what: String,
        /// HTTP.
        status: u16,
        /// What it asked for.
        retry_after: Option<Duration>,
    },
    /// No connection, or one that was cut.
    #[error(
        "failed to fetch {what} from {host}: {reason}; check the network (inside SPCS: the external access integration) \
         and pull again, and it goes on from what is here"
    )]
    Connection {
        /// Whom.
        host: String,
        /// What was asked for.
        what: String,
        /// Why.
        reason: String,
    },
    /// Nothing came for too long.
    #[error("{host} sent nothing of {what} for {} s; pull again, and it goes on from what is here", waited.as_secs_f64())]
    Stalled {
        /// Who.
        host: String,
        /// What was asked for.
        what: String,
        /// The limit.
        waited: Duration,
    },
    /// The pull took too long.
    #[error("{repo} was not here after {} s; pull again, and it goes on from what is here", limit.as_secs_f64())]
    Deadline {
        /// As asked for.
        repo: String,
        /// The limit.
        limit: Duration,
    },
    /// The caller wanted it to end.
    #[error("stopped pulling {repo}; the next pull goes on from what is here")]
    Stopped {
        /// As asked for.
        repo: String,
    },
    /// The local disk is full.
    #[error("no space left in {} for {file}, which has {size} bytes: free some, or name another work folder", folder.display())]
    DiskFull {
        /// The local folder.
        folder: PathBuf,
        /// Its name.
        file: String,
        /// Bytes.
        size: u64,
    },
    /// A local file cannot be used.
    #[error("failed to {action} {}: {source}", path.display())]
    Local {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The stage cannot be read or written.
    #[error(transparent)]
    Stage(#[from] StageError),
}

impl HubError {
    /// May the same request succeed in a moment?
    pub(super) fn is_passing(&self) -> bool {
        matches!(self, Self::Connection { .. } | Self::Stalled { .. } | Self::Status { .. })
    }

    pub(super) fn local(action: &'static str, path: &std::path::Path, source: io::Error) -> Self {
        Self::Local { action, path: path.to_owned(), source }
    }
}
