//! Rows to tokens, and which of them are learnt.

use std::path::Path;

use firn_llm::tokenizer::{Message, Tokenizer, TokenizerError};
use serde_json::Value;

use crate::{
    chats::{Chats, common_prefix},
    fields::{CHOSEN_IDS, INPUT_IDS, LABELS, PROMPT_IDS, REJECTED_IDS, answered, chat_of, labelled, text_of},
    lint::{Code, Seen},
    preference::{answer_of, prompt_of},
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
    /// Tokens already: `input_ids` and `labels`, or a prompt's and two answers' ids.
    Tokens { pairs: bool },
    /// A prompt and two answers, the chosen and the rejected one, in three columns.
    Preference { prompt: String, chosen: String, rejected: String },
}

impl Format {
    /// Columns that hold what is trained on; none where templates choose.
    fn own_columns(&self) -> Vec<&str> {
        match self {
            Self::Text { column } | Self::Messages { column } => vec![column],
            Self::Prompt { .. } => Vec::new(),
            Self::Tokens { pairs: false } => vec![INPUT_IDS, LABELS],
            Self::Tokens { pairs: true } => vec![PROMPT_IDS, CHOSEN_IDS, REJECTED_IDS],
            Self::Preference { prompt, chosen, rejected } => vec![prompt, chosen, rejected],
        }
    }

    /// Rows go through the base's chat template.
    pub(crate) fn has_chats(&self) -> bool {
        !matches!(self, Self::Text { .. } | Self::Tokens { .. })
    }
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

/// Tokens, at most `max_tokens`.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Tokens {
    pub(crate) ids: Vec<u32>,
    /// 1 for each token that carries loss when it is predicted. The first token is predicted by nothing: always 0.
    pub(crate) mask: Vec<u8>,
}

impl Tokens {
    /// Keeps the first `most` tokens; true if that cut some off.
    fn cut(&mut self, most: usize) -> bool {
        let longer = self.ids.len() > most;
        self.ids.truncate(most);
        self.mask.truncate(most);
        if let Some(first) = self.mask.first_mut() {
            *first = 0;
        }
        longer
    }
}

/// One row in tokens.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Encoded {
    /// The row; of a preference, its prompt and chosen answer.
    pub(crate) tokens: Tokens,
    /// A preference's prompt and rejected answer.
    pub(crate) rejected: Option<Tokens>,
    /// Tokens were cut off.
    pub(crate) truncated: bool,
    /// What is asked and what the row answers; none for ready-made text.
    pub(crate) question: Option<Question>,
    /// What stands out in the row.
    pub(crate) seen: Seen,
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
    /// Spellings of the tokens that begin or end something.
    special_words: Vec<String>,
}

impl Encoder {
    pub(crate) fn new(
        tokenizer: Tokenizer,
        base: &Path,
        format: Format,
        max_tokens: usize,
    ) -> Result<Self, TokenizerError> {
        let end_of_text = end_of_text(&tokenizer, base)?;
        let ids = tokenizer.bos_id().into_iter().chain(end_of_text).chain(tokenizer.eos_ids().iter().copied());
        let words = ids.map(|id| tokenizer.decode(&[id], false)).collect::<Result<Vec<_>, _>>()?;
        // A token that looks like ordinary text is spelled by ordinary text.
        let mut special_words: Vec<String> = words.into_iter().filter(|word| word.len() > 2).collect();
        special_words.sort_unstable();
        special_words.dedup();
        Ok(Self { tokenizer, format, max_tokens, end_of_text, special_words })
    }

    /// Refuses a format that names a column that the file lacks.
    pub(crate) fn check_columns(&self, file: &str, columns: &[String]) -> Result<(), EncodeError> {
        if let Format::Prompt { prompt, completion, .. } = &self.format {
            prompt.check_columns(file, columns)?;
            return Ok(completion.check_columns(file, columns)?);
        }
        match self.format.own_columns().into_iter().find(|own| !columns.iter().any(|column| column == own)) {
            None => Ok(()),
            Some(lacking) => Err(EncodeError::Column {
                column: lacking.to_owned(),
                reason: format!("is not in {file} (it has {})", columns.join(", ")),
            }),
        }
    }

    /// Turns a row into tokens; `ask` adds the question, which only held-out rows need.
    pub(crate) fn encode(&self, row: &Row, ask: bool) -> Result<Encoded, EncodeError> {
        let mut row = match &self.format {
            Format::Text { column } => {
                let (ids, seen) = self.text(text_of(row, column)?)?;
                let mask = vec![1; ids.len()];
                Encoded { tokens: Tokens { ids, mask }, seen, ..Encoded::default() }
            }
            Format::Tokens { pairs: false } => self.ready(labelled(row)?, None),
            Format::Tokens { pairs: true } => {
                let answer = |column| answered(row, column);
                self.ready(answer(CHOSEN_IDS)?, Some(answer(REJECTED_IDS)?))
            }
            Format::Preference { prompt, chosen, rejected } => {
                let asked = prompt_of(row, prompt)?;
                let mut chats = Chats::new(&self.tokenizer);
                let begin = chats.begin(&asked, true)?;
                let chat = |column: &str| -> Result<Vec<Message>, EncodeError> {
                    let answer = Message::new("assistant", answer_of(row, column)?);
                    Ok(asked.iter().cloned().chain([answer]).collect())
                };
                // What the assistant said earlier is part of the prompt.
                let answer = |chats: &mut Chats<'_>, messages: &[Message]| -> Result<Tokens, EncodeError> {
                    let mut tokens = chats.tokens(messages)?;
                    let start = common_prefix(&tokens.ids, &begin.ids);
                    tokens.mask[..start].fill(0);
                    Ok(tokens)
                };
                let chosen = chat(chosen)?;
                let question = if ask { chats.question(&chosen)? } else { None };
                let tokens = answer(&mut chats, &chosen)?;
                let rejected = Some(answer(&mut chats, &chat(rejected)?)?);
                Encoded { tokens, rejected, question, ..Encoded::default() }
            }
            Format::Messages { column } => self.answered_chat(&chat_of(row, column)?, ask)?,
            Format::Prompt { prompt, completion, system } => {
                let system = system.iter().map(|text| Message::new("system", text.as_str()));
                let turns =
                    [Message::new("user", prompt.render(row)?), Message::new("assistant", completion.render(row)?)];
                self.answered_chat(&system.chain(turns).collect::<Vec<_>>(), ask)?
            }
        };
        row.truncated = row.tokens.cut(self.max_tokens);
        if let Some(rejected) = &mut row.rejected {
            row.truncated |= rejected.cut(self.max_tokens);
        }
        Ok(row)
    }

    fn answered_chat(&self, messages: &[Message], ask: bool) -> Result<Encoded, EncodeError> {
        let mut chats = Chats::new(&self.tokenizer);
        let question = if ask { chats.question(messages)? } else { None };
        Ok(Encoded { tokens: chats.tokens(messages)?, question, seen: self.odd_turns(messages), ..Encoded::default() })
    }

    /// Rows that were tokens already.
    fn ready(&self, tokens: Tokens, rejected: Option<Tokens>) -> Encoded {
        let vocab = self.tokenizer.vocab_size();
        let ids = tokens.ids.iter().chain(rejected.iter().flat_map(|tokens| &tokens.ids));
        let unknown = ids.copied().find(|id| *id as usize >= vocab);
        let seen = unknown.map(|id| (Code::UnknownId, format!("{id}, of {vocab} ids"))).into_iter().collect();
        Encoded { tokens, rejected, seen, ..Encoded::default() }
    }

    /// What stands out in a chat.
    fn odd_turns(&self, messages: &[Message]) -> Seen {
        let mut seen = Seen::new();
        if let Some(pair) = messages.windows(2).find(|pair| pair[0].role == pair[1].role) {
            seen.push((Code::RolesRepeat, format!("two turns of {}", pair[0].role)));
        }
        if messages.iter().any(|message| message.role == "assistant" && message.content.trim().is_empty()) {
            seen.push((Code::EmptyCompletion, "an empty answer".to_owned()));
        }
        let spelled = |word: &&String| messages.iter().any(|message| message.content.contains(word.as_str()));
        if let Some(word) = self.special_words.iter().find(spelled) {
            seen.push((Code::SpecialInside, format!("{word:?} in a turn")));
        }
        seen
    }

    /// The template does not mark what the assistant says, so chats are compared.
    pub(crate) fn marks_are_compared(&self) -> bool {
        self.format.has_chats() && !self.tokenizer.template_marks_answers()
    }

    /// The row's values, each as text, without the column that holds its training text.
    pub(crate) fn fields(&self, row: &Row) -> Row {
        let own = self.format.own_columns();
        let text = |value: &Value| match value {
            Value::Null => None,
            Value::String(text) => Some(Value::from(text.as_str())),
            other => Some(Value::from(other.to_string())),
        };
        row.iter()
            .filter(|(column, _)| !own.contains(&column.as_str()))
            .filter_map(|(column, value)| Some((column.clone(), text(value)?)))
            .collect()
    }

    /// Text with its first and last special token, each once; and whether it had one already.
    fn text(&self, text: &str) -> Result<(Vec<u32>, Seen), TokenizerError> {
        let mut ids = self.tokenizer.encode(text, false)?;
        let mut seen = Seen::new();
        match self.tokenizer.bos_id() {
            Some(bos) if ids.first() == Some(&bos) => {
                seen.push((Code::DoubledSpecial, "begins with the first token".to_owned()));
            }
            Some(bos) => ids.insert(0, bos),
            None => {}
        }
        match self.end_of_text {
            Some(eos) if ids.last() == Some(&eos) => {
                seen.push((Code::DoubledSpecial, "ends with the last token".to_owned()));
            }
            Some(eos) => ids.push(eos),
            None => {}
        }
        Ok((ids, seen))
    }
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
