//! A request's JSON, taken field by field, so that what nobody takes can be refused by name.

use axum::http::StatusCode;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::error::ApiError;

/// The fields that are left.
#[derive(Debug)]
pub(crate) struct Fields(Map<String, Value>);

impl From<Map<String, Value>> for Fields {
    fn from(fields: Map<String, Value>) -> Self {
        Self(fields)
    }
}

impl Fields {
    /// Parses a body, which must be an object.
    pub(crate) fn parse(body: &[u8]) -> Result<Self, ApiError> {
        match serde_json::from_slice(body) {
            Ok(Value::Object(fields)) => Ok(Self(fields)),
            Ok(_) => Err(ApiError::refused(StatusCode::BAD_REQUEST, "the body must be a JSON object")),
            Err(error) => Err(ApiError::refused(StatusCode::BAD_REQUEST, format!("the body is not JSON: {error}"))),
        }
    }

    /// Is a field there? null is like none.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.0.get(name).is_some_and(|value| !value.is_null())
    }

    /// Takes a field; null is like none.
    pub(crate) fn take<T: DeserializeOwned>(&mut self, name: &str) -> Result<Option<T>, ApiError> {
        match self.0.remove(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => serde_json::from_value(value)
                .map(Some)
                .map_err(|error| ApiError::field(name, format!("{name}: {error}"))),
        }
    }

    /// Takes a field of something that is not done: it may only say that it is not wanted.
    pub(crate) fn neutral(&mut self, name: &str, neutral: impl FnOnce(&Value) -> bool) -> Result<(), ApiError> {
        match self.take::<Value>(name)? {
            Some(value) if !neutral(&value) => {
                let message = format!("{name} is not supported here with this value: leave it out");
                Err(ApiError::field(name, message).code("unsupported_parameter"))
            }
            _ => Ok(()),
        }
    }

    /// Takes a field that changes no answer.
    pub(crate) fn skip(&mut self, name: &str) {
        self.0.remove(name);
    }

    /// Refuses what was not taken.
    pub(crate) fn end(self) -> Result<(), ApiError> {
        match self.0.keys().next() {
            None => Ok(()),
            Some(name) => {
                let name: String = name.chars().take(80).collect();
                Err(ApiError::field(name.clone(), format!("unknown parameter: {name}")).code("unknown_parameter"))
            }
        }
    }
}

/// Nothing in it, nothing to do: false, 0, an empty list, object or text.
pub(crate) fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(bit) => !bit,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
    }
}
