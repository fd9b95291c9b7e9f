//! Files of rows, in OpenAI's shapes.

mod upload;

use axum::{
    Json, Router,
    body::Body,
    extract::{Path, State},
    http::{HeaderName, HeaderValue, header},
    response::{IntoResponse, Response},
    routing::get,
};
use firn_proto::dataprep::v1::{DeleteFileRequest, File, GetFileRequest, ListFilesRequest, ReadFileRequest};
use futures_util::TryStreamExt as _;
use serde_json::{Value, json};

use crate::{
    app::{App, each, within},
    error::ApiError,
    newest::{Asked, PAGE, part},
    times,
};

/// Files of a list if the caller does not say.
const USUAL: usize = 20;

pub(crate) fn routes() -> Router<App> {
    Router::new()
        .route("/v1/files", get(files).post(upload::upload))
        .route("/v1/files/{id}", get(file).delete(delete))
        .route("/v1/files/{id}/content", get(content))
}

async fn files(State(app): State<App>, asked: Asked) -> Result<Json<Value>, ApiError> {
    let part = part(asked)?;
    let (app, purpose) = (&app, part.purpose.as_deref());
    let page = |page_token| async move {
        let request = within(ListFilesRequest { page_size: PAGE, page_token });
        let mut page = app.files.clone().list_files(request).await?.into_inner();
        page.files.retain(|file| purpose.is_none_or(|purpose| purpose == file.purpose));
        Ok((page.files, page.next_page_token))
    };
    part.window(USUAL)?.read(page, |file: &File| id(&file.name)).await?.list(object)
}

async fn file(State(app): State<App>, Path(id): Path<String>) -> Result<Json<Value>, ApiError> {
    Ok(Json(object(found(&app, &id).await?)))
}

async fn delete(State(app): State<App>, Path(id): Path<String>) -> Result<Json<Value>, ApiError> {
    app.files.clone().delete_file(within(DeleteFileRequest { name: format!("files/{id}") })).await?;
    Ok(Json(json!({"id": id, "object": "file", "deleted": true})))
}

async fn content(State(app): State<App>, Path(id): Path<String>) -> Result<Response, ApiError> {
    let file = found(&app, &id).await?;
    let request = tonic::Request::new(ReadFileRequest { name: file.name });
    let chunks = app.files.clone().read_file(request).await?.into_inner();
    // The first error ends the body early, which its length shows.
    let data = each(chunks).map_ok(|chunk| chunk.data);
    let plain = |letter: char| if letter.is_ascii_graphic() && !"\"\\;%".contains(letter) { letter } else { '_' };
    let filename: String = file.filename.chars().map(plain).collect();
    let disposition = HeaderValue::try_from(format!("attachment; filename=\"{filename}\""));
    let headers: [(HeaderName, HeaderValue); 4] = [
        (header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream")),
        (header::CONTENT_LENGTH, HeaderValue::from(file.size)),
        (header::CONTENT_DISPOSITION, disposition.unwrap_or(HeaderValue::from_static("attachment"))),
        (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    ];
    Ok((headers, Body::from_stream(data)).into_response())
}

/// Asks for a file by the id that callers know.
pub(crate) async fn found(app: &App, id: &str) -> Result<File, ApiError> {
    let request = within(GetFileRequest { name: format!("files/{id}") });
    Ok(app.files.clone().get_file(request).await?.into_inner())
}

/// The id that callers know.
fn id(name: &str) -> &str {
    name.strip_prefix("files/").unwrap_or(name)
}

fn object(file: File) -> Value {
    json!({
        "id": id(&file.name), "object": "file", "bytes": file.size,
        "created_at": times::seconds(file.create_time.as_ref()), "expires_at": null, "filename": file.filename,
        "purpose": file.purpose, "status": "processed", "status_details": null,
        "firn": {"sha256": file.sha256, "path": file.path},
    })
}
