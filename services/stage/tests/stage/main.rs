//! The stage as its users see it: on a folder, in memory, and on a store that fails. `tests/emulator` runs the same on
//! what behaves as a stage mount does.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod faults;
mod files;
mod folders;
mod logs;

use firn_stage::Stage;
use tempfile::TempDir;

/// A stage in a folder that goes when the guard is dropped. There always is one here.
#[expect(clippy::unnecessary_wraps, reason = "the emulator's tests have none where there is no FUSE")]
fn on_disk() -> Option<(TempDir, Stage)> {
    let folder = tempfile::tempdir().unwrap();
    let stage = Stage::open(folder.path().to_str().unwrap()).unwrap();
    Some((folder, stage))
}
