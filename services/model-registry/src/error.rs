//! What can go wrong, and the one place where it becomes a status.

use std::time::Duration;

use firn_kit::status::{failed_precondition, internal, not_found, resource_exhausted, status};
use firn_stage::StageError;
use tonic::{Code, Status};

/// Domain of the registry's error details.
pub(crate) const DOMAIN: &str = "registry.firn.dev";
/// When a caller may come back after a refusal.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// The registry cannot start or ended early.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The stage cannot be opened, or what is registered cannot be read.
    #[error("failed to read the registry's stage: {0}")]
    Stage(#[from] StageError),
    /// The address cannot be bound.
    #[error(transparent)]
    Bind(#[from] firn_kit::BindError),
    /// The server failed.
    #[error(transparent)]
    Serve(#[from] firn_kit::ServeError),
}

/// A version was not registered.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CreateError {
    #[error("there is no finished folder {source_path} on the stage: it has no manifest.json")]
    NoSource { source_path: String },
    #[error("{path} is damaged: {reason}; nothing was registered")]
    Damaged { path: String, reason: String },
    #[error("{path} is in the folder's manifest but not on the stage; nothing was registered")]
    MissingFile { path: String },
    #[error("request_id {request_id:?} made {version} from another request; use a new one")]
    RequestReused { request_id: String, version: String },
    #[error("failed to encode the request: {0}")]
    Encode(#[from] serde_json::Error),
    #[error(transparent)]
    Alias(#[from] AliasError),
    #[error(transparent)]
    Write(#[from] WriteError),
}

/// An alias was not moved.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AliasError {
    #[error("there is no version `{name}`")]
    NoVersion { name: String },
    #[error(transparent)]
    Write(#[from] WriteError),
}

/// The stage did not take what was to be written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WriteError {
    #[error(
        "this registry only reads what another one writes: ask that one, or, if there is none, start this one without \
         FIRN_REGISTRY_FOLLOW_SECONDS"
    )]
    Follows,
    #[error("{limit} writes are waiting already; try again")]
    Busy { limit: usize },
    #[error("the write was interrupted")]
    Interrupted(#[source] tokio::task::JoinError),
    #[error(transparent)]
    Stage(#[from] StageError),
}

/// Nothing there to read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    #[error("there is no {kind} `{name}`")]
    NotFound { kind: &'static str, name: String },
    #[error(
        "{path} can't be followed ({reason}) and may have moved {alias}{}: set the alias again, to the version that it is to \
         point to",
        match before {
            0 => String::new(),
            before => format!(", which pointed to version {before} before"),
        }
    )]
    AliasLost { alias: String, path: String, reason: String, before: u64 },
    #[error(transparent)]
    Stage(#[from] StageError),
}

impl From<CreateError> for Status {
    fn from(error: CreateError) -> Self {
        let message = error.to_string();
        match error {
            CreateError::NoSource { .. } => failed_precondition(DOMAIN, "SOURCE_NOT_FINISHED", message),
            CreateError::Damaged { .. } | CreateError::MissingFile { .. } => {
                status(Code::DataLoss, DOMAIN, "SOURCE_DAMAGED", message)
            }
            CreateError::RequestReused { .. } => status(Code::InvalidArgument, DOMAIN, "REQUEST_ID_REUSED", message),
            CreateError::Encode(error) => internal(DOMAIN, &error),
            CreateError::Alias(error) => error.into(),
            CreateError::Write(error) => error.into(),
        }
    }
}

impl From<AliasError> for Status {
    fn from(error: AliasError) -> Self {
        match error {
            AliasError::NoVersion { name } => not_found(DOMAIN, "version", &name),
            AliasError::Write(error) => error.into(),
        }
    }
}

impl From<WriteError> for Status {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::Follows => failed_precondition(DOMAIN, "READ_ONLY", error.to_string()),
            WriteError::Busy { .. } => resource_exhausted(DOMAIN, "TOO_MANY_WRITES", error.to_string(), RETRY_AFTER),
            WriteError::Interrupted(error) => internal(DOMAIN, &error),
            WriteError::Stage(error) => stage_status(error),
        }
    }
}

impl From<ReadError> for Status {
    fn from(error: ReadError) -> Self {
        let message = error.to_string();
        match error {
            ReadError::NotFound { kind, name } => not_found(DOMAIN, kind, &name),
            ReadError::AliasLost { .. } => status(Code::DataLoss, DOMAIN, "ALIAS_DAMAGED", message),
            ReadError::Stage(error) => stage_status(error),
        }
    }
}

/// The watch ends because the process does; the watcher comes back to the next one.
pub(crate) fn stopping() -> Status {
    firn_kit::status::unavailable(DOMAIN, "STOPPING", "the registry is shutting down; watch again", RETRY_AFTER)
}

fn stage_status(error: StageError) -> Status {
    let message = error.to_string();
    match error {
        StageError::NoSpace { .. } => status(Code::ResourceExhausted, DOMAIN, "STAGE_FULL", message),
        StageError::NoRight { .. } => failed_precondition(DOMAIN, "STAGE_NO_RIGHT", message),
        StageError::OutOfRange { .. } => status(Code::OutOfRange, DOMAIN, "OFFSET_PAST_END", message),
        StageError::Damaged { .. } | StageError::NotFound { .. } => {
            status(Code::DataLoss, DOMAIN, "STAGE_DAMAGED", message)
        }
        // Somebody else writes below models/.
        StageError::AlreadyExists { .. } => status(Code::Aborted, DOMAIN, "ANOTHER_WRITER", message),
        error => internal(DOMAIN, &error),
    }
}
