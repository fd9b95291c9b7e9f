//! What can fail, and the one place where that becomes a gRPC status.

use std::{sync::Arc, time::Duration};

use firn_kit::{BindError, ChannelError, ServeError, status};
use firn_llm::{device::DeviceError, model::ModelError, tokenizer::TokenizerError};
use firn_stage::StageError;
use tonic::{Code, Status};

use crate::{
    base::BaseError,
    engine::{EngineError, SubmitError},
    job::Failure,
    loader::LoadError,
    models::UnknownModel,
    request::FieldError,
};

/// Domain of this service's error details.
const DOMAIN: &str = "inference.firn.dev";
/// When a caller may come back.
const RETRY_AFTER: Duration = Duration::from_secs(2);

/// Why the service could not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The stage cannot be used.
    #[error(transparent)]
    Stage(#[from] StageError),
    /// The base cannot be served.
    #[error(transparent)]
    Base(#[from] BaseError),
    /// The device cannot be used.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The registry's address is none.
    #[error("--registry-endpoint: {0}")]
    Registry(#[from] ChannelError),
    /// The address cannot be used.
    #[error(transparent)]
    Bind(#[from] BindError),
}

/// Why the service ended before it was told to.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// The server failed.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// The engine could not load the base, or broke.
    #[error(transparent)]
    Engine(#[from] Arc<EngineError>),
}

/// Why a request was not answered, or not to its end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum AnswerError {
    #[error(transparent)]
    Field(#[from] FieldError),
    #[error(transparent)]
    Model(#[from] UnknownModel),
    #[error(transparent)]
    Submit(#[from] SubmitError),
    #[error(transparent)]
    Failed(#[from] Failure),
    #[error("the engine ended before the answer did")]
    EngineGone,
    #[error("failed to score: {0}")]
    Score(#[source] ModelError),
    #[error("failed to turn tokens into text: {0}")]
    Text(#[source] TokenizerError),
    #[error("a worker failed: {0}")]
    Worker(#[from] tokio::task::JoinError),
}

impl From<AnswerError> for Status {
    fn from(error: AnswerError) -> Self {
        let message = error.to_string();
        match &error {
            AnswerError::Field(FieldError { field, reason, is_too_long: true }) => {
                status::invalid_argument_because(DOMAIN, "CONTEXT_TOO_LONG", field, reason.as_str())
            }
            AnswerError::Field(wrong) => status::invalid_argument(DOMAIN, wrong.field, wrong.reason.as_str()),
            AnswerError::Model(_) => status::status(Code::NotFound, DOMAIN, "MODEL_NOT_FOUND", message),
            AnswerError::Submit(SubmitError::Full { .. }) => {
                status::resource_exhausted(DOMAIN, "QUEUE_FULL", message, RETRY_AFTER)
            }
            AnswerError::Submit(SubmitError::Loading) => status::unavailable(DOMAIN, "LOADING", message, RETRY_AFTER),
            AnswerError::Submit(SubmitError::Stopping) | AnswerError::Failed(Failure::Stopping) => {
                status::unavailable(DOMAIN, "STOPPING", message, RETRY_AFTER)
            }
            AnswerError::Failed(Failure::Constraint(_)) => {
                status::status(Code::FailedPrecondition, DOMAIN, "SCHEMA_TOO_HARD", message)
            }
            AnswerError::Failed(Failure::Stalled { .. }) => status::status(Code::Aborted, DOMAIN, "NOT_READ", message),
            AnswerError::Submit(SubmitError::Dead)
            | AnswerError::Failed(Failure::Model(_))
            | AnswerError::EngineGone
            | AnswerError::Score(_)
            | AnswerError::Text(_)
            | AnswerError::Worker(_) => status::internal(DOMAIN, &error),
        }
    }
}

/// Why a model was not loaded or unloaded.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AdapterCallError {
    #[error(transparent)]
    Load(LoadError),
    #[error("`{id}` was not loaded by a call: what an alias names goes when the alias does")]
    NotLoaded { id: String },
}

impl From<AdapterCallError> for Status {
    fn from(error: AdapterCallError) -> Self {
        let message = error.to_string();
        match error {
            AdapterCallError::NotLoaded { .. } => status::status(Code::NotFound, DOMAIN, "NOT_LOADED", message),
            AdapterCallError::Load(LoadError::Id { .. }) => status::invalid_argument(DOMAIN, "id", message),
            AdapterCallError::Load(LoadError::Checkpoint { .. }) => {
                status::status(Code::NotFound, DOMAIN, "CHECKPOINT_NOT_FOUND", message)
            }
            AdapterCallError::Load(LoadError::Registry(status)) if status.code() == Code::NotFound => {
                status::status(Code::NotFound, DOMAIN, "VERSION_NOT_FOUND", message)
            }
            AdapterCallError::Load(LoadError::TooMany { .. }) => {
                status::resource_exhausted(DOMAIN, "TOO_MANY_ADAPTERS", message, RETRY_AFTER)
            }
            AdapterCallError::Load(error) if error.is_transient() => {
                status::unavailable(DOMAIN, "NOT_FETCHED", message, RETRY_AFTER)
            }
            AdapterCallError::Load(_) => status::status(Code::FailedPrecondition, DOMAIN, "NOT_SERVABLE", message),
        }
    }
}
