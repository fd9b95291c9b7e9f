//! Rows to tokens, and which of them are learnt.

use std::path::Path;

use firn_llm::tokenizer::{Message, Tokenizer, TokenizerError};
use serde_json::Value;

use crate::{
    rows::Row,
    template::{RowTemplate, TemplateError},
};

/// How a row becomes text.
#[derive(Debug)]
pub(crate) enum Format {
    /// Ready-made text in one column.
    Text { column: String },
    /// A prompt and an answer.
    Prompt { prompt: Box<RowTemplate>, completion: Box<RowTemplate>, system: Option<String> },
    /// A chat in one column.
    Messages { column: String },
}

/// Why one row could not be turned into tokens.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum EncodeError {
    #[error("column {column} {reason}")]
    Column { column: String, reason: String },
    #[error(transparent)]
    Template(#[from] TemplateError),
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
}

/// One row in tokens.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Encoded {
    /// Tokens, at most `max_tokens`.
    pub(crate) ids: Vec<u32>,
    /// 1 for each token that carries loss when it is predicted. The first token is predicted by nothing: always 0.
    pub(crate) mask: Vec<u8>,
    /// Tokens were cut off.
    pub(crate) truncated: bool,
    /// What is asked and what the row answers; none for ready-made text.
    pub(crate) question: Option<Question>,
}

/// A held-out row as a question to a model.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Question {
    /// Turns before the answer.
    pub(crate) messages: Vec<Message>,
    /// Those turns as tokens, up to where the answer begins.
    pub(crate) prompt_ids: Vec<u32>,
    /// The row's own answer.
    pub(crate) completion: String,
}

/// Encodes rows of one format.
#[derive(Debug)]
pub(crate) struct Encoder {
    tokenizer: Tokenizer,
    format: Format,
    max_tokens: usize,
    /// The token that ends a text. A checkpoint may name further ones that end an answer in a chat.
    end_of_text: Option<u32>,
}

impl Encoder {
    pub(crate) fn new(
        tokenizer: Tokenizer,
        base: &Path,
        format: Format,
        max_tokens: usize,
    ) -> Result<Self, TokenizerError> {
        let end_of_text = end_of_text(&tokenizer, base)?;
        Ok(Self { tokenizer, format, max_tokens, end_of_text })
    }

    /// Refuses a format that names a column that the file lacks.
    pub(crate) fn check_columns(&self, file: &str, columns: &[String]) -> Result<(), EncodeError> {
        match &self.format {
            Format::Text { column } | Format::Messages { column } if columns.contains(column) => Ok(()),
            Format::Text { column } | Format::Messages { column } => Err(EncodeError::Column {
                column: column.clone(),
                reason: format!("is not in {file} (it has {})", columns.join(", ")),
            }),
            Format::Prompt { prompt, completion, .. } => {
                prompt.check_columns(file, columns)?;
                Ok(completion.check_columns(file, columns)?)
            }
        }
    }

    /// Turns a row into tokens; `ask` adds the question, which only held-out rows need.
    pub(crate) fn encode(&self, row: &Row, ask: bool) -> Result<Encoded, EncodeError> {
        let (mut ids, mut mask, question) = match &self.format {
            Format::Text { column } => {
                let ids = self.text(text_of(row, column)?)?;
                let mask = vec![1; ids.len()];
                (ids, mask, None)
            }
            format => {
                let messages = messages_of(format, row)?;
                let (ids, mask) = self.chat(&messages)?;
                let question = if ask { self.question(&messages)? } else { None };
                (ids, mask, question)
            }
        };
        let truncated = ids.len() > self.max_tokens;
        ids.truncate(self.max_tokens);
        mask.truncate(self.max_tokens);
        if let Some(first) = mask.first_mut() {
            *first = 0;
        }
        Ok(Encoded { ids, mask, truncated, question })
    }

    /// The row's values, each as text, without the column that holds its training text.
    pub(crate) fn fields(&self, row: &Row) -> Row {
        let own = match &self.format {
            Format::Text { column } | Format::Messages { column } => Some(column),
            Format::Prompt { .. } => None,
        };
        let text = |value: &Value| match value {
            Value::Null => None,
            Value::String(text) => Some(Value::from(text.as_str())),
            other => Some(Value::from(other.to_string())),
        };
        row.iter()
            .filter(|(column, _)| Some(*column) != own)
            .filter_map(|(column, value)| Some((column.clone(), text(value)?)))
            .collect()
    }

    /// Text with its first and last special token, each once.
    fn text(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let mut ids = self.tokenizer.encode(text, false)?;
        if let Some(bos) = self.tokenizer.bos_id().filter(|bos| ids.first() != Some(bos)) {
            ids.insert(0, bos);
        }
        if let Some(eos) = self.end_of_text.filter(|eos| ids.last() != Some(eos)) {
            ids.push(eos);
        }
        Ok(ids)
    }

    /// A chat with a mask over its assistant's turns.
    fn chat(&self, messages: &[Message]) -> Result<(Vec<u32>, Vec<u8>), TokenizerError> {
        let whole = self.tokenizer.render(messages, false)?;
        if whole.assistant_mask.contains(&1) {
            return Ok((whole.ids, whole.assistant_mask));
        }
        // No `{% generation %}` in the template: a turn is what the chat up to it has more than the chat that asks for it.
        let mut mask = vec![0; whole.ids.len()];
        for (index, _) in messages.iter().enumerate().filter(|(_, message)| message.role == "assistant") {
            let before = self.tokenizer.render(&messages[..index], true)?.ids;
            let after = self.tokenizer.render(&messages[..=index], false)?.ids;
            let (start, end) = (common_prefix(&whole.ids, &before), common_prefix(&whole.ids, &after));
            mask[start.min(end)..end].fill(1);
        }
        Ok((whole.ids, mask))
    }

    fn question(&self, messages: &[Message]) -> Result<Option<Question>, TokenizerError> {
        let Some(last) = messages.iter().rposition(|message| message.role == "assistant") else { return Ok(None) };
        let prompt = messages[..last].to_vec();
        let prompt_ids = self.tokenizer.render(&prompt, true)?.ids;
        Ok(Some(Question { messages: prompt, prompt_ids, completion: messages[last].content.clone() }))
    }
}

fn messages_of(format: &Format, row: &Row) -> Result<Vec<Message>, EncodeError> {
    match format {
        Format::Prompt { prompt, completion, system } => {
            let system = system.iter().map(|text| Message::new("system", text.as_str()));
            let turns = [Message::new("user", prompt.render(row)?), Message::new("assistant", completion.render(row)?)];
            Ok(system.chain(turns).collect())
        }
        Format::Text { column } | Format::Messages { column } => chat_of(row, column),
    }
}

fn chat_of(row: &Row, column: &str) -> Result<Vec<Message>, EncodeError> {
    let refuse = |reason: String| EncodeError::Column { column: column.to_owned(), reason };
    let value = row.get(column).ok_or_else(|| refuse("is missing".to_owned()))?;
    // A CSV holds the list as text.
    let list = match value {
        Value::String(text) => serde_json::from_str(text),
        other => serde_json::from_value(other.clone()),
    };
    let list: Vec<Message> = list.map_err(|error| refuse(format!("is not a list of {{role, content}}: {error}")))?;
    if let Some(odd) = list.iter().find(|message| !matches!(message.role.as_str(), "system" | "user" | "assistant")) {
        return Err(refuse(format!("has the role {:?}: it must be system, user or assistant", odd.role)));
    }
    if !list.iter().any(|message| message.role == "assistant") {
        return Err(refuse("has no assistant's turn, so there is nothing to learn from it".to_owned()));
    }
    Ok(list)
}

fn text_of<'a>(row: &'a Row, column: &str) -> Result<&'a str, EncodeError> {
    let refuse = |reason: &str| EncodeError::Column { column: column.to_owned(), reason: reason.to_owned() };
    match row.get(column) {
        Some(Value::String(text)) if text.is_empty() => Err(refuse("is empty")),
        Some(Value::String(text)) => Ok(text),
        Some(_) => Err(refuse("is not text")),
        None => Err(refuse("is missing")),
    }
}

fn common_prefix(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// The checkpoint's own `eos_token`, else the first token that it says ends an answer.
fn end_of_text(tokenizer: &Tokenizer, base: &Path) -> Result<Option<u32>, TokenizerError> {
    let path = base.join("tokenizer_config.json");
    let config: Value = match std::fs::read_to_string(&path) {
        Ok(text) => serde_json::from_str(&text)
            .map_err(|error| TokenizerError::Unreadable { path, reason: error.to_string() })?,
        Err(_) => Value::Null,
    };
    let token = &config["eos_token"];
    let token = token.as_str().or_else(|| token["content"].as_str());
    let own = match token.map(|token| tokenizer.encode(token, false)).transpose()?.as_deref() {
        Some(&[id]) => Some(id),
        _ => None,
    };
    Ok(own.or_else(|| tokenizer.eos_ids().first().copied()))
}

#[cfg(test)]
#[path = "encode_tests.rs"]
mod tests;
