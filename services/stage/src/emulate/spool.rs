//! Where files are until they are closed.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use super::EmulateError;

/// How the files in it are named; anything else is not touched.
const SUFFIX: &str = ".part";

/// A folder for unfinished files. It is one mount's alone, and what a killed one left there goes.
#[derive(Debug)]
pub(super) struct Spool {
    path: PathBuf,
    next: AtomicU64,
    /// Held as long as the mount is; a killed process gives it up too.
    _lock: File,
}

impl Spool {
    /// Makes the folder, which is `given` or a hidden one beside `dir`, and takes it.
    pub(super) fn open(dir: &Path, given: Option<&Path>) -> Result<Self, EmulateError> {
        let path = match given {
            Some(given) => given.to_owned(),
            None => beside(dir)?,
        };
        let refuse = |reason: String| EmulateError::Spool { path: path.clone(), reason };
        let failed = |error: io::Error| refuse(format!("{error}; name another folder for them"));
        fs::create_dir_all(&path).map_err(failed)?;
        let path = path.canonicalize().map_err(failed)?;
        if path.starts_with(dir) {
            return Err(refuse(format!("it must not be in {}, where it would be visible", dir.display())));
        }
        let lock = File::open(&path).map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(refuse("another emulator uses it: one at a time mounts a folder".to_owned()));
            }
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        if lock.metadata().map_err(failed)?.dev() != fs::metadata(dir).map_err(failed)?.dev() {
            return Err(refuse(format!("it must be on the file system of {}", dir.display())));
        }
        let spool = Self { path, next: AtomicU64::new(0), _lock: lock };
        spool.clear().map_err(failed)?;
        Ok(spool)
    }

    /// Makes a new file, for writing and, if it must be copied, for reading.
    pub(super) fn create(&self) -> io::Result<(PathBuf, File)> {
        let path = self.path.join(format!("{}{SUFFIX}", self.next.fetch_add(1, Ordering::Relaxed)));
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path)?;
        Ok((path, file))
    }

    fn clear(&self) -> io::Result<()> {
        for entry in fs::read_dir(&self.path)? {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(SUFFIX));
            if name.is_some_and(|name| name.parse::<u64>().is_ok()) {
                fs::remove_file(&path)?;
            }
        }
        Ok(())
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        // Best effort: the next mount clears it. A folder with other files in it stays.
        let _ = self.clear();
        let _ = fs::remove_dir(&self.path);
    }
}

fn beside(dir: &Path) -> Result<PathBuf, EmulateError> {
    let (Some(parent), Some(name)) = (dir.parent(), dir.file_name()) else {
        let reason = "nothing is beside it; name a spool folder".to_owned();
        return Err(EmulateError::Folder { path: dir.to_owned(), reason });
    };
    let mut hidden = std::ffi::OsString::from(".");
    hidden.push(name);
    hidden.push(".spool");
    Ok(parent.join(hidden))
}
