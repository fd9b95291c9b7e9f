//! An unfinished file in the spool, and the writes to it that are under way.

use std::{
    fs::{File, Metadata},
    io,
    os::unix::fs::FileExt as _,
    sync::{Arc, Condvar, Mutex, OnceLock, PoisonError},
};

use fuser::Errno;

/// A file that several threads write at once, each its own range. So the kernel can hand over the next bytes while the
/// last ones go to the disk, without a copy.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) file: File,
    under_way: Mutex<usize>,
    idle: Condvar,
    failed: OnceLock<Errno>,
}

impl Part {
    pub(super) fn new(file: File) -> Arc<Self> {
        Arc::new(Self { file, under_way: Mutex::default(), idle: Condvar::new(), failed: OnceLock::new() })
    }

    /// Counts a write, which counts until it is dropped.
    pub(super) fn begin(self: &Arc<Self>, offset: u64) -> Write {
        *self.under_way.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        Write { part: Arc::clone(self), offset }
    }

    /// Did one of the writes that ended fail?
    pub(super) fn check(&self) -> Result<(), Errno> {
        self.failed.get().map_or(Ok(()), |errno| Err(*errno))
    }

    /// Waits for the writes that are under way. Nobody may begin one meanwhile.
    pub(super) fn settle(&self) -> Result<(), Errno> {
        let under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.idle.wait_while(under_way, |under_way| *under_way > 0).unwrap_or_else(PoisonError::into_inner));
        self.check()
    }

    pub(super) fn metadata(&self) -> io::Result<Metadata> {
        self.file.metadata()
    }
}

/// A write that was accepted and must be made.
#[derive(Debug)]
#[must_use = "its writer takes it for written"]
pub(super) struct Write {
    part: Arc<Part>,
    offset: u64,
}

impl Write {
    /// Writes. An error is told by the next write, sync or close.
    pub(super) fn run(self, bytes: &[u8]) {
        if let Err(error) = self.part.file.write_all_at(bytes, self.offset) {
            // The first one tells.
            let _ = self.part.failed.set(error.into());
        }
    }
}

impl Drop for Write {
    fn drop(&mut self) {
        *self.part.under_way.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        self.part.idle.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::OpenOptions, sync::mpsc, thread, time::Duration};

    use super::*;

    #[test]
    fn a_close_waits_for_the_writes_under_way() {
        let file = tempfile::tempfile().unwrap();
        let part = Part::new(file);
        let (late, early) = (part.begin(3), part.begin(0));
        early.run(b"one");
        let (settled, wait) = mpsc::channel();
        let waiting = {
            let part = Arc::clone(&part);
            thread::spawn(move || settled.send(part.settle().map_err(Errno::code)).unwrap())
        };
        assert!(wait.recv_timeout(Duration::from_millis(50)).is_err(), "one is under way");
        late.run(b"two");
        assert_eq!(wait.recv_timeout(Duration::from_secs(10)), Ok(Ok(())));
        waiting.join().unwrap();
        assert_eq!(part.metadata().unwrap().len(), 6);
    }

    #[test]
    fn a_write_that_failed_is_told_later() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let part = Part::new(OpenOptions::new().read(true).open(file.path()).unwrap());
        part.begin(0).run(b"x");
        assert_eq!(part.check().map_err(Errno::code), Err(Errno::EBADF.code()));
        assert_eq!(part.settle().map_err(Errno::code), Err(Errno::EBADF.code()));
    }
}
