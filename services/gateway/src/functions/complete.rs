//! `complete(model, prompt[, options])`: one answer a row.

use std::{sync::Arc, time::Duration};

use serde_json::{Map, Value, json};
use tokio::sync::Semaphore;

use super::rows::Row;
use crate::{
    app::App,
    completions::{Ask, call, collect},
    error::ApiError,
    fields::{Fields, is_nothing},
    tenant::Tenant,
};

/// How often a row is tried that finds the engine's queue full or the engine loading.
const TRIES: u32 = 6;
/// Longest pause between tries.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// What an option can't be: arguments have it, or a row has no place for it.
const TAKEN: [&str; 4] = ["model", "messages", "stream", "n"];

/// The answer's text.
pub(crate) async fn answer(app: App, tenant: Tenant, places: Arc<Semaphore>, row: Row) -> Result<Value, ApiError> {
    let mut ask = read(row.arguments()?, tenant)?;
    // Its turns are the row's second argument.
    ask.names = ask.names.with("messages", "prompt");
    // The semaphore is never closed.
    let _place = places.acquire_owned().await.map_err(|_| ApiError::internal())?;
    let mut tries = 1;
    loop {
        let answer = async { collect(call(&app, ask.input.clone()).await?).await }.await;
        match answer.map_err(|status| ask.names.told(status)) {
            Ok(answer) => return Ok(json!(answer.text)),
            Err(error) => match error.retry_after() {
                Some(pause) if tries < TRIES => tokio::time::sleep(pause.min(LONGEST_PAUSE)).await,
                _ => return Err(error),
            },
        }
        tries += 1;
    }
}

fn read(arguments: Vec<Value>, tenant: Tenant) -> Result<Ask, ApiError> {
    let mut arguments = arguments.into_iter();
    let model = match arguments.next() {
        Some(Value::String(model)) => model,
        None | Some(Value::Null) => String::new(),
        Some(_) => return Err(ApiError::field("model", "model must be a text")),
    };
    let messages = match arguments.next() {
        Some(Value::String(text)) => json!([{"role": "user", "content": text}]),
        Some(Value::Array(turns)) => Value::Array(turns),
        _ => return Err(ApiError::field("prompt", "prompt must be a text or a list of {role, content}")),
    };
    let mut fields = options(arguments.next().unwrap_or_default())?;
    if arguments.next().is_some() {
        return Err(ApiError::field("data", "a row has a model, a prompt and options, and no more"));
    }
    if let Some(name) = TAKEN.into_iter().find(|name| fields.contains_key(*name)) {
        return Err(ApiError::field(name, format!("{name} is no option here")));
    }
    fields.extend([("model".to_owned(), model.into()), ("messages".to_owned(), messages)]);
    let mut fields = Fields::from(fields);
    // Cortex's COMPLETE has it.
    fields.neutral("guardrails", is_nothing)?;
    Ask::chat_fields(fields, tenant.into())
}

/// Options as an object, or as the text of one.
pub(crate) fn options(given: Value) -> Result<Map<String, Value>, ApiError> {
    let wrong = || ApiError::field("options", "options must be an object");
    match given {
        Value::Null => Ok(Map::new()),
        Value::Object(options) => Ok(options),
        Value::String(text) => serde_json::from_str(&text).map_err(|_| wrong()),
        _ => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::completions::Input;

    fn asked(arguments: Value) -> Result<firn_proto::inference::v1::ChatRequest, Value> {
        let Value::Array(arguments) = arguments else { panic!("a list") };
        match read(arguments, Tenant::local()).map(|ask| ask.input) {
            Ok(Input::Chat(request)) => Ok(request),
            Ok(other) => panic!("{other:?}"),
            Err(error) => Err(error.body()["error"].take()),
        }
    }

    #[test]
    fn arguments_become_a_chat() {
        let options = json!({"temperature": 0, "max_tokens": 5, "guardrails": false});
        for options in [options.clone(), json!(options.to_string())] {
            let request = asked(json!(["offers@best", "hi", options])).unwrap();
            assert_eq!((request.model.as_str(), request.tenant.as_str()), ("offers@best", "local"));
            assert_eq!((request.messages[0].role.as_str(), request.messages[0].content.as_str()), ("user", "hi"));
            assert_eq!(request.sampling.unwrap().max_tokens, Some(5));
        }
        let turns = json!([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]);
        assert_eq!(asked(json!([null, turns])).unwrap().messages.len(), 2);
        let format = json!({"response_format": {"type": "json", "schema": {"type": "array"}}});
        let request = asked(json!(["base", "hi", format])).unwrap();
        assert_eq!(request.sampling.unwrap().json_schema, r#"{"type":"array"}"#);
    }

    #[test]
    fn what_is_wrong_has_a_name() {
        for (arguments, param) in [
            (json!([1, "hi"]), "model"),
            (json!(["base"]), "prompt"),
            (json!(["base", {"a": 1}]), "prompt"),
            (json!(["base", "hi", 3]), "options"),
            (json!(["base", "hi", "{"]), "options"),
            (json!(["base", "hi", {"stream": true}]), "stream"),
            (json!(["base", "hi", {"n": 2}]), "n"),
            (json!(["base", "hi", {"guardrails": true}]), "guardrails"),
            (json!(["base", "hi", {"warmth": 1}]), "warmth"),
            (json!(["base", "hi", {}, 1]), "data"),
            (json!(["base", [{"role": "user", "content": 1}]]), "messages[0].content"),
        ] {
            assert_eq!(asked(arguments).unwrap_err()["param"], param);
        }
    }
}
