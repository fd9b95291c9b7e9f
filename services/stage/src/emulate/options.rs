//! How a mount behaves.

use std::{num::NonZeroU64, path::PathBuf, time::Duration};

/// How a mount behaves. The default has the rules of a stage mount, no latency and no faults.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Nothing can be written (`EROFS`), as where the service's owner role may only read the stage.
    pub read_only: bool,
    /// Files can be mapped for reading. A stage mount does not promise that, so the default refuses it.
    pub map_reads: bool,
    /// What each request waits before it is served. Sixteen wait at once. A large read or write is about a request a MiB.
    pub latency: Duration,
    /// What goes wrong.
    pub faults: Faults,
    /// Where files are until they are closed: a folder on the file system of the mounted one, outside of it. The default
    /// is a hidden one beside it, which is gone after the mount.
    pub spool: Option<PathBuf>,
}

/// What goes wrong, and how often: `Some(3)` is every third request. The same requests in the same order meet the same
/// faults.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// Shifts which request of the `n` it is.
    pub seed: u64,
    /// A write fails with `EIO`. So do all later ones to that file and its close, and the file never becomes visible.
    pub fail_writes: Option<NonZeroU64>,
    /// A close of a written file fails with `EIO`, and the file does not become visible.
    pub fail_closes: Option<NonZeroU64>,
    /// A close of a written file fails with `EIO`, and its first half becomes visible.
    pub tear_closes: Option<NonZeroU64>,
    /// A read fails with `EIO`.
    pub fail_reads: Option<NonZeroU64>,
    /// A read returns half of what was asked for.
    pub short_reads: Option<NonZeroU64>,
    /// A read waits for [`Self::late_by`].
    pub late_reads: Option<NonZeroU64>,
    /// How late a late read is.
    pub late_by: Duration,
}
