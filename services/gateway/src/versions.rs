//! Versions of a model: what they are, the files that people read, and which of them an alias names.

use axum::{
    Json, Router,
    body::Bytes,
    extract::{Path, Request, State},
    http::{HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, put},
};
use firn_proto::registry::v1::{
    File, GetVersionRequest, ListVersionsRequest, ReadFileRequest, SetAliasRequest, Version,
};
use serde_json::{Value, json};

use crate::{
    app::{App, within},
    body::json_body,
    error::ApiError,
    fields::Fields,
    lists::{self, Page, Paging, list, paging},
    times,
};

/// Largest file that is shown, in bytes.
const LARGEST_FILE: usize = 4 << 20;
/// Files that people read, and what they are. The others are for programs, which take them from the stage.
const SHOWN: [(&str, &str); 5] = [
    ("report.json", "application/json"),
    ("report.html", "text/html; charset=utf-8"),
    ("README.md", "text/markdown; charset=utf-8"),
    ("training_params.json", "application/json"),
    ("loss.svg", "image/svg+xml"),
];
/// A file of a model may show, and do nothing: not even as this gateway's own page.
const FILE_POLICY: &str = "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:";

pub(crate) fn routes() -> Router<App> {
    Router::new()
        .route("/v1/registry/models/{model}/versions", get(versions))
        .route("/v1/registry/models/{model}/versions/{version}", get(version))
        .route("/v1/registry/models/{model}/versions/{version}/files/{*path}", get(file))
        .route("/v1/registry/models/{model}/aliases/{alias}", put(set_alias))
}

async fn versions(State(app): State<App>, Path(model): Path<String>, page: Page) -> Result<Json<Value>, ApiError> {
    let Paging { page_size, page_token } = paging(page)?;
    let request = ListVersionsRequest { parent: format!("models/{model}"), page_size, page_token };
    let page = app.registry.clone().list_versions(within(request)).await?.into_inner();
    Ok(list(page.versions.into_iter().map(object).collect(), &page.next_page_token))
}

async fn version(
    State(app): State<App>,
    Path((model, version)): Path<(String, String)>,
) -> Result<Json<Value>, ApiError> {
    let name = format!("models/{model}/versions/{version}");
    let version = app.registry.clone().get_version(within(GetVersionRequest { name })).await?.into_inner();
    Ok(Json(object(version)))
}

async fn file(
    State(app): State<App>,
    Path((model, version, path)): Path<(String, String, String)>,
) -> Result<Response, ApiError> {
    let Some((_, kind)) = SHOWN.iter().find(|(name, _)| *name == path) else {
        let names: Vec<&str> = SHOWN.iter().map(|(name, _)| *name).collect();
        let message = format!("only these files are shown: {}", names.join(", "));
        return Err(ApiError::refused(StatusCode::NOT_FOUND, message).code("not_found"));
    };
    let name = format!("models/{model}/versions/{version}");
    let request = within(ReadFileRequest { name, path, offset: 0 });
    let mut chunks = app.registry.clone().read_file(request).await?.into_inner();
    let mut bytes = Vec::new();
    while let Some(chunk) = chunks.message().await? {
        bytes.extend_from_slice(&chunk.data);
        if bytes.len() > LARGEST_FILE {
            let message = format!("the file has more than {LARGEST_FILE} bytes: read it on the stage");
            return Err(ApiError::refused(StatusCode::UNPROCESSABLE_ENTITY, message).code("file_too_large"));
        }
    }
    let headers: [(HeaderName, HeaderValue); 4] = [
        (header::CONTENT_TYPE, HeaderValue::from_static(kind)),
        (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(FILE_POLICY)),
        (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    ];
    Ok((headers, Bytes::from(bytes)).into_response())
}

async fn set_alias(
    State(app): State<App>,
    Path((model, alias)): Path<(String, String)>,
    request: Request,
) -> Result<Json<Value>, ApiError> {
    let mut fields = Fields::parse(&json_body(request, app.max_body_bytes).await?)?;
    let version = fields.take("version")?.ok_or_else(|| ApiError::field("version", "version must be given"))?;
    fields.end()?;
    let name = format!("models/{model}/aliases/{alias}");
    let alias = app.registry.clone().set_alias(within(SetAliasRequest { name, version })).await?.into_inner();
    Ok(Json(lists::alias(alias)))
}

fn object(version: Version) -> Value {
    let (model, number) = match version.name.split('/').collect::<Vec<_>>()[..] {
        ["models", model, "versions", number] => (json!(model), json!(number.parse::<u64>().ok())),
        _ => (Value::Null, Value::Null),
    };
    let file = |file: File| json!({"path": file.path, "size": file.size, "sha256": file.sha256});
    let files: Vec<Value> = version.files.into_iter().map(file).collect();
    let lineage = version.lineage.unwrap_or_default();
    json!({
        "name": version.name, "model": model, "version": number, "path": version.path, "aliases": version.aliases,
        "create_time": times::text(version.create_time.as_ref()), "metrics": version.metrics,
        "lineage": {
            "base": lineage.base, "snapshot": lineage.snapshot, "job": lineage.job,
            "template_sha256": lineage.template_sha256,
        },
        "files": files,
    })
}
