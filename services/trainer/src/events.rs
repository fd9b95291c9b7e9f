//! A job's events: kept ones with a number, and progress, of which only the last counts.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use firn_proto::trainer::v1::{self as pb, job_event};
use firn_stage::{Stage, StageError};
use futures_util::{Stream, stream};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::{
    error::{failed_watch, stopping},
    record::{SpecRecord, StateRecord, Step, job_path, read_steps},
};

/// An event with a number: its place in the log, from 1.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Kept {
    State(Box<StateRecord>),
    Step(Step),
}

impl Kept {
    fn is_last(&self) -> bool {
        matches!(self, Self::State(record) if record.state.is_terminal())
    }

    fn to_proto(&self, spec: &SpecRecord, cursor: u64) -> pb::JobEvent {
        let (event, time) = match self {
            Self::State(record) => (job_event::Event::State(record.to_proto(spec)), Some(record.time)),
            Self::Step(step) => (job_event::Event::Step(step.to_proto()), step.time),
        };
        pb::JobEvent { cursor, event: Some(event), time: time.map(firn_kit::clock::to_proto) }
    }
}

/// The events of one job. States and steps get the same numbers after a restart, because both are on the stage and steps
/// that were not yet there run again.
#[derive(Debug)]
pub(crate) struct Events {
    kept: Mutex<Vec<Kept>>,
    /// Number of kept events.
    count: watch::Sender<u64>,
    progress: watch::Sender<Option<pb::Progress>>,
}

impl Events {
    pub(crate) fn new(kept: Vec<Kept>) -> Self {
        let count = watch::Sender::new(kept.len() as u64);
        Self { kept: Mutex::new(kept), count, progress: watch::Sender::new(None) }
    }

    pub(crate) fn push(&self, event: Kept) {
        if matches!(event, Kept::State(_)) {
            // Progress belongs to the state before.
            self.progress.send_replace(None);
        }
        let mut kept = self.lock();
        kept.push(event);
        self.count.send_replace(kept.len() as u64);
    }

    /// Tells those who watch now.
    pub(crate) fn progress(&self, what: &str, done: u64, total: u64) {
        self.progress.send_replace(Some(pb::Progress { what: what.to_owned(), done, total }));
    }

    /// Metrics of all steps so far.
    pub(crate) fn steps(&self) -> Vec<Step> {
        let step = |event: &Kept| match event {
            Kept::Step(step) => Some(*step),
            Kept::State(_) => None,
        };
        self.lock().iter().filter_map(step).collect()
    }

    /// The event after `cursor`.
    fn after(&self, cursor: u64) -> Option<Kept> {
        self.lock().get(usize::try_from(cursor).ok()?).cloned()
    }

    fn ended(&self) -> bool {
        self.lock().last().is_some_and(Kept::is_last)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Kept>> {
        // A push is all or nothing, so a panic elsewhere does not spoil it.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads the events of a job from the stage, with the steps up to the last one that counts.
pub(crate) async fn load(stage: &Stage, job: &str, last_step: u64) -> Result<Vec<Kept>, StageError> {
    let states: Vec<StateRecord> = stage.log(&job_path(job, "state")).await?.all().await?;
    let mut kept = vec![];
    let mut steps = read_steps(stage, job, last_step).await?.into_iter().peekable();
    for record in states {
        // A state knows how many steps were done when it was entered.
        while let Some(step) = steps.next_if(|step| step.step <= record.step) {
            kept.push(Kept::Step(step));
        }
        kept.push(Kept::State(Box::new(record)));
    }
    kept.extend(steps.map(Kept::Step));
    Ok(kept)
}

struct Watch {
    spec: Arc<SpecRecord>,
    events: Arc<Events>,
    cursor: u64,
    count: watch::Receiver<u64>,
    progress: watch::Receiver<Option<pb::Progress>>,
    stop: CancellationToken,
}

/// Sends the kept events after `cursor`, then new ones and progress as they come; ends after the terminal state.
pub(crate) fn watch(
    spec: Arc<SpecRecord>,
    events: Arc<Events>,
    cursor: u64,
    stop: CancellationToken,
) -> impl Stream<Item = Result<pb::JobEvent, Status>> + Send {
    let (count, mut progress) = (events.count.subscribe(), events.progress.subscribe());
    if progress.borrow().is_some() && !events.ended() {
        progress.mark_changed();
    }
    stream::unfold(Some(Watch { spec, events, cursor, count, progress, stop }), |watch| async move {
        let mut watch = watch?;
        loop {
            watch.count.borrow_and_update();
            if let Some(event) = watch.events.after(watch.cursor) {
                watch.cursor += 1;
                let message = event.to_proto(&watch.spec, watch.cursor);
                return Some((Ok(message), (!event.is_last()).then_some(watch)));
            }
            if watch.events.ended() {
                return None;
            }
            tokio::select! {
                biased;
                changed = watch.count.changed() => {
                    if changed.is_err() {
                        return Some((Err(failed_watch()), None));
                    }
                }
                Ok(()) = watch.progress.changed() => {
                    let Some(progress) = watch.progress.borrow_and_update().clone() else { continue };
                    let event = Some(job_event::Event::Progress(progress));
                    return Some((Ok(pb::JobEvent { cursor: watch.cursor, event, time: None }), Some(watch)));
                }
                () = watch.stop.cancelled() => return Some((Err(stopping()), None)),
            }
        }
    })
}

#[cfg(test)]
#[path = "events_tests.rs"]
mod tests;
