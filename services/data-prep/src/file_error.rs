//! What a call about files and collections can fail with, and the one place where that becomes a gRPC status.

use std::time::Duration;

use firn_kit::{NameError, status};
use firn_stage::StageError;
use tonic::{Code, Status};

use crate::error::DOMAIN;

/// When a caller may come back.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// Why a file could not be stored.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum UploadError {
    #[error("{field}: {reason}")]
    Field { field: &'static str, reason: String },
    #[error("the file has more than {limit} bytes: split it, or raise --max-file-bytes")]
    TooLarge { limit: u64 },
    #[error("no chunk came for {seconds} seconds")]
    Late { seconds: u64 },
    #[error("the upload was cut: {0}")]
    Cut(Box<Status>),
    #[error("{limit} files are being stored: try again when one is there")]
    Busy { limit: usize },
    #[error("there are {limit} files: delete some")]
    Full { limit: usize },
    #[error(transparent)]
    Stage(#[from] StageError),
    #[error("a worker failed: {0}")]
    Worker(#[from] tokio::task::JoinError),
}

/// Why a file could not be shown, read or deleted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum FileError {
    #[error(transparent)]
    Name(#[from] NameError),
    #[error("there is no file {name}")]
    NotFound { name: String },
    #[error(transparent)]
    Stage(#[from] StageError),
    #[error("a worker failed: {0}")]
    Worker(#[from] tokio::task::JoinError),
}

/// Why rows could not be added to a collection.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum AppendError {
    #[error(transparent)]
    Name(#[from] NameError),
    #[error("{reason}")]
    Rows { reason: String },
    #[error("row {row} is not a JSON object: {reason}")]
    Row { row: usize, reason: String },
    #[error("{collection} has taken rows {limit} times: begin another collection")]
    CollectionFull { collection: String, limit: u64 },
    #[error("there are {limit} collections: add to one of them")]
    Full { limit: usize },
    #[error(transparent)]
    Stage(#[from] StageError),
    #[error("a worker failed: {0}")]
    Worker(#[from] tokio::task::JoinError),
}

impl From<UploadError> for Status {
    fn from(error: UploadError) -> Self {
        let message = error.to_string();
        match error {
            UploadError::Field { field, reason } => status::invalid_argument(DOMAIN, field, reason),
            UploadError::TooLarge { .. } => status::invalid_argument(DOMAIN, "data", message),
            UploadError::Late { .. } => status::status(Code::DeadlineExceeded, DOMAIN, "UPLOAD_TOO_SLOW", message),
            // Whoever cut it hears this no more.
            UploadError::Cut(_) => status::status(Code::Cancelled, DOMAIN, "UPLOAD_CUT", message),
            UploadError::Busy { .. } => status::resource_exhausted(DOMAIN, "TOO_MANY_UPLOADS", message, RETRY_AFTER),
            UploadError::Full { .. } => full("TOO_MANY_FILES", message),
            UploadError::Stage(error) => stage_status(error),
            UploadError::Worker(_) => status::internal(DOMAIN, &error),
        }
    }
}

impl From<FileError> for Status {
    fn from(error: FileError) -> Self {
        match error {
            FileError::Name(error) => status::invalid_argument(DOMAIN, "name", error.to_string()),
            FileError::NotFound { name } => status::not_found(DOMAIN, "file", &name),
            FileError::Stage(error) => stage_status(error),
            FileError::Worker(_) => status::internal(DOMAIN, &error),
        }
    }
}

impl From<AppendError> for Status {
    fn from(error: AppendError) -> Self {
        let message = error.to_string();
        match error {
            AppendError::Name(_) => status::invalid_argument(DOMAIN, "collection", message),
            AppendError::Rows { .. } | AppendError::Row { .. } => status::invalid_argument(DOMAIN, "rows", message),
            AppendError::CollectionFull { .. } => full("COLLECTION_FULL", message),
            AppendError::Full { .. } => full("TOO_MANY_COLLECTIONS", message),
            AppendError::Stage(error) => stage_status(error),
            AppendError::Worker(_) => status::internal(DOMAIN, &error),
        }
    }
}

/// A limit that waiting does not lift.
fn full(reason: &str, message: String) -> Status {
    status::status(Code::ResourceExhausted, DOMAIN, reason, message)
}

fn stage_status(error: StageError) -> Status {
    match error {
        StageError::NoSpace { .. } => full("STAGE_FULL", error.to_string()),
        StageError::NoRight { .. } => status::failed_precondition(DOMAIN, "STAGE_NO_RIGHT", error.to_string()),
        error => status::internal(DOMAIN, &error),
    }
}
