//! Files on their way, on the local disk.
//!
//! ```text
//! <work>/<org>/<name>/lock                       held by the pull that works
//! <work>/<org>/<name>/<commit>/<file>            whole, once checked
//! <work>/<org>/<name>/<commit>/<file>.part       what came of it so far
//! ```
//!
//! This is a local disk, unlike a stage: it appends, renames and locks.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytes::{Bytes, BytesMut};

use super::{HubError, Repo, digest::Hasher, listing::RemoteFile};

const LOCK: &str = "lock";
/// How often a pull looks whether another one has ended.
const POLL: Duration = Duration::from_millis(200);
/// Bytes that are written and hashed at once.
const BLOCK: usize = 1 << 20;

/// The local folder of one repository, locked.
pub(super) struct Spool {
    folder: PathBuf,
    lock: Arc<File>,
}

impl Spool {
    /// Waits until no other pull, in this process or another on this machine, works on the repository.
    pub(super) async fn lock(work_dir: &Path, repo: &Repo, waiting: impl Fn()) -> Result<Self, HubError> {
        let folder = work_dir.join(repo.org()).join(repo.leaf());
        let path = folder.join(LOCK);
        let failed = |error| HubError::local("lock", &path, error);
        tokio::fs::create_dir_all(&folder).await.map_err(|error| HubError::local("make", &folder, error))?;
        let lock = OpenOptions::new().create(true).append(true).open(&path).map_err(failed)?;
        loop {
            match lock.try_lock() {
                Ok(()) => return Ok(Self { folder, lock: Arc::new(lock) }),
                Err(TryLockError::WouldBlock) => waiting(),
                Err(TryLockError::Error(error)) => return Err(failed(error)),
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// The folder of a commit; what is left of other commits goes.
    pub(super) async fn commit(&self, commit: &str) -> Result<PathBuf, HubError> {
        let folder = self.folder.join(commit);
        self.remove_but(Some(commit)).await?;
        tokio::fs::create_dir_all(&folder).await.map_err(|error| HubError::local("make", &folder, error))?;
        Ok(folder)
    }

    /// Removes all files.
    pub(super) async fn clear(self) -> Result<(), HubError> {
        self.remove_but(None).await
    }

    async fn remove_but(&self, kept: Option<&str>) -> Result<(), HubError> {
        let failed = |error| HubError::local("clear", &self.folder, error);
        let mut entries = tokio::fs::read_dir(&self.folder).await.map_err(failed)?;
        while let Some(entry) = entries.next_entry().await.map_err(failed)? {
            let is_kept = kept.is_some_and(|kept| entry.file_name() == kept);
            if !is_kept && entry.file_type().await.map_err(failed)?.is_dir() {
                tokio::fs::remove_dir_all(entry.path()).await.map_err(failed)?;
            }
        }
        Ok(())
    }

    /// Opens what is there of a file, and hashes it.
    pub(super) async fn part(&self, folder: &Path, file: &RemoteFile) -> Result<Part, HubError> {
        let path = folder.join(format!("{}.part", file.name));
        let (opened, size, hasher, lock) = (path.clone(), file.size, file.digest.hasher(file.size), self.lock.clone());
        let body = blocking(move || {
            let file = OpenOptions::new().create(true).read(true).append(true).open(opened)?;
            let mut body = Body { file, hasher: hasher.clone(), fresh: hasher, len: 0, _lock: lock };
            let len = body.file.metadata()?.len();
            if len > size {
                body.restart()?;
            } else {
                body.len = body.hasher.read((&body.file).take(len))?;
            }
            Ok(body)
        });
        let body = body.await.map_err(|error| HubError::local("open", &path, error))?;
        let resumed = body.len > 0;
        Ok(Part { path, wanted: file.clone(), body: Some(body), buffer: BytesMut::new(), resumed })
    }
}

/// A file that is not whole yet.
pub(super) struct Part {
    path: PathBuf,
    wanted: RemoteFile,
    /// Away while a thread writes; if a write fails, for good.
    body: Option<Body>,
    buffer: BytesMut,
    resumed: bool,
}

struct Body {
    file: File,
    hasher: Hasher,
    /// The hasher before any bytes.
    fresh: Hasher,
    len: u64,
    /// A write that outlives a cancelled pull still keeps others away.
    _lock: Arc<File>,
}

impl Body {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.hasher.update(bytes);
        self.len += bytes.len() as u64;
        Ok(())
    }

    fn restart(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        (self.hasher, self.len) = (self.fresh.clone(), 0);
        Ok(())
    }
}

impl Part {
    /// Bytes that are there.
    pub(super) fn len(&self) -> u64 {
        self.body.as_ref().map_or(0, |body| body.len) + self.buffer.len() as u64
    }

    /// Were there bytes before this pull?
    pub(super) fn is_resumed(&self) -> bool {
        self.resumed
    }

    /// Adds bytes.
    pub(super) async fn push(&mut self, bytes: Bytes) -> Result<(), HubError> {
        self.buffer.extend_from_slice(&bytes);
        if self.buffer.len() >= BLOCK { self.flush().await } else { Ok(()) }
    }

    /// Writes what was added.
    pub(super) async fn flush(&mut self) -> Result<(), HubError> {
        let bytes = self.buffer.split().freeze();
        self.on_body(move |body| body.write(&bytes)).await
    }

    /// Forgets all bytes.
    pub(super) async fn restart(&mut self) -> Result<(), HubError> {
        self.buffer.clear();
        self.resumed = false;
        self.on_body(Body::restart).await
    }

    /// Gives the file its name, if its bytes are the right ones; else returns the hash that they have.
    pub(super) async fn finish(&mut self, path: &Path) -> Result<Result<(), String>, HubError> {
        let found = self.body.as_ref().map(|body| body.hasher.clone().finish()).unwrap_or_default();
        if found != self.wanted.digest.hex() {
            return Ok(Err(found));
        }
        tokio::fs::rename(&self.path, path).await.map_err(|error| self.failed(error))?;
        Ok(Ok(()))
    }

    async fn on_body(
        &mut self,
        work: impl FnOnce(&mut Body) -> io::Result<()> + Send + 'static,
    ) -> Result<(), HubError> {
        let Some(mut body) = self.body.take() else {
            return Err(self.failed(io::Error::other("an earlier write failed")));
        };
        let done = blocking(move || {
            work(&mut body)?;
            Ok(body)
        });
        self.body = Some(done.await.map_err(|error| self.failed(error))?);
        Ok(())
    }

    fn failed(&self, error: io::Error) -> HubError {
        if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
            let folder = self.path.parent().unwrap_or(&self.path).to_owned();
            return HubError::DiskFull { folder, file: self.wanted.name.clone(), size: self.wanted.size };
        }
        HubError::local("write", &self.path, error)
    }
}

/// Runs `work` on a thread that may block.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(io::Error::other(error)))
}
