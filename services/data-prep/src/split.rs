//! Which rows are held out.

use std::{collections::HashSet, io};

use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::{rows::Row, runs::Runs};

/// The first bits of a row's hash: among a hundred million rows, two of different content have the same ones with a
/// chance of one in four thousand, and then count as equal.
pub(crate) type Short = u64;

/// Rank and hash of a row.
pub(crate) type Entry = (u64, Short);

/// Chooses the rows that are held out, from 16 bytes a row.
#[derive(Debug, Default)]
pub(crate) struct Split(Runs);

/// Which rows are held out.
#[derive(Debug, Default)]
pub(crate) struct Chosen {
    held_out: HashSet<Short>,
    /// Sorted: there may be as many as half of the rows.
    repeated: Vec<Short>,
    /// Rows whose content occurs more than once.
    pub(crate) duplicates: u64,
    /// Rows that are held out.
    pub(crate) count: u64,
}

impl Split {
    /// What is kept of a row.
    pub(crate) fn entry(seed: u64, hash: &[u8; 32]) -> Entry {
        (short(&rank(seed, hash)), short(hash))
    }

    /// Fails where the local disk does.
    pub(crate) fn add(&mut self, entry: Entry) -> io::Result<()> {
        self.0.add(entry)
    }

    /// Holds out the rows whose `sha256(seed ‖ row hash)` is lowest, `wanted` of them. Rows of the same content always go
    /// to the same side, so that no training row is an answer to a held-out one; so it may be fewer.
    pub(crate) fn choose(self, wanted: u64) -> io::Result<Chosen> {
        let mut chosen = Chosen::default();
        // Equal rows have equal ranks, so they lie side by side.
        let mut group: Option<(Entry, u64)> = None;
        self.0.sorted(|entry| match &mut group {
            Some((of, size)) if *of == entry => *size += 1,
            other => {
                if let Some(((_, hash), size)) = other.replace((entry, 1)) {
                    chosen.add(hash, size, wanted);
                }
            }
        })?;
        if let Some(((_, hash), size)) = group {
            chosen.add(hash, size, wanted);
        }
        chosen.repeated.sort_unstable();
        Ok(chosen)
    }
}

impl Chosen {
    /// The next rows of the same content, by their rank.
    fn add(&mut self, hash: Short, size: u64, wanted: u64) {
        if size > 1 {
            self.duplicates += size;
            self.repeated.push(hash);
        }
        if self.count + size <= wanted {
            self.held_out.insert(hash);
            self.count += size;
        }
    }

    pub(crate) fn holds_out(&self, hash: &[u8; 32]) -> bool {
        self.held_out.contains(&short(hash))
    }

    /// Its content occurs more than once.
    pub(crate) fn is_repeated(&self, hash: &[u8; 32]) -> bool {
        self.repeated.binary_search(&short(hash)).is_ok()
    }
}

/// Rows that are only asked for: whether they are among these.
#[derive(Debug, Default)]
pub(crate) struct Known(HashSet<Short>);

impl Known {
    /// Adds a row; false if it was there.
    pub(crate) fn add(&mut self, hash: &[u8; 32]) -> bool {
        self.0.insert(short(hash))
    }

    pub(crate) fn has(&self, hash: &[u8; 32]) -> bool {
        self.0.contains(&short(hash))
    }
}

fn short(hash: &[u8; 32]) -> Short {
    hash.iter().take(8).fold(0, |bits, byte| bits << 8 | u64::from(*byte))
}

/// Tells whether rows come in the same order again.
#[derive(Debug, Default, Eq, PartialEq)]
pub(crate) struct Order {
    rows: u64,
    mixed: u64,
}

impl Order {
    pub(crate) fn add(&mut self, hash: &[u8; 32]) {
        // An odd factor loses nothing, and the rotation lets its high bits come back.
        self.mixed = (self.mixed ^ short(hash)).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29);
        self.rows += 1;
    }
}

/// sha256 of a row as JSON without spaces and with sorted keys: the same whatever the order of the columns.
pub(crate) fn row_hash(row: &Row) -> [u8; 32] {
    let mut columns: Vec<_> = row.iter().collect();
    columns.sort_unstable_by(|a, b| a.0.cmp(b.0));
    let mut text = Vec::with_capacity(512);
    text.push(b'{');
    for (index, (name, value)) in columns.into_iter().enumerate() {
        if index > 0 {
            text.push(b',');
        }
        // Writing a value into memory cannot fail.
        let _ = serde_json::to_writer(&mut text, name);
        text.push(b':');
        let _ = match value {
            Value::Array(_) | Value::Object(_) => {
                let mut sorted = value.clone();
                sorted.sort_all_objects();
                serde_json::to_writer(&mut text, &sorted)
            }
            plain => serde_json::to_writer(&mut text, plain),
        };
    }
    text.push(b'}');
    Sha256::digest(&text).into()
}

fn rank(seed: u64, hash: &[u8; 32]) -> [u8; 32] {
    Sha256::new().chain_update(seed.to_le_bytes()).chain_update(hash).finalize().into()
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digits = |byte: &u8| [byte >> 4, byte & 15].map(|half| char::from(DIGITS[usize::from(half)]));
    bytes.iter().flat_map(digits).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn rows(values: impl IntoIterator<Item = u32>) -> Vec<Row> {
        values.into_iter().map(|value| json!({"a": value, "b": "x"}).as_object().unwrap().clone()).collect()
    }

    fn choose(rows: &[Row], wanted: u64, seed: u64) -> Chosen {
        let mut split = Split::default();
        rows.iter().for_each(|row| split.add(Split::entry(seed, &row_hash(row))).unwrap());
        split.choose(wanted).unwrap()
    }

    fn held(rows: &[Row], wanted: u64, seed: u64) -> Vec<String> {
        let chosen = choose(rows, wanted, seed);
        let mut held: Vec<_> =
            rows.iter().map(row_hash).filter(|hash| chosen.holds_out(hash)).map(|h| hex(&h)).collect();
        held.sort_unstable();
        held
    }

    #[test]
    fn the_hash_is_of_sorted_compact_json() {
        let row = json!({"b": "é", "a": {"d": 1, "c": [2]}}).as_object().unwrap().clone();
        let expected: [u8; 32] = Sha256::digest(r#"{"a":{"c":[2],"d":1},"b":"é"}"#).into();
        assert_eq!(row_hash(&row), expected);
        assert_eq!(row_hash(&Row::new()), <[u8; 32]>::from(Sha256::digest("{}")));
    }

    #[test]
    fn the_choice_depends_on_seed_and_content_but_not_on_order() {
        let forwards = rows(0..100);
        let backwards = rows((0..100).rev());
        assert_eq!(held(&forwards, 10, 1).len(), 10);
        assert_eq!(held(&forwards, 10, 1), held(&backwards, 10, 1));
        assert_ne!(held(&forwards, 10, 1), held(&forwards, 10, 2));
        let larger = held(&forwards, 20, 1);
        assert!(
            held(&forwards, 10, 1).iter().all(|hash| larger.contains(hash)),
            "a larger choice holds the smaller one"
        );
    }

    #[test]
    fn the_order_of_rows_is_told() {
        let order = |values: &[u32]| {
            let mut order = Order::default();
            rows(values.iter().copied()).iter().for_each(|row| order.add(&row_hash(row)));
            order
        };
        assert_eq!(order(&[1, 2, 3]), order(&[1, 2, 3]));
        for other in [&[2, 1, 3][..], &[1, 2], &[1, 2, 3, 3], &[1, 2, 4], &[]] {
            assert_ne!(order(&[1, 2, 3]), order(other));
        }
    }

    #[test]
    fn equal_rows_stay_together() {
        let rows = rows((0..60).map(|index| index % 30));
        for wanted in 0..=20 {
            let chosen = choose(&rows, wanted, 3);
            let held: Vec<bool> = rows.iter().map(|row| chosen.holds_out(&row_hash(row))).collect();
            assert!((0..30).all(|index| held[index] == held[index + 30]));
            assert_eq!(held.iter().filter(|held| **held).count() as u64, wanted / 2 * 2);
            assert_eq!(chosen.count, wanted / 2 * 2);
            assert_eq!(chosen.duplicates, 60);
        }
    }
}
