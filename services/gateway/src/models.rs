//! What can be asked for by name.

use axum::{
    Json, Router,
    extract::{Path, State},
    http::StatusCode,
    routing::get,
};
use firn_proto::inference::v1::{ListModelsRequest, ServedModel};
use serde_json::{Value, json};

use crate::{
    app::{App, within},
    error::ApiError,
};

pub(crate) fn routes() -> Router<App> {
    Router::new().route("/v1/models", get(models)).route("/v1/models/{id}", get(model))
}

async fn served(app: &App) -> Result<Vec<Value>, ApiError> {
    let listed = app.inference.clone().list_models(within(ListModelsRequest {})).await?.into_inner();
    let object = |model: ServedModel| {
        let root = if model.version.is_empty() { model.id.clone() } else { model.version.clone() };
        json!({
            "id": model.id, "object": "model", "created": 0, "owned_by": "firn", "root": root,
            "version": model.version, "parent": model.parent, "context_length": model.context_length,
            "max_model_len": model.context_length, "loaded": model.loaded,
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
        ApiError::refused(StatusCode::NOT_FOUND, format!("there is no model `{shown}`"))
            .about("model")
            .code("model_not_found")
    };
    found.map(Json).ok_or_else(missing)
}
