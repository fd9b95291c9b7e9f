//! The stage: small files, listing, and the way in to folders, logs and large files.

use std::{path::Path as LocalPath, sync::Arc, time::SystemTime};

use bytes::Bytes;
use futures_util::TryStreamExt;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt, PutMode, PutOptions, memory::InMemory, path::Path};

use crate::{StageError, StageVolume};

/// The largest file that [`Stage::get`] reads at once, in bytes (64 MiB): a large one must not take the memory.
pub const MAX_SMALL: u64 = 64 << 20;

/// The stage that all services share. Paths are relative to its root, with `/`, without `.` and `..`.
#[derive(Clone, Debug)]
pub struct Stage {
    pub(crate) store: Arc<dyn ObjectStore>,
    /// What error messages call it.
    pub(crate) label: Arc<str>,
    root: Option<Arc<LocalPath>>,
}

/// A file that was listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Relative to the stage's root.
    pub path: String,
    /// Bytes.
    pub size: u64,
    /// When it was written, by the store's clock.
    pub modified: SystemTime,
}

impl From<ObjectMeta> for Entry {
    fn from(meta: ObjectMeta) -> Self {
        Self { path: meta.location.to_string(), size: meta.size, modified: meta.last_modified.into() }
    }
}

impl Stage {
    /// Opens a folder, which is made if it is missing, or `memory:`, which is empty and goes with the process.
    ///
    /// # Errors
    /// [`StageError::Root`] if `root` is not a folder that can be read.
    pub fn open(root: &str) -> Result<Self, StageError> {
        if matches!(root, "memory:" | "memory://") {
            return Ok(Self::memory());
        }
        let refuse = |reason: String| StageError::Root { root: root.to_owned(), reason };
        if root.is_empty() || root.contains("://") {
            return Err(refuse("it must be a folder or memory:".to_owned()));
        }
        let path = LocalPath::new(root);
        if path.exists() && !path.is_dir() {
            return Err(refuse("it is not a folder; name another".to_owned()));
        }
        std::fs::create_dir_all(path).map_err(|error| refuse(format!("failed to make the folder: {error}")))?;
        let path = path.canonicalize().map_err(|error| refuse(error.to_string()))?;
        // Writing is not tried: a reader's mount is read-only.
        std::fs::read_dir(&path).map_err(|error| refuse(format!("failed to read the folder: {error}")))?;
        Ok(Self {
            store: Arc::new(StageVolume::new(&path)),
            label: path.display().to_string().into(),
            root: Some(path.into()),
        })
    }

    /// An empty stage in memory, for tests.
    #[must_use]
    pub fn memory() -> Self {
        Self::from_store(Arc::new(InMemory::new()), "memory:")
    }

    /// Uses any object store. `label` is what error messages call it.
    #[must_use]
    pub fn from_store(store: Arc<dyn ObjectStore>, label: &str) -> Self {
        Self { store, label: label.into(), root: None }
    }

    /// The stage's folder, if it is one: from there files can be mapped.
    #[must_use]
    pub fn local_root(&self) -> Option<&LocalPath> {
        self.root.as_deref()
    }

    /// Writes a small file. It is there for others once this returns.
    ///
    /// # Errors
    /// [`StageError::AlreadyExists`] if the path is taken, even by a torn file.
    pub async fn put(&self, path: &str, bytes: Bytes) -> Result<(), StageError> {
        let location = file_path(path)?;
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        self.store.put_opts(&location, bytes.into(), options).await.map_err(self.failed("write", path))?;
        Ok(())
    }

    /// Reads a small file.
    ///
    /// # Errors
    /// [`StageError::NotFound`], or [`StageError::TooLarge`] if it has more than [`MAX_SMALL`] bytes.
    pub async fn get(&self, path: &str) -> Result<Bytes, StageError> {
        let result = self.store.get(&file_path(path)?).await.map_err(self.failed("read", path))?;
        let size = result.meta.size;
        if size > MAX_SMALL {
            return Err(StageError::TooLarge { path: path.to_owned(), size, limit: MAX_SMALL });
        }
        result.bytes().await.map_err(self.failed("read", path))
    }

    /// Reads `len` bytes from `offset`, fewer at the end of the file.
    ///
    /// # Errors
    /// [`StageError::NotFound`], [`StageError::OutOfRange`] if `offset` is past the end, [`StageError::TooLarge`] if
    /// `len` is more than [`MAX_SMALL`].
    pub async fn get_range(&self, path: &str, offset: u64, len: u64) -> Result<Bytes, StageError> {
        if len > MAX_SMALL {
            return Err(StageError::TooLarge { path: path.to_owned(), size: len, limit: MAX_SMALL });
        }
        let size = self.size(path).await?;
        if offset > size {
            return Err(StageError::OutOfRange { path: path.to_owned(), offset, size });
        }
        let end = size.min(offset.saturating_add(len));
        if end == offset {
            return Ok(Bytes::new());
        }
        self.store.get_range(&file_path(path)?, offset..end).await.map_err(self.failed("read", path))
    }

    /// Returns a file's size in bytes.
    ///
    /// # Errors
    /// [`StageError::NotFound`].
    pub async fn size(&self, path: &str) -> Result<u64, StageError> {
        Ok(self.store.head(&file_path(path)?).await.map_err(self.failed("read", path))?.size)
    }

    /// Is there such a file? That says nothing about whether it is complete.
    ///
    /// # Errors
    /// If the store does not answer.
    pub async fn exists(&self, path: &str) -> Result<bool, StageError> {
        match self.size(path).await {
            Ok(_) => Ok(true),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Lists all files below a folder, by path. A folder that is not there is empty.
    ///
    /// # Errors
    /// If the store does not answer.
    pub async fn list(&self, prefix: &str) -> Result<Vec<Entry>, StageError> {
        let location = parse(prefix)?;
        let found = self.store.list(Some(&location)).map_ok(Entry::from).try_collect();
        let mut found: Vec<_> = found.await.map_err(self.failed("list", prefix))?;
        found.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(found)
    }

    /// Lists the files directly in a folder, by path.
    ///
    /// # Errors
    /// If the store does not answer.
    pub async fn list_files(&self, prefix: &str) -> Result<Vec<Entry>, StageError> {
        let location = parse(prefix)?;
        let found = self.store.list_with_delimiter(Some(&location)).await.map_err(self.failed("list", prefix))?;
        let mut found: Vec<Entry> = found.objects.into_iter().map(Entry::from).collect();
        found.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(found)
    }

    /// Lists the names (last segments) of the folders directly in a folder, sorted.
    ///
    /// # Errors
    /// If the store does not answer.
    pub async fn list_dirs(&self, prefix: &str) -> Result<Vec<String>, StageError> {
        let location = parse(prefix)?;
        let found = self.store.list_with_delimiter(Some(&location)).await.map_err(self.failed("list", prefix))?;
        let mut names: Vec<_> = found.common_prefixes.iter().filter_map(|p| p.filename()).map(str::to_owned).collect();
        names.sort();
        Ok(names)
    }

    /// Removes a file; one that is gone already is no error. Only debris, checkpoints
    /// that are past and what a caller gives up is ever removed.
    ///
    /// # Errors
    /// If the store refuses.
    pub async fn delete(&self, path: &str) -> Result<(), StageError> {
        match self.store.delete(&file_path(path)?).await.map_err(self.failed("delete", path)) {
            Err(error) if error.is_not_found() => Ok(()),
            deleted => deleted,
        }
    }

    /// Maps an error of the store to a sentence.
    pub(crate) fn failed<'a>(
        &'a self,
        action: &'static str,
        path: &'a str,
    ) -> impl Fn(object_store::Error) -> StageError + 'a {
        move |error| StageError::from_store(&self.label, action, path, error)
    }
}

fn parse(path: &str) -> Result<Path, StageError> {
    let refuse = |reason: String| StageError::InvalidPath { path: path.to_owned(), reason };
    if path.starts_with('/') {
        return Err(refuse("it must be relative to the stage's root".to_owned()));
    }
    if path.contains('\\') {
        return Err(refuse("its separator must be /".to_owned()));
    }
    Path::parse(path).map_err(|error| refuse(error.to_string()))
}

/// Parses the path of a file: not empty, no `.` or `..`, no control characters.
pub(crate) fn file_path(path: &str) -> Result<Path, StageError> {
    if path.is_empty() || path.ends_with('/') {
        return Err(StageError::InvalidPath { path: path.to_owned(), reason: "it must name a file".to_owned() });
    }
    parse(path)
}
