//! A preference's prompt and answers, as Firn's and as OpenAI's rows hold them.
//!
//! Firn's prompt is text or a chat, its answers are texts. OpenAI's `input` is an object with `messages`, its
//! `preferred_output` and `non_preferred_output` are lists of one turn of the assistant.

use firn_llm::tokenizer::Message;
use serde_json::Value;

use crate::{
    encode::EncodeError,
    fields::{text_of, turns, turns_of},
    rows::Row,
};

/// Text is what the user says, a list is a chat that waits for its answer.
pub(crate) fn prompt_of(row: &Row, column: &str) -> Result<Vec<Message>, EncodeError> {
    match row.get(column) {
        // A CSV holds a list as text; any other text is what the user says, whatever it looks like.
        Some(Value::String(text)) if serde_json::from_str::<Vec<Message>>(text).is_err() => {
            Ok(vec![Message::new("user", text_of(row, column)?)])
        }
        Some(Value::Object(input)) => {
            let refuse = |reason: &str| EncodeError::Column { column: column.to_owned(), reason: reason.to_owned() };
            if input.get("tools").and_then(Value::as_array).is_some_and(|tools| !tools.is_empty()) {
                return Err(refuse("has tools, which no template is given"));
            }
            turns(input.get("messages").ok_or_else(|| refuse("is an object without messages"))?, column)
        }
        _ => turns_of(row, column),
    }
}

/// Text, or a list of one turn of the assistant.
pub(crate) fn answer_of(row: &Row, column: &str) -> Result<String, EncodeError> {
    let Some(Value::Array(_)) = row.get(column) else { return Ok(text_of(row, column)?.to_owned()) };
    match <[Message; 1]>::try_from(turns_of(row, column)?) {
        Ok([turn]) if turn.role == "assistant" && !turn.content.is_empty() => Ok(turn.content),
        _ => {
            let reason = "must be text, or a list of one turn of the assistant with text".to_owned();
            Err(EncodeError::Column { column: column.to_owned(), reason })
        }
    }
}
