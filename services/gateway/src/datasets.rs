//! One snapshot, and what was found in its rows.

use axum::{
    Json, Router,
    extract::{Path, State},
    http::header,
    response::{IntoResponse, Response},
    routing::get,
};
use firn_proto::dataprep::v1::{GetReportRequest, GetSnapshotRequest};
use serde_json::{Value, json};

use crate::{
    app::{App, within},
    error::ApiError,
    lists,
};

pub(crate) fn routes() -> Router<App> {
    Router::new()
        .route("/v1/datasets/{dataset}/{snapshot}", get(snapshot))
        .route("/v1/datasets/{dataset}/{snapshot}/report", get(report))
}

async fn snapshot(
    State(app): State<App>,
    Path((dataset, snapshot)): Path<(String, String)>,
) -> Result<Json<Value>, ApiError> {
    let name = format!("datasets/{dataset}/snapshots/{snapshot}");
    let snapshot = app.data_prep.clone().get_snapshot(within(GetSnapshotRequest { name })).await?.into_inner();
    let (path, template) = (json!(snapshot.path), json!(snapshot.template_sha256));
    let completion_tokens = json!(snapshot.completion_tokens);
    let mut object = lists::snapshot(snapshot);
    object["path"] = path;
    object["completion_tokens"] = completion_tokens;
    object["template_sha256"] = template;
    Ok(Json(object))
}

async fn report(
    State(app): State<App>,
    Path((dataset, snapshot)): Path<(String, String)>,
) -> Result<Response, ApiError> {
    let name = format!("datasets/{dataset}/snapshots/{snapshot}");
    let report = app.data_prep.clone().get_report(within(GetReportRequest { name })).await?.into_inner();
    Ok(([(header::CONTENT_TYPE, "application/json")], report.json).into_response())
}
