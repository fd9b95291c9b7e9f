//! A file on its way: from a form's parts to data-prep, of which never more than a few chunks are here.

use std::{future::Future, time::Duration};

use axum::{
    Json,
    extract::{
        DefaultBodyLimit, FromRequest as _, Multipart, Request, State,
        multipart::{Field, MultipartError},
    },
    http::StatusCode,
};
use firn_proto::dataprep::v1::{DeleteFileRequest, File, FileHead, UploadFileRequest, upload_file_request::Part};
use futures_util::stream;
use serde_json::Value;
use tokio::sync::mpsc;

use super::object;
use crate::{
    app::{App, timed, within},
    error::ApiError,
    names::Names,
};

/// Longest wait for a part of the body.
const CHUNK_TIME: Duration = Duration::from_secs(60);
/// Longest upload.
const UPLOAD_TIME: Duration = Duration::from_secs(3600);
/// Largest chunk that data-prep takes, in bytes.
const CHUNK: usize = 1 << 20;
/// Chunks that wait for data-prep.
const QUEUE: usize = 4;
/// What a form has besides the file, in bytes.
const FORM: usize = 64 << 10;
/// Longest purpose in bytes.
const LONGEST_PURPOSE: usize = 64;
/// What a file may be for, by OpenAI's names.
const PURPOSES: [&str; 6] = ["fine-tune", "batch", "user_data", "evals", "assistants", "vision"];
/// What a file is for if it comes before the caller has said so.
const USUAL_PURPOSE: &str = "fine-tune";

/// `POST /v1/files`.
pub(super) async fn upload(State(app): State<App>, mut request: Request) -> Result<Json<Value>, ApiError> {
    DefaultBodyLimit::max(app.max_upload_bytes.saturating_add(FORM)).apply(&mut request);
    let form = Multipart::from_request(request, &()).await;
    let form = form.map_err(|rejection| ApiError::refused(rejection.status(), rejection.body_text()))?;
    let (mut purpose, mut file) = (None, None);
    match read(&app, form, &mut purpose, &mut file).await {
        Ok(()) => match file {
            Some(file) => Ok(Json(object(file))),
            None => Err(ApiError::field("file", "file must be given, with its name")),
        },
        Err(error) => {
            // A caller that hears of an error must not find the file.
            if let Some(file) = file {
                let removed = app.files.clone().delete_file(within(DeleteFileRequest { name: file.name })).await;
                if let Err(error) = removed {
                    tracing::warn!(%error, "failed to remove a refused upload");
                }
            }
            Err(error)
        }
    }
}

/// Reads the form's fields in the order in which they come.
async fn read(
    app: &App,
    mut form: Multipart,
    purpose: &mut Option<String>,
    file: &mut Option<File>,
) -> Result<(), ApiError> {
    while let Some(mut field) = in_time(form.next_field()).await? {
        match field.name() {
            Some("purpose") if purpose.is_none() => {
                let said = short_text(&mut field).await?;
                if !PURPOSES.contains(&said.as_str()) {
                    return Err(ApiError::field("purpose", format!("purpose must be one of {}", PURPOSES.join(", "))));
                }
                if file.as_ref().is_some_and(|file| file.purpose != said) {
                    return Err(ApiError::field("purpose", "send purpose before file"));
                }
                *purpose = Some(said);
            }
            Some("file") if file.is_none() => {
                let filename = field.file_name().unwrap_or_default().to_owned();
                let head = FileHead { filename, purpose: purpose.clone().unwrap_or_else(|| USUAL_PURPOSE.to_owned()) };
                *file = Some(send(app, head, field).await?);
            }
            name => {
                let name: String = name.unwrap_or_default().chars().take(80).collect();
                let message = format!("{name:?} is unknown, or was sent before: send purpose and file, each once");
                return Err(ApiError::field(name, message).code("unknown_parameter"));
            }
        }
    }
    if purpose.is_none() {
        return Err(ApiError::field("purpose", "purpose must be given, such as fine-tune"));
    }
    Ok(())
}

async fn short_text(field: &mut Field<'_>) -> Result<String, ApiError> {
    let mut bytes = Vec::new();
    while let Some(chunk) = in_time(field.chunk()).await? {
        bytes.extend_from_slice(&chunk);
        if bytes.len() > LONGEST_PURPOSE {
            return Err(ApiError::field("purpose", format!("purpose has more than {LONGEST_PURPOSE} bytes")));
        }
    }
    String::from_utf8(bytes).map_err(|_| ApiError::field("purpose", "purpose is not UTF-8"))
}

/// Passes a file on as it comes.
async fn send(app: &App, head: FileHead, mut field: Field<'_>) -> Result<File, ApiError> {
    let (sender, receiver) = mpsc::channel(QUEUE);
    let mut files = app.files.clone();
    let call = async move {
        let parts = stream::unfold(receiver, next);
        let names = Names::default().with("data", "file");
        let stored = files.upload_file(timed(parts, UPLOAD_TIME)).await;
        stored.map(tonic::Response::into_inner).map_err(|status| names.told(status))
    };
    let limit = app.max_upload_bytes;
    let feed = async move {
        let mut parts = vec![Part::Head(head)];
        let mut size = 0;
        loop {
            for part in parts {
                if sender.send(Some(UploadFileRequest { part: Some(part) })).await.is_err() {
                    // The call has ended, and says why.
                    return Ok(());
                }
            }
            let data = gathered(&mut field).await?;
            size += data.len();
            if size > limit {
                return Err(too_large(limit));
            }
            if data.is_empty() {
                break;
            }
            parts = data.chunks(CHUNK).map(|chunk| Part::Data(chunk.to_vec())).collect();
        }
        let _ = sender.send(None).await;
        Ok::<(), ApiError>(())
    };
    let mut call = std::pin::pin!(call);
    let fed = tokio::select! {
        biased;
        ended = call.as_mut() => return ended,
        fed = feed => fed,
    };
    fed?;
    call.await
}

/// What goes to data-prep next. An upload whose caller has left does not end here, for an end would make what came so
/// far a file: it waits until the call is dropped, or data-prep has waited long enough for a chunk.
async fn next(
    mut receiver: mpsc::Receiver<Option<UploadFileRequest>>,
) -> Option<(UploadFileRequest, mpsc::Receiver<Option<UploadFileRequest>>)> {
    match receiver.recv().await {
        Some(Some(part)) => Some((part, receiver)),
        Some(None) => None,
        None => std::future::pending().await,
    }
}

/// About half a [`CHUNK`], less only at the end: a form's reader hands on what the network gave, which is smaller.
async fn gathered(field: &mut Field<'_>) -> Result<Vec<u8>, ApiError> {
    let mut data = Vec::new();
    while data.len() < CHUNK / 2 {
        let Some(chunk) = in_time(field.chunk()).await? else { break };
        data.extend_from_slice(&chunk);
    }
    Ok(data)
}

async fn in_time<T>(part: impl Future<Output = Result<T, MultipartError>>) -> Result<T, ApiError> {
    match tokio::time::timeout(CHUNK_TIME, part).await {
        Ok(part) => part.map_err(|error| ApiError::refused(error.status(), error.body_text())),
        Err(_) => Err(ApiError::refused(StatusCode::REQUEST_TIMEOUT, "the body did not arrive in time")),
    }
}

fn too_large(limit: usize) -> ApiError {
    ApiError::refused(StatusCode::PAYLOAD_TOO_LARGE, format!("the file has more than {limit} bytes"))
}
