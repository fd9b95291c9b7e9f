//! Ways in which a file is damaged.

use proptest::prelude::*;
use proptest::sample::Index;

/// So many cases, and no file of seeds: a failure prints its smallest input.
pub(crate) fn cases(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

/// One change of a file's bytes.
#[derive(Clone, Debug)]
pub(crate) enum Damage {
    Flip(Index, u8),
    Cut(Index),
    Repeat(Index, Index),
    Remove(Index, Index),
    Insert(Index, Vec<u8>),
}

impl Damage {
    pub(crate) fn to(&self, mut bytes: Vec<u8>) -> Vec<u8> {
        if bytes.is_empty() {
            return bytes;
        }
        let length = bytes.len();
        let range = |a: &Index, b: &Index| {
            let (a, b) = (a.index(length), b.index(length));
            a.min(b)..a.max(b)
        };
        match self {
            Self::Flip(at, mask) => bytes[at.index(length)] ^= mask,
            Self::Cut(at) => bytes.truncate(at.index(length)),
            Self::Repeat(a, b) => {
                let range = range(a, b);
                let copy = bytes[range.clone()].to_vec();
                bytes.splice(range.end..range.end, copy);
            }
            Self::Remove(a, b) => drop(bytes.drain(range(a, b))),
            Self::Insert(at, new) => {
                let at = at.index(length);
                bytes.splice(at..at, new.iter().copied());
            }
        }
        bytes
    }
}

/// Up to three changes.
pub(crate) fn damages() -> impl Strategy<Value = Vec<Damage>> {
    let at = any::<Index>;
    let one = prop_oneof![
        4 => (at(), 1u8..).prop_map(|(at, mask)| Damage::Flip(at, mask)),
        1 => at().prop_map(Damage::Cut),
        1 => (at(), at()).prop_map(|(a, b)| Damage::Repeat(a, b)),
        1 => (at(), at()).prop_map(|(a, b)| Damage::Remove(a, b)),
        1 => (at(), prop::collection::vec(any::<u8>(), 1..9)).prop_map(|(at, new)| Damage::Insert(at, new)),
    ];
    prop::collection::vec(one, 1..4)
}
