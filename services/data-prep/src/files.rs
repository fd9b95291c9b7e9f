//! Files of rows that callers store: a folder each, which counts once its manifest is there.

use std::{
    collections::BTreeMap,
    ops::Bound,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use firn_kit::{Clock, PageError, page::page};
use firn_proto::dataprep::v1::{File, FileHead};
use firn_stage::{ByteStream, FolderWriter, Stage, StageError};
use futures_util::{Stream, StreamExt as _, stream};
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

use crate::{
    debris,
    file_error::{FileError, UploadError},
};

/// Where they are on the stage.
pub(crate) const FOLDER: &str = "inputs/files";
/// What is known of a file, beside it in its folder.
const RECORD: &str = "file.json";
/// Files that are stored at once: each has up to 8 MiB in memory.
const AT_ONCE: usize = 16;
/// Most files: what is known of them is in memory.
const MOST_FILES: usize = 100_000;
/// Folders that are read at once at the start.
const READ_AT_ONCE: usize = 16;

/// Knows all files, and stores new ones.
#[derive(Clone, Debug)]
pub(crate) struct FileCatalog(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    stage: Stage,
    clock: Clock,
    max_bytes: u64,
    /// By id, which grows with time.
    files: Mutex<BTreeMap<String, File>>,
    slots: Semaphore,
}

/// `file.json`.
#[derive(Debug, Deserialize, Serialize)]
struct Record {
    filename: String,
    purpose: String,
    size: u64,
    sha256: String,
    /// RFC 3339.
    create_time: String,
}

impl FileCatalog {
    /// Reads what the stage holds, and removes what uploads have left that never ended.
    pub(crate) async fn load(stage: Stage, max_bytes: u64) -> Result<Self, StageError> {
        let reads = stage.list_dirs(FOLDER).await?.into_iter().map(|id| {
            let stage = stage.clone();
            async move { (stored(&stage, &id).await, id) }
        });
        let mut files = BTreeMap::new();
        let mut found = stream::iter(reads).buffer_unordered(READ_AT_ONCE);
        while let Some((file, id)) = found.next().await {
            match file {
                Ok(Some(file)) => {
                    files.insert(id, file);
                }
                Ok(None) => debris::remove(&stage, &format!("{FOLDER}/{id}")).await,
                Err(error) => tracing::warn!(id, %error, "unreadable file left out"),
            }
        }
        drop(found);
        tracing::info!(files = files.len(), "files found on the stage");
        let (clock, slots) = (Clock::system(), Semaphore::new(AT_ONCE));
        Ok(Self(Arc::new(Inner { stage, clock, max_bytes, files: Mutex::new(files), slots })))
    }

    /// Most bytes of a file.
    pub(crate) fn max_bytes(&self) -> u64 {
        self.0.max_bytes
    }

    /// Stores a file. If the bytes end in an error, nothing stays.
    pub(crate) async fn store(
        &self,
        head: FileHead,
        bytes: impl Stream<Item = Result<Bytes, UploadError>> + Send,
    ) -> Result<File, UploadError> {
        let _slot = self.0.slots.try_acquire().map_err(|_| UploadError::Busy { limit: AT_ONCE })?;
        if self.files().len() >= MOST_FILES {
            return Err(UploadError::Full { limit: MOST_FILES });
        }
        let id = format!("file-{}", uuid::Uuid::now_v7().simple());
        let mut folder = self.0.stage.folder(&format!("{FOLDER}/{id}"));
        let entry = folder.put_stream(&head.filename, bytes).await?;
        let record = Record {
            filename: head.filename,
            purpose: head.purpose,
            size: entry.size,
            sha256: entry.sha256,
            create_time: firn_kit::clock::to_proto(self.0.clock.now()).to_string(),
        };
        // A caller that leaves now must not leave a file that counts and is not listed.
        let catalog = self.clone();
        tokio::spawn(async move { catalog.finish(id, folder, record).await }).await?
    }

    async fn finish(&self, id: String, mut folder: FolderWriter, record: Record) -> Result<File, UploadError> {
        let path = folder.path().to_owned();
        let finished = async {
            folder.put_json(RECORD, &record).await?;
            folder.finish().await
        };
        if let Err(error) = finished.await {
            // The first error is the one that tells.
            let _ = self.0.stage.remove_folder(&path).await;
            return Err(error.into());
        }
        let file = file(&id, record);
        tracing::info!(name = file.name, size = file.size, "file stored");
        self.files().insert(id, file.clone());
        Ok(file)
    }

    /// Returns one file.
    pub(crate) fn get(&self, name: &str) -> Result<File, FileError> {
        self.files().get(id_of(name)?).cloned().ok_or_else(|| FileError::NotFound { name: name.to_owned() })
    }

    /// A page of files, oldest first, and the next page's token: the last file's id, so that a file that is deleted
    /// moves no page.
    pub(crate) fn list(&self, page_size: i32, page_token: &str) -> Result<(Vec<File>, String), PageError> {
        if !page_token.is_empty() && firn_kit::names::check_id(page_token).is_err() {
            return Err(PageError::Token);
        }
        let start = if page_token.is_empty() { Bound::Unbounded } else { Bound::Excluded(page_token) };
        let rest: Vec<File> =
            self.files().range::<str, _>((start, Bound::Unbounded)).map(|(_, file)| file.clone()).collect();
        let (files, next) = page(rest, page_size, "")?;
        let last = files.last().filter(|_| !next.is_empty());
        let token = last.and_then(|file| id_of(&file.name).ok()).unwrap_or_default().to_owned();
        Ok((files, token))
    }

    /// A file's bytes, in chunks of at most 1 MiB.
    pub(crate) async fn read(&self, name: &str) -> Result<ByteStream, FileError> {
        let file = self.get(name)?;
        Ok(self.0.stage.read_stream(&file.path, 0).await?)
    }

    /// Removes a file.
    pub(crate) async fn delete(&self, name: &str) -> Result<(), FileError> {
        let id = id_of(name)?.to_owned();
        let Some(file) = self.files().remove(&id) else { return Err(FileError::NotFound { name: name.to_owned() }) };
        let catalog = self.clone();
        // Not cut in the middle by a caller that leaves.
        tokio::spawn(async move { catalog.remove(id, file).await }).await?
    }

    async fn remove(&self, id: String, file: File) -> Result<(), FileError> {
        let path = format!("{FOLDER}/{id}");
        let removed = self.0.stage.remove_folder(&path).await;
        if removed.is_err() && self.0.stage.is_finished(&path).await.unwrap_or(true) {
            // It counts still, and would be back after a restart.
            self.files().insert(id, file);
        }
        Ok(removed?)
    }

    fn files(&self) -> MutexGuard<'_, BTreeMap<String, File>> {
        // An insertion or removal is all or nothing, so a panic elsewhere does not spoil it.
        self.0.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The id in `files/{file}`.
fn id_of(name: &str) -> Result<&str, FileError> {
    Ok(firn_kit::names::child(name, &["files"])?.first().copied().unwrap_or_default())
}

/// Reads what is known of a file; `None` if its folder does not count.
async fn stored(stage: &Stage, id: &str) -> Result<Option<File>, StageError> {
    let path = format!("{FOLDER}/{id}");
    if !stage.is_finished(&path).await? {
        return Ok(None);
    }
    Ok(Some(file(id, stage.get_json(&format!("{path}/{RECORD}")).await?)))
}

fn file(id: &str, record: Record) -> File {
    File {
        name: format!("files/{id}"),
        path: format!("{FOLDER}/{id}/{}", record.filename),
        filename: record.filename,
        purpose: record.purpose,
        size: record.size,
        sha256: record.sha256,
        create_time: record.create_time.parse().ok(),
    }
}
