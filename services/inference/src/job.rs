//! Work for the engine, and what comes of it.

use std::sync::{Arc, atomic::AtomicBool};

use firn_llm::{
    generate::{Constraint, Sampling, Token},
    model::{Adapter, ModelError},
};
use tokio::sync::{mpsc, oneshot};

/// Tokens that an answer may be ahead of its reader; then it pauses.
pub(crate) const AHEAD: usize = 16;
/// Room of an answer's channel: besides its tokens, its beginning and a failure.
pub(crate) const EVENTS: usize = AHEAD + 2;

/// Work for the engine.
#[derive(Debug)]
pub(crate) enum Job {
    Generate(Box<Generation>),
    Score(Scoring),
    /// Makes the engine panic.
    #[cfg(test)]
    Panic,
}

impl Job {
    /// Nobody waits for it any more.
    pub(crate) fn is_abandoned(&self) -> bool {
        match self {
            Self::Generate(generation) => generation.events.is_closed(),
            Self::Score(scoring) => scoring.reply.is_closed(),
            #[cfg(test)]
            Self::Panic => false,
        }
    }
}

/// An answer to make.
#[derive(Debug)]
pub(crate) struct Generation {
    /// Prompt, not empty, checked against vocabulary and context.
    pub(crate) ids: Vec<u32>,
    pub(crate) adapter: Option<Arc<Adapter>>,
    pub(crate) sampling: Sampling,
    pub(crate) constraint: Option<Constraint>,
    /// Tell log-probabilities, those of so many most probable tokens included.
    pub(crate) logprobs: Option<usize>,
    pub(crate) max_tokens: usize,
    /// Ids that end the answer and are not part of it.
    pub(crate) ends: Vec<u32>,
    /// Set once its reader has all that it wants: who leaves then does not give up.
    pub(crate) satisfied: Arc<AtomicBool>,
    /// Where its tokens go; the engine keeps the last place free for a failure.
    pub(crate) events: mpsc::Sender<Event>,
}

/// A text to score.
#[derive(Debug)]
pub(crate) struct Scoring {
    /// Checked against vocabulary and context.
    pub(crate) ids: Vec<u32>,
    pub(crate) adapter: Option<Arc<Adapter>>,
    pub(crate) reply: oneshot::Sender<Result<Vec<f32>, ModelError>>,
}

/// What happens to an answer. `Last` and `Failed` come once, last; without one of them the engine is gone.
#[derive(Debug)]
pub(crate) enum Event {
    /// It has a place in the batch; so many tokens of its prompt were computed before.
    Begun {
        cached: usize,
    },
    Token(Token),
    Last(Option<Token>, End),
    Failed(Failure),
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Stop,
    Length,
}

/// Why an answer failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("the model failed: {0}")]
    Model(String),
    #[error("nobody read the answer for {seconds} seconds")]
    Stalled { seconds: u64 },
    #[error("the answer can't keep to its schema any further: {0}")]
    Constraint(String),
    #[error("the service is stopping")]
    Stopping,
}
