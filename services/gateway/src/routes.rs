//! The routes: a request in, one call of a service, an answer out.

use std::{sync::Arc, time::Duration};

use axum::{
    Json, Router,
    body::to_bytes,
    extract::{Path, Request, State},
    http::{HeaderName, HeaderValue, StatusCode, header},
    middleware,
    response::{Html, IntoResponse, Response},
    routing::{get, post},
};
use bytes::Bytes;
use firn_kit::Channel;
use firn_proto::{
    dataprep::v1::{data_prep_service_client::DataPrepServiceClient, file_service_client::FileServiceClient},
    inference::v1::{ListModelsRequest, ServedModel, inference_service_client::InferenceServiceClient},
    registry::v1::registry_service_client::RegistryServiceClient,
    trainer::v1::trainer_service_client::TrainerServiceClient,
};
use serde_json::{Value, json};

use crate::{
    ask::{Ask, Input},
    auth::{self, Access},
    datasets,
    error::ApiError,
    files, jobs, lists,
    reply::{Reply, Shape},
    tuning, versions, votes,
};

/// Longest that a call takes which is no answer.
const CALL_TIME: Duration = Duration::from_secs(10);
/// Longest that a body may take to arrive.
const BODY_TIME: Duration = Duration::from_secs(30);
/// The page to chat on: one file that asks nobody but this gateway.
const PAGE: &str = include_str!("page.html");
/// Lets the page do what it does and no more.
const PAGE_POLICY: &str = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; \
                           connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// What every route has.
#[derive(Clone, Debug)]
pub(crate) struct App {
    pub(crate) inference: InferenceServiceClient<Channel>,
    pub(crate) trainer: TrainerServiceClient<Channel>,
    pub(crate) registry: RegistryServiceClient<Channel>,
    pub(crate) data_prep: DataPrepServiceClient<Channel>,
    pub(crate) files: FileServiceClient<Channel>,
    pub(crate) max_body_bytes: usize,
    pub(crate) max_upload_bytes: usize,
    /// What `base` means where a job is asked for.
    pub(crate) base: Arc<str>,
    pub(crate) answer_timeout: Duration,
}

/// All routes.
pub(crate) fn router(app: App, access: Access) -> Router {
    let v1 = Router::new()
        .route("/v1/models", get(models))
        .route("/v1/models/{id}", get(model))
        .route("/v1/chat/completions", post(chat))
        .route("/v1/completions", post(completions))
        .merge(files::routes())
        .merge(tuning::routes())
        .merge(jobs::routes())
        .merge(versions::routes())
        .merge(votes::routes())
        .merge(datasets::routes())
        .merge(lists::routes())
        .route_layer(middleware::from_fn_with_state(access, auth::check));
    v1.route("/", get(page))
        .route("/healthz", get(|| async { "ok\n" }))
        .fallback(unknown_path)
        .method_not_allowed_fallback(wrong_method)
        .with_state(app)
}

/// A call that must not take long.
pub(crate) fn within<T>(message: T) -> tonic::Request<T> {
    timed(message, CALL_TIME)
}

pub(crate) fn timed<T>(message: T, time: Duration) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.set_timeout(time);
    request
}

async fn chat(State(app): State<App>, request: Request) -> Result<Response, ApiError> {
    let ask = Ask::chat(&json_body(request, app.max_body_bytes).await?)?;
    answer(app, ask, Shape::Chat).await
}

async fn completions(State(app): State<App>, request: Request) -> Result<Response, ApiError> {
    let ask = Ask::text(&json_body(request, app.max_body_bytes).await?)?;
    answer(app, ask, Shape::Text).await
}

async fn answer(mut app: App, ask: Ask, shape: Shape) -> Result<Response, ApiError> {
    let pieces = match ask.input {
        Input::Chat(request) => app.inference.chat(timed(request, app.answer_timeout)).await,
        Input::Text(request) => app.inference.generate(timed(request, app.answer_timeout)).await,
    };
    let pieces = pieces?.into_inner();
    let reply = Reply::new(shape, ask.model);
    if ask.stream { Ok(reply.events(pieces, ask.include_usage)) } else { reply.whole(pieces).await }
}

async fn served(app: &App) -> Result<Vec<Value>, ApiError> {
    let listed = app.inference.clone().list_models(within(ListModelsRequest {})).await?.into_inner();
    let object = |model: ServedModel| {
        json!({
            "id": model.id, "object": "model", "created": 0, "owned_by": "firn",
            "version": model.version, "parent": model.parent, "context_length": model.context_length,
        })
    };
    Ok(listed.models.into_iter().map(object).collect())
}

async fn models(State(app): State<App>) -> Result<Json<Value>, ApiError> {
    Ok(Json(json!({"object": "list", "data": served(&app).await?})))
}

async fn model(State(app): State<App>, Path(id): Path<String>) -> Result<Json<Value>, ApiError> {
    let found = served(&app).await?.into_iter().find(|model| model["id"] == id);
    let missing = || {
        let shown: String = id.chars().take(80).collect();
        ApiError::refused(StatusCode::NOT_FOUND, format!("there is no model `{shown}`")).code("model_not_found")
    };
    found.map(Json).ok_or_else(missing)
}

async fn page() -> impl IntoResponse {
    let headers: [(HeaderName, HeaderValue); 4] = [
        (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(PAGE_POLICY)),
        (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
    ];
    (headers, Html(PAGE))
}

pub(crate) async fn unknown_path() -> ApiError {
    ApiError::refused(StatusCode::NOT_FOUND, "there is nothing at this path").code("unknown_url")
}

async fn wrong_method() -> ApiError {
    ApiError::refused(StatusCode::METHOD_NOT_ALLOWED, "this path does not take this method")
}

/// Reads a body that says that it is JSON. A page of another origin can send such a body only if this gateway allows it,
/// which it never does.
pub(crate) async fn json_body(request: Request, limit: usize) -> Result<Bytes, ApiError> {
    let kind = request.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or("");
    if !kind.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json")) {
        let message = "send JSON with `Content-Type: application/json`";
        return Err(ApiError::refused(StatusCode::UNSUPPORTED_MEDIA_TYPE, message));
    }
    let too_large = || {
        let message = format!("the body has more than {limit} bytes");
        ApiError::refused(StatusCode::PAYLOAD_TOO_LARGE, message)
    };
    let announced = request.headers().get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    if announced.is_some_and(|length: usize| length > limit) {
        return Err(too_large());
    }
    match tokio::time::timeout(BODY_TIME, to_bytes(request.into_body(), limit)).await {
        Ok(Ok(body)) => Ok(body),
        // A caller that leaves in the middle hears no answer, so what is left is the limit.
        Ok(Err(_)) => Err(too_large()),
        Err(_) => Err(ApiError::refused(StatusCode::REQUEST_TIMEOUT, "the body did not arrive in time")),
    }
}
