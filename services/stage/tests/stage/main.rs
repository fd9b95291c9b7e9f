//! The stage as its users see it: on a folder, in memory, and on a store that fails.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod faults;
mod files;
mod folders;
mod logs;

use firn_stage::Stage;
use tempfile::TempDir;

/// A stage in a folder that goes when the guard is dropped.
fn on_disk() -> (TempDir, Stage) {
    let folder = tempfile::tempdir().unwrap();
    let stage = Stage::open(folder.path().to_str().unwrap()).unwrap();
    (folder, stage)
}
