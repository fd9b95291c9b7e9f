//! Log lines as JSON, with the names that OpenTelemetry has for a record's parts: Snowflake's event table takes these
//! apart and ignores others.

use std::fmt::{self, Debug};

use opentelemetry::trace::get_active_span;
use serde_json::{Map, Value, json};
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::format::{JsonFields, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormattedFields};
use tracing_subscriber::registry::LookupSpan;

use crate::clock::Clock;

/// Longest line in bytes, with its end: the event table takes 16 KiB a record.
const MAX_LINE: usize = 16 << 10;
/// What everything but one long text may need.
const ROOM: usize = 1 << 10;
/// A text that is shorter is not cut.
const LEAST: usize = 64;

/// Writes an event as `{"timestamp","severity_text","body","scope":{"name"},"attributes":{…,"trace_id","span_id",
/// "span":{…}}}`.
pub(crate) struct JsonLines {
    pub(crate) clock: Clock,
}

impl<S> FormatEvent<S, JsonFields> for JsonLines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, JsonFields>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let metadata = event.metadata();
        let mut fields = Fields::default();
        event.record(&mut fields);
        let Fields { body, target, mut attributes } = fields;
        get_active_span(|span| {
            let span = span.span_context();
            if span.is_valid() {
                attributes.insert("trace_id".to_owned(), span.trace_id().to_string().into());
                attributes.insert("span_id".to_owned(), span.span_id().to_string().into());
            }
        });
        if let Some(span) = context.lookup_current() {
            let extensions = span.extensions();
            let text = extensions.get::<FormattedFields<JsonFields>>().map_or("", |fields| fields.fields.as_str());
            let mut fields: Map<String, Value> = serde_json::from_str(text).unwrap_or_default();
            fields.insert("name".to_owned(), span.name().into());
            attributes.insert("span".to_owned(), fields.into());
        }
        let record = json!({
            "timestamp": self.clock.now().to_string(),
            "severity_text": metadata.level().as_str(),
            "body": body,
            "scope": {"name": target.as_deref().unwrap_or(metadata.target())},
            "attributes": attributes,
        });
        writeln!(writer, "{}", line(&record))
    }
}

/// What an event says.
#[derive(Default)]
struct Fields {
    body: String,
    /// Where a record of the `log` crate comes from: its metadata are the same for all of them.
    target: Option<String>,
    attributes: Map<String, Value>,
}

impl Fields {
    fn put(&mut self, field: &Field, value: impl Into<Value>) {
        self.attributes.insert(field.name().trim_start_matches("r#").to_owned(), value.into());
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.record_str(field, &format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => value.clone_into(&mut self.body),
            "log.target" => self.target = Some(value.to_owned()),
            name if name.starts_with("log.") => {}
            _ => self.put(field, value),
        }
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value);
    }
}

/// The record as one line that is short enough: its longest texts are cut, and if that does not do, its attributes are
/// left out.
fn line(record: &Value) -> String {
    let whole = record.to_string();
    let mut text = whole.clone();
    let mut most = MAX_LINE - ROOM;
    while text.len() >= MAX_LINE && most >= LEAST {
        text = cut(record, most).to_string();
        most /= 2;
    }
    if text.len() >= MAX_LINE {
        let mut rest = cut(record, ROOM);
        rest["attributes"] = json!({"left_out": format!("a line of {} bytes", whole.len())});
        text = rest.to_string();
    }
    text
}

/// The value with texts of at most so many bytes, and behind each that was cut how long it was.
fn cut(value: &Value, most: usize) -> Value {
    match value {
        Value::String(text) if text.len() > most => {
            let kept = text.get(..text.floor_char_boundary(most)).unwrap_or_default();
            Value::String(format!("{kept}… ({} bytes)", text.len()))
        }
        Value::Array(items) => items.iter().map(|item| cut(item, most)).collect(),
        Value::Object(fields) => fields.iter().map(|(name, value)| (name.clone(), cut(value, most))).collect(),
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(body: &str, attributes: Value) -> Value {
        json!({"timestamp": "2026-11-24T10:00:00Z", "severity_text": "INFO", "body": body,
               "scope": {"name": "firn"}, "attributes": attributes})
    }

    fn parsed(record: &Value) -> Value {
        let text = line(record);
        assert!(text.len() < MAX_LINE, "{}", text.len());
        assert!(!text.contains('\n'));
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn a_short_line_stays_as_it_is() {
        let short = record("hello\nthere", json!({"answer": 42, "span": {"name": "rpc"}}));
        assert_eq!(parsed(&short), short);
    }

    #[test]
    fn a_long_text_is_cut_where_a_character_ends_and_says_so() {
        for text in ["x".repeat(100_000), "é\"\u{1}".repeat(25_000), "雪".repeat(33_334)] {
            let short = parsed(&record(&text, json!({"kept": "whole"})));
            let body = short["body"].as_str().unwrap();
            let kept = body.strip_suffix(&format!("… ({} bytes)", text.len())).unwrap();
            assert!(text.starts_with(kept) && kept.len() > 1000, "{}", kept.len());
            assert_eq!(short["attributes"]["kept"], "whole");
        }
    }

    #[test]
    fn a_line_of_too_many_attributes_keeps_its_body() {
        let many: Map<String, Value> = (0..4000).map(|index| (format!("field_{index}"), index.into())).collect();
        let short = parsed(&record("hello", many.into()));
        assert_eq!(short["body"], "hello");
        assert!(short["attributes"]["left_out"].as_str().unwrap().starts_with("a line of "));
    }
}
