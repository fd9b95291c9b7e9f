//! Which rows are held out.

use std::{collections::HashMap, fmt::Write as _};

use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::rows::Row;

/// The rows' hashes and sides.
#[derive(Debug)]
pub(crate) struct Split {
    /// sha256 of each row, in file order.
    pub(crate) hashes: Vec<[u8; 32]>,
    /// True for each row that is held out.
    pub(crate) held_out: Vec<bool>,
    /// Rows whose content occurs more than once.
    pub(crate) duplicates: usize,
}

/// Holds out the rows whose `sha256(seed ‖ row hash)` is lowest, `wanted` of them. Rows of the same content always go to
/// the same side, so that no training row is an answer to a held-out one; so it may be fewer.
pub(crate) fn split(rows: &[Row], wanted: usize, seed: u64) -> Split {
    let hashes: Vec<[u8; 32]> = rows.iter().map(row_hash).collect();
    let mut groups: HashMap<[u8; 32], Vec<usize>> = HashMap::new();
    for (index, hash) in hashes.iter().enumerate() {
        groups.entry(*hash).or_default().push(index);
    }
    let duplicates = groups.values().map(Vec::len).filter(|&size| size > 1).sum();
    let mut order: Vec<([u8; 32], &Vec<usize>)> =
        groups.iter().map(|(hash, group)| (rank(seed, hash), group)).collect();
    order.sort_unstable();
    let mut held_out = vec![false; rows.len()];
    let mut missing = wanted;
    for (_, group) in order {
        if group.len() <= missing {
            group.iter().for_each(|&index| held_out[index] = true);
            missing -= group.len();
        }
    }
    Split { hashes, held_out, duplicates }
}

/// sha256 of a row as JSON without spaces and with sorted keys: the same whatever the order of the columns.
pub(crate) fn row_hash(row: &Row) -> [u8; 32] {
    let mut canonical = Value::Object(row.clone());
    canonical.sort_all_objects();
    Sha256::digest(canonical.to_string()).into()
}

fn rank(seed: u64, hash: &[u8; 32]) -> [u8; 32] {
    Sha256::new().chain_update(seed.to_le_bytes()).chain_update(hash).finalize().into()
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn rows(values: impl IntoIterator<Item = u32>) -> Vec<Row> {
        values.into_iter().map(|value| json!({"a": value, "b": "x"}).as_object().unwrap().clone()).collect()
    }

    fn held(rows: &[Row], wanted: usize, seed: u64) -> Vec<String> {
        let split = split(rows, wanted, seed);
        let mut held: Vec<_> =
            split.hashes.iter().zip(&split.held_out).filter(|(_, held)| **held).map(|(hash, _)| hex(hash)).collect();
        held.sort_unstable();
        held
    }

    #[test]
    fn the_hash_is_of_sorted_compact_json() {
        let row = json!({"b": "é", "a": {"d": 1, "c": [2]}}).as_object().unwrap().clone();
        let expected: [u8; 32] = Sha256::digest(r#"{"a":{"c":[2],"d":1},"b":"é"}"#).into();
        assert_eq!(row_hash(&row), expected);
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
    fn equal_rows_stay_together() {
        let rows = rows((0..60).map(|index| index % 30));
        for wanted in 0..=20 {
            let split = split(&rows, wanted, 3);
            assert!((0..30).all(|index| split.held_out[index] == split.held_out[index + 30]));
            assert_eq!(split.held_out.iter().filter(|held| **held).count(), wanted / 2 * 2);
            assert_eq!(split.duplicates, 60);
        }
    }
}
