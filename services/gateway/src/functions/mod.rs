//! Snowflake's service functions: rows in, rows out, in batches that may be sent again and polled.
//!
//! ```sql
//! CREATE FUNCTION complete(model VARCHAR, prompt VARCHAR) RETURNS VARCHAR
//!   SERVICE = firn ENDPOINT = api CONTEXT_HEADERS = (CURRENT_USER) AS '/functions/complete';
//! ```

mod batches;
mod complete;
mod finetune;
mod job;
mod options;
mod rows;

use std::{future::Future, sync::Arc, time::Duration};

use axum::{
    Extension, Router,
    extract::{Path, Request, State},
    http::{HeaderMap, StatusCode, Uri, header},
    response::{IntoResponse as _, Response},
    routing::post,
};
use tokio::sync::Semaphore;

use self::{
    batches::{Batches, Key, Outcome, Waiting},
    finetune::Verb,
};
use crate::{app::App, body::json_body, error::ApiError, tenant::Tenant};

/// Most rows that are asked for at once, of all batches together: they must not take every place of the engine.
const ROWS_AT_ONCE: usize = 16;
/// The same on every try of a batch.
const BATCH_ID: &str = "sf-external-function-query-batch-id";
/// Longest id of a batch.
const LONGEST_ID: usize = 200;

/// What all functions share.
#[derive(Clone, Debug)]
struct Functions {
    batches: Arc<Batches>,
    places: Arc<Semaphore>,
}

pub(crate) fn routes() -> Router<App> {
    let functions = Functions { batches: Arc::default(), places: Arc::new(Semaphore::new(ROWS_AT_ONCE)) };
    Router::new()
        .route("/functions/complete", post(complete).get(poll))
        .route("/functions/finetune", post(finetune).get(poll))
        .route("/functions/finetune/{verb}", post(finetune).get(poll))
        .layer(Extension(functions))
}

async fn complete(
    State(app): State<App>,
    Extension(functions): Extension<Functions>,
    Extension(tenant): Extension<Tenant>,
    request: Request,
) -> Result<Response, ApiError> {
    let key = key(&tenant, request.uri(), request.headers())?;
    let rows = rows::parse(&json_body(request, app.max_body_bytes).await?)?;
    let (patience, places) = (app.function_patience, functions.places);
    let one = move |row| complete::answer(app.clone(), tenant.clone(), Arc::clone(&places), row);
    answer(&functions.batches, key, rows::run(rows, ROWS_AT_ONCE, one), patience).await
}

async fn finetune(
    State(app): State<App>,
    Extension(functions): Extension<Functions>,
    Extension(tenant): Extension<Tenant>,
    verb: Option<Path<String>>,
    request: Request,
) -> Result<Response, ApiError> {
    let verb = verb.map(|Path(verb)| Verb::parse(&verb).ok_or_else(ApiError::unknown_path)).transpose()?;
    let key = key(&tenant, request.uri(), request.headers())?;
    let rows = rows::parse(&json_body(request, app.max_body_bytes).await?)?;
    let (patience, batch) = (app.function_patience, key.as_ref().map(|key| key.id.clone()));
    let one = move |row| finetune::answer(app.clone(), verb, batch.clone(), row);
    // One after the other: jobs are queued in the rows' order.
    answer(&functions.batches, key, rows::run(rows, 1, one), patience).await
}

/// The result of a batch that was answered with 202.
async fn poll(
    Extension(functions): Extension<Functions>,
    Extension(tenant): Extension<Tenant>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let missing = || ApiError::field(BATCH_ID, format!("{BATCH_ID} must name the batch"));
    let key = key(&tenant, &uri, &headers)?.ok_or_else(missing)?;
    let gone = || ApiError::refused(StatusCode::NOT_FOUND, "there is no such batch, or not any more").code("not_found");
    let mut waiting = functions.batches.find(&key).ok_or_else(gone)?;
    shown(waiting.now().map_err(|_| ApiError::internal())?)
}

/// Runs a batch, or joins the same one; waits for a while.
async fn answer(
    batches: &Arc<Batches>,
    key: Option<Key>,
    work: impl Future<Output = Outcome> + Send + 'static,
    patience: Duration,
) -> Result<Response, ApiError> {
    let Some(key) = key else { return shown(Some(work.await)) };
    let mut waiting: Waiting = batches.begin(key, work)?;
    shown(waiting.wait(patience).await.map_err(|_| ApiError::internal())?)
}

fn shown(outcome: Option<Outcome>) -> Result<Response, ApiError> {
    Ok(match outcome.transpose()? {
        Some(rows) => ([(header::CONTENT_TYPE, "application/json")], rows).into_response(),
        None => StatusCode::ACCEPTED.into_response(),
    })
}

fn key(tenant: &Tenant, uri: &Uri, headers: &HeaderMap) -> Result<Option<Key>, ApiError> {
    let Some(id) = headers.get(BATCH_ID) else { return Ok(None) };
    let id = id.to_str().ok().filter(|id| !id.is_empty() && id.len() <= LONGEST_ID);
    let wrong = || ApiError::field(BATCH_ID, format!("{BATCH_ID} must be 1 to {LONGEST_ID} visible characters"));
    let id = id.ok_or_else(wrong)?.to_owned();
    Ok(Some(Key { tenant: tenant.clone(), path: uri.path().to_owned(), id }))
}
