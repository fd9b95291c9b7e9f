//! Sorting what may be more than memory should hold.

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    fs::File,
    io::{self, BufReader, BufWriter, Read as _, Seek as _, Write as _},
};

use crate::split::Entry;

/// Entries that are held in memory: 64 MiB.
const MOST: usize = 4 << 20;
/// Bytes of an entry in a file.
const BYTES: usize = 16;
/// Bytes of a file that are read at once.
const BLOCK: usize = 256 << 10;

/// Entries in memory, and beyond a number in files of the local disk that nobody else sees, each of them sorted.
#[derive(Debug)]
pub(crate) struct Runs {
    entries: Vec<Entry>,
    most: usize,
    files: Vec<File>,
}

impl Default for Runs {
    fn default() -> Self {
        Self { entries: Vec::new(), most: MOST, files: Vec::new() }
    }
}

impl Runs {
    pub(crate) fn add(&mut self, entry: Entry) -> io::Result<()> {
        if self.entries.len() >= self.most {
            self.put_away()?;
        }
        self.entries.push(entry);
        Ok(())
    }

    /// Gives all entries in order.
    pub(crate) fn sorted(mut self, mut each: impl FnMut(Entry)) -> io::Result<()> {
        if self.files.is_empty() {
            self.entries.sort_unstable();
            self.entries.into_iter().for_each(each);
            return Ok(());
        }
        self.put_away()?;
        drop(self.entries);
        let mut files: Vec<_> = self.files.into_iter().map(|file| BufReader::with_capacity(BLOCK, file)).collect();
        let mut heads = BinaryHeap::with_capacity(files.len());
        for (index, file) in files.iter_mut().enumerate() {
            heads.extend(next(file)?.map(|entry| Reverse((entry, index))));
        }
        while let Some(Reverse((entry, index))) = heads.pop() {
            each(entry);
            if let Some(file) = files.get_mut(index) {
                heads.extend(next(file)?.map(|entry| Reverse((entry, index))));
            }
        }
        Ok(())
    }

    fn put_away(&mut self) -> io::Result<()> {
        self.entries.sort_unstable();
        let mut out = BufWriter::with_capacity(BLOCK, tempfile::tempfile()?);
        for (rank, hash) in self.entries.drain(..) {
            out.write_all(&rank.to_le_bytes())?;
            out.write_all(&hash.to_le_bytes())?;
        }
        let mut file = out.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.rewind()?;
        self.files.push(file);
        Ok(())
    }
}

fn next(file: &mut BufReader<File>) -> io::Result<Option<Entry>> {
    let mut bytes = [0; BYTES];
    match file.read_exact(&mut bytes) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    }
    let both = u128::from_le_bytes(bytes);
    Ok(Some((both as u64, (both >> 64) as u64)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_come_sorted_however_many_are_held() {
        let entries: Vec<Entry> = (0..1_000u64).map(|n| (n * 7_919 % 97, n * 104_729 % 89)).collect();
        let mut expected = entries.clone();
        expected.sort_unstable();
        for most in [1, 7, 250, 999, 1_000, 5_000] {
            let mut runs = Runs { most, ..Runs::default() };
            entries.iter().for_each(|entry| runs.add(*entry).unwrap());
            assert_eq!(runs.files.len(), (entries.len() - 1) / most);
            let mut found = Vec::new();
            runs.sorted(|entry| found.push(entry)).unwrap();
            assert!(found == expected, "{most}");
        }
        Runs::default().sorted(|_| unreachable!()).unwrap();
    }
}
