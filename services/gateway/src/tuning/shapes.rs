//! Jobs, events and checkpoints in OpenAI's shapes.

use firn_proto::trainer::v1::{Checkpoint, Job, JobEvent, JobSpec, JobState, Objective, StepMetrics, job_event};
use serde_json::{Map, Value, json};

use super::{
    method::usual_rate,
    source::COLLECTION,
    spec::{self, objective_name},
};
use crate::{jobs::id, lists::job_state, times};

/// A job.
pub(super) fn job(job: Job) -> Value {
    let state = job.state();
    let spec = job.spec.unwrap_or_default();
    let succeeded = state == JobState::Succeeded;
    let tuned = succeeded.then(|| format!("{}@{}", spec.model, spec.alias));
    let error = (state == JobState::Failed).then(|| json!({"code": "job_failed", "message": job.error, "param": null}));
    let rows = spec.data.clone().unwrap_or_default();
    let (method, hyperparameters) = method(&spec);
    json!({
        "object": "fine_tuning.job", "id": id(&job.name), "model": spec.base,
        "created_at": times::seconds(job.create_time.as_ref()), "finished_at": null, "estimated_finish": null,
        "fine_tuned_model": tuned, "organization_id": "firn", "result_files": [], "status": status(state),
        "training_file": file(&rows.source), "validation_file": file(&rows.held_out_source),
        "trained_tokens": succeeded.then_some(job.train_tokens), "error": error, "hyperparameters": hyperparameters,
        "method": method, "seed": spec.hyperparameters.as_ref().and_then(|of| of.seed), "integrations": [],
        "metadata": null, "user_provided_suffix": spec.model,
        "firn": {
            "name": job.name, "state": job_state(state), "step": job.step, "steps": job.steps, "snapshot": job.snapshot,
            "version": job.version, "objective": objective_name(spec.objective()), "spec": spec::object(spec),
        },
    })
}

/// An event; progress inside a state is none that is kept. One that does not say when it happened has the job's time.
pub(super) fn event(job_created_at: i64, event: JobEvent) -> Option<Value> {
    let created_at = event.time.as_ref().map_or(job_created_at, |time| time.seconds);
    let (level, kind, message, data) = match event.event? {
        job_event::Event::State(job) => {
            let state = job.state();
            match state {
                JobState::Failed => ("error", "message", format!("Job failed: {}", job.error), Value::Null),
                JobState::Cancelled => ("warn", "message", "Job cancelled".to_owned(), Value::Null),
                JobState::Succeeded => {
                    ("info", "message", format!("Job succeeded, version {}", job.version), Value::Null)
                }
                state => ("info", "message", format!("Job is {}", job_state(state).to_lowercase()), Value::Null),
            }
        }
        job_event::Event::Step(of) => {
            let message = format!("Step {}/{}: training loss={:.4}", of.step, of.steps, of.loss);
            let mut data = metrics(&of);
            data.insert("total_steps".to_owned(), json!(of.steps));
            data.insert("learning_rate".to_owned(), json!(of.learning_rate));
            ("info", "metrics", message, Value::Object(data))
        }
        job_event::Event::Progress(_) => return None,
    };
    Some(json!({
        "object": "fine_tuning.job.event", "id": format!("ftevent-{}", event.cursor), "created_at": created_at,
        "level": level, "type": kind, "message": message, "data": data,
    }))
}

/// A checkpoint.
pub(super) fn checkpoint(job: &str, created_at: i64, of: Checkpoint) -> Value {
    let metrics = of.metrics.as_ref().map(metrics);
    json!({
        "object": "fine_tuning.job.checkpoint", "id": format!("ckpt-{job}-{}", of.step), "created_at": created_at,
        "fine_tuned_model_checkpoint": format!("{job}@{}", of.step), "fine_tuning_job_id": job,
        "step_number": of.step, "metrics": metrics, "firn": {"best": of.best, "path": of.path},
    })
}

/// A step's numbers; those of the held-out rows only if they were measured.
fn metrics(of: &StepMetrics) -> Map<String, Value> {
    let mut metrics = Map::new();
    metrics.insert("step".to_owned(), json!(of.step));
    metrics.insert("train_loss".to_owned(), json!(of.loss));
    if let Some(held_out) = &of.held_out {
        metrics.insert("valid_loss".to_owned(), json!(held_out.loss));
        metrics.insert("valid_mean_token_accuracy".to_owned(), json!(held_out.accuracy));
    }
    metrics
}

/// The method, and its hyper-parameters by themselves.
fn method(spec: &JobSpec) -> (Value, Value) {
    let of = spec.hyperparameters.clone().unwrap_or_default();
    let rate = usual_rate(spec.lora.is_some());
    let mut hyperparameters = json!({
        "n_epochs": of.epochs, "batch_size": of.batch_size,
        "learning_rate_multiplier": of.learning_rate.map(|learning_rate| learning_rate / rate),
    });
    let kind = if spec.objective() == Objective::Dpo { "dpo" } else { "supervised" };
    let shown = hyperparameters.clone();
    if kind == "dpo" {
        hyperparameters["beta"] = json!(of.beta);
    }
    (json!({"type": kind, kind: {"hyperparameters": hyperparameters}}), shown)
}

/// How a caller named what is at this path.
fn file(path: &str) -> Option<String> {
    if path.is_empty() {
        return None;
    }
    Some(match path.split('/').collect::<Vec<_>>()[..] {
        ["inputs", "files", id, _] => id.to_owned(),
        ["inputs", "collections", name] => format!("{COLLECTION}{name}"),
        _ => path.to_owned(),
    })
}

/// OpenAI's status: fewer than there are states, and one more, for it has no word for a paused job.
fn status(state: JobState) -> &'static str {
    match state {
        JobState::Unspecified | JobState::Queued => "queued",
        JobState::Validating | JobState::Preparing => "validating_files",
        JobState::Running | JobState::Evaluating | JobState::Registering => "running",
        JobState::Succeeded => "succeeded",
        JobState::Failed => "failed",
        JobState::Cancelled => "cancelled",
        JobState::Paused => "paused",
    }
}
