//! A YAML document as a tree in which each value knows its line.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;

use super::finding::{Finding, Severity};

/// A value and where it begins.
#[derive(Debug)]
pub(crate) struct Node {
    value: Value,
    line: u64,
    column: u64,
}

#[derive(Debug)]
pub(super) enum Value {
    Null,
    Flag(bool),
    Whole(i64),
    Real(f64),
    Text(String),
    List(Vec<Node>),
    Map(Vec<(String, Node)>),
}

impl Value {
    /// What it is called in a sentence.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Null => "nothing",
            Self::Flag(_) => "true or false",
            Self::Whole(_) | Self::Real(_) => "a number",
            Self::Text(_) => "text",
            Self::List(_) => "a list",
            Self::Map(_) => "a mapping",
        }
    }
}

/// Reads a document.
///
/// # Errors
/// It is no YAML, with the line if the parser knows it.
pub(crate) fn parse(text: &str) -> Result<Node, Box<Finding>> {
    serde_saphyr::from_str::<Node>(text).map_err(|error| {
        let line = error.location().map_or(0, |location| location.line());
        let message = error.without_snippet().to_string();
        let message = message.lines().next().unwrap_or_default().to_owned();
        Box::new(Finding {
            severity: Severity::Error,
            rule: "yaml",
            path: String::new(),
            line,
            message: format!("this is no YAML document: {message}"),
            way_out: "mend the syntax first; nothing else was looked at".to_owned(),
        })
    })
}

impl Node {
    /// The root, for walking down.
    pub(super) fn cursor(&self) -> Cursor<'_> {
        Cursor { node: self, path: String::new() }
    }
}

/// A node and the way to it.
#[derive(Clone, Debug)]
pub(super) struct Cursor<'a> {
    node: &'a Node,
    path: String,
}

impl<'a> Cursor<'a> {
    pub(super) fn path(&self) -> &str {
        &self.path
    }

    pub(super) fn line(&self) -> u64 {
        self.node.line
    }

    /// Column of the first character, from 1.
    pub(super) fn column(&self) -> u64 {
        self.node.column
    }

    pub(super) fn value(&self) -> &'a Value {
        &self.node.value
    }

    /// The value of a key, if this is a mapping that has it. A key without a value is as if it were not there.
    pub(super) fn get(&self, key: &str) -> Option<Cursor<'a>> {
        self.entries().into_iter().find(|(name, entry)| *name == key && !entry.is_null()).map(|(_, entry)| entry)
    }

    /// The value at a path of keys.
    pub(super) fn at(&self, keys: &[&str]) -> Option<Cursor<'a>> {
        keys.iter().try_fold(self.clone(), |at, key| at.get(key))
    }

    /// The entries of a mapping; none of anything else.
    pub(super) fn entries(&self) -> Vec<(&'a str, Cursor<'a>)> {
        let Value::Map(entries) = &self.node.value else { return Vec::new() };
        let below = |key: &str| if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) };
        entries.iter().map(|(key, node)| (key.as_str(), Cursor { node, path: below(key) })).collect()
    }

    /// The items of a list under a key; none if there is no list.
    pub(super) fn items(&self, key: &str) -> Vec<Cursor<'a>> {
        self.get(key).map(|list| list.elements()).unwrap_or_default()
    }

    /// The items of this list; none of anything else.
    pub(super) fn elements(&self) -> Vec<Cursor<'a>> {
        let Value::List(items) = &self.node.value else { return Vec::new() };
        items.iter().enumerate().map(|(index, node)| Cursor { node, path: format!("{}[{index}]", self.path) }).collect()
    }

    pub(super) fn is_null(&self) -> bool {
        matches!(self.node.value, Value::Null)
    }

    pub(super) fn text(&self) -> Option<&'a str> {
        if let Value::Text(text) = &self.node.value { Some(text) } else { None }
    }

    pub(super) fn flag(&self) -> Option<bool> {
        if let Value::Flag(flag) = self.node.value { Some(flag) } else { None }
    }

    pub(super) fn whole(&self) -> Option<i64> {
        if let Value::Whole(number) = self.node.value { Some(number) } else { None }
    }

    /// A scalar as it would be written; nothing of a list or a mapping.
    pub(super) fn scalar(&self) -> Option<String> {
        match &self.node.value {
            Value::Text(text) => Some(text.clone()),
            Value::Whole(number) => Some(number.to_string()),
            Value::Real(number) => Some(number.to_string()),
            Value::Flag(flag) => Some(flag.to_string()),
            Value::Null | Value::List(_) | Value::Map(_) => None,
        }
    }

    /// Text under a key.
    pub(super) fn text_of(&self, key: &str) -> Option<&'a str> {
        self.get(key)?.text()
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<Value>::deserialize(deserializer)?;
        let location = spanned.referenced;
        Ok(Self { value: spanned.value, line: location.line(), column: location.column() })
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor)
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Flag(value))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Whole(value))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        Ok(i64::try_from(value).map_or_else(|_| Value::Text(value.to_string()), Value::Whole))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Real(value))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        Ok(Value::Text(value.to_owned()))
    }

    fn visit_string<E: Error>(self, value: String) -> Result<Value, E> {
        Ok(Value::Text(value))
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        Value::deserialize(deserializer)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Value::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Vec::new();
        while let Some(entry) = entries.next_entry::<String, Node>()? {
            map.push(entry);
        }
        Ok(Value::Map(map))
    }
}
