//! Collections: rows that callers add a few at a time, each time one more file in the collection's folder.
//!
//! The files are a numbered log, `000001.jsonl`, `000002.jsonl`, … A file ends with an empty line, which no row is and
//! readers skip. One without it was torn by a crash: it counts for nothing, and its number is not used again.

use std::{
    collections::HashMap,
    fs::File,
    io::{Read as _, Seek as _, SeekFrom},
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use firn_stage::{Stage, StageError};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use serde_json::{Map, Value};

use crate::file_error::AppendError;

/// Where they are on the stage.
pub(crate) const FOLDER: &str = "inputs/collections";
/// Ends a file that is whole.
const END: &[u8] = b"\n\n";
/// Most rows of one call.
const MOST_ROWS: usize = 1_000;
/// Most files of a collection.
const MOST_FILES: u64 = 100_000;
/// Most collections: where each of them stands is in memory.
const MOST_COLLECTIONS: usize = 1_000;
/// Files that are read at once.
const READ_AT_ONCE: usize = 16;
/// How many numbers an append skips if they are taken: the list that it began with may be behind the stage.
const MOST_TAKEN: u64 = 16;

/// Adds rows to collections.
#[derive(Clone, Debug)]
pub(crate) struct Collections(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    stage: Stage,
    /// Those that were asked for since the start.
    known: Mutex<HashMap<String, Arc<Place>>>,
}

/// Where a collection stands, once it was read. Appends to it go one after the other.
type Place = tokio::sync::Mutex<Option<Standing>>;

#[derive(Clone, Copy, Debug)]
struct Standing {
    next: u64,
    rows: u64,
}

/// A collection after a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Collection {
    pub(crate) path: String,
    pub(crate) rows: u64,
}

impl Collections {
    pub(crate) fn new(stage: Stage) -> Self {
        Self(Arc::new(Inner { stage, known: Mutex::default() }))
    }

    /// Adds rows, all or none of them, and says how many there are now.
    pub(crate) async fn append(&self, name: &str, rows: &[String]) -> Result<Collection, AppendError> {
        firn_kit::names::check_id(name)?;
        let bytes = lines(rows)?;
        let place = self.place(name)?;
        let (stage, name, added) = (self.0.stage.clone(), name.to_owned(), rows.len() as u64);
        // Not cut in the middle by a caller that leaves: the count must be that of the stage.
        let work = async move {
            let path = format!("{FOLDER}/{name}");
            let mut place = place.lock().await;
            let mut standing = match *place {
                Some(standing) => standing,
                None => *place.insert(read(&stage, &path).await?),
            };
            if added > 0 {
                let put = put(&stage, &name, &path, &mut standing.next, bytes).await;
                standing.rows += if put.is_ok() { added } else { 0 };
                *place = Some(standing);
                put?;
            }
            Ok(Collection { path, rows: standing.rows })
        };
        tokio::spawn(work).await?
    }

    fn place(&self, name: &str) -> Result<Arc<Place>, AppendError> {
        let mut known = self.known();
        if let Some(place) = known.get(name) {
            return Ok(Arc::clone(place));
        }
        if known.len() >= MOST_COLLECTIONS {
            return Err(AppendError::Full { limit: MOST_COLLECTIONS });
        }
        Ok(Arc::clone(known.entry(name.to_owned()).or_default()))
    }

    fn known(&self) -> MutexGuard<'_, HashMap<String, Arc<Place>>> {
        // An insertion is all or nothing, so a panic elsewhere does not spoil it.
        self.0.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Is this a file of a collection, and not torn? Blocks.
pub(crate) fn is_whole_file(path: &Path) -> bool {
    let ends_well = || {
        let mut file = File::open(path)?;
        file.seek(SeekFrom::End(-(END.len() as i64)))?;
        let mut end = Vec::new();
        file.read_to_end(&mut end)?;
        Ok::<_, std::io::Error>(end == END)
    };
    path.file_name().and_then(|name| name.to_str()).and_then(number).is_some() && ends_well().unwrap_or(false)
}

/// Rows as lines, with the line that ends the file.
fn lines(rows: &[String]) -> Result<Bytes, AppendError> {
    if rows.len() > MOST_ROWS {
        return Err(AppendError::Rows { reason: format!("has more than {MOST_ROWS} rows: add them in parts") });
    }
    let mut bytes = Vec::with_capacity(rows.iter().map(|row| row.len() + 1).sum::<usize>() + 1);
    for (index, row) in rows.iter().enumerate() {
        serde_json::from_str::<Map<String, Value>>(row)
            .map_err(|error| AppendError::Row { row: index + 1, reason: error.to_string() })?;
        // Between a row's values a line may end; within them it may not.
        bytes.extend(row.trim().bytes().map(|byte| if matches!(byte, b'\n' | b'\r') { b' ' } else { byte }));
        bytes.push(b'\n');
    }
    bytes.push(b'\n');
    Ok(bytes.into())
}

/// Writes one file at the next number that is free.
async fn put(stage: &Stage, name: &str, path: &str, next: &mut u64, bytes: Bytes) -> Result<(), AppendError> {
    let mut taken = 0;
    loop {
        if *next > MOST_FILES {
            return Err(AppendError::CollectionFull { collection: name.to_owned(), limit: MOST_FILES });
        }
        let number = *next;
        // If the write fails, the file may be there all the same.
        *next += 1;
        match stage.put(&format!("{path}/{}", file_name(number)), bytes.clone()).await {
            Ok(()) => return Ok(()),
            Err(StageError::AlreadyExists { .. }) if taken < MOST_TAKEN => taken += 1,
            Err(error) => return Err(error.into()),
        }
    }
}

/// Where a collection stands on the stage.
async fn read(stage: &Stage, path: &str) -> Result<Standing, StageError> {
    let files = stage.list_files(path).await?;
    let number_of = |path: &str| path.rsplit('/').next().and_then(number);
    let numbered: Vec<(u64, String)> =
        files.into_iter().filter_map(|file| Some((number_of(&file.path)?, file.path))).collect();
    let last = numbered.iter().map(|(number, _)| *number).max().unwrap_or(0);
    let counts = numbered.into_iter().map(|(_, path)| async move {
        let bytes = stage.get(&path).await?;
        if !bytes.ends_with(END) {
            tracing::warn!(path, "torn rows skipped");
            return Ok::<_, StageError>(0);
        }
        Ok(bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).count() as u64)
    });
    let counts = stream::iter(counts).buffer_unordered(READ_AT_ONCE);
    let rows = counts.try_fold(0, async |sum, count| Ok(sum + count)).await?;
    Ok(Standing { next: last + 1, rows })
}

fn file_name(number: u64) -> String {
    format!("{number:06}.jsonl")
}

/// Only a name that [`file_name`] makes is one.
fn number(name: &str) -> Option<u64> {
    let number = name.strip_suffix(".jsonl")?.parse().ok()?;
    (file_name(number) == name).then_some(number)
}
