//! Words whose tokens are known.

use std::collections::HashMap;

/// Words that a cache holds before it begins anew, and their tokens.
pub(super) const MOST_WORDS: usize = 1 << 16;
pub(super) const MOST_TOKENS: usize = 1 << 18;
/// Bytes of the longest word that is remembered.
pub(super) const LONGEST: usize = 64;
/// Bytes of the longest word that is its own key.
const LONGEST_KEY: usize = 15;

/// A token of a word, and its bytes within the word.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Part {
    pub(super) id: u32,
    pub(super) start: u16,
    pub(super) end: u16,
}

/// Words that were merged, with their tokens.
#[derive(Default)]
pub(super) struct Cache {
    /// Nearly all words: the bytes and their number are the key, so a look-up follows no pointer.
    short: HashMap<u128, Parts, ahash::RandomState>,
    long: HashMap<Box<str>, Parts, ahash::RandomState>,
    parts: Vec<Part>,
}

/// Where the tokens of a word are, and how many.
type Parts = (u32, u32);

impl Cache {
    /// The word's tokens, if it is known.
    #[inline]
    pub(super) fn get(&self, word: &str) -> Option<&[Part]> {
        let (start, count) = match key(word) {
            Some(key) => *self.short.get(&key)?,
            None if word.len() > LONGEST => return None,
            None => *self.long.get(word)?,
        };
        self.parts.get(start as usize..(start + count) as usize)
    }

    /// Remembers a word, unless it is long; forgets all others if there are too many.
    pub(super) fn add(&mut self, word: &str, parts: impl Iterator<Item = Part>) {
        if word.len() > LONGEST {
            return;
        }
        if self.short.len() + self.long.len() >= MOST_WORDS || self.parts.len() >= MOST_TOKENS {
            self.short.clear();
            self.long.clear();
            self.parts.clear();
        }
        let start = self.parts.len();
        self.parts.extend(parts);
        let place = (start as u32, (self.parts.len() - start) as u32);
        match key(word) {
            Some(key) => self.short.insert(key, place),
            None => self.long.insert(word.into(), place),
        };
    }

    /// Words and tokens that are held.
    #[cfg(test)]
    pub(super) fn size(&self) -> (usize, usize) {
        (self.short.len() + self.long.len(), self.parts.len())
    }
}

/// A short word's bytes, then zeros, then its length. Whole words of the machine are read, some of whose bytes overlap:
/// a copy byte by byte and a read of the copy would wait for each other.
#[inline]
fn key(word: &str) -> Option<u128> {
    let (bytes, length) = (word.as_bytes(), word.len());
    let (low, high) = match *bytes {
        [] => (0, 0),
        _ if length > LONGEST_KEY => return None,
        [first, .., last] if length < 4 => (
            u64::from(first)
                | u64::from(bytes[length / 2]) << (8 * (length / 2))
                | u64::from(last) << (8 * (length - 1)),
            0,
        ),
        [only] => (u64::from(only), 0),
        _ if length < 8 => {
            let (first, last) = (bytes.first_chunk()?, bytes.last_chunk()?);
            let [first, last] = [first, last].map(|part| u64::from(u32::from_le_bytes(*part)));
            (first | last << (8 * (length - 4)), 0)
        }
        _ => {
            let (first, last) = (bytes.first_chunk()?, bytes.last_chunk()?);
            // Eight bytes or more, of which the first eight are there already.
            let rest = u64::from_le_bytes(*last).checked_shr(8 * (16 - length as u32)).unwrap_or(0);
            (u64::from_le_bytes(*first), rest)
        }
    };
    Some(u128::from(low) | u128::from(high | (length as u64) << 56) << 64)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_key_is_the_word_and_its_length(word in "\\PC{0,5}[a-z\0]{0,12}") {
            let mut expected = [0; 16];
            if word.len() > LONGEST_KEY {
                prop_assert_eq!(key(&word), None);
            } else {
                expected[..word.len()].copy_from_slice(word.as_bytes());
                expected[LONGEST_KEY] = word.len() as u8;
                prop_assert_eq!(key(&word), Some(u128::from_le_bytes(expected)), "{:?}", word);
            }
        }
    }

    #[test]
    fn words_come_back() {
        let mut cache = Cache::default();
        let long = "w".repeat(LONGEST);
        for (id, word) in
            ["a", "ab", "abc", "abcd", "abcdefgh", "\0", "\0\0", "abcdefghijklmnop", &long].iter().enumerate()
        {
            assert!(cache.get(word).is_none());
            cache.add(word, [Part { id: id as u32, start: 0, end: word.len() as u16 }].into_iter());
            assert_eq!(cache.get(word).map(|parts| (parts.len(), parts[0].id)), Some((1, id as u32)));
        }
        cache.add(&(long + "w"), [Part { id: 7, start: 0, end: 1 }].into_iter());
        assert_eq!(cache.size(), (9, 9));
    }
}
