//! A file that is being written.

use std::{
    fs::{self, Metadata},
    io::{self, Seek as _, SeekFrom},
    path::{Path, PathBuf},
    sync::Arc,
};

use fuser::{Errno, LockOwner};

use super::{
    part::{Part, Write},
    spool::Spool,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Nobody else sees its bytes.
    Open,
    /// Everybody sees all its bytes.
    Whole,
    /// A write or the close failed, or another writer took the path.
    Broken,
}

/// A file that is being written: in the spool until its writer closes it, then at its path.
#[derive(Debug)]
pub(super) struct Writer {
    /// Relative to the mount.
    path: PathBuf,
    target: PathBuf,
    /// In the spool.
    source: PathBuf,
    part: Arc<Part>,
    len: u64,
    state: State,
    /// Whose descriptor wrote last: a process that inherited one and exits does not close the file for its writer.
    owner: Option<LockOwner>,
}

impl Writer {
    pub(super) fn new(spool: &Spool, root: &Path, path: &Path) -> io::Result<Self> {
        let (source, file) = spool.create()?;
        let (path, target, part) = (path.to_owned(), root.join(path), Part::new(file));
        Ok(Self { path, target, source, part, len: 0, state: State::Open, owner: None })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Are there bytes that nobody else sees yet?
    pub(super) fn is_open(&self) -> bool {
        self.state == State::Open
    }

    pub(super) fn metadata(&self) -> Result<Metadata, Errno> {
        self.part.settle()?;
        Ok(self.part.metadata()?)
    }

    /// Nothing of it becomes visible any more.
    pub(super) fn fail(&mut self) -> Errno {
        self.state = State::Broken;
        Errno::EIO
    }

    /// Accepts a write. Only the end is writable: `EOPNOTSUPP` elsewhere, which leaves the file as it is.
    pub(super) fn append(
        &mut self,
        spool: &Spool,
        offset: u64,
        len: u32,
        owner: Option<LockOwner>,
    ) -> Result<Write, Errno> {
        if self.state == State::Broken {
            return Err(Errno::EIO);
        }
        if offset != self.len {
            return Err(Errno::EOPNOTSUPP);
        }
        let writable = self.part.check().and_then(|()| Ok(self.reopen(spool)?));
        self.failing(writable)?;
        self.len += u64::from(len);
        self.owner = owner.or(self.owner);
        Ok(self.part.begin(offset))
    }

    /// Passes a result on. After an error nothing of the file becomes visible any more.
    fn failing(&mut self, result: Result<(), Errno>) -> Result<(), Errno> {
        if result.is_err() {
            self.fail();
        }
        result
    }

    /// A write after a close goes on in a copy: what is visible does not change before the next close.
    fn reopen(&mut self, spool: &Spool) -> io::Result<()> {
        if self.state == State::Whole {
            let (source, mut copy) = spool.create()?;
            let mut file = &self.part.file;
            file.seek(SeekFrom::Start(0))?;
            io::copy(&mut file, &mut copy)?;
            (self.source, self.part, self.state) = (source, Part::new(copy), State::Open);
        }
        Ok(())
    }

    pub(super) fn sync(&mut self) -> Result<(), Errno> {
        if self.state == State::Broken {
            return Err(Errno::EIO);
        }
        let synced = self.part.settle().and_then(|()| Ok(self.part.file.sync_all()?));
        self.failing(synced)
    }

    /// Would this close make bytes visible, or fail to?
    pub(super) fn closes(&self, owner: LockOwner) -> bool {
        self.state != State::Whole && self.owner.is_none_or(|writer| writer == owner)
    }

    /// Makes all bytes visible at once.
    pub(super) fn close(&mut self) -> Result<(), Errno> {
        if self.state == State::Broken {
            return Err(Errno::EIO);
        }
        let published = self.part.settle().and_then(|()| Ok(self.publish()?));
        self.failing(published)?;
        self.state = State::Whole;
        Ok(())
    }

    fn publish(&self) -> io::Result<()> {
        match fs::rename(&self.source, &self.target) {
            // A folder without files need not last, so it is not missed.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.target.parent().map_or(Ok(()), fs::create_dir_all)?;
                fs::rename(&self.source, &self.target)
            }
            published => published,
        }
    }

    /// Makes the first half visible, and fails.
    pub(super) fn tear(&mut self) -> Errno {
        let half = self.part.settle().and_then(|()| Ok(self.part.file.set_len(self.len / 2)?));
        let torn = half.and_then(|()| self.close());
        self.fail();
        torn.err().unwrap_or(Errno::EIO)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if self.state != State::Whole {
            // Best effort: the spool is cleared with the mount. A torn file is no longer there.
            let _ = fs::remove_file(&self.source);
        }
    }
}
