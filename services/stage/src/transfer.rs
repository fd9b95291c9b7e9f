//! Large files: to the stage, from the stage, and within it.

use std::{
    fs::File,
    path::{Path as LocalPath, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use bytes::{Bytes, BytesMut};
use futures_util::{Stream, StreamExt, TryStreamExt, stream::BoxStream};
use object_store::{GetOptions, GetRange, ObjectStore, ObjectStoreExt, PutPayload};
use tokio::io::AsyncWriteExt;

use crate::{
    FileEntry, MANIFEST, Stage, StageError,
    hash::{Hasher, blocking, hash_file},
    stage::file_path,
    volume::read_full,
};

/// The most bytes that a chunk of [`Stage::read_stream`] has (1 MiB): it fits the message limit of any gRPC client.
pub const READ_CHUNK: usize = 1 << 20;
/// Bytes that are written to the stage at once (8 MiB): a mount streams large contiguous writes best.
pub const WRITE_CHUNK: usize = 8 << 20;

/// The bytes of a file, chunk after chunk.
pub type ByteStream = BoxStream<'static, Result<Bytes, StageError>>;

impl Stage {
    /// Copies a local file to the stage, sequentially, and returns its size and hash.
    ///
    /// # Errors
    /// [`StageError::AlreadyExists`] if the path is taken; [`StageError::Local`] if the source cannot be read.
    pub async fn put_file(&self, path: &str, from: &LocalPath) -> Result<FileEntry, StageError> {
        self.write(path, read_local(from), None).await
    }

    /// Copies a file within the stage, by a read and a write. If `expected` is given and the source has another size or
    /// hash, nothing stays at `path`.
    ///
    /// # Errors
    /// [`StageError::Damaged`] names the source if it does not hold what was expected.
    pub async fn copy(&self, from: &str, path: &str, expected: Option<&FileEntry>) -> Result<FileEntry, StageError> {
        let source = self.read_stream(from, 0).await?;
        self.write(path, source, expected.map(|expected| (from, expected))).await
    }

    /// Writes a new file from a stream, sequentially, and returns its size and hash. If the stream fails, nothing stays at
    /// `path`.
    ///
    /// # Errors
    /// The stream's first error; [`StageError::AlreadyExists`] if the path is taken.
    pub async fn put_stream<E: From<StageError>>(
        &self,
        path: &str,
        source: impl Stream<Item = Result<Bytes, E>> + Send,
    ) -> Result<FileEntry, E> {
        self.write(path, source, None).await
    }

    /// Reads a file from `offset`, in chunks of at most [`READ_CHUNK`] bytes.
    ///
    /// # Errors
    /// [`StageError::NotFound`]; [`StageError::OutOfRange`] if `offset` is past the end.
    pub async fn read_stream(&self, path: &str, offset: u64) -> Result<ByteStream, StageError> {
        let location = file_path(path)?;
        let size = self.size(path).await?;
        if offset > size {
            return Err(StageError::OutOfRange { path: path.to_owned(), offset, size });
        }
        if offset == size {
            return Ok(futures_util::stream::empty().boxed());
        }
        let options = GetOptions { range: Some(GetRange::Offset(offset)), ..GetOptions::default() };
        let result = self.store.get_opts(&location, options).await.map_err(self.failed("read", path))?;
        let (stage, path) = (self.clone(), path.to_owned());
        let blocks = result.into_stream().map_err(move |error| stage.failed("read", &path)(error));
        Ok(blocks.map_ok(|block| futures_util::stream::iter(split(block).map(Ok))).try_flatten().boxed())
    }

    /// Copies a folder that has a manifest to the local folder `into`, which is made, and checks every hash. A file that
    /// is already there with its hash is kept. Returns `into`.
    ///
    /// # Errors
    /// [`StageError::NotFound`] without a manifest; [`StageError::Damaged`] names the file whose hash is wrong.
    pub async fn fetch_dir(&self, path: &str, into: &LocalPath) -> Result<PathBuf, StageError> {
        self.fetch_files(path, into, |_| true).await?;
        let (local, bytes) = (into.join(MANIFEST), self.get(&format!("{path}/{MANIFEST}")).await?);
        if tokio::fs::read(&local).await.ok().as_deref() != Some(&*bytes) {
            write_local(&local, &bytes).await.map_err(|error| StageError::local("write", &local, error))?;
        }
        Ok(into.to_owned())
    }

    /// As [`Self::fetch_dir`], but only those files that are `wanted`, by their names, and no manifest.
    ///
    /// # Errors
    /// As [`Self::fetch_dir`].
    pub async fn fetch_files(
        &self,
        path: &str,
        into: &LocalPath,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<(), StageError> {
        let manifest = self.manifest(path).await?;
        for file in manifest.files.iter().filter(|file| wanted(&file.path)) {
            let local = into.join(&file.path);
            if !is_local(file, &local).await {
                self.fetch_file(&format!("{path}/{}", file.path), file, &local).await?;
            }
        }
        Ok(())
    }

    async fn fetch_file(&self, path: &str, expected: &FileEntry, local: &LocalPath) -> Result<(), StageError> {
        let failed = |error| StageError::local("write", local, error);
        let mut stream = self.read_stream(path, 0).await?;
        let part = part_path(local);
        let mut file = create_local(&part).await.map_err(failed)?;
        let mut hasher = Hasher::default();
        let copied = async {
            while let Some(chunk) = stream.try_next().await? {
                file.write_all(&chunk).await.map_err(failed)?;
                hasher = std::mem::take(&mut hasher).absorb(chunk).await.map_err(failed)?;
            }
            file.sync_all().await.map_err(failed)?;
            check(path, expected, std::mem::take(&mut hasher).finish())
        };
        let copied = copied.await;
        // This is a local disk, so a rename is what makes the file whole.
        let renamed = match copied {
            Ok(_) => tokio::fs::rename(&part, local).await.map_err(failed),
            Err(error) => Err(error),
        };
        if renamed.is_err() {
            let _ = tokio::fs::remove_file(&part).await;
        }
        renamed
    }

    /// Writes a new file from a stream and hashes it on its way. If the stream fails, or its hash is not the expected
    /// one, nothing stays.
    async fn write<E: From<StageError>>(
        &self,
        path: &str,
        source: impl Stream<Item = Result<Bytes, E>> + Send,
        expected: Option<(&str, &FileEntry)>,
    ) -> Result<FileEntry, E> {
        let location = file_path(path)?;
        let failed = self.failed("write", path);
        let io_failed = |error| StageError::local("write", LocalPath::new(path), error);
        // It is asked again after its end, which not every stream bears.
        let mut source = std::pin::pin!(source.fuse());
        let mut hasher = Hasher::default();
        let first = fill(&mut source).await?;
        hasher = hasher.absorb(first.clone()).await.map_err(io_failed)?;
        if first.len() < WRITE_CHUNK {
            let entry = finish(path, expected, hasher)?;
            self.put(path, first).await?;
            return Ok(entry);
        }
        // A volume refuses a taken path by itself, other stores only for small files.
        if self.exists(path).await? {
            return Err(StageError::AlreadyExists { path: path.to_owned() }.into());
        }
        let mut upload = self.store.put_multipart(&location).await.map_err(&failed)?;
        let written = async {
            let mut chunk = first;
            while !chunk.is_empty() {
                upload.put_part(PutPayload::from(chunk)).await.map_err(&failed)?;
                chunk = fill(&mut source).await?;
                hasher = std::mem::take(&mut hasher).absorb(chunk.clone()).await.map_err(io_failed)?;
            }
            Ok::<_, E>(finish(path, expected, std::mem::take(&mut hasher))?)
        };
        match written.await {
            Ok(entry) => {
                upload.complete().await.map_err(&failed)?;
                Ok(entry)
            }
            Err(error) => {
                // The first error is the one that tells.
                let _ = upload.abort().await;
                Err(error)
            }
        }
    }
}

/// Gathers [`WRITE_CHUNK`] bytes, fewer only at the end.
async fn fill<E>(source: &mut std::pin::Pin<&mut impl Stream<Item = Result<Bytes, E>>>) -> Result<Bytes, E> {
    let mut buffer = BytesMut::new();
    while buffer.len() < WRITE_CHUNK {
        match source.try_next().await? {
            Some(chunk) if buffer.is_empty() && chunk.len() >= WRITE_CHUNK => return Ok(chunk),
            Some(chunk) => buffer.extend_from_slice(&chunk),
            None => break,
        }
    }
    Ok(buffer.freeze())
}

fn finish(path: &str, expected: Option<(&str, &FileEntry)>, hasher: Hasher) -> Result<FileEntry, StageError> {
    let (size, sha256) = hasher.finish();
    if let Some((from, expected)) = expected {
        check(from, expected, (size, sha256.clone()))?;
    }
    Ok(FileEntry { path: path.to_owned(), size, sha256 })
}

fn check(path: &str, expected: &FileEntry, (size, sha256): (u64, String)) -> Result<(), StageError> {
    if size == expected.size && sha256 == expected.sha256 {
        return Ok(());
    }
    let reason = if size == expected.size {
        format!("its manifest says sha256 {}, its bytes have {sha256}", expected.sha256)
    } else {
        format!("its manifest says {} bytes, it has {size}", expected.size)
    };
    Err(StageError::Damaged { path: path.to_owned(), reason })
}

/// Cuts a block into chunks that share its memory.
fn split(mut block: Bytes) -> impl Iterator<Item = Bytes> {
    std::iter::from_fn(move || {
        let len = block.len().min(READ_CHUNK);
        (len > 0).then(|| block.split_to(len))
    })
}

fn read_local(path: &LocalPath) -> impl Stream<Item = Result<Bytes, StageError>> + Send + 'static {
    let path = path.to_owned();
    futures_util::stream::try_unfold(None::<File>, move |file| {
        let (path, named) = (path.clone(), path.clone());
        async move {
            let read = blocking(move || {
                let mut file = file.map_or_else(|| File::open(&path), Ok)?;
                let mut chunk = vec![0; WRITE_CHUNK];
                let read = read_full(&mut file, &mut chunk)?;
                chunk.truncate(read);
                Ok((read > 0).then(|| (Bytes::from(chunk), Some(file))))
            });
            read.await.map_err(|error| StageError::local("read", &named, error))
        }
    })
}

async fn is_local(expected: &FileEntry, local: &LocalPath) -> bool {
    let path = local.to_owned();
    let found = match tokio::fs::metadata(local).await {
        Ok(meta) if meta.is_file() && meta.len() == expected.size => blocking(move || hash_file(&path)).await.ok(),
        _ => None,
    };
    found.is_some_and(|(_, sha256)| sha256 == expected.sha256)
}

/// Beside the file, with a name of its own: two processes, or two tasks of one, may fetch the same folder.
fn part_path(local: &LocalPath) -> PathBuf {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let mut name = local.as_os_str().to_owned();
    name.push(format!(".{}-{}.part", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)));
    name.into()
}

async fn create_local(path: &LocalPath) -> std::io::Result<tokio::fs::File> {
    if let Some(folder) = path.parent() {
        tokio::fs::create_dir_all(folder).await?;
    }
    tokio::fs::File::create(path).await
}

async fn write_local(path: &LocalPath, bytes: &[u8]) -> std::io::Result<()> {
    let part = part_path(path);
    let mut file = create_local(&part).await?;
    file.write_all(bytes).await?;
    file.sync_all().await?;
    tokio::fs::rename(&part, path).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn chunks_are_gathered_until_they_are_large_enough_to_write() {
        let chunks = (0..20).map(|_| Ok::<_, StageError>(Bytes::from(vec![1; READ_CHUNK])));
        let mut source = std::pin::pin!(futures_util::stream::iter(chunks));
        let mut sizes = vec![];
        while let Some(size) = Some(fill(&mut source).await.unwrap().len()).filter(|size| *size > 0) {
            sizes.push(size);
        }
        assert_eq!(sizes, [WRITE_CHUNK, WRITE_CHUNK, 4 * READ_CHUNK]);
    }

    #[tokio::test]
    async fn a_local_file_is_read_in_chunks_that_are_written_as_they_are() {
        let local = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(local.path(), vec![1; 2 * WRITE_CHUNK + 5]).unwrap();
        let sizes: Vec<usize> = read_local(local.path()).map_ok(|chunk| chunk.len()).try_collect().await.unwrap();
        assert_eq!(sizes, [WRITE_CHUNK, WRITE_CHUNK, 5]);
    }
}
