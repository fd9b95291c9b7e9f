//! A job on a terminal: bars with loss and time left, or JSON lines.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use firn_kit::Channel;
use firn_proto::trainer::v1::{
    Job, JobEvent, JobState, Measurement, Progress, StepMetrics, WatchJobRequest, job_event::Event,
    trainer_service_client::TrainerServiceClient,
};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use tonic::{Code, Status};

use crate::chart::chart;

/// Rows of the loss curve.
const CURVE_HEIGHT: u32 = 8;
/// Tries to take up a watch again after the connection broke, a second apart: long enough for a service to restart.
const RETRIES: u32 = 60;

/// Follows a job to its end and gives it, whatever its end is. Broken connections are taken up where they broke.
pub(crate) async fn follow(client: &mut TrainerServiceClient<Channel>, name: &str, as_json: bool) -> Result<Job> {
    let (mut display, mut cursor, mut failures) = (Display::new(as_json), 0, 0);
    loop {
        match watch(client, name, &mut cursor, &mut display, &mut failures).await {
            Ok(Some(job)) => return Ok(job),
            Ok(None) => failures += 1,
            Err(status) if matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Cancelled) => {
                failures += 1
            }
            Err(status) => return Err(status).with_context(|| format!("lost sight of {name}")),
        }
        if failures > RETRIES {
            bail!("lost sight of {name}: the trainer did not come back; ask later with `firn jobs show {name}`");
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

async fn watch(
    client: &mut TrainerServiceClient<Channel>,
    name: &str,
    cursor: &mut u64,
    display: &mut Display,
    failures: &mut u32,
) -> Result<Option<Job>, Status> {
    let request = WatchJobRequest { name: name.to_owned(), cursor: *cursor };
    let mut events = client.watch_job(request).await?.into_inner();
    while let Some(JobEvent { cursor: at, event, .. }) = events.message().await? {
        *failures = 0;
        *cursor = at.max(*cursor);
        match event {
            Some(Event::State(job)) => {
                display.state(&job);
                if matches!(job.state(), JobState::Succeeded | JobState::Failed | JobState::Cancelled) {
                    return Ok(Some(job));
                }
            }
            Some(Event::Step(step)) => display.step(&step),
            Some(Event::Progress(progress)) => display.progress(&progress),
            None => {}
        }
    }
    Ok(None)
}

/// A state as people say it.
pub(crate) fn state_name(state: JobState) -> &'static str {
    match state {
        JobState::Unspecified => "unknown",
        JobState::Queued => "queued",
        JobState::Validating => "validating",
        JobState::Preparing => "preparing",
        JobState::Running => "running",
        JobState::Evaluating => "evaluating",
        JobState::Registering => "registering",
        JobState::Succeeded => "succeeded",
        JobState::Failed => "failed",
        JobState::Cancelled => "cancelled",
        JobState::Paused => "paused",
    }
}

/// Fails unless the job succeeded.
pub(crate) fn succeeded(job: Job) -> Result<Job> {
    match job.state() {
        JobState::Succeeded => Ok(job),
        JobState::Failed => bail!("{} failed: {}", job.name, job.error),
        state => bail!("{} was {}", job.name, state_name(state)),
    }
}

struct Display {
    json: bool,
    losses: Vec<f64>,
    bar: Option<(String, ProgressBar)>,
}

impl Display {
    fn new(json: bool) -> Self {
        Self { json, losses: Vec::new(), bar: None }
    }

    fn bar(&mut self, what: &str, total: u64) -> &ProgressBar {
        if self.bar.as_ref().is_none_or(|(current, _)| current != what) {
            self.finish();
            let bar = ProgressBar::new(total);
            let style = ProgressStyle::with_template("  {prefix:<32} {bar:28.cyan/blue} {pos:>4}/{len:<4} {msg}");
            if let Ok(style) = style {
                bar.set_style(style.progress_chars("━╸─"));
            }
            bar.set_prefix(what.to_owned());
            self.bar = Some((what.to_owned(), bar));
        }
        let (_, bar) = self.bar.get_or_insert_with(|| (what.to_owned(), ProgressBar::new(total)));
        bar
    }

    fn finish(&mut self) {
        if let Some((_, bar)) = self.bar.take() {
            bar.abandon();
        }
    }

    fn state(&mut self, job: &Job) {
        if self.json {
            return;
        }
        self.finish();
        if job.state() == JobState::Evaluating && self.losses.len() > 1 {
            eprintln!("\n  loss over the steps\n{}\n", chart(std::mem::take(&mut self.losses), CURVE_HEIGHT));
        }
        let what = match job.state() {
            JobState::Queued => "waiting for its turn".to_owned(),
            JobState::Validating => "checking the base".to_owned(),
            JobState::Preparing => "preparing the rows".to_owned(),
            JobState::Running => format!("fine-tuning, {} steps", job.steps),
            JobState::Evaluating => "evaluating the tuned model".to_owned(),
            JobState::Registering => "registering the version".to_owned(),
            JobState::Succeeded => format!("registered {}", job.version),
            JobState::Paused => format!("paused at step {}; `firn jobs resume {}` goes on", job.step, job.name),
            state => state_name(state).to_owned(),
        };
        eprintln!("{} {what}", job.name);
    }

    fn step(&mut self, step: &StepMetrics) {
        if self.json {
            let mut line = json!({
                "step": step.step, "steps": step.steps, "epoch": step.epoch, "loss": step.loss,
                "grad_norm": step.grad_norm, "lr": step.learning_rate, "tokens_per_second": step.tokens_per_second,
                "seconds_left": step.seconds_left, "memory_bytes": step.memory_bytes,
            });
            if let Some(Measurement { loss, accuracy, best }) = step.held_out {
                line["eval_loss"] = loss.into();
                line["eval_accuracy"] = accuracy.into();
                line["best"] = best.into();
            }
            println!("{line}");
            return;
        }
        self.losses.push(step.loss);
        if let Some(Measurement { loss, accuracy, best }) = step.held_out {
            let mark = if best { ", the best so far" } else { "" };
            let text =
                format!("  step {}: held-out loss {loss:.4}, accuracy {:.1} %{mark}", step.step, accuracy * 100.0);
            match &self.bar {
                Some((_, bar)) => bar.println(text),
                None => eprintln!("{text}"),
            }
        }
        let bar = self.bar("training", step.steps);
        bar.set_length(step.steps);
        bar.set_position(step.step);
        let left = Duration::from_secs_f64(step.seconds_left.clamp(0.0, 1e9));
        bar.set_message(format!(
            "loss {:.3}  {:.0} tokens/s  {}:{:02} left",
            step.loss,
            step.tokens_per_second,
            left.as_secs() / 60,
            left.as_secs() % 60,
        ));
    }

    fn progress(&mut self, progress: &Progress) {
        if !self.json {
            let bar = self.bar(&progress.what, progress.total);
            bar.set_position(progress.done);
        }
    }
}

impl Drop for Display {
    fn drop(&mut self) {
        self.finish();
    }
}
