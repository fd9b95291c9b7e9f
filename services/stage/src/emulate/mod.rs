//! A folder, mounted with the rules of an SPCS stage mount (v2), for a laptop and for tests.
//!
//! A plain folder forgives what a stage does not: code that renames, appends or locks works on it and fails in
//! production. Here it fails at once. Snowflake documents what a mount cannot do, rarely with which error: where it says
//! nothing, this is as strict as a mount may be.
//!
//! | operation | here | |
//! |---|---|---|
//! | create, write to the end, close | works; a file is visible to others, whole, once its writer closed it | documented |
//! | replace a file from its first byte (`O_TRUNC`) | works; the old one is visible until the close | not documented |
//! | `O_APPEND` | `EOPNOTSUPP` | documented as an error |
//! | a write that is not at the end | `EOPNOTSUPP` | documented as an error |
//! | `O_RDWR`; `O_WRONLY` on a file without `O_TRUNC` | `EOPNOTSUPP` | modifies a file: documented as unfit |
//! | truncate to any size | `EOPNOTSUPP` | not documented |
//! | rename | `EOPNOTSUPP` | documented as not atomic; a report has none |
//! | `flock`, `fcntl` locks | `EOPNOTSUPP` | documented as unfit |
//! | hard link, symbolic link, device, pipe | `EPERM` | hard links documented as missing |
//! | chmod, chown, times, xattr, fallocate | `EOPNOTSUPP` | not documented |
//! | mmap, shared, even for reading | `ENODEV` (see [`Options::map_reads`]) | not documented |
//! | mmap, shared, for writing | impossible: it takes `O_RDWR` | a random write |
//! | an error of the disk | told by the next write, fsync or close | documented: uploads are asynchronous |
//! | open a path that another writes | reading: what is visible, or `ENOENT`; writing: `EBUSY` | documented as unfit |
//! | read on in a file that was replaced or removed | `ESTALE` | "reads always return the latest data" |
//! | fsync | reports an earlier error; makes nothing visible | documented: closed or flushed |
//! | a folder without files | gone after the mount | not documented |
//!
//! **A writer that dies.** The kernel closes the descriptors of a process that ends, however it ends, so that a mount
//! cannot tell a crash from a close: what was written until then becomes visible, torn. Where the mount itself dies,
//! nothing does. A process that merely inherited a descriptor and ends makes nothing visible.
//!
//! **What it cannot show.** `inotify` sees what happens through the same mount. `fstat` of a file that is being replaced
//! tells the size of the visible one. Between two mounts of a stage there is a delay, which one mount does not have.
//!
//! It runs on Linux, as root or with `fusermount3` (package `fuse3`), and needs `/dev/fuse`.

mod device;
mod emulator;
mod faults;
mod fs;
mod mountpoint;
mod nodes;
mod options;
mod part;
mod spool;
mod writer;

use std::{
    io,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
};

use fuser::{BackgroundSession, Config, MountOption, Session};

pub use self::options::{Faults, Options};
use self::{device::Device, emulator::Emulator, spool::Spool};

/// How many requests are served at once: few threads keep the bytes that they copy in the processor's caches.
const THREADS: usize = 4;
/// How many where most of them sleep.
const SLEEPERS: usize = 16;

/// A folder could not be mounted, or not be released.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EmulateError {
    /// The folder cannot be used.
    #[error("cannot mount {}: {reason}", path.display())]
    Folder {
        /// As given.
        path: PathBuf,
        /// Why, and the way out.
        reason: String,
    },
    /// The mount point cannot be used.
    #[error("cannot mount at {}: {reason}", path.display())]
    Mountpoint {
        /// As given.
        path: PathBuf,
        /// Why, and the way out.
        reason: String,
    },
    /// The folder for unfinished files cannot be used.
    #[error("cannot keep unfinished files in {}: {reason}", path.display())]
    Spool {
        /// As given, or the one beside the mounted folder.
        path: PathBuf,
        /// Why, and the way out.
        reason: String,
    },
    /// Two options contradict each other.
    #[error("{0}")]
    Options(String),
    /// The system does not let this process mount.
    #[error(
        "cannot mount at {}: {source}; it takes Linux with /dev/fuse, and root or fusermount3 (package fuse3)",
        path.display()
    )]
    Fuse {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Somebody still has files open. The mount is out of sight and ends with the last of them.
    #[error("{} was in use: it is detached, and ends when the last file on it is closed", path.display())]
    Busy {
        /// Where.
        path: PathBuf,
    },
}

/// A mounted folder. It is unmounted when this is dropped; a program that is stopped by a signal must see to that.
#[derive(Debug)]
#[must_use = "dropping it unmounts the folder"]
pub struct Mounted {
    mountpoint: PathBuf,
    session: Option<BackgroundSession>,
}

/// Mounts `dir` at `mountpoint`. Both are made if they are missing. The files of `dir` are there, and what is written
/// through the mount is in `dir` once it is closed.
///
/// # Errors
/// [`EmulateError::Fuse`] where the system does not let this process mount; the others name what cannot be used.
pub fn mount(dir: &Path, mountpoint: &Path, options: &Options) -> Result<Mounted, EmulateError> {
    if options.map_reads && options.faults.short_reads.is_some() {
        let reason = "short_reads and map_reads exclude each other: a mapped file has no short read";
        return Err(EmulateError::Options(reason.to_owned()));
    }
    let folder = |reason: String| EmulateError::Folder { path: dir.to_owned(), reason };
    std::fs::create_dir_all(dir).map_err(|error| folder(error.to_string()))?;
    let dir = dir.canonicalize().map_err(|error| folder(error.to_string()))?;
    let mountpoint = mountpoint::prepare(mountpoint, &dir)?;
    let spool = Spool::open(&dir, options.spool.as_deref())?;
    let mut config = Config::default();
    let access = if options.read_only { MountOption::RO } else { MountOption::RW };
    config.mount_options = vec![MountOption::FSName("firn-stage".to_owned()), access];
    let sleeps = !options.latency.is_zero() || options.faults.late_reads.is_some();
    config.n_threads = Some(if sleeps { SLEEPERS } else { THREADS });
    // Not `clone_fd`: what is answered past fuser must go where it was asked, and all threads ask at one device.
    let device = Device::default();
    let emulator = Emulator::new(&dir, spool, device.clone(), options);
    let session = Session::new(emulator, &mountpoint, &config)
        .and_then(|session| device.set(session.as_fd()).and_then(|()| session.spawn()))
        .map_err(|source| EmulateError::Fuse { path: mountpoint.clone(), source })?;
    tracing::debug!(dir = %dir.display(), mountpoint = %mountpoint.display(), "mounted");
    Ok(Mounted { mountpoint, session: Some(session) })
}

impl Mounted {
    /// Where the folder is mounted: absolute, without links.
    #[must_use]
    pub fn mountpoint(&self) -> &Path {
        &self.mountpoint
    }

    /// False once somebody else has unmounted it.
    #[must_use]
    pub fn is_mounted(&self) -> bool {
        self.session.as_ref().is_some_and(|session| !session.guard.is_finished())
    }

    /// Unmounts, as a drop does, and tells whether all files were closed. Waits a second for them.
    ///
    /// # Errors
    /// [`EmulateError::Busy`] if they were not; [`EmulateError::Fuse`] if the system refuses.
    pub fn unmount(mut self) -> Result<(), EmulateError> {
        self.release()
    }

    fn release(&mut self) -> Result<(), EmulateError> {
        let Some(session) = self.session.take() else { return Ok(()) };
        let failed = |source| EmulateError::Fuse { path: self.mountpoint.clone(), source };
        if mountpoint::release(&self.mountpoint, session).map_err(failed)? {
            return Ok(());
        }
        Err(EmulateError::Busy { path: self.mountpoint.clone() })
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Err(error) = self.release() {
            tracing::warn!("{error}");
        }
    }
}
