//! What can go wrong, and the one place where it becomes a gRPC status.

use std::time::Duration;

use firn_kit::{BindError, ChannelError, NameError, PageError, status};
use firn_llm::{
    config::ConfigError, device::DeviceError, model::AdapterError, model::ModelError, tokenizer::TokenizerError,
};
use firn_stage::StageError;
use tonic::{Code, Status};

use crate::{
    artifact::ArtifactError, config::MOST_WAITING, dataset::DatasetError, evaluate::EvaluateError, hub::HubError,
    plan::PlanError, prepare::PrepareError, register::RegisterError, spec::FieldError, train::TrainError,
};

/// Domain of this service's error details.
const DOMAIN: &str = "trainer.firn.dev";
/// When a caller may come back.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// Why the service could not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The stage cannot be used, or what it holds cannot be read.
    #[error(transparent)]
    Stage(#[from] StageError),
    /// The address cannot be used.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The endpoint of a neighbour is none.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// The device cannot be used.
    #[error(transparent)]
    Device(#[from] DeviceError),
}

/// Why a job could not be queued.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CreateError {
    #[error(transparent)]
    Field(#[from] FieldError),
    #[error("request_id made {job} from another specification: use a new one")]
    RequestReused { job: String },
    #[error("{MOST_WAITING} jobs are waiting: ask again when one has ended")]
    Busy,
    #[error("the service is stopping")]
    Stopping,
    #[error(transparent)]
    Stage(#[from] StageError),
    #[error("a worker failed: {0}")]
    Worker(#[from] tokio::task::JoinError),
}

/// Why a job could not be shown, followed or stopped.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GetError {
    #[error(transparent)]
    Name(#[from] NameError),
    #[error("there is no job {name}")]
    NotFound { name: String },
    #[error("{name} has {state} already")]
    Ended { name: String, state: &'static str },
    #[error("{name} is {state}: only a running job can be paused")]
    NotRunning { name: String, state: &'static str },
    #[error("{name} is {state}: only a paused job can be resumed")]
    NotPaused { name: String, state: &'static str },
    #[error(transparent)]
    Stage(#[from] StageError),
    #[error("a worker failed: {0}")]
    Worker(#[from] tokio::task::JoinError),
}

/// Why a job ended before it succeeded.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WorkError {
    /// The service stops; the job goes on after a restart.
    #[error("the service is stopping")]
    Stopping,
    #[error("cancelled")]
    Cancelled,
    #[error("paused")]
    Paused,
    #[error(transparent)]
    Field(#[from] FieldError),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    #[error(transparent)]
    Stage(#[from] StageError),
    #[error(transparent)]
    Hub(#[from] HubError),
    #[error(transparent)]
    Prepare(#[from] PrepareError),
    #[error(transparent)]
    Dataset(#[from] DatasetError),
    #[error(transparent)]
    Plan(#[from] PlanError),
    #[error(transparent)]
    Evaluate(EvaluateError),
    #[error(transparent)]
    Train(#[from] TrainError),
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    #[error(transparent)]
    Register(#[from] RegisterError),
    #[error(
        "a block of {block} tokens needs about {needed} bytes and {free} are free: lower block_size or the rank, or quantise \
         the base"
    )]
    NoMemory { block: usize, needed: u64, free: u64 },
    #[error("the adapter {adapter} {}", if *reward { "gives no rewards: leave it out, or name one that does" } else {
        "gives rewards, not text: name another, or train a reward model"
    })]
    OtherAdapter { adapter: String, reward: bool },
    #[error("failed to use the local folder {folder}: {source}")]
    Scratch { folder: String, source: std::io::Error },
    #[error("the worker crashed: see the service's log")]
    Crash,
}

impl From<FieldError> for Status {
    fn from(error: FieldError) -> Self {
        status::invalid_argument(DOMAIN, error.field, error.reason)
    }
}

impl From<CreateError> for Status {
    fn from(error: CreateError) -> Self {
        let message = error.to_string();
        match error {
            CreateError::Field(error) => error.into(),
            CreateError::RequestReused { .. } => {
                status::status(Code::InvalidArgument, DOMAIN, "REQUEST_ID_REUSED", message)
            }
            CreateError::Busy => status::resource_exhausted(DOMAIN, "QUEUE_FULL", message, RETRY_AFTER),
            CreateError::Stopping => stopping(),
            CreateError::Stage(error) => stage_status(error),
            CreateError::Worker(_) => status::internal(DOMAIN, &error),
        }
    }
}

impl From<GetError> for Status {
    fn from(error: GetError) -> Self {
        match &error {
            GetError::Name(_) => status::invalid_argument(DOMAIN, "name", error.to_string()),
            GetError::NotFound { name } => status::not_found(DOMAIN, "job", name),
            GetError::Ended { .. } => status::failed_precondition(DOMAIN, "JOB_ENDED", error.to_string()),
            GetError::NotRunning { .. } => status::failed_precondition(DOMAIN, "JOB_NOT_RUNNING", error.to_string()),
            GetError::NotPaused { .. } => status::failed_precondition(DOMAIN, "JOB_NOT_PAUSED", error.to_string()),
            GetError::Worker(_) => status::internal(DOMAIN, &error),
            GetError::Stage(_) => match error {
                GetError::Stage(error) => stage_status(error),
                error => status::internal(DOMAIN, &error),
            },
        }
    }
}

impl From<WorkError> for Status {
    fn from(error: WorkError) -> Self {
        match error {
            WorkError::Field(error) => error.into(),
            WorkError::Stopping => stopping(),
            WorkError::Stage(error) => stage_status(error),
            WorkError::Crash => status::internal(DOMAIN, &error),
            error => status::failed_precondition(DOMAIN, "JOB_CANNOT_RUN", error.to_string()),
        }
    }
}

/// Turns a wrong page into a status.
pub(crate) fn page_status(error: PageError) -> Status {
    status::invalid_argument(DOMAIN, error.field(), error.to_string())
}

/// What a caller gets while the service stops.
pub(crate) fn stopping() -> Status {
    status::unavailable(DOMAIN, "STOPPING", "the trainer is stopping: the job goes on after its restart", RETRY_AFTER)
}

/// The events ended without a last one.
pub(crate) fn failed_watch() -> Status {
    status::unavailable(DOMAIN, "WATCH_ENDED", "the job's events ended early: watch again", RETRY_AFTER)
}

fn stage_status(error: StageError) -> Status {
    let message = error.to_string();
    match error {
        StageError::NoSpace { .. } => status::status(Code::ResourceExhausted, DOMAIN, "STAGE_FULL", message),
        StageError::NoRight { .. } => status::failed_precondition(DOMAIN, "STAGE_NO_RIGHT", message),
        StageError::Damaged { .. } | StageError::NotFound { .. } => {
            status::status(Code::DataLoss, DOMAIN, "STAGE_DAMAGED", message)
        }
        error => status::internal(DOMAIN, &error),
    }
}
