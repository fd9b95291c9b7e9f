//! A job in memory: its specification, where it is, and its events.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicBool, Ordering},
};

use firn_kit::Clock;
use firn_proto::trainer::v1 as pb;
use firn_stage::{Stage, StageError};
use tokio_util::sync::CancellationToken;

use crate::{
    checkpoint,
    events::{self, Events, Kept},
    record::{SpecRecord, State, StateRecord, Step, job_path},
};

/// One job. Only one task at a time moves it: the worker that has it, or a cancellation that took it from the queue.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) spec: Arc<SpecRecord>,
    /// Cancelled when a caller wants the job to end.
    pub(crate) cancel: CancellationToken,
    /// A caller wants the running job to pause.
    pause: AtomicBool,
    record: Mutex<StateRecord>,
    /// `None` for a job that had ended before the service started: its events are on the stage.
    events: Option<Arc<Events>>,
}

impl Job {
    /// Writes a new job to the stage.
    pub(crate) async fn create(stage: &Stage, clock: &Clock, spec: SpecRecord) -> Result<Self, StageError> {
        let path = job_path(&spec.job, "spec.json");
        put_json(stage, &path, &spec).await?;
        Self::queue(stage, clock, spec).await
    }

    async fn queue(stage: &Stage, clock: &Clock, spec: SpecRecord) -> Result<Self, StageError> {
        let record = StateRecord::queued(clock.now());
        stage.log(&job_path(&spec.job, "state")).await?.append(&record).await?;
        let events = Events::new(vec![Kept::State(Box::new(record.clone()))]);
        Ok(Self::new(spec, record, Some(events)))
    }

    fn new(spec: SpecRecord, record: StateRecord, events: Option<Events>) -> Self {
        let cancel = CancellationToken::new();
        let (pause, record) = (AtomicBool::new(false), Mutex::new(record));
        Self { spec: Arc::new(spec), cancel, pause, record, events: events.map(Arc::new) }
    }

    /// Reads a job from the stage.
    pub(crate) async fn load(stage: &Stage, clock: &Clock, id: &str) -> Result<Self, StageError> {
        let spec: SpecRecord = stage.get_json(&job_path(id, "spec.json")).await?;
        let log = stage.log(&job_path(id, "state")).await?;
        let Some(mut record) = log.last::<StateRecord>().await? else {
            // Accepted, but the service ended before the first state was written.
            return Self::queue(stage, clock, spec).await;
        };
        if record.state.is_terminal() {
            return Ok(Self::new(spec, record, None));
        }
        let last = if record.state == State::Running { checkpoint::last_step(stage, id).await? } else { record.step };
        let events = Events::new(events::load(stage, id, last).await?);
        if let Some(step) = events.steps().last() {
            note(&mut record, step);
        }
        let job = Self::new(spec, record, Some(events));
        if stage.exists(&job_path(id, "cancel.json")).await? {
            job.cancel.cancel();
        }
        Ok(job)
    }

    pub(crate) fn id(&self) -> &str {
        &self.spec.job
    }

    /// `jobs/{job}`.
    pub(crate) fn name(&self) -> String {
        job_path(self.id(), "")
    }

    /// A path in the job's folder.
    pub(crate) fn path(&self, rest: &str) -> String {
        job_path(self.id(), rest)
    }

    pub(crate) fn record(&self) -> StateRecord {
        self.lock().clone()
    }

    pub(crate) fn state(&self) -> State {
        self.lock().state
    }

    pub(crate) fn to_proto(&self) -> pb::Job {
        self.lock().to_proto(&self.spec)
    }

    /// Metrics of all steps so far.
    pub(crate) fn steps(&self) -> Vec<Step> {
        self.events.as_ref().map(|events| events.steps()).unwrap_or_default()
    }

    /// Enters a state: first on the stage, then for those who watch.
    pub(crate) async fn enter(
        &self,
        stage: &Stage,
        clock: &Clock,
        state: State,
        change: impl FnOnce(&mut StateRecord),
    ) -> Result<(), StageError> {
        let mut next = self.record();
        (next.sequence, next.state, next.time) = (next.sequence + 1, state, clock.now());
        change(&mut next);
        stage.log(&self.path("state")).await?.append(&next).await?;
        tracing::info!(job = self.id(), state = state.name(), "job entered a state");
        self.show(next);
        Ok(())
    }

    /// Shows a state that the stage did not take.
    pub(crate) fn show(&self, record: StateRecord) {
        *self.lock() = record.clone();
        if let Some(events) = &self.events {
            events.push(Kept::State(Box::new(record)));
        }
    }

    /// Notes a finished step. One that is known already, because the service was killed after it, is not told again.
    pub(crate) fn step(&self, step: Step) {
        let mut record = self.lock();
        if step.step > record.step {
            note(&mut record, &step);
            drop(record);
            if let Some(events) = &self.events {
                events.push(Kept::Step(step));
            }
        }
    }

    /// Tells those who watch now how far the work inside a state is.
    pub(crate) fn progress(&self, what: &str, done: u64, total: u64) {
        if let Some(events) = &self.events {
            events.progress(what, done, total);
        }
    }

    /// The job's events, from the stage if they are not here.
    pub(crate) async fn events(&self, stage: &Stage) -> Result<Arc<Events>, StageError> {
        if let Some(events) = &self.events {
            return Ok(Arc::clone(events));
        }
        let last = self.lock().step;
        Ok(Arc::new(Events::new(events::load(stage, self.id(), last).await?)))
    }

    /// Wants the job to end, also after a restart.
    pub(crate) async fn want_end(&self, stage: &Stage, clock: &Clock) -> Result<(), StageError> {
        match put_json(stage, &self.path("cancel.json"), &serde_json::json!({ "time": clock.now() })).await {
            Ok(()) | Err(StageError::AlreadyExists { .. }) => {}
            Err(error) => return Err(error),
        }
        self.cancel.cancel();
        Ok(())
    }

    /// Wants the running job to pause, or no longer.
    pub(crate) fn want_pause(&self, wanted: bool) {
        self.pause.store(wanted, Ordering::Relaxed);
    }

    pub(crate) fn is_to_pause(&self) -> bool {
        self.pause.load(Ordering::Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, StateRecord> {
        // Nothing is left half-changed under the lock, so a panic elsewhere does not spoil it.
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn note(record: &mut StateRecord, step: &Step) {
    record.step = step.step;
    record.steps = step.steps;
    record.train_tokens = step.train_tokens;
    record.train_seconds = step.train_seconds;
}

async fn put_json<T: serde::Serialize>(stage: &Stage, path: &str, value: &T) -> Result<(), StageError> {
    let encoded = serde_json::to_vec_pretty(value);
    let mut text = encoded.map_err(|source| StageError::Encode { path: path.to_owned(), source })?;
    text.push(b'\n');
    stage.put(path, text.into()).await
}

#[cfg(test)]
#[path = "job_tests.rs"]
mod tests;
