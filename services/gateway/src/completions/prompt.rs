//! What an answer goes on from: a chat's turns, or a text.

use firn_proto::inference::v1::{ChatMessage, TokenIds, generate_request};
use serde::Deserialize;
use serde_json::Value;

use crate::{error::ApiError, fields::Fields};

#[derive(Deserialize)]
struct Turn {
    role: String,
    #[serde(default)]
    content: Value,
}

/// Takes `messages`.
pub(crate) fn messages(fields: &mut Fields) -> Result<Vec<ChatMessage>, ApiError> {
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

/// Takes `prompt`.
pub(crate) fn prompt(fields: &mut Fields) -> Result<generate_request::Input, ApiError> {
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
