//! A file that is being written.

use std::{
    fs::{self, File, Metadata},
    io::{self, Seek as _, SeekFrom},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use fuser::{Errno, LockOwner};

use super::spool::Spool;

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
    part: PathBuf,
    file: File,
    len: u64,
    state: State,
    /// Whose descriptor wrote last: a process that inherited one and exits does not close the file for its writer.
    owner: Option<LockOwner>,
}

impl Writer {
    pub(super) fn new(spool: &Spool, root: &Path, path: &Path) -> io::Result<Self> {
        let (part, file) = spool.create()?;
        let target = root.join(path);
        Ok(Self { path: path.to_owned(), target, part, file, len: 0, state: State::Open, owner: None })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Are there bytes that nobody else sees yet?
    pub(super) fn is_open(&self) -> bool {
        self.state == State::Open
    }

    pub(super) fn metadata(&self) -> io::Result<Metadata> {
        self.file.metadata()
    }

    /// Nothing of it becomes visible any more.
    pub(super) fn fail(&mut self) -> Errno {
        self.state = State::Broken;
        Errno::EIO
    }

    /// Appends. Only the end is writable: `EOPNOTSUPP` elsewhere, which leaves the file as it is.
    pub(super) fn append(
        &mut self,
        spool: &Spool,
        offset: u64,
        bytes: &[u8],
        owner: Option<LockOwner>,
    ) -> Result<(), Errno> {
        if self.state == State::Broken {
            return Err(Errno::EIO);
        }
        if offset != self.len {
            return Err(Errno::EOPNOTSUPP);
        }
        let written = self.reopen(spool).and_then(|()| self.file.write_all_at(bytes, offset));
        if let Err(error) = written {
            self.fail();
            return Err(error.into());
        }
        self.len += bytes.len() as u64;
        self.owner = owner.or(self.owner);
        Ok(())
    }

    /// A write after a close goes on in a copy: what is visible does not change before the next close.
    fn reopen(&mut self, spool: &Spool) -> io::Result<()> {
        if self.state == State::Whole {
            let (part, mut file) = spool.create()?;
            self.file.seek(SeekFrom::Start(0))?;
            io::copy(&mut self.file, &mut file)?;
            (self.part, self.file, self.state) = (part, file, State::Open);
        }
        Ok(())
    }

    pub(super) fn sync(&self) -> Result<(), Errno> {
        match self.state {
            State::Broken => Err(Errno::EIO),
            State::Open | State::Whole => Ok(self.file.sync_all()?),
        }
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
        let published = match fs::rename(&self.part, &self.target) {
            // A folder without files need not last, so it is not missed.
            Err(error) if error.kind() == io::ErrorKind::NotFound => self
                .target
                .parent()
                .map_or(Ok(()), fs::create_dir_all)
                .and_then(|()| fs::rename(&self.part, &self.target)),
            published => published,
        };
        if let Err(error) = published {
            self.fail();
            return Err(error.into());
        }
        self.state = State::Whole;
        Ok(())
    }

    /// Makes the first half visible, and fails.
    pub(super) fn tear(&mut self) -> Errno {
        let torn = self.file.set_len(self.len / 2).map_err(Errno::from).and_then(|()| self.close());
        self.fail();
        torn.err().unwrap_or(Errno::EIO)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if self.state != State::Whole {
            // Best effort: the spool is cleared with the mount. A torn file is no longer there.
            let _ = fs::remove_file(&self.part);
        }
    }
}
