//! The thread that owns the model, and the queue in front of it.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    thread::JoinHandle,
};

use firn_llm::{
    generate::{Sampling, Token},
    model::{Adapter, Decoder, ModelError},
};
use tokio::sync::{
    mpsc::{self, error::TrySendError},
    oneshot, watch,
};
use tokio_util::sync::CancellationToken;

use crate::batch::Batch;

/// Tokens that an answer may be ahead of its reader; then it pauses.
pub(crate) const AHEAD: usize = 16;
/// Stack of the engine's thread in bytes.
const STACK: usize = 8 << 20;

/// Work for the engine.
#[derive(Debug)]
pub(crate) enum Job {
    Generate(Generation),
    Score(Scoring),
    /// Makes the engine panic.
    #[cfg(test)]
    Panic,
}

/// An answer to make.
#[derive(Debug)]
pub(crate) struct Generation {
    /// Prompt, not empty, checked against vocabulary and context.
    pub(crate) ids: Vec<u32>,
    pub(crate) adapter: Option<Arc<Adapter>>,
    pub(crate) sampling: Sampling,
    pub(crate) logprobs: bool,
    pub(crate) max_tokens: usize,
    /// Ids that end the answer and are not part of it.
    pub(crate) ends: Vec<u32>,
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
    #[error("the service is stopping")]
    Stopping,
}

/// Why the engine did not take a job.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SubmitError {
    #[error("the base is being loaded")]
    Loading,
    #[error("{limit} requests are waiting already: ask again later")]
    Full { limit: usize },
    #[error("the service is stopping")]
    Stopping,
    #[error("the engine failed")]
    Dead,
}

/// Why the engine ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// The base can't be loaded.
    #[error("failed to load the base: {0}")]
    Load(#[from] ModelError),
    /// The thread or its timer can't be had.
    #[error("failed to start the engine: {0}")]
    Thread(#[from] std::io::Error),
    /// A defect.
    #[error("the engine panicked: {0}")]
    Panicked(String),
}

/// What the engine is doing.
#[derive(Clone, Debug)]
pub(crate) enum State {
    Loading,
    Ready,
    Ended(Option<Arc<EngineError>>),
}

/// The way to the engine. Clones share its queue.
#[derive(Clone, Debug)]
pub(crate) struct Engine {
    jobs: mpsc::Sender<Job>,
    state: watch::Receiver<State>,
}

impl Engine {
    /// Queues a job.
    pub(crate) fn submit(&self, job: Job) -> Result<(), SubmitError> {
        match &*self.state.borrow() {
            State::Loading => return Err(SubmitError::Loading),
            State::Ready => {}
            State::Ended(None) => return Err(SubmitError::Stopping),
            State::Ended(Some(_)) => return Err(SubmitError::Dead),
        }
        self.jobs.try_send(job).map_err(|error| match error {
            TrySendError::Full(_) => SubmitError::Full { limit: self.jobs.max_capacity() },
            // The thread is just ending.
            TrySendError::Closed(_) => SubmitError::Dead,
        })
    }

    /// Follows what the engine is doing.
    pub(crate) fn state(&self) -> watch::Receiver<State> {
        self.state.clone()
    }
}

/// An engine whose thread has not begun.
#[derive(Debug)]
pub(crate) struct Worker {
    jobs: mpsc::Receiver<Job>,
    state: watch::Sender<State>,
    max_sequences: usize,
}

/// Makes an engine with a queue of `max_queue` jobs and a batch of `max_sequences` answers.
pub(crate) fn engine(max_queue: usize, max_sequences: usize) -> (Engine, Worker) {
    let (sender, jobs) = mpsc::channel(max_queue);
    let (state, states) = watch::channel(State::Loading);
    (Engine { jobs: sender, state: states }, Worker { jobs, state, max_sequences })
}

impl Worker {
    /// Starts the thread: it loads the model, then works until `stop`.
    ///
    /// # Errors
    /// The system gives no thread.
    pub(crate) fn start(
        self,
        load: impl FnOnce() -> Result<Decoder, ModelError> + Send + 'static,
        stop: CancellationToken,
    ) -> std::io::Result<JoinHandle<()>> {
        let Self { jobs, state, max_sequences } = self;
        let work = move || {
            let outcome = catch_unwind(AssertUnwindSafe(|| -> Result<(), EngineError> {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
                let started = std::time::Instant::now();
                let model = load()?;
                tracing::info!(seconds = started.elapsed().as_secs_f64(), "base is loaded");
                state.send_replace(State::Ready);
                Batch::new(model, jobs, max_sequences, stop).run(&runtime);
                Ok(())
            }));
            let error = match outcome {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(error),
                Err(panic) => {
                    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
                    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
                    Some(EngineError::Panicked(text.unwrap_or_else(|| "no message".to_owned())))
                }
            };
            state.send_replace(State::Ended(error.map(Arc::new)));
        };
        std::thread::Builder::new().name("firn-engine".to_owned()).stack_size(STACK).spawn(work)
    }
}
