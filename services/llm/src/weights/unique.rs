//! A JSON object that says everything once.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, Deserializer, Error, IgnoredAny, MapAccess, Visitor};

/// What a header says of the file rather than of a tensor.
const METADATA: &str = "__metadata__";

/// Values by tensor. A name that comes twice is an error, where a plain map would keep the last. Values are read as
/// they come, so that what is held is as large as what they say.
#[derive(Debug)]
pub(super) struct ByTensor<V>(pub(super) HashMap<String, V>);

impl<'de, V: Deserialize<'de>> Deserialize<'de> for ByTensor<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Names(PhantomData))
    }
}

struct Names<V>(PhantomData<V>);

impl<'de, V: Deserialize<'de>> Visitor<'de> for Names<V> {
    type Value = ByTensor<V>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with an entry a tensor")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Self::Value, A::Error> {
        let mut values = HashMap::new();
        while let Some(name) = entries.next_key::<String>()? {
            if name == METADATA {
                entries.next_value::<IgnoredAny>()?;
                continue;
            }
            match values.entry(name) {
                Entry::Occupied(taken) => {
                    return Err(A::Error::custom(format!("tensor {} is named twice", taken.key())));
                }
                Entry::Vacant(free) => free.insert(entries.next_value()?),
            };
        }
        Ok(ByTensor(values))
    }
}
