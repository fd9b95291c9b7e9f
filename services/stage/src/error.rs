//! What can go wrong on the stage, as sentences that name the file.

use std::{error::Error as StdError, io, path::PathBuf};

/// An operation on the stage failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StageError {
    /// The stage's folder cannot be used.
    #[error("cannot use stage {root}: {reason}")]
    Root {
        /// As given.
        root: String,
        /// Why, and the way out.
        reason: String,
    },
    /// No such file.
    #[error("{path} is not on the stage")]
    NotFound {
        /// Relative to the stage's root.
        path: String,
    },
    /// The path is taken. Files are written once.
    #[error("{path} is already on the stage, and files are written once")]
    AlreadyExists {
        /// Relative to the stage's root.
        path: String,
    },
    /// A path that cannot be on a stage.
    #[error("{path:?} is no path on a stage: {reason}")]
    InvalidPath {
        /// As given.
        path: String,
        /// Why.
        reason: String,
    },
    /// The store is full.
    #[error("stage {stage} has no space left for {path}; free some and start again")]
    NoSpace {
        /// The stage's root.
        stage: String,
        /// Relative to the stage's root.
        path: String,
    },
    /// The store refused.
    #[error("no right to {action} {path}; give this process that right on the stage")]
    NoRight {
        /// What was tried: `read`, `write`, `list`, `delete`.
        action: &'static str,
        /// With the stage's root.
        path: String,
    },
    /// A file does not hold what its manifest says, or cannot be parsed.
    #[error("{path} is damaged: {reason}")]
    Damaged {
        /// Relative to the stage's root.
        path: String,
        /// What was expected and what was found.
        reason: String,
    },
    /// The file is too large to be read at once.
    #[error("{path} has {size} bytes, more than {limit}")]
    TooLarge {
        /// Relative to the stage's root.
        path: String,
        /// Bytes.
        size: u64,
        /// Bytes.
        limit: u64,
    },
    /// The offset lies past the end of the file.
    #[error("offset {offset} is past the end of {path}, which has {size} bytes")]
    OutOfRange {
        /// Relative to the stage's root.
        path: String,
        /// Bytes.
        offset: u64,
        /// Bytes.
        size: u64,
    },
    /// A value has no JSON form.
    #[error("failed to encode {path}: {source}")]
    Encode {
        /// Relative to the stage's root.
        path: String,
        /// Why.
        source: serde_json::Error,
    },
    /// A file on the local disk, outside the stage, failed.
    #[error("failed to {action} local file {}: {source}", path.display())]
    Local {
        /// What was tried: `read`, `write`.
        action: &'static str,
        /// Local path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Anything else that the store says.
    #[error("failed to {action} {path}: {source}")]
    Failed {
        /// What was tried: `read`, `write`, `list`, `delete`.
        action: &'static str,
        /// With the stage's root.
        path: String,
        /// Why.
        source: object_store::Error,
    },
}

impl StageError {
    /// Is the file missing?
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }

    /// Does a file hold something else than it must? Then a retry does not help.
    #[must_use]
    pub fn is_damaged(&self) -> bool {
        matches!(self, Self::Damaged { .. })
    }

    /// Turns what a store says into a sentence.
    pub(crate) fn from_store(stage: &str, action: &'static str, path: &str, error: object_store::Error) -> Self {
        let full = || format!("{stage}/{path}");
        match error {
            object_store::Error::NotFound { .. } => return Self::NotFound { path: path.to_owned() },
            object_store::Error::AlreadyExists { .. } => return Self::AlreadyExists { path: path.to_owned() },
            object_store::Error::PermissionDenied { .. } | object_store::Error::Unauthenticated { .. } => {
                return Self::NoRight { action, path: full() };
            }
            _ => {}
        }
        match io_kind(&error) {
            Some(io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) => {
                Self::NoSpace { stage: stage.to_owned(), path: path.to_owned() }
            }
            Some(io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem) => {
                Self::NoRight { action, path: full() }
            }
            _ => Self::Failed { action, path: full(), source: error },
        }
    }

    pub(crate) fn local(action: &'static str, path: &std::path::Path, source: io::Error) -> Self {
        Self::Local { action, path: path.to_owned(), source }
    }
}

/// The first `io::Error` in the chain of causes.
fn io_kind(error: &(dyn StdError + 'static)) -> Option<io::ErrorKind> {
    std::iter::successors(Some(error), |error: &&(dyn StdError + 'static)| (**error).source())
        .find_map(|error| error.downcast_ref::<io::Error>())
        .map(io::Error::kind)
}
