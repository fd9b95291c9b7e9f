//! The protocol's times, as JSON has them.

use firn_kit::clock::from_proto;

/// RFC 3339, as Firn's own objects have it.
pub(crate) fn text(time: Option<&prost_types::Timestamp>) -> Option<String> {
    time.and_then(|time| from_proto(time).ok()).map(|time| time.to_string())
}

/// Seconds since 1970, as OpenAI's objects have it.
pub(crate) fn seconds(time: Option<&prost_types::Timestamp>) -> i64 {
    time.map_or(0, |time| time.seconds)
}
