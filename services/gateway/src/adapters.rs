//! Loading and unloading, as vLLM's clients ask for it.

use std::time::Duration;

use axum::{
    Router,
    extract::{Request, State},
    routing::post,
};
use firn_proto::inference::v1::{LoadModelRequest, UnloadModelRequest};

use crate::{
    app::{App, timed, within},
    body::json_body,
    error::ApiError,
    fields::{Fields, is_nothing},
    names::Names,
};

/// Longest that loading takes: an adapter is read from the stage and checked.
const LOAD_TIME: Duration = Duration::from_secs(120);

pub(crate) fn routes() -> Router<App> {
    Router::new().route("/v1/load_lora_adapter", post(load)).route("/v1/unload_lora_adapter", post(unload))
}

async fn load(State(mut app): State<App>, request: Request) -> Result<String, ApiError> {
    let mut fields = Fields::parse(&json_body(request, app.max_body_bytes).await?)?;
    let id = name(&mut fields)?;
    // A name says where its weights are; a path that a caller chooses is read by nobody.
    fields.neutral("lora_path", |path| is_nothing(path) || path.as_str() == Some(&id))?;
    fields.neutral("load_inplace", is_nothing)?;
    fields.end()?;
    let loaded = app.inference.load_model(timed(LoadModelRequest { id }, LOAD_TIME)).await;
    let loaded = loaded.map_err(|status| names().told(status))?.into_inner();
    Ok(format!("Success: LoRA adapter '{}' added successfully.", loaded.id))
}

async fn unload(State(mut app): State<App>, request: Request) -> Result<String, ApiError> {
    let mut fields = Fields::parse(&json_body(request, app.max_body_bytes).await?)?;
    let id = name(&mut fields)?;
    fields.skip("lora_int_id");
    fields.end()?;
    let unloaded = app.inference.unload_model(within(UnloadModelRequest { id: id.clone() })).await;
    unloaded.map_err(|status| names().told(status))?;
    Ok(format!("Success: LoRA adapter '{id}' removed successfully."))
}

/// What the protocol calls an id, callers of these routes call the adapter's name.
fn names() -> Names {
    Names::default().with("id", "lora_name").with("model", "lora_name")
}

fn name(fields: &mut Fields) -> Result<String, ApiError> {
    let name = fields.take::<String>("lora_name")?.filter(|name| !name.is_empty());
    name.ok_or_else(|| {
        ApiError::field("lora_name", "lora_name must be `model@3`, a version, or `job@50`, a checkpoint")
    })
}
