//! A file that is being read.

use std::{
    fs::{File, Metadata},
    io,
    ops::Range,
    os::unix::fs::{FileExt as _, MetadataExt as _},
    path::Path,
    sync::{Mutex, PoisonError},
};

use fuser::Errno;

/// A read of at least this many bytes that goes on where the last one ended fetches ahead.
const LARGE: usize = 1 << 20;
/// Ahead is up to the next multiple of this many bytes, so that who reads as much at once finds it while it works.
const AHEAD: u64 = 8 << 20;

/// A file that is being read. It holds the last bytes that it fetched, at most [`AHEAD`].
#[derive(Debug)]
pub(super) struct Reader {
    file: File,
    fetched: Mutex<Fetched>,
}

#[derive(Debug, Default)]
struct Fetched {
    buffer: Vec<u8>,
    /// What the buffer begins with.
    range: Range<u64>,
    /// When the file had these bytes: its size and its time of change.
    version: (u64, i64, i64),
    /// Where the last read ended.
    next: u64,
}

impl Reader {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { file: File::open(path)?, fetched: Mutex::default() })
    }

    /// Hands over `len` bytes from `offset`, fewer at the end of the file. `ESTALE` if it was replaced or removed: a
    /// read fetches what is at the path now, and this file is not. Fetches ahead after that, while they are worked on.
    pub(super) fn read(&self, offset: u64, len: usize, reply: impl FnOnce(Result<&[u8], Errno>)) {
        let mut fetched = self.fetched.lock().unwrap_or_else(PoisonError::into_inner);
        let meta = match self.fetch(&mut fetched, offset, len) {
            Ok(meta) => meta,
            Err(errno) => return reply(Err(errno)),
        };
        let bytes = fetched.at(offset, len);
        let end = offset + bytes.len() as u64;
        reply(Ok(bytes));
        let goes_on = len >= LARGE && offset == fetched.next && end == fetched.range.end && end < meta.len();
        fetched.next = end;
        if goes_on {
            // An error is told when these bytes are read.
            let _ = fetched.fill(&self.file, end..(end + 1).next_multiple_of(AHEAD));
        }
    }

    /// Sees to it that the buffer has the bytes, as they are now.
    fn fetch(&self, fetched: &mut Fetched, offset: u64, len: usize) -> Result<Metadata, Errno> {
        let meta = self.file.metadata()?;
        if meta.nlink() == 0 {
            return Err(Errno::ESTALE);
        }
        let version = (meta.len(), meta.ctime(), meta.ctime_nsec());
        let wanted = offset..offset.saturating_add(len as u64);
        let there = fetched.range.start <= offset && wanted.end.min(meta.len()) <= fetched.range.end;
        if !there || fetched.version != version {
            fetched.fill(&self.file, wanted)?;
            fetched.version = version;
        }
        Ok(meta)
    }
}

impl Fetched {
    /// The bytes from `offset`, at most `len`.
    fn at(&self, offset: u64, len: usize) -> &[u8] {
        let from = usize::try_from(offset.saturating_sub(self.range.start)).unwrap_or(usize::MAX);
        let filled = usize::try_from(self.range.end - self.range.start).unwrap_or(usize::MAX);
        let rest = self.buffer.get(..filled).and_then(|filled| filled.get(from..)).unwrap_or_default();
        rest.get(..len).unwrap_or(rest)
    }

    /// Fetches a range, less at the end of the file.
    fn fill(&mut self, file: &File, range: Range<u64>) -> io::Result<()> {
        let wanted = usize::try_from(range.end - range.start).map_err(io::Error::other)?;
        self.range = range.start..range.start;
        self.buffer.resize(wanted.max(self.buffer.len()), 0);
        let mut len = 0;
        while let Some(rest) = self.buffer.get_mut(len..wanted).filter(|rest| !rest.is_empty()) {
            match file.read_at(rest, range.start + len as u64) {
                Ok(0) => break,
                Ok(read) => len += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.range.end = range.start + len as u64;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn read(reader: &Reader, offset: u64, len: usize) -> Result<Vec<u8>, i32> {
        let mut read = None;
        reader.read(offset, len, |bytes| read = Some(bytes.map(<[u8]>::to_vec).map_err(Errno::code)));
        read.unwrap()
    }

    #[test]
    fn bytes_are_right_wherever_they_are_read_and_whatever_was_fetched_before() {
        let bytes: Vec<u8> = (0..2 * AHEAD + 12_345).map(|n| u8::try_from(n % 251).unwrap()).collect();
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), &bytes).unwrap();
        let reader = Reader::open(file.path()).unwrap();
        let mut whole = vec![];
        while let Some(chunk) = Some(read(&reader, whole.len() as u64, LARGE).unwrap()).filter(|c| !c.is_empty()) {
            whole.extend_from_slice(&chunk);
        }
        assert!(whole == bytes);
        let len = bytes.len();
        for (from, size) in [(0, 5), (3, LARGE), (LARGE + 3, LARGE), (7, 1), (len - 4, 9), (len, 9), (len + 1, 9)] {
            let expected = bytes.get(from..(from + size).min(len)).unwrap_or_default();
            assert!(read(&reader, from as u64, size).unwrap() == expected, "{from} {size}");
        }
    }

    #[test]
    fn what_was_fetched_ahead_is_not_taken_from_a_file_that_changed() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), vec![1; 3 * LARGE]).unwrap();
        let reader = Reader::open(file.path()).unwrap();
        assert_eq!(read(&reader, 0, LARGE).unwrap().len(), LARGE);
        // Times of change are as fine as the system's clock ticks.
        std::thread::sleep(std::time::Duration::from_millis(20));
        fs::write(file.path(), vec![2; 3 * LARGE]).unwrap();
        assert!(read(&reader, LARGE as u64, LARGE).unwrap() == vec![2; LARGE]);
        fs::remove_file(file.path()).unwrap();
        assert_eq!(read(&reader, 0, LARGE), Err(Errno::ESTALE.code()));
    }
}
