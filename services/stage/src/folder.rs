//! Folders that count once their manifest is there.

use std::{collections::HashSet, path::Path as LocalPath};

use bytes::Bytes;
use futures_util::Stream;
use serde::{Deserialize, Serialize};

use crate::{Stage, StageError, sha256_hex, stage::file_path};

/// The file that is written last.
pub const MANIFEST: &str = "manifest.json";
/// How often [`Stage::fresh_folder`] steps aside before it gives up: so many crashes at one place are no accident.
const MAX_FRESH: usize = 100;

/// A file of a folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// Relative to the folder.
    pub path: String,
    /// Bytes.
    pub size: u64,
    /// Lower-case hex.
    pub sha256: String,
}

/// What a complete folder holds, itself left out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// In the order in which they were added.
    pub files: Vec<FileEntry>,
    /// The path that the folder stands for, where it stepped aside from debris: `x` for the folder `x.2`, which may as well
    /// be one that is called so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instead_of: Option<String>,
}

impl Manifest {
    /// Finds a file by its path within the folder.
    #[must_use]
    pub fn file(&self, path: &str) -> Option<&FileEntry> {
        self.files.iter().find(|file| file.path == path)
    }

    /// A manifest comes from a disk: its paths must stay in the folder.
    fn check(&self) -> Result<(), String> {
        let mut seen = HashSet::new();
        for file in &self.files {
            file_path(&file.path).map_err(|error| error.to_string())?;
            if file.path == MANIFEST || !seen.insert(&file.path) {
                return Err(format!("it must not name {} again", file.path));
            }
            if file.sha256.len() != 64 || !file.sha256.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
            {
                return Err(format!("sha256 of {} must be 64 lower-case hex digits", file.path));
            }
        }
        Ok(())
    }
}

impl Stage {
    /// Starts a folder at exactly this path. See [`Self::fresh_folder`] for a path that a crash may have left torn.
    pub fn folder(&self, path: &str) -> FolderWriter {
        let path = path.trim_end_matches('/').to_owned();
        FolderWriter { stage: self.clone(), path, manifest: Manifest::default() }
    }

    /// Starts a folder at `path`, or at `path.2`, `path.3`, … if there is something already: a file is written once, so a
    /// torn one is not repaired but left behind. [`FolderWriter::path`] tells where. Only for the one writer of `path`: to
    /// another, a folder that is being written looks the same as debris.
    ///
    /// # Errors
    /// [`StageError::AlreadyExists`] if one of them is complete: then there is nothing to write.
    pub async fn fresh_folder(&self, path: &str) -> Result<FolderWriter, StageError> {
        let path = path.trim_end_matches('/');
        if let Some(path) = self.finished_folder(path).await? {
            return Err(StageError::AlreadyExists { path });
        }
        for number in 1..=MAX_FRESH {
            let candidate = if number == 1 { path.to_owned() } else { format!("{path}.{number}") };
            if self.list(&candidate).await?.is_empty() {
                let mut folder = self.folder(&candidate);
                folder.manifest.instead_of = (number > 1).then(|| path.to_owned());
                return Ok(folder);
            }
        }
        let reason = format!("{MAX_FRESH} unfinished folders are there already; remove them");
        Err(StageError::Damaged { path: path.to_owned(), reason })
    }

    /// Returns the path of the complete folder that [`Self::fresh_folder`] wrote for `path`. A folder that only has the
    /// name of such a one is another's.
    ///
    /// # Errors
    /// If the store does not answer.
    pub async fn finished_folder(&self, path: &str) -> Result<Option<String>, StageError> {
        let path = path.trim_end_matches('/');
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        let mut numbers: Vec<usize> =
            self.list_dirs(parent).await?.iter().filter_map(|folder| attempt(name, folder)).collect();
        numbers.sort_unstable();
        for number in numbers {
            let (candidate, instead_of) = match number {
                1 => (path.to_owned(), None),
                later => (format!("{path}.{later}"), Some(path)),
            };
            match self.manifest(&candidate).await {
                Ok(manifest) if manifest.instead_of.as_deref() == instead_of => return Ok(Some(candidate)),
                Ok(_) => {}
                Err(error) if error.is_not_found() || error.is_damaged() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// Does the folder count? One without a manifest, or with a torn one, does not.
    ///
    /// # Errors
    /// If the store does not answer.
    pub async fn is_finished(&self, path: &str) -> Result<bool, StageError> {
        match self.manifest(path).await {
            Ok(_) => Ok(true),
            Err(error) if error.is_not_found() || error.is_damaged() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Reads a folder's manifest.
    ///
    /// # Errors
    /// [`StageError::NotFound`] if the folder does not count; [`StageError::Damaged`] if the manifest is torn.
    pub async fn manifest(&self, path: &str) -> Result<Manifest, StageError> {
        let path = format!("{}/{MANIFEST}", path.trim_end_matches('/'));
        let manifest: Manifest = self.get_json(&path).await?;
        manifest.check().map_err(|reason| StageError::Damaged { path, reason })?;
        Ok(manifest)
    }

    /// Reads a small JSON file.
    ///
    /// # Errors
    /// [`StageError::NotFound`]; [`StageError::Damaged`] if it does not parse.
    pub async fn get_json<T: for<'de> Deserialize<'de>>(&self, path: &str) -> Result<T, StageError> {
        let bytes = self.get(path).await?;
        serde_json::from_slice(&bytes)
            .map_err(|error| StageError::Damaged { path: path.to_owned(), reason: error.to_string() })
    }
}

/// Which attempt at the folder `name` one of this name would be: 1 is the folder itself.
fn attempt(name: &str, folder: &str) -> Option<usize> {
    match folder.strip_prefix(name)? {
        "" => Some(1),
        rest => rest.strip_prefix('.')?.parse().ok().filter(|number| (2..=MAX_FRESH).contains(number)),
    }
}

pub(crate) fn to_json<T: Serialize + ?Sized>(path: &str, value: &T) -> Result<Bytes, StageError> {
    let mut text =
        serde_json::to_vec_pretty(value).map_err(|source| StageError::Encode { path: path.to_owned(), source })?;
    text.push(b'\n');
    Ok(text.into())
}

/// Writes a folder and, last, its manifest. Dropped before [`Self::finish`], it leaves debris.
#[derive(Debug)]
#[must_use = "a folder without a manifest is debris"]
pub struct FolderWriter {
    stage: Stage,
    path: String,
    manifest: Manifest,
}

impl FolderWriter {
    /// The folder's path on the stage.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Adds a small file.
    ///
    /// # Errors
    /// As [`Stage::put`].
    pub async fn put(&mut self, name: &str, bytes: Bytes) -> Result<(), StageError> {
        let path = self.child(name)?;
        let (size, sha256) = (bytes.len() as u64, sha256_hex(&bytes));
        self.stage.put(&path, bytes).await?;
        self.add(FileEntry { path: name.to_owned(), size, sha256 });
        Ok(())
    }

    /// Adds a value as JSON.
    ///
    /// # Errors
    /// As [`Stage::put`].
    pub async fn put_json<T: Serialize + Sync + ?Sized>(&mut self, name: &str, value: &T) -> Result<(), StageError> {
        let bytes = to_json(name, value)?;
        self.put(name, bytes).await
    }

    /// Adds a copy of a local file.
    ///
    /// # Errors
    /// As [`Stage::put_file`].
    pub async fn put_file(&mut self, name: &str, from: &LocalPath) -> Result<FileEntry, StageError> {
        let path = self.child(name)?;
        let entry = FileEntry { path: name.to_owned(), ..self.stage.put_file(&path, from).await? };
        self.add(entry.clone());
        Ok(entry)
    }

    /// Adds a file from a stream.
    ///
    /// # Errors
    /// As [`Stage::put_stream`].
    pub async fn put_stream<E: From<StageError>>(
        &mut self,
        name: &str,
        source: impl Stream<Item = Result<Bytes, E>> + Send,
    ) -> Result<FileEntry, E> {
        let entry = self.file(name)?.write(source).await?;
        self.add(entry.clone());
        Ok(entry)
    }

    /// Begins a file that is written beside others. It is the folder's once it is [added](Self::add).
    ///
    /// # Errors
    /// [`StageError::InvalidPath`].
    pub fn file(&self, name: &str) -> Result<FileWriter, StageError> {
        Ok(FileWriter { stage: self.stage.clone(), path: self.child(name)?, name: name.to_owned() })
    }

    /// Adds a file that a [`FileWriter`] of this folder has written.
    pub fn add(&mut self, entry: FileEntry) {
        self.manifest.files.push(entry);
    }

    /// Adds a copy of a file of the stage, whose size and hash must be the expected ones.
    ///
    /// # Errors
    /// As [`Stage::copy`].
    pub async fn copy(&mut self, name: &str, from: &str, expected: &FileEntry) -> Result<FileEntry, StageError> {
        let path = self.child(name)?;
        let entry = FileEntry { path: name.to_owned(), ..self.stage.copy(from, &path, Some(expected)).await? };
        self.add(entry.clone());
        Ok(entry)
    }

    /// Writes the manifest: from now on the folder counts.
    ///
    /// # Errors
    /// As [`Stage::put`]. Then the folder is debris.
    pub async fn finish(self) -> Result<Manifest, StageError> {
        let path = format!("{}/{MANIFEST}", self.path);
        self.stage.put(&path, to_json(&path, &self.manifest)?).await?;
        Ok(self.manifest)
    }

    fn child(&self, name: &str) -> Result<String, StageError> {
        file_path(name)?;
        if name == MANIFEST {
            let reason = "the manifest is written by itself".to_owned();
            return Err(StageError::InvalidPath { path: name.to_owned(), reason });
        }
        Ok(format!("{}/{name}", self.path))
    }
}

/// Writes one file of a folder, while others may be written.
#[derive(Debug)]
pub struct FileWriter {
    stage: Stage,
    path: String,
    name: String,
}

impl FileWriter {
    /// Writes the file from a stream, and hashes it on its way.
    ///
    /// # Errors
    /// As [`Stage::put_stream`].
    pub async fn write<E: From<StageError>>(
        self,
        source: impl Stream<Item = Result<Bytes, E>> + Send,
    ) -> Result<FileEntry, E> {
        Ok(FileEntry { path: self.name, ..self.stage.put_stream(&self.path, source).await? })
    }
}
