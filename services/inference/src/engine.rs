//! The thread that owns the model, and the queue in front of it.

use std::{
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    thread::JoinHandle,
};

use firn_llm::{
    cache::KvCache,
    model::{Decoder, ModelError},
};
use firn_proto::inference::v1::Stats;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::{
    batch::{Batch, Limits},
    counters::Counters,
    job::Job,
    waiting::{Place, Places, Queued, Waiting},
};

/// Stack of the engine's thread in bytes.
const STACK: usize = 8 << 20;

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
    /// Bounded by the places.
    jobs: mpsc::UnboundedSender<Queued>,
    places: Places,
    counters: Arc<Counters>,
    limits: Limits,
    state: watch::Receiver<State>,
}

impl Engine {
    /// Takes a place in the queue, if the engine works and there is one.
    pub(crate) fn place(&self) -> Result<Place, SubmitError> {
        match &*self.state.borrow() {
            State::Loading => return Err(SubmitError::Loading),
            State::Ready => {}
            State::Ended(None) => return Err(SubmitError::Stopping),
            State::Ended(Some(_)) => return Err(SubmitError::Dead),
        }
        self.places.take().ok_or(SubmitError::Full { limit: self.places.limit() })
    }

    /// Queues a tenant's job at a place.
    pub(crate) fn submit(&self, place: Place, tenant: String, job: Job) -> Result<(), SubmitError> {
        // The thread is just ending.
        self.jobs.send(Queued { tenant, job, place }).map_err(|_| SubmitError::Dead)
    }

    /// It answers.
    pub(crate) fn is_ready(&self) -> bool {
        matches!(&*self.state.borrow(), State::Ready)
    }

    /// Its numbers now.
    pub(crate) fn stats(&self) -> Stats {
        let counted = self.counters.stats();
        Stats {
            waiting: counted.waiting + self.places.taken() as u64,
            max_waiting: self.places.limit() as u64,
            max_running: self.limits.sequences as u64,
            ..counted
        }
    }

    /// Follows what the engine is doing.
    pub(crate) fn state(&self) -> watch::Receiver<State> {
        self.state.clone()
    }
}

/// An engine whose thread has not begun.
#[derive(Debug)]
pub(crate) struct Worker {
    jobs: mpsc::UnboundedReceiver<Queued>,
    counters: Arc<Counters>,
    limits: Limits,
    state: watch::Sender<State>,
}

/// Makes an engine with a queue of `max_queue` jobs.
pub(crate) fn engine(max_queue: usize, limits: Limits) -> (Engine, Worker) {
    let (sender, jobs) = mpsc::unbounded_channel();
    let (state, states) = watch::channel(State::Loading);
    let (places, counters) = (Places::new(max_queue), Arc::<Counters>::default());
    let worker = Worker { jobs, counters: Arc::clone(&counters), limits, state };
    (Engine { jobs: sender, places, counters, limits, state: states }, worker)
}

impl Worker {
    /// Starts the thread: it loads the model and takes a cache for it, then works until `stop`.
    ///
    /// # Errors
    /// The system gives no thread.
    pub(crate) fn start(
        self,
        load: impl FnOnce() -> Result<(Decoder, KvCache), ModelError> + Send + 'static,
        stop: CancellationToken,
    ) -> std::io::Result<JoinHandle<()>> {
        let Self { jobs, counters, limits, state } = self;
        let work = move || {
            let outcome = catch_unwind(AssertUnwindSafe(|| -> Result<(), EngineError> {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
                let started = std::time::Instant::now();
                let (model, cache) = load()?;
                tracing::info!(seconds = started.elapsed().as_secs_f64(), "base is loaded");
                counters.now(0, 0, cache.usage());
                state.send_replace(State::Ready);
                let (waiting, open) = (Waiting::default(), Vec::new());
                Batch { model, cache, jobs, limits, counters, stop, waiting, open, scoring: VecDeque::new(), born: 0 }
                    .run(&runtime);
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
