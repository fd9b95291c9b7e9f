//! The loop: one optimiser step after the other, on a thread of its own, with messages to the service.

use std::{collections::VecDeque, path::PathBuf, time::Instant};

use firn_llm::{
    model::AdapterError,
    train::{Block, Preference, Schedule, StepReport, Tuner},
    weights::WeightsError,
};
use tokio::sync::mpsc;

use crate::{
    checkpoint::{Best, Progress, Purpose, STATE},
    dataset::DatasetError,
    evaluate::EvaluateError,
    plan::{Epoch, Plan},
    record::{Measured, Step},
    spec::{Measure, When},
};

/// Steps over which the speed is measured.
const SPEED_STEPS: usize = 10;
/// Messages that may wait while the stage is slow; then the loop waits.
pub(crate) const MESSAGES: usize = 64;
/// Parameters up to which a checkpoint is written when the service stops: more take too long.
const CHEAP_PARAMETERS: usize = 16 << 20;

/// Why the loop failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TrainError {
    #[error(
        "the loss is {loss} and the gradient norm {grad_norm}: lower the learning rate, or look at the rows of this step"
    )]
    NotFinite { step: u64, loss: f64, grad_norm: f64 },
    #[error("failed to save a checkpoint: {0}")]
    Checkpoint(#[source] WeightsError),
    #[error("failed to save a checkpoint's adapter: {0}")]
    Adapter(#[source] AdapterError),
    #[error("failed to make a local folder for a checkpoint: {0}")]
    Folder(#[source] std::io::Error),
    #[error(transparent)]
    Measure(EvaluateError),
    #[error(transparent)]
    Rows(DatasetError),
}

/// What the loop tells.
#[derive(Debug)]
pub(crate) enum Message {
    /// A step ended.
    Step(Step),
    /// The state after the last step is in a local folder, with the adapter as PEFT reads it; the receiver removes it.
    Saved(Purpose, Progress, PathBuf),
}

/// How the loop ended.
#[derive(Debug)]
pub(crate) enum Ended {
    /// All steps, all of the budget, or too many measurements without a gain.
    Done(Box<Tuner>, Progress),
    /// Because it was told to.
    Stopped,
}

/// Why the loop should end before its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Interrupt {
    /// Soon: what a checkpoint would cost is computed again.
    Stop,
    /// After a checkpoint of the last step.
    Pause,
}

/// Measures a model on the held-out rows; `None` if there are none.
pub(crate) type Gauge<'a> = &'a dyn Fn(&Tuner) -> Result<Option<Measured>, EvaluateError>;

/// What the loop needs beside the plan.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) schedule: Schedule,
    /// What is minimised on pairs; `None`: likelihood, on rows.
    pub(crate) preference: Option<Preference>,
    /// 0: no budget.
    pub(crate) budget_seconds: f64,
    pub(crate) checkpoint_steps: u64,
    pub(crate) measure: Measure,
    /// Local folder for checkpoints.
    pub(crate) scratch: PathBuf,
    /// Base checkpoint as the job names it.
    pub(crate) base: String,
}

/// Whom the loop asks and tells.
pub(crate) struct Outside<'a> {
    pub(crate) messages: &'a mpsc::Sender<Message>,
    pub(crate) measure: Gauge<'a>,
    /// Asked before each step.
    pub(crate) interrupt: &'a dyn Fn() -> Option<Interrupt>,
}

/// Runs the steps after `progress`. Blocks.
pub(crate) fn train(
    tuner: Tuner,
    plan: &Plan,
    settings: &Settings,
    progress: Progress,
    outside: &Outside<'_>,
) -> Result<Ended, TrainError> {
    let (saved, speed) = (progress.step, Speed::default());
    let mut run = Run { tuner, plan, settings, outside, progress, saved, speed };
    for (epoch, before, count) in plan.epochs() {
        if before + count <= run.progress.step {
            continue;
        }
        let blocks = plan.blocks(epoch).map_err(TrainError::Rows)?;
        let first = run.progress.step.max(before);
        for number in first + 1..=before + count {
            if run.is_enough() {
                return run.finish();
            }
            if run.must_stop()? {
                return Ok(Ended::Stopped);
            }
            let epoch_ends = number == before + count;
            let batch = batch(&blocks, plan.batch_size(), number - before - 1).map_err(TrainError::Rows)?;
            let epochs = epoch as f64 + (number - before) as f64 / count as f64;
            if !run.step(number, &batch, epochs, epoch_ends)? {
                return Ok(Ended::Stopped);
            }
        }
    }
    run.finish()
}

/// Reads the blocks of an epoch's step, counted from 0.
fn batch(epoch: &Epoch<'_>, size: usize, step: u64) -> Result<Vec<Block>, DatasetError> {
    let begin = usize::try_from(step).unwrap_or(usize::MAX).saturating_mul(size);
    (begin..epoch.len().min(begin.saturating_add(size))).map(|index| epoch.block(index)).collect()
}

/// A run on its way.
struct Run<'a> {
    tuner: Tuner,
    plan: &'a Plan,
    settings: &'a Settings,
    outside: &'a Outside<'a>,
    progress: Progress,
    /// Step of the last checkpoint.
    saved: u64,
    speed: Speed,
}

impl Run<'_> {
    /// The budget is spent, or the measurements say that no more is to be had.
    fn is_enough(&self) -> bool {
        let Settings { budget_seconds, measure, .. } = self.settings;
        (*budget_seconds > 0.0 && self.progress.train_seconds >= *budget_seconds)
            || (measure.patience > 0 && self.progress.without_gain >= measure.patience)
    }

    fn must_stop(&mut self) -> Result<bool, TrainError> {
        // A closed channel: the service is gone, and whoever comes next has the stage for itself.
        if self.outside.messages.is_closed() {
            return Ok(true);
        }
        let Some(interrupt) = (self.outside.interrupt)() else { return Ok(false) };
        if self.saved != self.progress.step && (interrupt == Interrupt::Pause || is_cheap(&self.tuner)) {
            self.save(Purpose::Resume)?;
        }
        Ok(true)
    }

    /// One step, with what follows from it; `false` if nobody listens any more, or the measurement was interrupted.
    fn step(&mut self, number: u64, batch: &[Block], epoch: f64, epoch_ends: bool) -> Result<bool, TrainError> {
        let steps = self.plan.steps();
        let rate = self.settings.rate(&self.progress, steps);
        let began = Instant::now();
        let StepReport { loss, grad_norm, tokens } = match self.settings.preference {
            None => self.tuner.step(batch, rate),
            Some(objective) => self.tuner.step_pairs(batch, objective, rate).step,
        };
        let seconds = began.elapsed().as_secs_f64();
        if !loss.is_finite() || !grad_norm.is_finite() {
            return Err(TrainError::NotFinite { step: number, loss, grad_norm });
        }
        self.progress.step = number;
        self.progress.train_tokens += tokens as u64;
        self.progress.train_seconds += seconds;
        self.speed.note(tokens, seconds);
        let held_out = match self.settings.is_due(number, steps, epoch_ends) {
            true => match (self.outside.measure)(&self.tuner) {
                Err(EvaluateError::Stopped) => return Ok(false),
                measured => measured.map_err(TrainError::Measure)?,
            },
            false => None,
        };
        let held_out = held_out.map(|measured| self.judge(measured));
        let step = Step {
            step: number,
            steps,
            loss,
            grad_norm,
            learning_rate: rate,
            tokens_per_second: self.speed.tokens_per_second(),
            seconds_left: self.settings.seconds_left(&self.progress, steps),
            train_tokens: self.progress.train_tokens,
            train_seconds: self.progress.train_seconds,
            memory_bytes: firn_kit::memory::resident().unwrap_or(0),
            epoch,
            held_out,
            // Whoever hears of it has a clock.
            time: None,
        };
        if self.outside.messages.blocking_send(Message::Step(step)).is_err() {
            return Ok(false);
        }
        let best = held_out.is_some_and(|measured| measured.best) && self.settings.measure.keep_best;
        if best && !self.save(Purpose::Best)? {
            return Ok(false);
        }
        if number.is_multiple_of(self.settings.checkpoint_steps) {
            return self.checkpoint();
        }
        Ok(true)
    }

    /// Compares a measurement with the best one.
    fn judge(&mut self, measured: Measured) -> Measured {
        let Progress { best, without_gain, step, .. } = &mut self.progress;
        let better = best.is_none_or(|best| measured.loss < best.loss - self.settings.measure.threshold);
        if better {
            (*best, *without_gain) = (Some(Best { step: *step, loss: measured.loss }), 0);
        } else {
            *without_gain += 1;
        }
        Measured { best: better, ..measured }
    }

    fn checkpoint(&mut self) -> Result<bool, TrainError> {
        self.saved = self.progress.step;
        self.save(Purpose::Resume)
    }

    /// Writes the state to a local folder and hands it over; `false` if nobody takes it.
    fn save(&self, purpose: Purpose) -> Result<bool, TrainError> {
        let folder = self.settings.scratch.join(format!("{}-{}", purpose.folder(), self.progress.step));
        std::fs::create_dir_all(&folder).map_err(TrainError::Folder)?;
        self.tuner.save_state(&folder.join(STATE)).map_err(TrainError::Checkpoint)?;
        if let Some(adapter) = self.tuner.adapter() {
            adapter.save(&folder, &self.settings.base).map_err(TrainError::Adapter)?;
        }
        Ok(self.outside.messages.blocking_send(Message::Saved(purpose, self.progress, folder)).is_ok())
    }

    fn finish(mut self) -> Result<Ended, TrainError> {
        if self.saved != self.progress.step && !self.checkpoint()? {
            return Ok(Ended::Stopped);
        }
        Ok(Ended::Done(Box::new(self.tuner), self.progress))
    }
}

fn is_cheap(tuner: &Tuner) -> bool {
    let parameters =
        tuner.adapter().map_or_else(|| tuner.decoder().config().parameters(), firn_llm::model::Adapter::parameters);
    parameters <= CHEAP_PARAMETERS
}

impl Settings {
    /// The learning rate of the step after `progress`.
    fn rate(&self, progress: &Progress, steps: u64) -> f64 {
        let (mut done, mut share) = (progress.step as f64 / steps as f64, 1.0 / steps as f64);
        if self.budget_seconds > 0.0 {
            done = done.max(progress.train_seconds / self.budget_seconds).min(1.0);
            share = share.max(progress.mean_seconds() / self.budget_seconds);
        }
        self.schedule.rate(done, share)
    }

    fn seconds_left(&self, progress: &Progress, steps: u64) -> f64 {
        let left = (steps - progress.step) as f64 * progress.mean_seconds();
        if self.budget_seconds > 0.0 { left.min((self.budget_seconds - progress.train_seconds).max(0.0)) } else { left }
    }

    /// The held-out rows are to be measured after this step. After the last one they are in any case, by the evaluation.
    fn is_due(&self, number: u64, steps: u64, epoch_ends: bool) -> bool {
        let due = match self.measure.when {
            When::Never => false,
            When::Epoch => epoch_ends,
            When::Steps(every) => number.is_multiple_of(u64::from(every)) || number == steps,
        };
        due && (number < steps || self.measure.decides())
    }
}

impl Progress {
    fn mean_seconds(&self) -> f64 {
        self.train_seconds / self.step.max(1) as f64
    }
}

/// Tokens and seconds of the last steps.
#[derive(Debug, Default)]
struct Speed(VecDeque<(usize, f64)>);

impl Speed {
    fn note(&mut self, tokens: usize, seconds: f64) {
        if self.0.len() == SPEED_STEPS {
            self.0.pop_front();
        }
        self.0.push_back((tokens, seconds));
    }

    fn tokens_per_second(&self) -> f64 {
        let (tokens, seconds) = self.0.iter().fold((0, 0.0), |sum, step| (sum.0 + step.0, sum.1 + step.1));
        tokens as f64 / f64::max(seconds, 1e-9)
    }
}

#[cfg(test)]
mod tests {
    use firn_llm::train::SchedulerKind;

    use super::*;

    fn settings(budget_seconds: f64, measure: Measure) -> Settings {
        let schedule = Schedule { peak: 1.0, kind: SchedulerKind::Linear, warmup_ratio: 0.0 };
        Settings {
            schedule,
            preference: None,
            budget_seconds,
            checkpoint_steps: 50,
            measure,
            scratch: PathBuf::new(),
            base: String::new(),
        }
    }

    #[test]
    fn the_schedule_follows_the_steps_or_the_budget_whichever_is_further() {
        let settings = |budget| settings(budget, Measure::default());
        let progress = Progress { step: 20, train_seconds: 10.0, ..Progress::default() };
        assert!((settings(0.0).rate(&progress, 100) - 0.8).abs() < 1e-9);
        assert!((settings(20.0).rate(&progress, 100) - 0.5).abs() < 1e-9);
        assert!((settings(1_000.0).rate(&progress, 100) - 0.8).abs() < 1e-9);
        assert!((settings(0.0).seconds_left(&progress, 100) - 40.0).abs() < 1e-9);
        assert!((settings(20.0).seconds_left(&progress, 100) - 10.0).abs() < 1e-9);
    }

    #[test]
    fn measurements_are_due_as_asked_and_the_last_one_where_something_depends_on_it() {
        let due = |measure: Measure| {
            let settings = settings(0.0, measure);
            (1..=10).filter(|number| settings.is_due(*number, 10, number % 5 == 0)).collect::<Vec<u64>>()
        };
        assert_eq!(due(Measure::default()), [5]);
        assert_eq!(due(Measure { keep_best: true, ..Measure::default() }), [5, 10]);
        assert_eq!(due(Measure { when: When::Steps(4), ..Measure::default() }), [4, 8]);
        assert_eq!(due(Measure { when: When::Steps(4), patience: 2, ..Measure::default() }), [4, 8, 10]);
        assert!(due(Measure { when: When::Never, ..Measure::default() }).is_empty());
    }

    #[test]
    fn speed_is_that_of_the_last_steps() {
        let mut speed = Speed::default();
        speed.note(1, 1_000.0);
        (0..SPEED_STEPS).for_each(|_| speed.note(50, 0.5));
        assert!((speed.tokens_per_second() - 100.0).abs() < 1e-9);
    }
}
