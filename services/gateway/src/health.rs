//! Whether answers can be had, as vLLM's and SageMaker's clients ask for it.

use std::time::Duration;

use axum::{Json, Router, extract::State, http::StatusCode, routing::get};
use firn_proto::inference::v1::ListModelsRequest;
use serde_json::{Value, json};

use crate::{
    app::{App, timed},
    error::ApiError,
};

/// Longest that inference may take to say that it is there.
const PROBE_TIME: Duration = Duration::from_secs(2);

/// `/healthz` speaks of the gateway alone, the others of what is behind it.
pub(crate) fn routes() -> Router<App> {
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/health", get(health))
        .route("/ping", get(health))
        .route("/version", get(version))
}

async fn health(State(mut app): State<App>) -> Result<StatusCode, ApiError> {
    app.inference.list_models(timed(ListModelsRequest {}, PROBE_TIME)).await?;
    Ok(StatusCode::OK)
}

async fn version() -> Json<Value> {
    Json(json!({"version": firn_kit::build_info::VERSION}))
}
