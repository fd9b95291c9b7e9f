//! All jobs, and the order in which they run.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use firn_kit::Clock;
use firn_proto::trainer::v1 as pb;
use firn_stage::{Stage, StageError};
use tokio::sync::Notify;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::Instrument as _;

use crate::{
    base,
    checkpoint::{self, Found, Purpose},
    config::MOST_WAITING,
    error::{CreateError, GetError},
    events::Events,
    job::Job,
    record::{JOBS, SpecRecord, State, read_steps},
    spec::Spec,
};

/// Knows all jobs. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct Jobs(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    stage: Stage,
    clock: Clock,
    /// By id, which begins with the time: so in the order they came.
    jobs: Mutex<BTreeMap<String, Arc<Job>>>,
    waiting: Mutex<VecDeque<Arc<Job>>>,
    arrived: Notify,
    /// Which job a request made. Held while a job is made, so that a retry at the same time makes no second one.
    requests: tokio::sync::Mutex<HashMap<String, String>>,
    /// Held while a job moves that no worker has, so that only one caller moves it.
    moving: tokio::sync::Mutex<()>,
    /// Writes outlive their callers: a lost connection must not leave half a job.
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Jobs {
    /// Reads what the stage holds and queues what is unfinished. A job that cannot be read is logged and left out.
    pub(crate) async fn load(stage: Stage, clock: Clock) -> Result<Self, StageError> {
        let (mut jobs, mut requests, mut waiting) = (BTreeMap::new(), HashMap::new(), VecDeque::new());
        for id in stage.list_dirs(JOBS).await? {
            let job = match Job::load(&stage, &clock, &id).await {
                Ok(job) => Arc::new(job),
                Err(error) if error.is_not_found() || error.is_damaged() => {
                    tracing::warn!(job = id, %error, "unreadable job left out");
                    continue;
                }
                Err(error) => return Err(error),
            };
            if !job.spec.request_id.is_empty() {
                requests.insert(job.spec.request_id.clone(), id.clone());
            }
            if !job.state().is_terminal() && job.state() != State::Paused {
                tracing::info!(job = id, state = job.state().name(), step = job.record().step, "job goes on");
                waiting.push_back(Arc::clone(&job));
            }
            jobs.insert(id, job);
        }
        tracing::info!(jobs = jobs.len(), unfinished = waiting.len(), "jobs found on the stage");
        Ok(Self(Arc::new(Inner {
            stage,
            clock,
            jobs: Mutex::new(jobs),
            waiting: Mutex::new(waiting),
            arrived: Notify::new(),
            requests: tokio::sync::Mutex::new(requests),
            moving: tokio::sync::Mutex::default(),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        })))
    }

    /// Queues a job, or finds the one that the request made before.
    pub(crate) async fn create(&self, spec: Spec, request_id: String) -> Result<pb::Job, CreateError> {
        let jobs = self.clone();
        let make = async move { jobs.create_now(spec, request_id).await };
        self.0.tasks.spawn(make.in_current_span()).await?
    }

    async fn create_now(&self, spec: Spec, request_id: String) -> Result<pb::Job, CreateError> {
        let inner = &self.0;
        let mut requests = inner.requests.lock().await;
        if let Some(job) = requests.get(&request_id).and_then(|id| self.jobs().get(id).cloned()) {
            if job.spec.spec != spec {
                return Err(CreateError::RequestReused { job: job.name() });
            }
            return Ok(job.to_proto());
        }
        if inner.stop.is_cancelled() {
            return Err(CreateError::Stopping);
        }
        let stage = inner.stage.clone();
        let spec = tokio::task::spawn_blocking(move || base::check(&stage, &spec).map(|()| spec)).await??;
        if self.waiting().len() >= MOST_WAITING {
            return Err(CreateError::Busy);
        }
        // A version 7 UUID begins with the time, and those of one process are in order.
        let id = format!("job-{}", uuid::Uuid::now_v7().simple());
        let (create_time, trace) = (inner.clock.now(), firn_kit::trace::context());
        let spec = SpecRecord { job: id.clone(), request_id: request_id.clone(), create_time, trace, spec };
        let job = Arc::new(Job::create(&inner.stage, &inner.clock, spec).await?);
        tracing::info!(job = id, "job queued");
        if !request_id.is_empty() {
            requests.insert(request_id, id.clone());
        }
        let message = job.to_proto();
        self.jobs().insert(id, Arc::clone(&job));
        self.waiting().push_back(job);
        inner.arrived.notify_one();
        Ok(message)
    }

    pub(crate) fn get(&self, name: &str) -> Result<Arc<Job>, GetError> {
        let parts = firn_kit::names::child(name, &[JOBS])?;
        let job = parts.first().and_then(|id| self.jobs().get(*id).cloned());
        job.ok_or_else(|| GetError::NotFound { name: name.to_owned() })
    }

    /// All jobs, oldest first.
    pub(crate) fn list(&self) -> Vec<pb::Job> {
        self.jobs().values().map(|job| job.to_proto()).collect()
    }

    /// What is told of a job.
    pub(crate) async fn events(&self, name: &str) -> Result<(Arc<SpecRecord>, Arc<Events>), GetError> {
        let job = self.get(name)?;
        Ok((Arc::clone(&job.spec), job.events(&self.0.stage).await?))
    }

    /// A job's checkpoints that are there now, by step.
    pub(crate) async fn checkpoints(&self, name: &str) -> Result<Vec<pb::Checkpoint>, GetError> {
        let (job, stage) = (self.get(name)?, &self.0.stage);
        let found = checkpoint::all(stage, job.id()).await?;
        let last = found.last().map_or(0, |found| found.step);
        let steps = read_steps(stage, job.id(), last).await?;
        let checkpoint = |Found { step, path, purpose }: Found| pb::Checkpoint {
            name: format!("{name}/checkpoints/{step}"),
            step,
            path,
            metrics: steps.iter().find(|metrics| metrics.step == step).map(|metrics| metrics.to_proto()),
            best: purpose == Purpose::Best,
        };
        Ok(found.into_iter().map(checkpoint).collect())
    }

    /// Ends a job: at once if it waits, else at its next step.
    pub(crate) async fn cancel(&self, name: &str) -> Result<pb::Job, GetError> {
        let (jobs, job) = (self.clone(), self.get(name)?);
        let cancel = async move { jobs.cancel_now(&job).await };
        self.0.tasks.spawn(cancel.in_current_span()).await?
    }

    async fn cancel_now(&self, job: &Arc<Job>) -> Result<pb::Job, GetError> {
        let Inner { stage, clock, .. } = &*self.0;
        let _one = self.0.moving.lock().await;
        if job.state().is_terminal() {
            return Err(GetError::Ended { name: job.name(), state: job.state().name() });
        }
        job.want_end(stage, clock).await?;
        if job.state() == State::Paused {
            // Nobody else has it.
            job.enter(stage, clock, State::Cancelled, |_| {}).await?;
            return Ok(job.to_proto());
        }
        let place = self.waiting().iter().position(|waiting| Arc::ptr_eq(waiting, job));
        let taken = place.and_then(|place| self.waiting().remove(place));
        if let Some(waiting) = taken {
            let ended = waiting.enter(stage, clock, State::Cancelled, |_| {}).await;
            if ended.is_err() {
                // The worker tries again.
                self.waiting().push_front(waiting);
                self.0.arrived.notify_one();
            }
            ended?;
        }
        Ok(job.to_proto())
    }

    /// Wants a running job to pause at its next step.
    pub(crate) fn pause(&self, name: &str) -> Result<pb::Job, GetError> {
        let job = self.get(name)?;
        match job.state() {
            State::Running | State::Paused => job.want_pause(true),
            state => return Err(GetError::NotRunning { name: job.name(), state: state.name() }),
        }
        Ok(job.to_proto())
    }

    /// Queues a paused job again.
    pub(crate) async fn resume(&self, name: &str) -> Result<pb::Job, GetError> {
        let (jobs, job) = (self.clone(), self.get(name)?);
        let resume = async move { jobs.resume_now(&job).await };
        self.0.tasks.spawn(resume.in_current_span()).await?
    }

    async fn resume_now(&self, job: &Arc<Job>) -> Result<pb::Job, GetError> {
        let _one = self.0.moving.lock().await;
        match job.state() {
            State::Paused => {
                job.want_pause(false);
                self.requeue(job).await?;
            }
            // Either the wish to pause is not heard, or the worker that heard it looks again, in `paused`.
            State::Running if job.is_to_pause() => job.want_pause(false),
            state => return Err(GetError::NotPaused { name: job.name(), state: state.name() }),
        }
        Ok(job.to_proto())
    }

    /// To be told of a job that has just entered PAUSED: one that was resumed while it did goes on.
    pub(crate) async fn paused(&self, job: &Arc<Job>) -> Result<(), StageError> {
        let _one = self.0.moving.lock().await;
        match job.state() {
            State::Paused if !job.is_to_pause() => self.requeue(job).await,
            _ => Ok(()),
        }
    }

    async fn requeue(&self, job: &Arc<Job>) -> Result<(), StageError> {
        job.enter(&self.0.stage, &self.0.clock, State::Queued, |_| {}).await?;
        self.waiting().push_back(Arc::clone(job));
        self.0.arrived.notify_one();
        Ok(())
    }

    /// Waits for the next job and takes it.
    pub(crate) async fn next(&self) -> Arc<Job> {
        loop {
            let job = self.waiting().pop_front();
            match job {
                Some(job) => return job,
                None => self.0.arrived.notified().await,
            }
        }
    }

    /// Cancelled when the service stops.
    pub(crate) fn stopped(&self) -> &CancellationToken {
        &self.0.stop
    }

    /// Waits for the writes whose callers went away.
    pub(crate) async fn finish_writes(&self) {
        self.0.tasks.close();
        self.0.tasks.wait().await;
    }

    fn jobs(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Job>>> {
        // Nothing is left half-changed under the locks, so a panic elsewhere does not spoil them.
        self.0.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn waiting(&self) -> MutexGuard<'_, VecDeque<Arc<Job>>> {
        self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
#[path = "queue_tests.rs"]
mod tests;
