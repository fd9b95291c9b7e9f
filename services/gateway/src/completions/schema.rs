//! What an answer must look like: OpenAI's `response_format`, and vLLM's `guided_json`.

use serde::Deserialize;
use serde_json::Value;

use crate::{error::ApiError, fields::Fields};

/// Any object.
const OBJECT: &str = r#"{"type":"object"}"#;

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Format {
    Text,
    JsonObject,
    JsonSchema {
        json_schema: Named,
    },
    /// As Cortex's COMPLETE takes it.
    Json {
        schema: Value,
    },
}

#[derive(Deserialize)]
struct Named {
    schema: Value,
}

/// Takes the fields that constrain an answer. The schema as text; empty if there is none.
pub(crate) fn json_schema(fields: &mut Fields) -> Result<String, ApiError> {
    let guided = match fields.take("guided_json")? {
        None => None,
        Some(Value::String(text)) => {
            let wrong = |error| ApiError::field("guided_json", format!("guided_json is not JSON: {error}"));
            Some(schema("guided_json", &serde_json::from_str(&text).map_err(wrong)?)?)
        }
        Some(value) => Some(schema("guided_json", &value)?),
    };
    let format = match fields.take("response_format")? {
        None | Some(Format::Text) => None,
        Some(Format::JsonObject) => Some(OBJECT.to_owned()),
        Some(Format::Json { schema: given }) => Some(schema("response_format", &given)?),
        Some(Format::JsonSchema { json_schema }) => Some(schema("response_format", &json_schema.schema)?),
    };
    match (guided, format) {
        (Some(_), Some(_)) => Err(ApiError::field("guided_json", "give guided_json or response_format, not both")),
        (schema, None) | (None, schema) => Ok(schema.unwrap_or_default()),
    }
}

fn schema(param: &str, schema: &Value) -> Result<String, ApiError> {
    if schema.is_object() || schema.is_boolean() {
        Ok(schema.to_string())
    } else {
        Err(ApiError::field(param, format!("{param} must have a JSON Schema, which is an object")))
    }
}
