//! Whether rows are in a snapshot, from the hashes that it keeps.

use std::{collections::HashMap, path::Path};

use firn_proto::dataprep::v1::RowSide;
use firn_stage::{Stage, StageError};
use futures_util::TryStreamExt as _;

use crate::{
    config::Limits,
    rows::{Files, RowsError},
    snapshot::HASH_LINES,
    split::{hex, row_hash},
};

/// Digits of a hash.
const DIGITS: usize = 64;

/// The side of each of these hashes. The list of all rows goes by; it is never in memory.
pub(crate) async fn sides(stage: &Stage, path: &str, wanted: &[String]) -> Result<Vec<RowSide>, StageError> {
    let mut found: HashMap<&str, RowSide> = wanted.iter().map(|hash| (hash.as_str(), RowSide::Absent)).collect();
    let mut stream = stage.read_stream(&format!("{path}/{HASH_LINES}"), 0).await?;
    let mut rest = Vec::new();
    while let Some(chunk) = stream.try_next().await? {
        rest.extend_from_slice(&chunk);
        let whole = rest.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        for line in rest[..whole].split(|byte| *byte == b'\n') {
            let Some((hash, side)) = std::str::from_utf8(line).ok().and_then(|line| line.split_once(' ')) else {
                continue;
            };
            if let Some(slot) = found.get_mut(hash) {
                *slot = if side == "held_out" { RowSide::HeldOut } else { RowSide::Train };
            }
        }
        rest.drain(..whole);
    }
    Ok(wanted.iter().map(|hash| found.get(hash.as_str()).copied().unwrap_or(RowSide::Absent)).collect())
}

/// True for what may be a row's hash.
pub(crate) fn is_hash(text: &str) -> bool {
    text.len() == DIGITS && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

/// A row of a file, by its hash.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct HashedRow {
    /// The file's name.
    pub file: String,
    /// From 1, in its file.
    pub row: usize,
    /// As a snapshot keeps it, hex.
    pub sha256: String,
}

/// Hashes the rows of a file, or of a folder's files, as snapshots do. Blocks.
///
/// # Errors
/// They can't be read: one sentence.
pub fn hash_rows(path: &Path, mut each: impl FnMut(HashedRow)) -> Result<(), String> {
    let hashed = |files: Files| {
        files.visit(&Limits::default(), &mut |place, row| {
            each(HashedRow { file: place.file.to_owned(), row: place.row, sha256: hex(&row_hash(&row)) });
            Ok(())
        })
    };
    Files::find(path).and_then(hashed).map(|_| ()).map_err(|error: RowsError| error.to_string())
}
