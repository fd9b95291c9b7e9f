//! The loop: one optimiser step after the other, on a thread of its own, with messages to the service.

use std::{
    collections::VecDeque,
    path::{Path, PathBuf},
    time::Instant,
};

use firn_llm::{
    train::{Preference, Schedule, StepReport, Tuner},
    weights::WeightsError,
};
use tokio::sync::mpsc;

use crate::{checkpoint::Progress, plan::Plan, record::Step};

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
}

/// What the loop tells.
#[derive(Debug)]
pub(crate) enum Message {
    /// A step ended.
    Step(Step),
    /// The state after the last step is in a local file, which the receiver removes.
    Checkpoint(Progress, PathBuf),
}

/// How the loop ended.
#[derive(Debug)]
pub(crate) enum Ended {
    /// All steps, or all of the budget.
    Done(Box<Tuner>),
    /// Because it was told to.
    Stopped,
}

/// What the loop needs beside the plan.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) schedule: Schedule,
    /// What is minimised on pairs; `None`: likelihood, on rows.
    pub(crate) preference: Option<Preference>,
    /// 0: no budget.
    pub(crate) budget_seconds: f64,
    pub(crate) checkpoint_steps: u64,
    /// Local folder for checkpoints.
    pub(crate) scratch: PathBuf,
}

/// Runs the steps after `progress`. Blocks. `stop` is asked before each step: `true` ends the loop there.
pub(crate) fn train(
    mut tuner: Tuner,
    plan: &Plan,
    settings: &Settings,
    mut progress: Progress,
    messages: &mpsc::Sender<Message>,
    stop: &dyn Fn() -> bool,
) -> Result<Ended, TrainError> {
    let steps = plan.steps();
    let mut saved = progress.step;
    let mut speed = Speed::default();
    'run: for (epoch, before, count) in plan.epochs() {
        if before + count <= progress.step {
            continue;
        }
        let blocks = plan.blocks(epoch);
        let first = progress.step;
        let batches = (before + 1..=before + count).zip(blocks.chunks(plan.batch_size()));
        for (number, batch) in batches.skip_while(|(number, _)| *number <= first) {
            if settings.budget_seconds > 0.0 && progress.train_seconds >= settings.budget_seconds {
                break 'run;
            }
            // A closed channel: the service is gone, and whoever comes next has the stage for itself.
            if messages.is_closed() {
                return Ok(Ended::Stopped);
            }
            if stop() {
                if saved != progress.step && is_cheap(&tuner) {
                    let _ = save(&tuner, progress, settings, messages)?;
                }
                return Ok(Ended::Stopped);
            }
            let rate = settings.rate(&progress, steps);
            let began = Instant::now();
            let StepReport { loss, grad_norm, tokens } = match settings.preference {
                None => tuner.step(batch, rate),
                Some(objective) => tuner.step_pairs(batch, objective, rate).step,
            };
            let seconds = began.elapsed().as_secs_f64();
            if !loss.is_finite() || !grad_norm.is_finite() {
                return Err(TrainError::NotFinite { step: number, loss, grad_norm });
            }
            progress.step = number;
            progress.train_tokens += tokens as u64;
            progress.train_seconds += seconds;
            speed.note(tokens, seconds);
            let step = Step {
                step: number,
                steps,
                loss,
                grad_norm,
                learning_rate: rate,
                tokens_per_second: speed.tokens_per_second(),
                seconds_left: settings.seconds_left(&progress, steps),
                train_tokens: progress.train_tokens,
                train_seconds: progress.train_seconds,
            };
            if messages.blocking_send(Message::Step(step)).is_err() {
                return Ok(Ended::Stopped);
            }
            if number % settings.checkpoint_steps == 0 {
                if !save(&tuner, progress, settings, messages)? {
                    return Ok(Ended::Stopped);
                }
                saved = number;
            }
        }
    }
    if saved != progress.step && !save(&tuner, progress, settings, messages)? {
        return Ok(Ended::Stopped);
    }
    Ok(Ended::Done(Box::new(tuner)))
}

/// Writes the state to a local file and hands it over; `false` if nobody takes it.
fn save(
    tuner: &Tuner,
    progress: Progress,
    settings: &Settings,
    messages: &mpsc::Sender<Message>,
) -> Result<bool, TrainError> {
    let file = state_file(&settings.scratch, progress.step);
    tuner.save_state(&file).map_err(TrainError::Checkpoint)?;
    Ok(messages.blocking_send(Message::Checkpoint(progress, file)).is_ok())
}

fn state_file(scratch: &Path, step: u64) -> PathBuf {
    scratch.join(format!("state-{step}.safetensors"))
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

    fn settings(budget_seconds: f64) -> Settings {
        let schedule = Schedule { peak: 1.0, kind: SchedulerKind::Linear, warmup_ratio: 0.0 };
        Settings { schedule, preference: None, budget_seconds, checkpoint_steps: 50, scratch: PathBuf::new() }
    }

    #[test]
    fn the_schedule_follows_the_steps_or_the_budget_whichever_is_further() {
        let progress = Progress { step: 20, train_tokens: 0, train_seconds: 10.0 };
        assert!((settings(0.0).rate(&progress, 100) - 0.8).abs() < 1e-9);
        assert!((settings(20.0).rate(&progress, 100) - 0.5).abs() < 1e-9);
        assert!((settings(1_000.0).rate(&progress, 100) - 0.8).abs() < 1e-9);
        assert!((settings(0.0).seconds_left(&progress, 100) - 40.0).abs() < 1e-9);
        assert!((settings(20.0).seconds_left(&progress, 100) - 10.0).abs() < 1e-9);
    }

    #[test]
    fn speed_is_that_of_the_last_steps() {
        let mut speed = Speed::default();
        speed.note(1, 1_000.0);
        (0..SPEED_STEPS).for_each(|_| speed.note(50, 0.5));
        assert!((speed.tokens_per_second() - 100.0).abs() < 1e-9);
    }
}
