//! Why a field of `config.json` can't be used, and what its numbers may be.
//!
//! Within these limits nothing is divided by zero and no size overflows, and what is made from the configuration alone,
//! before a weight is read, stays small: the largest models of these families lie well inside.

use std::ops::RangeInclusive;

use serde_json::Value;

/// Ids.
pub(super) const VOCAB: RangeInclusive<usize> = 1..=1 << 22;
/// Width of the residual stream.
pub(super) const HIDDEN: RangeInclusive<usize> = 1..=1 << 17;
/// Width inside the MLP.
pub(super) const INTERMEDIATE: RangeInclusive<usize> = 1..=1 << 19;
/// Blocks.
pub(super) const LAYERS: RangeInclusive<usize> = 1..=1024;
/// Query heads.
pub(super) const HEADS: RangeInclusive<usize> = 1..=1024;
/// Width of a head.
pub(super) const HEAD_DIM: RangeInclusive<usize> = 2..=512;
/// Tokens of a context: the rotary tables have a row for each.
pub(super) const CONTEXT: RangeInclusive<usize> = 1..=1 << 21;

/// A field, its value, and what is supported instead.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) field: &'static str,
    pub(super) value: String,
    pub(super) supported: String,
}

pub(super) fn refuse<T>(field: &'static str, value: impl ToString, supported: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal { field, value: value.to_string(), supported: supported.into() })
}

pub(super) fn within(field: &'static str, value: usize, range: RangeInclusive<usize>) -> Result<(), Refusal> {
    if range.contains(&value) {
        return Ok(());
    }
    refuse(field, value, format!("{} to {} is", range.start(), range.end()))
}

/// A number that is still one as f32, and more than 0.
pub(super) fn positive(field: &'static str, value: f64) -> Result<f64, Refusal> {
    let narrow = value as f32;
    if narrow.is_finite() && narrow > 0.0 {
        return Ok(value);
    }
    refuse(field, value, "a positive number is")
}

/// A number in an object, if it is there.
pub(super) fn number(object: &Value, field: &'static str) -> Result<Option<f64>, Refusal> {
    match &object[field] {
        Value::Null => Ok(None),
        value => match value.as_f64() {
            Some(number) => Ok(Some(number)),
            None => refuse(field, value, "a number is"),
        },
    }
}
