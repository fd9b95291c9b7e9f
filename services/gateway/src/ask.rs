//! OpenAI's requests, read and turned into the protocol's.

use firn_proto::inference::v1::{ChatMessage, ChatRequest, GenerateRequest, Sampling, TokenIds, generate_request};
use serde::Deserialize;
use serde_json::Value;

use crate::{
    error::ApiError,
    fields::{Fields, is_nothing, is_one},
};

/// What changes no answer of ours: bookkeeping of OpenAI's platform.
const BOOKKEEPING: [&str; 8] = [
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "parallel_tool_calls",
    "tool_choice",
];
/// What is not done, and may be there if it is switched off.
const NOT_DONE: [&str; 15] = [
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "logprobs",
    "top_logprobs",
    "tools",
    "functions",
    "function_call",
    "modalities",
    "audio",
    "prediction",
    "web_search_options",
    "echo",
    "suffix",
    "reasoning_effort",
];

/// A request, whichever route it came by.
#[derive(Debug)]
pub(crate) struct Ask {
    /// As the caller names it.
    pub(crate) model: String,
    pub(crate) input: Input,
    /// Answer as events.
    pub(crate) stream: bool,
    /// Send the token counts at the end of the events.
    pub(crate) include_usage: bool,
}

/// The call to make.
#[derive(Debug)]
pub(crate) enum Input {
    Chat(ChatRequest),
    Text(GenerateRequest),
}

impl Ask {
    /// Reads a body of `/v1/chat/completions`.
    pub(crate) fn chat(body: &[u8]) -> Result<Self, ApiError> {
        let mut fields = Fields::parse(body)?;
        let messages = messages(&mut fields)?;
        Self::read(fields, |model, sampling| {
            Input::Chat(ChatRequest { model, messages, sampling: Some(sampling), ..ChatRequest::default() })
        })
    }

    /// Reads a body of `/v1/completions`.
    pub(crate) fn text(body: &[u8]) -> Result<Self, ApiError> {
        let mut fields = Fields::parse(body)?;
        let input = Some(prompt(&mut fields)?);
        Self::read(fields, |model, sampling| {
            Input::Text(GenerateRequest { model, input, sampling: Some(sampling), ..GenerateRequest::default() })
        })
    }

    fn read(mut fields: Fields, input: impl FnOnce(String, Sampling) -> Input) -> Result<Self, ApiError> {
        let model = fields.take::<String>("model")?.unwrap_or_default();
        let sampling = sampling(&mut fields)?;
        let stream = fields.take("stream")?.unwrap_or(false);
        let options = fields.take::<StreamOptions>("stream_options")?.unwrap_or_default();
        fields.neutral("n", is_one)?;
        fields.neutral("best_of", is_one)?;
        fields.neutral("response_format", |format| format["type"] == "text")?;
        for name in NOT_DONE {
            // `modalities` says by ["text"] that nothing else is wanted, `reasoning_effort` by "none".
            fields
                .neutral(name, |value| is_nothing(value) || *value == serde_json::json!(["text"]) || value == "none")?;
        }
        BOOKKEEPING.iter().for_each(|name| fields.skip(name));
        fields.end()?;
        let input = input(model.clone(), sampling);
        Ok(Self { model, input, stream, include_usage: options.include_usage })
    }
}

#[derive(Default, Deserialize)]
struct StreamOptions {
    #[serde(default)]
    include_usage: bool,
}

#[derive(Deserialize)]
struct Turn {
    role: String,
    #[serde(default)]
    content: Value,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMore<T> {
    One(T),
    More(Vec<T>),
}

fn messages(fields: &mut Fields) -> Result<Vec<ChatMessage>, ApiError> {
    let turns: Vec<Turn> =
        fields.take("messages")?.ok_or_else(|| ApiError::field("messages", "messages must be given"))?;
    let message = |(index, turn): (usize, Turn)| {
        // Newer clients call the system's turn the developer's.
        let role = if turn.role == "developer" { "system".to_owned() } else { turn.role };
        let param = format!("messages[{index}].content");
        let content = content(&turn.content)
            .ok_or_else(|| ApiError::field(param.as_str(), format!("{param} must be a text, or parts of type text")))?;
        Ok(ChatMessage { role, content })
    };
    turns.into_iter().enumerate().map(message).collect()
}

fn content(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Array(parts) => {
            let text =
                |part: &Value| (part["type"] == "text").then(|| part["text"].as_str()).flatten().map(str::to_owned);
            parts.iter().map(text).collect()
        }
        _ => None,
    }
}

fn prompt(fields: &mut Fields) -> Result<generate_request::Input, ApiError> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Prompt {
        Text(String),
        Ids(Vec<u32>),
        Texts(Vec<String>),
        Many(Vec<Vec<u32>>),
    }
    let wrong = || ApiError::field("prompt", "prompt must be one text, or one list of token ids");
    let given: Value = fields.take("prompt")?.ok_or_else(wrong)?;
    match serde_json::from_value(given).map_err(|_| wrong())? {
        Prompt::Text(text) => Ok(generate_request::Input::Prompt(text)),
        Prompt::Ids(ids) if !ids.is_empty() => Ok(generate_request::Input::Ids(TokenIds { ids })),
        Prompt::Texts(texts) => match <[String; 1]>::try_from(texts) {
            Ok([text]) => Ok(generate_request::Input::Prompt(text)),
            Err(_) => Err(wrong()),
        },
        Prompt::Many(lists) => match <[Vec<u32>; 1]>::try_from(lists) {
            Ok([ids]) => Ok(generate_request::Input::Ids(TokenIds { ids })),
            Err(_) => Err(wrong()),
        },
        Prompt::Ids(_) => Err(wrong()),
    }
}

fn sampling(fields: &mut Fields) -> Result<Sampling, ApiError> {
    let older: Option<u32> = fields.take("max_tokens")?;
    let max_tokens = fields.take("max_completion_tokens")?.or(older);
    let stop = match fields.take("stop")? {
        None => Vec::new(),
        Some(OneOrMore::One(stop)) => vec![stop],
        Some(OneOrMore::More(stops)) => stops,
    };
    // Other servers know -1 as all tokens.
    let top_k = match fields.take::<i64>("top_k")? {
        Some(-1) => Some(0),
        Some(count) => {
            Some(u32::try_from(count).map_err(|_| ApiError::field("top_k", "top_k must be from 0 on, or -1 for all"))?)
        }
        None => None,
    };
    let seed = match fields.take::<serde_json::Number>("seed")? {
        // Any number will do as a seed, a negative one by its bits.
        Some(number) => {
            let seed = number.as_u64().or_else(|| number.as_i64().map(i64::cast_unsigned));
            Some(seed.ok_or_else(|| ApiError::field("seed", "seed must be a whole number of 64 bits"))?)
        }
        None => None,
    };
    Ok(Sampling {
        temperature: fields.take("temperature")?,
        top_p: fields.take("top_p")?,
        top_k,
        seed,
        max_tokens,
        stop,
        ignore_eos: fields.take("ignore_eos")?.unwrap_or(false),
        ..Sampling::default()
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn chat(body: &Value) -> Result<(ChatRequest, bool, bool), Value> {
        match Ask::chat(body.to_string().as_bytes()) {
            Ok(Ask { input: Input::Chat(request), stream, include_usage, .. }) => Ok((request, stream, include_usage)),
            Ok(other) => panic!("{other:?}"),
            Err(error) => Err(error.body()["error"].take()),
        }
    }

    fn with(extra: Value) -> Value {
        let mut body = json!({"model": "base", "messages": [{"role": "user", "content": "hi"}]});
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        body
    }

    #[test]
    fn a_full_request_is_understood() {
        let (request, stream, usage) = chat(&json!({
            "model": "offers@best",
            "messages": [
                {"role": "developer", "content": "Be brief."},
                {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": "x"},
            ],
            "temperature": 0.5, "top_p": 0.9, "top_k": -1, "max_tokens": 5, "max_completion_tokens": 7, "seed": -1,
            "stop": "END", "stream": true, "stream_options": {"include_usage": true}, "n": 1, "user": "me",
            "presence_penalty": 0, "tools": [], "response_format": {"type": "text"}, "logprobs": false, "audio": null,
        }))
        .unwrap();
        assert!(stream && usage);
        let turns: Vec<_> = request.messages.iter().map(|m| (m.role.as_str(), m.content.as_str())).collect();
        assert_eq!(turns, [("system", "Be brief."), ("user", "ab")]);
        let sampling = request.sampling.unwrap();
        assert_eq!((sampling.max_tokens, sampling.seed, sampling.top_k), (Some(7), Some(u64::MAX), Some(0)));
        assert_eq!(sampling.stop, ["END"]);
    }

    #[test]
    fn what_is_not_done_is_refused_by_name() {
        for (name, value) in [
            ("n", json!(2)),
            ("presence_penalty", json!(0.5)),
            ("logprobs", json!(true)),
            ("response_format", json!({"type": "json_object"})),
            ("tools", json!([{}])),
            ("repetition_penalty", json!(1.1)),
            ("temperature", json!("hot")),
            ("max_tokens", json!(-1)),
            ("top_k", json!(-2)),
            ("seed", json!(1.5)),
            ("stream", json!("yes")),
        ] {
            let error = chat(&with(json!({name: value}))).unwrap_err();
            assert_eq!((&error["param"], &error["type"]), (&json!(name), &json!("invalid_request_error")), "{error}");
        }
        let image = json!({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]});
        assert_eq!(chat(&image).unwrap_err()["param"], "messages[0].content");
        assert_eq!(chat(&json!({"model": "x"})).unwrap_err()["param"], "messages");
        assert!(chat(&json!([])).is_err());
    }

    #[test]
    fn a_prompt_is_one_text_or_one_list_of_ids() {
        let read = |prompt: Value| {
            let body = json!({"prompt": prompt, "ignore_eos": true}).to_string();
            match Ask::text(body.as_bytes()) {
                Ok(Ask { input: Input::Text(request), .. }) => request.input,
                _ => None,
            }
        };
        let text = |text: &str| Some(generate_request::Input::Prompt(text.to_owned()));
        assert_eq!((read(json!("a")), read(json!(["a"]))), (text("a"), text("a")));
        let ids = Some(generate_request::Input::Ids(TokenIds { ids: vec![1, 2] }));
        assert_eq!((read(json!([1, 2])), read(json!([[1, 2]]))), (ids.clone(), ids));
        for wrong in [json!(["a", "b"]), json!([[1], [2]]), json!([]), json!(1), json!(null)] {
            assert_eq!(read(wrong), None);
        }
    }
}
