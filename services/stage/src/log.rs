//! Numbered records, of which the last one wins.

use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;

use crate::{Stage, StageError, folder::to_json};

/// How many numbers an append skips if they are taken: the list that it began with may be behind the stage.
const MAX_TAKEN: u64 = 16;

/// A log: one JSON file a record, `000001.json`, `000002.json`, … It has one writer.
///
/// A record ends with a newline. A file without one was torn by a crash: it is skipped, and its number is not used
/// again. So numbers grow, but need not be dense.
#[derive(Debug)]
pub struct Log {
    stage: Stage,
    path: String,
    next: Mutex<u64>,
}

impl Stage {
    /// Opens a log, which may be empty. The next number follows the highest that is there.
    ///
    /// # Errors
    /// If the store does not answer.
    pub async fn log(&self, path: &str) -> Result<Log, StageError> {
        let path = path.trim_end_matches('/').to_owned();
        let last = numbers(self, &path).await?.last().copied().unwrap_or(0);
        Ok(Log { stage: self.clone(), path, next: Mutex::new(last + 1) })
    }
}

impl Log {
    /// Writes a record and returns its number. Callers at once are put in order.
    ///
    /// # Errors
    /// As [`Stage::put`]. Then the record may be there or not, as after a crash.
    pub async fn append<T: Serialize + Sync + ?Sized>(&self, record: &T) -> Result<u64, StageError> {
        let bytes = to_json(&self.path, record)?;
        let mut next = self.next.lock().await;
        let mut taken = 0;
        loop {
            // Before the write: if the caller goes away in the middle of it, the number is used.
            let number = *next;
            *next += 1;
            match self.stage.put(&file(&self.path, number), bytes.clone()).await {
                Ok(()) => return Ok(number),
                Err(StageError::AlreadyExists { .. }) if taken < MAX_TAKEN => taken += 1,
                Err(error) => return Err(error),
            }
        }
    }

    /// Returns the last record, if there is one.
    ///
    /// # Errors
    /// [`StageError::Damaged`] if a whole record is not a `T`.
    pub async fn last<T: for<'de> Deserialize<'de>>(&self) -> Result<Option<T>, StageError> {
        for number in numbers(&self.stage, &self.path).await?.into_iter().rev() {
            if let Some(record) = self.read(number).await? {
                return Ok(Some(record));
            }
        }
        Ok(None)
    }

    /// Returns all records, oldest first.
    ///
    /// # Errors
    /// As [`Self::last`].
    pub async fn all<T: for<'de> Deserialize<'de>>(&self) -> Result<Vec<T>, StageError> {
        Ok(self.all_numbered().await?.into_iter().map(|(_, record)| record).collect())
    }

    /// Returns all records with their numbers, oldest first.
    ///
    /// # Errors
    /// As [`Self::last`].
    pub async fn all_numbered<T: for<'de> Deserialize<'de>>(&self) -> Result<Vec<(u64, T)>, StageError> {
        let mut records = vec![];
        for number in numbers(&self.stage, &self.path).await? {
            if let Some(record) = self.read(number).await? {
                records.push((number, record));
            }
        }
        Ok(records)
    }

    /// Returns the numbers of all records, torn ones too, in order.
    ///
    /// # Errors
    /// If the store does not answer.
    pub async fn numbers(&self) -> Result<Vec<u64>, StageError> {
        numbers(&self.stage, &self.path).await
    }

    /// Returns one record; nothing if it is torn, or is just being written and so may be whole the next time.
    ///
    /// # Errors
    /// As [`Self::last`], and [`StageError::NotFound`].
    pub async fn get<T: for<'de> Deserialize<'de>>(&self, number: u64) -> Result<Option<T>, StageError> {
        let path = file(&self.path, number);
        let bytes = self.stage.get(&path).await?;
        if bytes.last() != Some(&b'\n') {
            return Ok(None);
        }
        serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|error| StageError::Damaged { path, reason: error.to_string() })
    }

    async fn read<T: for<'de> Deserialize<'de>>(&self, number: u64) -> Result<Option<T>, StageError> {
        let record = self.get(number).await?;
        if record.is_none() {
            tracing::warn!(path = file(&self.path, number), "torn record skipped");
        }
        Ok(record)
    }
}

fn file(path: &str, number: u64) -> String {
    format!("{path}/{number:06}.json")
}

async fn numbers(stage: &Stage, path: &str) -> Result<Vec<u64>, StageError> {
    let entries = stage.list_files(path).await?;
    let mut numbers: Vec<u64> = entries.iter().filter_map(|entry| number(path, &entry.path)).collect();
    numbers.sort_unstable();
    Ok(numbers)
}

/// Only a name that [`file`] makes is a record's.
fn number(log: &str, path: &str) -> Option<u64> {
    let number = path.rsplit('/').next()?.strip_suffix(".json")?.parse().ok()?;
    (file(log, number) == path).then_some(number)
}
