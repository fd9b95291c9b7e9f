//! Chat templates: the Jinja dialect that Hugging Face's `apply_chat_template` speaks.

mod known;

use std::io;
use std::ops::Range;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, Error, ErrorKind, Value, context};
use serde::Serialize;
use serde_json::ser::{Formatter, Serializer};

pub use self::known::KnownTemplate;
use crate::tokenizer::Message;

// Unicode noncharacters: they can't be part of a text, so they can mark where an assistant's turn begins and ends.
const BEGIN: char = '\u{FDD0}';
const END: char = '\u{FDD1}';
const NAME: &str = "chat_template.jinja";
/// Steps that one rendering may take: a loop that never ends must not hold a thread.
const FUEL: u64 = 4_000_000;

/// Why a chat template failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TemplateError {
    /// The template is not valid Jinja.
    #[error("the chat template does not parse: {0}")]
    Syntax(String),
    /// The template raised an exception or met a value that it can't use.
    #[error("the chat template refused the messages: {0}")]
    Refused(String),
    /// It does not come to an end within a fixed number of steps.
    #[error("the chat template takes too long: more than {steps} steps for one chat")]
    TooLong {
        /// Steps that one chat may take.
        steps: u64,
    },
    /// A message holds a character that no text has.
    #[error("message {index} holds the noncharacter U+{code:04X}: remove it")]
    Noncharacter {
        /// Which message, from 0.
        index: usize,
        /// The character.
        code: u32,
    },
}

/// A parsed chat template.
#[derive(Clone)]
pub(crate) struct ChatTemplate {
    environment: Environment<'static>,
    bos_token: String,
    eos_token: String,
}

impl ChatTemplate {
    pub(crate) fn new(source: &str, bos_token: String, eos_token: String) -> Result<Self, TemplateError> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|error| TemplateError::Syntax(error.to_string()))?);
        environment.set_fuel(Some(FUEL));
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |message: String| -> Result<String, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_filter("tojson", python_json);
        environment.add_filter("__generation", |text: String| format!("{BEGIN}{text}{END}"));
        environment
            .add_template_owned(NAME, generation_as_filter(source))
            .map_err(|error| TemplateError::Syntax(describe(&error)))?;
        Ok(Self { environment, bos_token, eos_token })
    }

    /// Renders the messages; the ranges are those of assistant's turns, in bytes.
    pub(crate) fn render(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<(String, Vec<Range<usize>>), TemplateError> {
        for (index, message) in messages.iter().enumerate() {
            if let Some(found) = [BEGIN, END].into_iter().find(|mark| message.content.contains(*mark)) {
                return Err(TemplateError::Noncharacter { index, code: u32::from(found) });
            }
        }
        let refused = |error: Error| match error.kind() {
            ErrorKind::OutOfFuel => TemplateError::TooLong { steps: FUEL },
            _ => TemplateError::Refused(describe(&error)),
        };
        let template = self.environment.get_template(NAME).map_err(refused)?;
        let marked = template
            .render(context! {
                messages => Value::from(Serde(messages)),
                add_generation_prompt => add_generation_prompt,
                bos_token => self.bos_token.as_str(),
                eos_token => self.eos_token.as_str(),
            })
            .map_err(refused)?;
        Ok(split_marks(&marked))
    }
}

/// `{% generation %}` is no Jinja: a filter block has the same rules for white space around its tags.
fn generation_as_filter(source: &str) -> String {
    let mut out = String::with_capacity(source.len() + 64);
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let Some(length) = rest[at..].find("%}") else { break };
        let (before, tag) = (&rest[..at], &rest[at..at + length + 2]);
        out.push_str(before);
        match tag.trim_matches(['{', '%', '}', '-', '+', ' ']) {
            "generation" => out.push_str(&tag.replacen("generation", "filter __generation", 1)),
            "endgeneration" => out.push_str(&tag.replacen("endgeneration", "endfilter", 1)),
            _ => out.push_str(tag),
        }
        rest = &rest[at + length + 2..];
    }
    out.push_str(rest);
    out
}

/// Takes the marks out; the ranges are in bytes of what is left.
fn split_marks(marked: &str) -> (String, Vec<Range<usize>>) {
    // A search for one character is quicker than a look at each.
    let mut marks: Vec<(usize, &str)> = marked.match_indices(BEGIN).chain(marked.match_indices(END)).collect();
    marks.sort_unstable();
    let (mut text, mut spans, mut start, mut from) = (String::with_capacity(marked.len()), Vec::new(), 0, 0);
    for (at, mark) in marks {
        text.push_str(&marked[from..at]);
        from = at + mark.len();
        if mark.starts_with(BEGIN) {
            start = text.len();
        } else {
            spans.push(start..text.len());
        }
    }
    text.push_str(&marked[from..]);
    (text, spans)
}

fn describe(error: &Error) -> String {
    match (error.detail(), error.line()) {
        (Some(detail), Some(line)) => format!("{detail} (line {line})"),
        (Some(detail), None) => detail.to_owned(),
        _ => error.to_string(),
    }
}

/// JSON as Python's `json.dumps` prints it: a space after each comma and colon, nothing escaped that need not be.
struct Python;

impl Formatter for Python {
    fn begin_array_value<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }
}

fn python_json(value: Value) -> Result<Value, Error> {
    let mut bytes = Vec::new();
    value
        .serialize(&mut Serializer::with_formatter(&mut bytes, Python))
        .map_err(|error| Error::new(ErrorKind::BadSerialization, error.to_string()))?;
    let text = String::from_utf8(bytes).map_err(|error| Error::new(ErrorKind::BadSerialization, error.to_string()))?;
    Ok(Value::from_safe_string(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template(source: &str) -> ChatTemplate {
        ChatTemplate::new(source, String::new(), String::new()).unwrap()
    }

    #[test]
    fn spans_are_bytes_of_the_text() {
        let source = "{% for m in messages %}é{% generation %}{{ m.content }}{% endgeneration %}.{% endfor %}";
        let messages = ["Ü", "", "ab"].map(|text| Message::new("assistant", text));
        let (text, spans) = template(source).render(&messages, false).unwrap();
        assert_eq!(text, "éÜ.é.éab.");
        let said: Vec<&str> = spans.into_iter().map(|span| &text[span]).collect();
        assert_eq!(said, ["Ü", "", "ab"]);
        let refused = template(source).render(&[Message::new("user", "x\u{FDD1}")], false).unwrap_err().to_string();
        assert_eq!(refused, "message 0 holds the noncharacter U+FDD1: remove it");
    }

    #[test]
    fn a_template_without_an_end_is_stopped() {
        let range = "range(9999)";
        let source = format!(
            "{{% for a in {range} %}}{{% for b in {range} %}}{{% for c in {range} %}}{{% endfor %}}{{% endfor %}}{{% endfor %}}"
        );
        let error = template(&source).render(&[], false).unwrap_err().to_string();
        assert_eq!(error, "the chat template takes too long: more than 4000000 steps for one chat");
        let recursive = "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}";
        assert!(template(recursive).render(&[], false).is_err());
    }
}
