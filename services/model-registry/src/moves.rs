//! Reads moves of aliases from the stage: what is torn never counted, what is damaged did.

use firn_kit::names::check_id;
use firn_stage::{Log, StageError};
use serde_json::Value;

use crate::{
    index::LostMove,
    record::{AliasRecord, aliases_path},
};

/// What a file of a model's alias log holds.
#[derive(Debug)]
pub(crate) enum Move {
    /// A move.
    Made(AliasRecord),
    /// A move that was never told anybody: its record was not written to its end, or is being written.
    Torn,
    /// A move that counted, and can't be told any more: its record was whole.
    Lost(LostMove),
}

/// Reads one.
///
/// # Errors
/// If the store does not answer, or has no such file.
pub(crate) async fn read(log: &Log, sequence: u64) -> Result<Move, StageError> {
    match log.get::<AliasRecord>(sequence).await {
        Ok(Some(record)) => Ok(Move::Made(record)),
        Ok(None) => Ok(Move::Torn),
        Err(StageError::Damaged { reason, .. }) => {
            Ok(Move::Lost(LostMove { alias: named(log, sequence).await?, reason }))
        }
        Err(error) => Err(error),
    }
}

/// The file of a move.
pub(crate) fn path(model: &str, sequence: u64) -> String {
    format!("{}/{sequence:06}.json", aliases_path(model))
}

/// The alias of a damaged record, where it is still JSON that names one.
async fn named(log: &Log, sequence: u64) -> Result<Option<String>, StageError> {
    match log.get::<Value>(sequence).await {
        Ok(record) => {
            let alias = record.as_ref().and_then(|record| record.get("alias")?.as_str());
            Ok(alias.filter(|alias| check_id(alias).is_ok()).map(str::to_owned))
        }
        Err(StageError::Damaged { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}
