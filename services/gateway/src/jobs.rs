//! Jobs in Firn's own shapes, and their events as they come.

use std::{convert::Infallible, time::Duration};

use axum::{
    Json, Router,
    extract::{Path, Query, State, rejection::QueryRejection},
    http::HeaderMap,
    response::{
        IntoResponse, Response, Sse,
        sse::{Event, KeepAlive},
    },
    routing::{get, post},
};
use firn_proto::trainer::v1::{
    CancelJobRequest, Checkpoint, GetJobRequest, Job, JobEvent, ListCheckpointsRequest, ListJobsRequest,
    PauseJobRequest, ResumeJobRequest, StepMetrics, WatchJobRequest, job_event,
};
use futures_util::{Stream, StreamExt as _};
use serde::Deserialize;
use serde_json::{Value, json};
use tonic::{Status, Streaming};

use crate::{
    app::{App, each, within},
    completions::UNBUFFERED,
    error::ApiError,
    lists,
    newest::PAGE,
    times,
    tuning::spec,
};

/// Where a browser says how far it had come.
const LAST_EVENT_ID: &str = "last-event-id";

pub(crate) fn routes() -> Router<App> {
    Router::new()
        .route("/v1/jobs/{id}", get(job))
        .route("/v1/jobs/{id}/events", get(events))
        .route("/v1/jobs/{id}/checkpoints", get(checkpoints))
        .route("/v1/jobs/{id}/{verb}", post(act))
}

async fn job(State(app): State<App>, Path(id): Path<String>) -> Result<Json<Value>, ApiError> {
    Ok(Json(object(found(&app, &id).await?)))
}

async fn act(State(app): State<App>, Path((id, verb)): Path<(String, String)>) -> Result<Json<Value>, ApiError> {
    Ok(Json(object(told(&app, &id, &verb).await?)))
}

async fn checkpoints(State(app): State<App>, Path(id): Path<String>) -> Result<Json<Value>, ApiError> {
    let checkpoint = |of: Checkpoint| {
        json!({
            "name": of.name, "id": format!("{id}@{}", of.step), "step": of.step, "path": of.path, "best": of.best,
            "metrics": of.metrics.map(step),
        })
    };
    let data: Vec<Value> = saved(&app, &id).await?.into_iter().map(checkpoint).collect();
    Ok(Json(json!({"object": "list", "data": data})))
}

#[derive(Debug, Deserialize)]
struct From {
    cursor: Option<u64>,
}

async fn events(
    State(app): State<App>,
    Path(id): Path<String>,
    from: Result<Query<From>, QueryRejection>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let Query(from) = from.map_err(|rejection| ApiError::field("cursor", rejection.body_text()))?;
    let events = watched(&app, &id, cursor(&headers, from.cursor)?).await?;
    let shown = each(events).map(|event| match event {
        Ok(event) => {
            let (kind, mut data, is_kept) = match event.event {
                Some(job_event::Event::State(job)) => ("state", object(job), true),
                Some(job_event::Event::Step(metrics)) => ("step", step(metrics), true),
                Some(job_event::Event::Progress(of)) => {
                    ("progress", json!({"what": of.what, "done": of.done, "total": of.total}), false)
                }
                None => ("progress", json!({}), false),
            };
            data["time"] = times::text(event.time.as_ref()).into();
            let shown = Event::default().event(kind).data(data.to_string());
            if is_kept { shown.id(event.cursor.to_string()) } else { shown }
        }
        Err(status) => failed(status),
    });
    Ok(sse(shown, app.heartbeat))
}

/// A page of all jobs, oldest first, and the next one's token.
pub(crate) async fn page(app: &App, page_token: String) -> Result<(Vec<Job>, String), ApiError> {
    let request = within(ListJobsRequest { page_size: PAGE, page_token });
    let page = app.trainer.clone().list_jobs(request).await?.into_inner();
    Ok((page.jobs, page.next_page_token))
}

/// Asks for a job by the id that callers know.
pub(crate) async fn found(app: &App, id: &str) -> Result<Job, ApiError> {
    let request = within(GetJobRequest { name: format!("jobs/{id}") });
    Ok(app.trainer.clone().get_job(request).await?.into_inner())
}

/// Tells a job to stop, to pause or to go on.
pub(crate) async fn told(app: &App, id: &str, verb: &str) -> Result<Job, ApiError> {
    let (mut trainer, name) = (app.trainer.clone(), format!("jobs/{id}"));
    let job = match verb {
        "cancel" => trainer.cancel_job(within(CancelJobRequest { name })).await?,
        "pause" => trainer.pause_job(within(PauseJobRequest { name })).await?,
        "resume" => trainer.resume_job(within(ResumeJobRequest { name })).await?,
        _ => return Err(ApiError::unknown_path()),
    };
    Ok(job.into_inner())
}

/// A job's checkpoints, oldest first.
pub(crate) async fn saved(app: &App, id: &str) -> Result<Vec<Checkpoint>, ApiError> {
    let request = within(ListCheckpointsRequest { parent: format!("jobs/{id}") });
    Ok(app.trainer.clone().list_checkpoints(request).await?.into_inner().checkpoints)
}

/// Follows a job. There is no deadline: it lasts as long as the job, or until the caller leaves.
pub(crate) async fn watched(app: &App, id: &str, cursor: u64) -> Result<Streaming<JobEvent>, ApiError> {
    let request = tonic::Request::new(WatchJobRequest { name: format!("jobs/{id}"), cursor });
    Ok(app.trainer.clone().watch_job(request).await?.into_inner())
}

/// How far the caller has come: a browser that connects again knows better than the address that it began with.
pub(crate) fn cursor(headers: &HeaderMap, asked: Option<u64>) -> Result<u64, ApiError> {
    match headers.get(LAST_EVENT_ID) {
        None => Ok(asked.unwrap_or(0)),
        Some(id) => id.to_str().ok().and_then(|id| id.parse().ok()).ok_or_else(|| {
            ApiError::field("Last-Event-ID", "Last-Event-ID must be the id of an event, which is a number")
        }),
    }
}

/// The status line is long gone, so an error is an event.
pub(crate) fn failed(status: Status) -> Event {
    Event::default().event("error").data(ApiError::from(status).body().to_string())
}

pub(crate) fn sse(events: impl Stream<Item = Event> + Send + 'static, heartbeat: Duration) -> Response {
    let events = Sse::new(events.map(Ok::<_, Infallible>));
    ([UNBUFFERED], events.keep_alive(KeepAlive::new().interval(heartbeat).text("alive"))).into_response()
}

/// The id that callers know.
pub(crate) fn id(name: &str) -> &str {
    name.strip_prefix("jobs/").unwrap_or(name)
}

/// A job with all that is known of it.
pub(crate) fn object(job: Job) -> Value {
    let spec = job.spec.clone().unwrap_or_default();
    let own = json!({
        "id": id(&job.name), "path": job.path, "best_step": job.best_step,
        "sequence": job.sequence, "objective": spec::objective_name(spec.objective()), "spec": spec::object(spec),
    });
    let mut object = lists::job(job);
    if let (Some(object), Value::Object(own)) = (object.as_object_mut(), own) {
        object.extend(own);
    }
    object
}

fn step(of: StepMetrics) -> Value {
    let held_out = of.held_out.map(|held| json!({"loss": held.loss, "accuracy": held.accuracy, "best": held.best}));
    json!({
        "step": of.step, "steps": of.steps, "loss": of.loss, "grad_norm": of.grad_norm,
        "learning_rate": of.learning_rate, "tokens_per_second": of.tokens_per_second,
        "seconds_left": of.seconds_left, "memory_bytes": of.memory_bytes, "epoch": of.epoch, "held_out": held_out,
    })
}
