//! The emulator: what it refuses, what it shows and when, how it fails, and Firn's own tests on it.
//!
//! Where FUSE cannot be used a test says so and does nothing. With `FIRN_REQUIRE_FUSE` set it fails instead.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod faults;
mod mounts;
mod refusals;
mod stores;
mod visibility;

#[path = "../stage/files.rs"]
mod files;
#[path = "../stage/folders.rs"]
mod folders;
#[path = "../stage/logs.rs"]
mod logs;

use std::{
    fmt,
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use firn_stage::{
    Stage,
    emulate::{self, EmulateError, Mounted, Options},
};
use rustix::io::Errno;
use tempfile::TempDir;

/// A mounted folder, which goes when this is dropped: first the mount, then the folders.
struct Emulated {
    mounted: Mounted,
    folder: TempDir,
}

impl Emulated {
    /// The mount.
    fn path(&self) -> &Path {
        self.mounted.mountpoint()
    }

    fn at(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    /// The same path in the folder that is mounted.
    fn behind(&self, name: &str) -> PathBuf {
        self.folder.path().join("stage").join(name)
    }

    fn stage(&self) -> Stage {
        Stage::open(self.path().to_str().unwrap()).unwrap()
    }
}

/// Mounts an empty folder.
fn on_emulator(options: &Options) -> Option<Emulated> {
    let folder = tempfile::tempdir().unwrap();
    match emulate::mount(&folder.path().join("stage"), &folder.path().join("mount"), options) {
        Ok(mounted) => Some(Emulated { mounted, folder }),
        Err(error @ EmulateError::Fuse { .. }) => skip(&error),
        Err(error) => panic!("{error}"),
    }
}

fn skip<T>(reason: &dyn fmt::Display) -> Option<T> {
    assert!(std::env::var_os("FIRN_REQUIRE_FUSE").is_none(), "FIRN_REQUIRE_FUSE is set, and {reason}");
    // Not captured, as `eprintln!` would be: a test that did not run must not look like one that did.
    let mut terminal = io::stderr();
    writeln!(terminal, "skipped: {reason}").unwrap();
    None
}

fn plain() -> Option<Emulated> {
    on_emulator(&Options::default())
}

/// What Firn's own tests run on.
fn on_disk() -> Option<(Emulated, Stage)> {
    let emulated = plain()?;
    let stage = emulated.stage();
    Some((emulated, stage))
}

/// With which error it failed.
fn errno<T: fmt::Debug>(result: io::Result<T>) -> Errno {
    Errno::from_io_error(&result.unwrap_err()).unwrap()
}

/// Makes a file for writing. `File::create_new` would open it for reading as well.
fn create(path: &Path) -> File {
    OpenOptions::new().write(true).create_new(true).open(path).unwrap()
}

fn names(folder: &Path) -> Vec<String> {
    fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}
