//! What a caller names, found: files, collections and models.

use firn_proto::{
    dataprep::v1::{AppendRowsRequest, ReadFileRequest},
    registry::v1::GetVersionRequest,
};
use serde_json::{Map, Value};
use tonic::Code;

use super::spec::Format;
use crate::{
    app::{App, within},
    error::ApiError,
    files,
};

/// Says that a file is a collection.
pub(crate) const COLLECTION: &str = "collection:";

/// Rows that a caller names.
#[derive(Debug)]
pub(crate) struct Source {
    /// On the stage.
    pub(crate) path: String,
    /// Columns of the first row, if it could be read.
    columns: Vec<String>,
}

/// Base and adapter of a model that a caller names.
#[derive(Debug, PartialEq)]
pub(crate) struct Start {
    pub(crate) base: String,
    /// Empty: a new one.
    pub(crate) adapter: String,
}

/// Finds rows: `file-…` or `collection:<name>`. The first row is looked at only if its columns are `asked` for.
pub(crate) async fn rows(app: &App, field: &str, name: &str, asked: bool) -> Result<Source, ApiError> {
    if let Some(collection) = name.strip_prefix(COLLECTION) {
        let (path, rows) = collected(app, collection, vec![]).await.map_err(|error| error.about(field))?;
        if rows == 0 {
            return Err(ApiError::field(field, format!("{field}: {name} has no rows")));
        }
        return Ok(Source { path, columns: vec![] });
    }
    if !name.starts_with("file-") {
        let message = format!("{field} must be the id of a file, file-…, or {COLLECTION}<name>");
        return Err(ApiError::field(field, message));
    }
    let file = files::found(app, name).await.map_err(|error| error.about(field))?;
    let columns = if asked && file.filename.to_lowercase().ends_with(".jsonl") {
        first_columns(app, file.name).await?
    } else {
        vec![]
    };
    Ok(Source { path: file.path, columns })
}

/// Adds rows to a collection, or none, and says where it is and how many rows it has.
pub(crate) async fn collected(app: &App, collection: &str, rows: Vec<String>) -> Result<(String, u64), ApiError> {
    let request = within(AppendRowsRequest { collection: collection.to_owned(), rows });
    let answer = app.files.clone().append_rows(request).await?.into_inner();
    Ok((answer.path, answer.rows))
}

/// The columns of the first row, if it is in the first chunk.
async fn first_columns(app: &App, name: String) -> Result<Vec<String>, ApiError> {
    let mut chunks = app.files.clone().read_file(within(ReadFileRequest { name })).await?.into_inner();
    let Some(chunk) = chunks.message().await? else { return Ok(vec![]) };
    let text = chunk.data.strip_prefix(b"\xEF\xBB\xBF".as_slice()).unwrap_or(&chunk.data);
    let first = text.split(|byte| *byte == b'\n').find(|line| !line.trim_ascii().is_empty()).unwrap_or_default();
    let row: Map<String, Value> = serde_json::from_slice(first).unwrap_or_default();
    Ok(row.into_iter().map(|(column, _)| column).collect())
}

impl Source {
    /// How its rows become text, by the names of their columns.
    pub(crate) fn format(&self, of_preferences: bool) -> Format {
        let has = |column: &str| self.columns.iter().any(|found| found == column);
        if of_preferences {
            return match has("preferred_output") {
                true => Format::preference("input", "preferred_output", "non_preferred_output"),
                false => Format::preference("prompt", "chosen", "rejected"),
            };
        }
        match () {
            () if !has("messages") && has("prompt") && has("completion") => Format::Prompt {
                prompt_template: "{{ prompt }}".to_owned(),
                completion_template: "{{ completion }}".to_owned(),
                system: String::new(),
            },
            () if !has("messages") && has("text") => Format::Text { column: "text".to_owned() },
            () => Format::Messages { column: "messages".to_owned() },
        }
    }
}

/// Finds where training begins, which the caller has said in this field: `base`, a version as it is asked for (`offers@best`, `offers@3`), or a path on the stage.
pub(crate) async fn start(app: &App, field: &str, model: &str) -> Result<Start, ApiError> {
    if matches!(model, "" | "base") {
        return Ok(Start { base: app.base.to_string(), adapter: String::new() });
    }
    let Some((name, which)) = model.split_once('@') else {
        return Ok(Start { base: model.to_owned(), adapter: String::new() });
    };
    let kind = if which.bytes().all(|byte| byte.is_ascii_digit()) { "versions" } else { "aliases" };
    let request = within(GetVersionRequest { name: format!("models/{name}/{kind}/{which}") });
    let version = match app.registry.clone().get_version(request).await {
        Ok(version) => version.into_inner(),
        Err(status) => {
            let missing = status.code() == Code::NotFound;
            let error = ApiError::from(status).about(field);
            return Err(if missing { error.code("model_not_found") } else { error });
        }
    };
    // Without an adapter all its weights are its own.
    let is_adapter = version.files.iter().any(|file| file.path == "adapter_config.json");
    let base = version.lineage.unwrap_or_default().base;
    Ok(match is_adapter {
        true => Start { base, adapter: version.path },
        false => Start { base: version.path, adapter: String::new() },
    })
}
