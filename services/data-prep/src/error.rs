//! What a call can fail with, and the one place where that becomes a gRPC status.

use std::time::Duration;

use firn_kit::{BindError, NameError, PageError, status};
use firn_stage::StageError;
use tonic::Status;

use crate::plan::PlanError;

/// Domain of this service's error details.
pub(crate) const DOMAIN: &str = "data-prep.firn.dev";

/// Why the service could not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The stage cannot be used.
    #[error(transparent)]
    Stage(#[from] StageError),
    /// The address cannot be used.
    #[error(transparent)]
    Bind(#[from] BindError),
}

/// Why a snapshot could not be asked for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum CreateError {
    #[error("{field}: {reason}")]
    Field { field: &'static str, reason: String },
    #[error(transparent)]
    Plan(#[from] PlanError),
    #[error("{limit} snapshots are being prepared: ask again when one is ready")]
    Busy { limit: usize },
    #[error("the service is stopping")]
    Stopping,
    #[error("a worker failed: {0}")]
    Worker(#[from] tokio::task::JoinError),
}

/// Why a snapshot could not be shown.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum GetError {
    #[error(transparent)]
    Name(#[from] NameError),
    #[error("there is no snapshot {name}")]
    NotFound { name: String },
    #[error("{name} is not ready")]
    NotReady { name: String },
    #[error("{path} has more than {limit} bytes: read it on the stage")]
    LongReport { path: String, limit: u64 },
    #[error(transparent)]
    Stage(#[from] StageError),
}

impl From<CreateError> for Status {
    fn from(error: CreateError) -> Self {
        match &error {
            CreateError::Field { field, reason } => status::invalid_argument(DOMAIN, field, reason),
            CreateError::Plan(plan) => status::invalid_argument(DOMAIN, plan.field(), plan.to_string()),
            CreateError::Busy { .. } => {
                status::resource_exhausted(DOMAIN, "QUEUE_FULL", error.to_string(), Duration::from_secs(5))
            }
            CreateError::Stopping => status::unavailable(DOMAIN, "STOPPING", error.to_string(), Duration::from_secs(5)),
            CreateError::Worker(_) => status::internal(DOMAIN, &error),
        }
    }
}

impl From<GetError> for Status {
    fn from(error: GetError) -> Self {
        match &error {
            GetError::Name(_) => status::invalid_argument(DOMAIN, "name", error.to_string()),
            GetError::NotFound { name } => status::not_found(DOMAIN, "snapshot", name),
            GetError::NotReady { .. } => status::failed_precondition(DOMAIN, "SNAPSHOT_NOT_READY", error.to_string()),
            GetError::LongReport { .. } => status::failed_precondition(DOMAIN, "REPORT_TOO_LONG", error.to_string()),
            GetError::Stage(_) => status::internal(DOMAIN, &error),
        }
    }
}

/// Turns a wrong page into a status.
pub(crate) fn page_status(error: PageError) -> Status {
    status::invalid_argument(DOMAIN, error.field(), error.to_string())
}

/// What a watcher gets when the service stops before the snapshot is done.
pub(crate) fn stopping() -> Status {
    CreateError::Stopping.into()
}
