//! What is written to the stage about a job.

use firn_proto::trainer::v1 as pb;
use firn_stage::{Stage, StageError};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::spec::Spec;

/// The folder of all jobs.
pub(crate) const JOBS: &str = "jobs";

/// Where a job is. The order is that of a job's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(crate) enum State {
    Queued,
    Validating,
    Preparing,
    Running,
    /// Left RUNNING until it is resumed.
    Paused,
    Evaluating,
    Registering,
    Succeeded,
    Failed,
    Cancelled,
}

impl State {
    pub(crate) fn is_terminal(self) -> bool {
        self >= Self::Succeeded
    }

    /// The name in sentences and logs.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Validating => "validating",
            Self::Preparing => "preparing",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Evaluating => "evaluating",
            Self::Registering => "registering",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    pub(crate) fn to_proto(self) -> pb::JobState {
        match self {
            Self::Queued => pb::JobState::Queued,
            Self::Validating => pb::JobState::Validating,
            Self::Preparing => pb::JobState::Preparing,
            Self::Running => pb::JobState::Running,
            Self::Paused => pb::JobState::Paused,
            Self::Evaluating => pb::JobState::Evaluating,
            Self::Registering => pb::JobState::Registering,
            Self::Succeeded => pb::JobState::Succeeded,
            Self::Failed => pb::JobState::Failed,
            Self::Cancelled => pb::JobState::Cancelled,
        }
    }
}

/// `spec.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct SpecRecord {
    pub(crate) job: String,
    pub(crate) request_id: String,
    pub(crate) create_time: Timestamp,
    /// The trace of the request, which the job's work belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) trace: Option<String>,
    pub(crate) spec: Spec,
}

/// The snapshot that a job trains on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct SnapshotRef {
    pub(crate) name: String,
    pub(crate) path: String,
    pub(crate) template_sha256: String,
    pub(crate) train_rows: u64,
    pub(crate) held_out_rows: u64,
    pub(crate) train_tokens: u64,
}

/// A model on the held-out rows.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Evaluation {
    /// Mean negative log-likelihood of completion tokens, nats.
    pub(crate) loss: f64,
    pub(crate) rows: u64,
    pub(crate) field_recall: Option<f64>,
    pub(crate) sample_prompt: String,
    pub(crate) sample_answer: String,
    /// Of preferences: share of pairs whose chosen answer is the more probable one.
    #[serde(default)]
    pub(crate) preference_accuracy: Option<f64>,
    /// Share of completion tokens that the model finds most probable.
    #[serde(default)]
    pub(crate) token_accuracy: Option<f64>,
}

impl Evaluation {
    fn to_proto(&self) -> pb::Evaluation {
        pb::Evaluation {
            loss: self.loss,
            rows: self.rows,
            field_recall: self.field_recall,
            sample_prompt: self.sample_prompt.clone(),
            sample_answer: self.sample_answer.clone(),
            preference_accuracy: self.preference_accuracy,
            token_accuracy: self.token_accuracy,
        }
    }
}

/// What folding the adapter into the base changed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct MergeProof {
    /// Largest absolute difference of a logit.
    pub(crate) largest_logit_difference: f32,
    /// Share of tokens behind which both find the same next one most probable.
    pub(crate) greedy_agreement: f64,
    /// Tokens compared.
    pub(crate) tokens: u64,
    /// Held-out rows that they are of; 0: made-up ones.
    pub(crate) rows: u64,
    /// No more than rounding.
    pub(crate) accepted: bool,
}

/// A file of the state log: all that is known of the job when it enters the state.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct StateRecord {
    pub(crate) sequence: u64,
    pub(crate) state: State,
    pub(crate) time: Timestamp,
    pub(crate) error: String,
    pub(crate) step: u64,
    pub(crate) steps: u64,
    pub(crate) train_tokens: u64,
    pub(crate) train_seconds: f64,
    pub(crate) snapshot: Option<SnapshotRef>,
    pub(crate) base_evaluation: Option<Evaluation>,
    pub(crate) tuned_evaluation: Option<Evaluation>,
    pub(crate) version: String,
    /// Step whose weights are the result, if it is not the last one.
    #[serde(default)]
    pub(crate) best_step: u64,
    /// If the job asked for it.
    #[serde(default)]
    pub(crate) merge_proof: Option<MergeProof>,
}

impl StateRecord {
    /// A job's first state.
    pub(crate) fn queued(time: Timestamp) -> Self {
        Self {
            sequence: 1,
            state: State::Queued,
            time,
            error: String::new(),
            step: 0,
            steps: 0,
            train_tokens: 0,
            train_seconds: 0.0,
            snapshot: None,
            base_evaluation: None,
            tuned_evaluation: None,
            version: String::new(),
            best_step: 0,
            merge_proof: None,
        }
    }

    /// The job as this record leaves it.
    pub(crate) fn to_proto(&self, spec: &SpecRecord) -> pb::Job {
        pb::Job {
            name: format!("{JOBS}/{}", spec.job),
            spec: Some(spec.spec.to_proto()),
            state: self.state.to_proto().into(),
            sequence: self.sequence,
            error: self.error.clone(),
            step: self.step,
            steps: self.steps,
            snapshot: self.snapshot.as_ref().map(|snapshot| snapshot.name.clone()).unwrap_or_default(),
            version: self.version.clone(),
            base_evaluation: self.base_evaluation.as_ref().map(Evaluation::to_proto),
            tuned_evaluation: self.tuned_evaluation.as_ref().map(Evaluation::to_proto),
            train_tokens: self.train_tokens,
            train_seconds: self.train_seconds,
            create_time: Some(firn_kit::clock::to_proto(spec.create_time)),
            path: job_path(&spec.job, ""),
            best_step: self.best_step,
        }
    }
}

/// A line of a steps file.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Step {
    pub(crate) step: u64,
    pub(crate) steps: u64,
    /// Mean negative log-likelihood of the step's loss tokens, nats.
    pub(crate) loss: f64,
    pub(crate) grad_norm: f64,
    pub(crate) learning_rate: f64,
    pub(crate) tokens_per_second: f64,
    pub(crate) seconds_left: f64,
    /// Tokens trained on so far, with repetitions.
    pub(crate) train_tokens: u64,
    /// Seconds spent in steps so far.
    pub(crate) train_seconds: f64,
    #[serde(default)]
    pub(crate) memory_bytes: u64,
    /// Passes over the rows so far, with a part.
    #[serde(default)]
    pub(crate) epoch: f64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) held_out: Option<Measured>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) time: Option<Timestamp>,
}

/// The held-out rows after a step.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Measured {
    pub(crate) loss: f64,
    pub(crate) accuracy: f64,
    /// No measurement before had a lower loss.
    pub(crate) best: bool,
}

impl Step {
    pub(crate) fn to_proto(self) -> pb::StepMetrics {
        pb::StepMetrics {
            step: self.step,
            steps: self.steps,
            loss: self.loss,
            grad_norm: self.grad_norm,
            learning_rate: self.learning_rate,
            tokens_per_second: self.tokens_per_second,
            seconds_left: self.seconds_left,
            memory_bytes: self.memory_bytes,
            epoch: self.epoch,
            held_out: self.held_out.map(|Measured { loss, accuracy, best }| pb::Measurement { loss, accuracy, best }),
        }
    }
}

/// A step of a run of `steps`, for tests.
#[cfg(test)]
pub(crate) fn example_step(step: u64, steps: u64) -> Step {
    Step {
        step,
        steps,
        loss: 0.1 * step as f64,
        grad_norm: 1.0,
        learning_rate: 1e-3,
        tokens_per_second: 10.0,
        seconds_left: 1.0,
        train_tokens: 10 * step,
        train_seconds: 0.5 * step as f64,
        memory_bytes: 1 << 20,
        epoch: step as f64 / steps as f64,
        held_out: None,
        time: None,
    }
}

/// A path in a job's folder; the folder's own if `rest` is empty.
pub(crate) fn job_path(job: &str, rest: &str) -> String {
    if rest.is_empty() { format!("{JOBS}/{job}") } else { format!("{JOBS}/{job}/{rest}") }
}

/// Writes the metrics of steps that follow each other; the file is named for the last one. After a crash the same steps
/// run again and give the same numbers, so a file that is there and whole stays.
pub(crate) async fn write_steps(stage: &Stage, job: &str, steps: &[Step]) -> Result<(), StageError> {
    let Some(last) = steps.last() else { return Ok(()) };
    let path = job_path(job, &format!("steps/{:06}.jsonl", last.step));
    let mut text = Vec::new();
    for step in steps {
        serde_json::to_writer(&mut text, step).map_err(|source| StageError::Encode { path: path.clone(), source })?;
        text.push(b'\n');
    }
    match stage.put(&path, text.clone().into()).await {
        Err(StageError::AlreadyExists { .. }) => {}
        written => return written,
    }
    let kept = parse_steps(&stage.get(&path).await?);
    if kept.last().map(|step| step.step) == Some(last.step)
        && kept.first().map(|s| s.step) <= steps.first().map(|s| s.step)
    {
        return Ok(());
    }
    tracing::warn!(path, "torn step metrics written again");
    stage.delete(&path).await?;
    stage.put(&path, text.into()).await
}

/// Reads the metrics of all steps up to and with `last`.
pub(crate) async fn read_steps(stage: &Stage, job: &str, last: u64) -> Result<Vec<Step>, StageError> {
    let mut all: Vec<Step> = vec![];
    for file in stage.list_files(&job_path(job, "steps")).await? {
        let next = all.last().map_or(1, |step| step.step + 1);
        // A file of a run that was cut off may overlap the one that was written after it.
        all.extend(parse_steps(&stage.get(&file.path).await?).into_iter().filter(|s| s.step >= next && s.step <= last));
    }
    Ok(all)
}

/// Whole lines only: a crash may have torn the last one.
fn parse_steps(bytes: &[u8]) -> Vec<Step> {
    bytes.split_inclusive(|byte| *byte == b'\n').map_while(|line| serde_json::from_slice(line).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(range: std::ops::RangeInclusive<u64>) -> Vec<Step> {
        range.map(|step| example_step(step, 9)).collect()
    }

    #[test]
    fn states_are_in_the_order_of_a_jobs_life() {
        assert!(State::Queued < State::Preparing && State::Running < State::Registering);
        let terminal = [State::Succeeded, State::Failed, State::Cancelled];
        assert!(terminal.into_iter().all(State::is_terminal) && !State::Registering.is_terminal());
        assert_eq!(serde_json::to_string(&State::Succeeded).unwrap(), "\"SUCCEEDED\"");
    }

    #[test]
    fn the_protocol_gets_what_is_known() {
        let now: Timestamp = "2026-01-02T03:04:05Z".parse().unwrap();
        let record = StateRecord { step: 3, steps: 9, ..StateRecord::queued(now) };
        let back: StateRecord = serde_json::from_str(&serde_json::to_string(&record).unwrap()).unwrap();
        assert_eq!(back, record);
    }

    #[tokio::test]
    async fn step_metrics_survive_crashes_and_overlaps() {
        let stage = Stage::memory();
        write_steps(&stage, "j", &steps(1..=3)).await.unwrap();
        write_steps(&stage, "j", &steps(4..=6)).await.unwrap();
        assert_eq!(read_steps(&stage, "j", 9).await.unwrap(), steps(1..=6));
        assert_eq!(read_steps(&stage, "j", 4).await.unwrap(), steps(1..=4));
        write_steps(&stage, "j", &steps(4..=6)).await.unwrap();
        // Cut off at step 8 after the checkpoint of step 6, then on to 9.
        write_steps(&stage, "j", &steps(7..=8)).await.unwrap();
        write_steps(&stage, "j", &steps(7..=9)).await.unwrap();
        assert_eq!(read_steps(&stage, "j", 9).await.unwrap(), steps(1..=9));
    }

    #[tokio::test]
    async fn a_torn_file_is_written_again() {
        let stage = Stage::memory();
        stage.put("jobs/j/steps/000002.jsonl", "{\"step\":1,".into()).await.unwrap();
        assert_eq!(read_steps(&stage, "j", 9).await.unwrap(), []);
        write_steps(&stage, "j", &steps(1..=2)).await.unwrap();
        assert_eq!(read_steps(&stage, "j", 9).await.unwrap(), steps(1..=2));
        write_steps(&stage, "j", &[]).await.unwrap();
    }
}
