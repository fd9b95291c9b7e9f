//! A job as Snowflake's `FINETUNE('DESCRIBE', …)` shows one.

use firn_kit::clock::from_proto;
use firn_proto::trainer::v1::{Evaluation, Job, JobState};
use serde_json::{Value, json};

use crate::{jobs::id, lists::job_state};

/// A line of a list.
pub(crate) fn shown(job: Job) -> Value {
    let created = created(&job);
    let mut line = json!({"id": id(&job.name), "status": status(job.state()), "progress": progress(&job)});
    let spec = job.spec.unwrap_or_default();
    line["base_model"] = spec.base.into();
    line["model"] = spec.model.into();
    line["created_on"] = created.into();
    line
}

/// All that is known of it, and the loss of its last step.
pub(crate) fn described(job: Job, training_loss: Option<f64>) -> Value {
    let (created, state, progress) = (created(&job), job.state(), progress(&job));
    let spec = job.spec.clone().unwrap_or_default();
    let alias = if spec.alias.is_empty() { "latest" } else { spec.alias.as_str() };
    let data = spec.data.unwrap_or_default();
    let loss = |of: &Option<Evaluation>| of.as_ref().filter(|of| of.rows > 0).map(|of| of.loss);
    let mut shown = json!({
        "id": id(&job.name), "status": status(state), "progress": progress, "base_model": spec.base,
        "created_on": created, "training_data": data.source, "validation_data": data.held_out_source,
        "trained_tokens": job.train_tokens, "state": job_state(state), "step": job.step, "steps": job.steps,
    });
    match state {
        JobState::Succeeded => {
            // What complete() takes.
            shown["model"] = json!(format!("{}@{alias}", spec.model));
            shown["version"] = json!(job.version);
            shown["training_result"] = json!({
                "training_loss": training_loss, "validation_loss": loss(&job.tuned_evaluation),
                "base_validation_loss": loss(&job.base_evaluation),
            });
        }
        JobState::Failed => shown["error"] = json!({"message": job.error}),
        _ => {}
    }
    shown
}

/// The state in Snowflake's words. One that is paused waits to be queued again.
fn status(state: JobState) -> &'static str {
    match state {
        JobState::Unspecified | JobState::Queued | JobState::Paused => "PENDING",
        JobState::Validating
        | JobState::Preparing
        | JobState::Running
        | JobState::Evaluating
        | JobState::Registering => "IN_PROGRESS",
        JobState::Succeeded => "SUCCESS",
        JobState::Failed => "ERROR",
        JobState::Cancelled => "CANCELLED",
    }
}

fn progress(job: &Job) -> f64 {
    match job.state() {
        JobState::Succeeded => 1.0,
        _ if job.steps == 0 => 0.0,
        _ => job.step as f64 / job.steps as f64,
    }
}

/// Milliseconds, as Snowflake counts them.
fn created(job: &Job) -> Option<i64> {
    job.create_time.as_ref().and_then(|time| from_proto(time).ok()).map(|time| time.as_millisecond())
}
