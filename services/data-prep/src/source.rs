//! A file of rows on its way in: hashed, and held to its limits.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use sha2::{Digest, Sha256};

use crate::{
    config::Limits,
    rows::{RowsError, file_name},
};

/// Bytes that are read at once where nothing but the hash is wanted.
const BLOCK: usize = 1 << 20;

/// Skips a UTF-8 byte order mark, which spreadsheets write.
pub(crate) fn without_bom(source: &mut Source) -> Result<impl Read + '_, RowsError> {
    let mut start = Vec::with_capacity(3);
    source.by_ref().take(3).read_to_end(&mut start).map_err(|error| source.failed(error))?;
    if start == b"\xEF\xBB\xBF" {
        start.clear();
    }
    Ok(io::Cursor::new(start).chain(source))
}

/// A file that is hashed while it is read, and read up to a limit.
pub(crate) struct Source {
    name: String,
    file: File,
    /// None where the file's hash is not asked for.
    digest: Option<Sha256>,
    read: u64,
    limit: u64,
    /// Bytes that may come before the next row begins.
    pub(crate) row_left: Arc<AtomicU64>,
}

/// A row does not end.
#[derive(Debug, thiserror::Error)]
#[error("the row is too long")]
pub(crate) struct LongRow;

/// More bytes than the limit came.
#[derive(Debug, thiserror::Error)]
#[error("more than {0} bytes")]
struct PastLimit(u64);

impl Source {
    pub(crate) fn open(path: &Path, limits: &Limits, hashed: bool) -> Result<Self, RowsError> {
        let name = file_name(path);
        // The name is short in messages about rows, but whole where the file itself is the trouble.
        let unreadable = |source| RowsError::Unreadable { file: path.display().to_string(), source };
        let file = File::open(path).map_err(unreadable)?;
        if file.metadata().map_err(unreadable)?.is_dir() {
            return Err(unreadable(io::Error::new(io::ErrorKind::IsADirectory, "it is a folder; name a file")));
        }
        Ok(Self {
            name,
            file,
            digest: hashed.then(Sha256::new),
            read: 0,
            limit: limits.max_source_bytes,
            row_left: Arc::new(AtomicU64::new(u64::MAX)),
        })
    }

    pub(crate) fn failed(&self, error: io::Error) -> RowsError {
        failed(&self.name, error)
    }

    /// Reads what is left, for the hash and the limit alone.
    pub(crate) fn drain(&mut self) -> Result<(), RowsError> {
        let mut buffer = vec![0; BLOCK];
        loop {
            match self.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.failed(error)),
            }
        }
    }

    /// sha256 of what was read, hex; empty if it was not asked for.
    pub(crate) fn sha256(self) -> String {
        self.digest.map(|digest| crate::split::hex(&digest.finalize())).unwrap_or_default()
    }
}

impl Read for Source {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.row_left.load(Ordering::Relaxed);
        if left == 0 {
            return Err(io::Error::other(LongRow));
        }
        let read = self.file.read(buffer)?;
        self.row_left.store(left.saturating_sub(read as u64), Ordering::Relaxed);
        if let Some(digest) = &mut self.digest {
            digest.update(&buffer[..read]);
        }
        self.read += read as u64;
        if self.read > self.limit { Err(io::Error::other(PastLimit(self.limit))) } else { Ok(read) }
    }
}

pub(crate) fn failed(file: &str, source: io::Error) -> RowsError {
    match source.get_ref().and_then(|inner| inner.downcast_ref::<PastLimit>()) {
        Some(&PastLimit(limit)) => RowsError::TooLarge { file: file.to_owned(), limit },
        None => RowsError::Unreadable { file: file.to_owned(), source },
    }
}
