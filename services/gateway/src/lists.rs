//! What other services have, as plain JSON lists.

use axum::{
    Json, Router,
    extract::{Query, State, rejection::QueryRejection},
    routing::get,
};
use firn_proto::{
    dataprep::v1::{ListSnapshotsRequest, Snapshot},
    registry::v1::{Alias, ListModelsRequest, Model},
    trainer::v1::{Evaluation, Job, JobState, ListJobsRequest},
};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    app::{App, within},
    error::ApiError,
    times::text,
};

pub(crate) fn routes() -> Router<App> {
    Router::new()
        .route("/v1/jobs", get(jobs))
        .route("/v1/registry/models", get(models))
        .route("/v1/datasets", get(datasets))
}

/// Which page.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Paging {
    #[serde(default)]
    pub(crate) page_size: i32,
    #[serde(default)]
    pub(crate) page_token: String,
}

pub(crate) type Page = Result<Query<Paging>, QueryRejection>;

pub(crate) fn paging(page: Page) -> Result<Paging, ApiError> {
    page.map(|Query(paging)| paging).map_err(|rejection| ApiError::field("page_size", rejection.body_text()))
}

pub(crate) fn list(data: Vec<Value>, next_page_token: &str) -> Json<Value> {
    Json(json!({"object": "list", "data": data, "next_page_token": next_page_token}))
}

/// `GET /v1/jobs`.
async fn jobs(State(app): State<App>, page: Page) -> Result<Json<Value>, ApiError> {
    let Paging { page_size, page_token } = paging(page)?;
    let request = within(ListJobsRequest { page_size, page_token });
    let page = app.trainer.clone().list_jobs(request).await?.into_inner();
    Ok(list(page.jobs.into_iter().map(job).collect(), &page.next_page_token))
}

/// `GET /v1/registry/models`.
async fn models(State(app): State<App>, page: Page) -> Result<Json<Value>, ApiError> {
    let Paging { page_size, page_token } = paging(page)?;
    let request = within(ListModelsRequest { page_size, page_token });
    let page = app.registry.clone().list_models(request).await?.into_inner();
    Ok(list(page.models.into_iter().map(model).collect(), &page.next_page_token))
}

/// `GET /v1/datasets`.
async fn datasets(State(app): State<App>, page: Page) -> Result<Json<Value>, ApiError> {
    let Paging { page_size, page_token } = paging(page)?;
    let request = within(ListSnapshotsRequest { page_size, page_token });
    let page = app.data_prep.clone().list_snapshots(request).await?.into_inner();
    Ok(list(page.snapshots.into_iter().map(snapshot).collect(), &page.next_page_token))
}

pub(crate) fn job(job: Job) -> Value {
    let state = job_state(job.state());
    let time = text(job.create_time.as_ref());
    let spec = job.spec.unwrap_or_default();
    json!({
        "name": job.name, "state": state, "error": job.error, "model": spec.model, "base": spec.base,
        "step": job.step, "steps": job.steps, "snapshot": job.snapshot, "version": job.version,
        "train_tokens": job.train_tokens, "train_seconds": job.train_seconds, "create_time": time,
        "base_evaluation": job.base_evaluation.map(evaluation), "tuned_evaluation": job.tuned_evaluation.map(evaluation),
    })
}

fn evaluation(of: Evaluation) -> Value {
    json!({
        "loss": of.loss, "rows": of.rows, "field_recall": of.field_recall,
        "preference_accuracy": of.preference_accuracy, "token_accuracy": of.token_accuracy,
        "sample_prompt": of.sample_prompt, "sample_answer": of.sample_answer,
    })
}

fn model(model: Model) -> Value {
    let aliases: Vec<Value> = model.aliases.into_iter().map(alias).collect();
    json!({"name": model.name, "versions": model.versions, "aliases": aliases})
}

pub(crate) fn alias(alias: Alias) -> Value {
    json!({"name": alias.name, "version": alias.version, "sequence": alias.sequence})
}

pub(crate) fn snapshot(snapshot: Snapshot) -> Value {
    let state = snapshot.state().as_str_name();
    let state = state.strip_prefix("SNAPSHOT_STATE_").unwrap_or(state);
    let time = text(snapshot.create_time.as_ref());
    json!({
        "name": snapshot.name, "state": state, "error": snapshot.error, "rows": snapshot.rows,
        "train_rows": snapshot.train_rows, "held_out_rows": snapshot.held_out_rows,
        "train_tokens": snapshot.train_tokens, "truncated_rows": snapshot.truncated_rows,
        "duplicate_rows": snapshot.duplicate_rows, "create_time": time,
    })
}

/// A state's name, without what all of them begin with.
pub(crate) fn job_state(state: JobState) -> &'static str {
    let name = state.as_str_name();
    name.strip_prefix("JOB_STATE_").unwrap_or(name)
}
