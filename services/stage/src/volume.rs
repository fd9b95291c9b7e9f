//! A folder as an object store, with the operations of a stage mount and no others.

use std::{
    fmt,
    fs::{self, File, OpenOptions},
    io::{self, BufWriter, Read, Seek, SeekFrom, Write},
    ops::Range,
    path::{Path as LocalPath, PathBuf},
    sync::Arc,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream, stream::BoxStream};
use object_store::{
    Attributes, CopyOptions, Error, Extensions, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload,
    ObjectMeta, ObjectStore, PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, path::Path,
};

use crate::{hash::blocking, transfer::WRITE_CHUNK, upload::StageUpload};

const STORE: &str = "StageVolume";
/// Bytes a read takes from the mount at once: it caches nothing, so small reads are slow.
const READ_BLOCK: usize = 8 << 20;

/// A folder that is written as a stage mount must be: each file once, sequentially, at its final path, with `sync_all`
/// and every error checked, that of `close` too. There is no rename, append, lock, hard link or mmap; a copy is a read and a write.
///
/// Every put is a create, whatever its mode: an existing path is refused. `PutMode::Update` is not supported.
#[derive(Clone, Debug)]
pub struct StageVolume {
    root: Arc<LocalPath>,
}

impl fmt::Display for StageVolume {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{STORE}({})", self.root.display())
    }
}

impl StageVolume {
    /// Uses an existing folder.
    #[must_use]
    pub fn new(root: &LocalPath) -> Self {
        Self { root: Arc::from(root) }
    }

    fn local(&self, location: &Path) -> PathBuf {
        self.root.join(location.as_ref())
    }

    /// Runs `work` with the local path where blocking is allowed, and names `location` in its error.
    async fn with<T: Send + 'static>(
        &self,
        location: &Path,
        work: impl FnOnce(&LocalPath) -> io::Result<T> + Send + 'static,
    ) -> Result<T> {
        let local = self.local(location);
        blocking(move || work(&local)).await.map_err(|error| store_error(location, error))
    }
}

/// Names the object in an error of the file system.
pub(crate) fn store_error(location: &Path, error: io::Error) -> Error {
    let (path, kind) = (location.to_string(), error.kind());
    let source = Box::new(error);
    match kind {
        // A file where a folder must be: the object cannot be there.
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Error::NotFound { path, source },
        io::ErrorKind::AlreadyExists => Error::AlreadyExists { path, source },
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => Error::PermissionDenied { path, source },
        _ => Error::Generic { store: STORE, source },
    }
}

/// Opens a new file for writing. `create_new` is what makes a path write-once.
fn create(path: &LocalPath, capacity: usize) -> io::Result<BufWriter<File>> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let file = OpenOptions::new().write(true).create_new(true).open(path)?;
    Ok(BufWriter::with_capacity(capacity, file))
}

/// Ends a file: flushes, syncs and closes it, or, if any of that or the writing before failed, removes it.
///
/// A stage mount takes a file when it is closed, so the close tells whether the file is there; dropping a `File` would
/// swallow that. What was not written when a write failed is not written later: it would follow a gap.
pub(crate) fn finish(mut writer: BufWriter<File>, path: &LocalPath, written: io::Result<()>) -> io::Result<()> {
    let written = written.and_then(|()| writer.flush());
    let (file, _) = writer.into_parts();
    let closed = match written.and_then(|()| file.sync_all()) {
        Ok(()) => nix::unistd::close(file).map_err(io::Error::from),
        Err(error) => {
            drop(file);
            Err(error)
        }
    };
    if closed.is_err() {
        // It is ours and torn. If it cannot be removed it is debris, which readers skip.
        let _ = fs::remove_file(path);
    }
    closed
}

/// Writes a whole new file.
fn write_new(path: &LocalPath, payload: &PutPayload) -> io::Result<()> {
    let mut writer = create(path, payload.content_length().min(WRITE_CHUNK))?;
    let written = payload.iter().try_for_each(|bytes| writer.write_all(bytes));
    finish(writer, path, written)
}

/// Reads until `buffer` is full or the file ends, and returns how many bytes it has. A mount may return fewer than asked.
pub(crate) fn read_full(file: &mut File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut len = 0;
    while let Some(rest) = buffer.get_mut(len..).filter(|rest| !rest.is_empty()) {
        match file.read(rest) {
            Ok(0) => break,
            Ok(read) => len += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(len)
}

/// Copies in large chunks. `io::copy` would leave that to the kernel, which a mount sees as many small writes.
fn copy_chunks(source: &mut File, writer: &mut impl Write) -> io::Result<()> {
    let mut chunk = vec![0; WRITE_CHUNK];
    loop {
        match read_full(source, &mut chunk)? {
            0 => return Ok(()),
            len => writer.write_all(&chunk[..len])?,
        }
    }
}

fn file_meta(location: Path, meta: &fs::Metadata) -> io::Result<ObjectMeta> {
    Ok(ObjectMeta { location, last_modified: meta.modified()?.into(), size: meta.len(), e_tag: None, version: None })
}

/// Reads `range` in blocks.
fn read_blocks(file: File, location: Path, range: Range<u64>) -> BoxStream<'static, Result<Bytes>> {
    stream::try_unfold((file, range.end - range.start), move |(mut file, left)| {
        let location = location.clone();
        async move {
            if left == 0 {
                return Ok(None);
            }
            let read = blocking(move || {
                let mut block = vec![0; usize::try_from(left).unwrap_or(usize::MAX).min(READ_BLOCK)];
                file.read_exact(&mut block)?;
                Ok((Bytes::from(block), file))
            });
            let (block, file) = read.await.map_err(|error| store_error(&location, error))?;
            let left = left - block.len() as u64;
            Ok(Some((block, (file, left))))
        }
    })
    .boxed()
}

/// Lists a folder: files, and folders as paths. Entries that vanish or have no legal name are left out.
fn read_folder(root: &LocalPath, folder: &LocalPath) -> io::Result<ListResult> {
    let mut result = ListResult { common_prefixes: vec![], objects: vec![], extensions: Extensions::new() };
    let entries = match fs::read_dir(folder) {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(result);
        }
        entries => entries?,
    };
    for entry in entries {
        let path = entry?.path();
        // Follows links: a base checkpoint may be a link into a download cache.
        let Ok(meta) = fs::metadata(&path) else { continue };
        let relative = path.strip_prefix(root).ok().and_then(LocalPath::to_str);
        let Some(location) = relative.and_then(|relative| Path::parse(relative).ok()) else { continue };
        if meta.is_dir() {
            result.common_prefixes.push(location);
        } else if meta.is_file() {
            result.objects.push(file_meta(location, &meta)?);
        }
    }
    result.common_prefixes.sort();
    result.objects.sort_by(|a, b| a.location.cmp(&b.location));
    Ok(result)
}

/// Lists a folder and all below it.
fn read_tree(root: &LocalPath, folder: &LocalPath, into: &mut Vec<ObjectMeta>) -> io::Result<()> {
    let ListResult { common_prefixes, objects, .. } = read_folder(root, folder)?;
    into.extend(objects);
    common_prefixes.iter().try_for_each(|prefix| read_tree(root, &root.join(prefix.as_ref()), into))
}

#[async_trait]
impl ObjectStore for StageVolume {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        if matches!(opts.mode, PutMode::Update(_)) {
            return Err(Error::NotSupported { source: "a stage's files are written once".into() });
        }
        self.with(location, move |path| write_new(path, &payload)).await?;
        Ok(PutResult { e_tag: None, version: None, extensions: Extensions::new() })
    }

    async fn put_multipart_opts(&self, location: &Path, _: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        let writer = self.with(location, |path| create(path, WRITE_CHUNK)).await?;
        Ok(Box::new(StageUpload::new(location.clone(), self.local(location), writer)))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let name = location.clone();
        let (file, meta) = self
            .with(location, |path| {
                let file = File::open(path)?;
                let meta = file.metadata()?;
                if !meta.is_file() {
                    return Err(io::ErrorKind::NotFound.into());
                }
                let meta = file_meta(name, &meta)?;
                Ok((file, meta))
            })
            .await?;
        options.check_preconditions(&meta)?;
        let range = match &options.range {
            Some(range) => {
                range.as_range(meta.size).map_err(|error| Error::Generic { store: STORE, source: Box::new(error) })?
            }
            None => 0..meta.size,
        };
        let payload = if options.head {
            stream::empty().boxed()
        } else {
            let start = range.start;
            let file = self
                .with(location, move |_| {
                    let mut file = file;
                    if start > 0 {
                        file.seek(SeekFrom::Start(start))?;
                    }
                    Ok(file)
                })
                .await?;
            read_blocks(file, location.clone(), range.clone())
        };
        Ok(GetResult {
            payload: GetResultPayload::Stream(payload),
            meta,
            range,
            attributes: Attributes::new(),
            extensions: Extensions::new(),
        })
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let volume = self.clone();
        locations
            .and_then(move |location| {
                let volume = volume.clone();
                async move {
                    volume.with(&location, |path| fs::remove_file(path)).await?;
                    Ok(location)
                }
            })
            .boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (volume, prefix) = (self.clone(), prefix.cloned().unwrap_or_default());
        stream::once(async move {
            let root = Arc::clone(&volume.root);
            let read = move |path: &LocalPath| {
                let mut found = vec![];
                read_tree(&root, path, &mut found)?;
                Ok(found)
            };
            volume.with(&prefix, read).await.map(|found| stream::iter(found.into_iter().map(Ok)))
        })
        .try_flatten()
        .boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let root = Arc::clone(&self.root);
        self.with(&prefix.cloned().unwrap_or_default(), move |path| read_folder(&root, path)).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, _: CopyOptions) -> Result<()> {
        let source = self.local(from);
        self.with(to, move |path| {
            let mut source = File::open(source)?;
            let mut writer = create(path, WRITE_CHUNK)?;
            let copied = copy_chunks(&mut source, &mut writer);
            finish(writer, path, copied)
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Notes the sizes of its writes.
    struct Sizes(Vec<usize>);

    impl Write for Sizes {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.push(bytes.len());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_copy_writes_large_chunks() {
        let source = tempfile::NamedTempFile::new().unwrap();
        fs::write(source.path(), vec![1; 2 * WRITE_CHUNK + 5]).unwrap();
        let mut sizes = Sizes(vec![]);
        copy_chunks(&mut File::open(source.path()).unwrap(), &mut sizes).unwrap();
        assert_eq!(sizes.0, [WRITE_CHUNK, WRITE_CHUNK, 5]);
    }

    #[test]
    fn what_was_not_written_when_a_write_failed_is_not_written_when_the_file_ends() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let mut writer = create(&path, 16).unwrap();
        let watch = writer.get_ref().try_clone().unwrap();
        writer.write_all(b"buffered").unwrap();
        let error = finish(writer, &path, Err(io::ErrorKind::StorageFull.into())).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert_eq!(watch.metadata().unwrap().len(), 0);
        assert!(!path.exists());
    }
}
