//! A snapshot's report, as it is on the stage.

use firn_stage::{Stage, StageError};

use crate::{error::GetError, snapshot::REPORT};

/// Longest report that is sent: a message has at most 4 MiB.
const MOST_BYTES: u64 = 3 << 20;

/// Reads the report of the snapshot in a folder.
pub(crate) async fn read(stage: &Stage, folder: &str) -> Result<String, GetError> {
    let path = format!("{folder}/{REPORT}");
    if stage.size(&path).await? > MOST_BYTES {
        return Err(GetError::LongReport { path, limit: MOST_BYTES });
    }
    let bytes = stage.get(&path).await?;
    String::from_utf8(bytes.into()).map_err(|error| StageError::Damaged { path, reason: error.to_string() }.into())
}
