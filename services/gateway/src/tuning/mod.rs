//! Fine-tuning as OpenAI's clients ask for it.
//!
//! ```text
//! order: the body ─► source: files, collections and models found ─► spec: the protocol's job ─► shapes: OpenAI's job
//! ```

pub(crate) mod hyperparameters;
mod method;
pub(crate) mod order;
mod shapes;
pub(crate) mod source;
pub(crate) mod spec;

use std::time::Duration;

use axum::{
    Json, Router,
    extract::{Path, Request, State},
    http::HeaderMap,
    response::{IntoResponse as _, Response, sse::Event},
    routing::{get, post},
};
use firn_proto::trainer::v1::{CreateJobRequest, Job};
use futures_util::{StreamExt as _, stream};
use serde_json::Value;

use self::order::Order;
use crate::{
    app::{App, each, within},
    body::json_body,
    error::ApiError,
    jobs::{cursor, failed, found, id, page, saved, sse, told, watched},
    newest::{Asked, Window, part},
    times,
};

/// Makes a retry safe.
const IDEMPOTENCY_KEY: &str = "idempotency-key";
/// Jobs or events of a list if the caller does not say.
const USUAL: usize = 20;
/// Checkpoints of a list if the caller does not say.
const USUAL_CHECKPOINTS: usize = 10;
/// What is kept of a job's events comes at once: after such a silence the rest has yet to happen.
const SILENCE: Duration = Duration::from_millis(500);
/// Longest wait for all of them.
const EVENTS_TIME: Duration = Duration::from_secs(10);

pub(crate) fn routes() -> Router<App> {
    Router::new()
        .route("/v1/fine_tuning/jobs", get(jobs).post(create))
        .route("/v1/fine_tuning/jobs/{id}", get(job))
        .route("/v1/fine_tuning/jobs/{id}/events", get(events))
        .route("/v1/fine_tuning/jobs/{id}/checkpoints", get(checkpoints))
        .route("/v1/fine_tuning/jobs/{id}/{verb}", post(act))
}

async fn create(State(app): State<App>, request: Request) -> Result<Json<Value>, ApiError> {
    let request_id = request_id(request.headers())?;
    let order = Order::read(&json_body(request, app.max_body_bytes).await?)?;
    Ok(Json(shapes::job(queue(&app, order, request_id).await?)))
}

/// Queues a job. What the trainer refuses has the caller's name.
pub(crate) async fn queue(app: &App, order: Order, request_id: String) -> Result<Job, ApiError> {
    let names = order.names.clone();
    let request = within(CreateJobRequest { spec: Some(order.spec(app).await?), request_id });
    Ok(app.trainer.clone().create_job(request).await.map_err(|status| names.told(status))?.into_inner())
}

/// What makes a retry safe; empty: nothing.
pub(crate) fn request_id(headers: &HeaderMap) -> Result<String, ApiError> {
    match headers.get(IDEMPOTENCY_KEY).map(|key| key.to_str()) {
        None => Ok(String::new()),
        Some(Ok(key)) => Ok(key.to_owned()),
        Some(Err(_)) => Err(ApiError::field("Idempotency-Key", "Idempotency-Key must be plain ASCII")),
    }
}

async fn jobs(State(app): State<App>, asked: Asked) -> Result<Json<Value>, ApiError> {
    let window = part(asked)?.window(USUAL)?;
    window.read(|token| page(&app, token), |job: &Job| id(&job.name)).await?.list(shapes::job)
}

async fn job(State(app): State<App>, Path(id): Path<String>) -> Result<Json<Value>, ApiError> {
    Ok(Json(shapes::job(found(&app, &id).await?)))
}

async fn act(State(app): State<App>, Path((id, verb)): Path<(String, String)>) -> Result<Json<Value>, ApiError> {
    Ok(Json(shapes::job(told(&app, &id, &verb).await?)))
}

async fn checkpoints(State(app): State<App>, Path(id): Path<String>, asked: Asked) -> Result<Json<Value>, ApiError> {
    let mut window = part(asked)?.window(USUAL_CHECKPOINTS)?;
    let created_at = times::seconds(found(&app, &id).await?.create_time.as_ref());
    window.extend(saved(&app, &id).await?.into_iter().map(|of| shapes::checkpoint(&id, created_at, of)));
    window.list(|checkpoint| checkpoint)
}

async fn events(
    State(app): State<App>,
    Path(id): Path<String>,
    asked: Asked,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let part = part(asked)?;
    let created_at = times::seconds(found(&app, &id).await?.create_time.as_ref());
    if part.stream == Some(true) {
        stream_events(&app, &id, created_at, cursor(&headers, part.cursor)?).await
    } else {
        list_events(&app, &id, created_at, part.window(USUAL)?).await
    }
}

async fn stream_events(app: &App, id: &str, created_at: i64, cursor: u64) -> Result<Response, ApiError> {
    let shown = each(watched(app, id, cursor).await?).filter_map(move |event| async move {
        match event {
            Ok(event) => {
                let id = event.cursor.to_string();
                shapes::event(created_at, event).map(|event| Event::default().id(id).data(event.to_string()))
            }
            Err(status) => Some(failed(status)),
        }
    });
    Ok(sse(shown.chain(stream::iter([Event::default().data("[DONE]")])), app.heartbeat))
}

async fn list_events(app: &App, id: &str, created_at: i64, mut window: Window<Value>) -> Result<Response, ApiError> {
    let mut events = std::pin::pin!(each(watched(app, id, 0).await?));
    let gather = async {
        while let Ok(Some(event)) = tokio::time::timeout(SILENCE, events.next()).await {
            window.extend(shapes::event(created_at, event?));
        }
        Ok::<(), ApiError>(())
    };
    // What came by then is what there is to show.
    if let Ok(gathered) = tokio::time::timeout(EVENTS_TIME, gather).await {
        gathered?;
    }
    Ok(window.list(|event| event)?.into_response())
}
