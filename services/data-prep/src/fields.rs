//! What a row's columns hold: text, chats, or tokens.

use firn_llm::tokenizer::Message;
use serde_json::Value;

use crate::{
    encode::{EncodeError, Tokens},
    rows::Row,
};

pub(crate) const INPUT_IDS: &str = "input_ids";
pub(crate) const LABELS: &str = "labels";
pub(crate) const PROMPT_IDS: &str = "prompt_ids";
pub(crate) const CHOSEN_IDS: &str = "chosen_ids";
pub(crate) const REJECTED_IDS: &str = "rejected_ids";
/// The label of a token without loss.
const IGNORED: i64 = -100;

/// `input_ids` with loss where `labels` is not −100.
pub(crate) fn labelled(row: &Row) -> Result<Tokens, EncodeError> {
    let refuse = |reason: String| EncodeError::Column { column: LABELS.to_owned(), reason };
    let ids = ids_of(row, INPUT_IDS)?;
    let labels = numbers_of(row, LABELS)?;
    if labels.len() != ids.len() {
        return Err(refuse(format!("has {} values, but {INPUT_IDS} has {}", labels.len(), ids.len())));
    }
    match labels.iter().zip(&ids).position(|(label, id)| *label != IGNORED && *label != i64::from(*id)) {
        Some(at) => Err(refuse(format!("is {} at {at}: it must be the token's id, or {IGNORED}", labels[at]))),
        None => Ok(Tokens { ids, mask: labels.iter().map(|label| u8::from(*label != IGNORED)).collect() }),
    }
}

/// A prompt's ids and an answer's, with loss on the answer.
pub(crate) fn answered(row: &Row, column: &str) -> Result<Tokens, EncodeError> {
    let mut ids = ids_of(row, PROMPT_IDS)?;
    let mut mask = vec![0; ids.len()];
    ids.extend(ids_of(row, column)?);
    mask.resize(ids.len(), 1);
    Ok(Tokens { ids, mask })
}

fn ids_of(row: &Row, column: &str) -> Result<Vec<u32>, EncodeError> {
    let id = |value: i64| {
        u32::try_from(value).map_err(|_| EncodeError::Column {
            column: column.to_owned(),
            reason: format!("holds {value}, which is no token id"),
        })
    };
    numbers_of(row, column)?.into_iter().map(id).collect()
}

/// A list of whole numbers, also as text, as a CSV holds it.
fn numbers_of(row: &Row, column: &str) -> Result<Vec<i64>, EncodeError> {
    let refuse = |reason: String| EncodeError::Column { column: column.to_owned(), reason };
    let list = match row.get(column) {
        None => return Err(refuse("is missing".to_owned())),
        Some(Value::String(text)) => serde_json::from_str(text),
        Some(other) => serde_json::from_value(other.clone()),
    };
    let list: Vec<i64> = list.map_err(|error| refuse(format!("is not a list of token ids: {error}")))?;
    if list.is_empty() { Err(refuse("is empty".to_owned())) } else { Ok(list) }
}

pub(crate) fn chat_of(row: &Row, column: &str) -> Result<Vec<Message>, EncodeError> {
    let list = turns_of(row, column)?;
    if !list.iter().any(|message| message.role == "assistant") {
        let reason = "has no assistant's turn, so there is nothing to learn from it".to_owned();
        return Err(EncodeError::Column { column: column.to_owned(), reason });
    }
    Ok(list)
}

pub(crate) fn turns_of(row: &Row, column: &str) -> Result<Vec<Message>, EncodeError> {
    let missing = || EncodeError::Column { column: column.to_owned(), reason: "is missing".to_owned() };
    turns(row.get(column).ok_or_else(missing)?, column)
}

/// The turns in a column's value.
pub(crate) fn turns(value: &Value, column: &str) -> Result<Vec<Message>, EncodeError> {
    let refuse = |reason: String| EncodeError::Column { column: column.to_owned(), reason };
    // A CSV holds the list as text.
    let list = match value {
        Value::String(text) => serde_json::from_str(text),
        other => serde_json::from_value(other.clone()),
    };
    let list: Vec<Message> = list.map_err(|error| refuse(format!("is not a list of {{role, content}}: {error}")))?;
    match list.iter().find(|message| !matches!(message.role.as_str(), "system" | "user" | "assistant")) {
        Some(odd) => Err(refuse(format!("has the role {:?}: it must be system, user or assistant", odd.role))),
        None => Ok(list),
    }
}

pub(crate) fn text_of<'a>(row: &'a Row, column: &str) -> Result<&'a str, EncodeError> {
    let refuse = |reason: &str| EncodeError::Column { column: column.to_owned(), reason: reason.to_owned() };
    match row.get(column) {
        Some(Value::String(text)) if text.is_empty() => Err(refuse("is empty")),
        Some(Value::String(text)) => Ok(text),
        Some(_) => Err(refuse("is not text")),
        None => Err(refuse("is missing")),
    }
}
