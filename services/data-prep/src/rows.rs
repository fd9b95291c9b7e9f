//! Reads rows out of CSV, JSON Lines and Parquet files.

use std::{
    collections::HashSet,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::{
    config::Limits,
    raw::{Head, Raw, Reading, Sink},
    source::Source,
};

/// Column name → value, in the file's column order. CSV values are strings, byte for byte.
pub(crate) type Row = Map<String, Value>;

/// What a pass over the rows finds.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Scan {
    /// All columns, in order of their first appearance.
    pub(crate) columns: Vec<String>,
    /// Rows of all files.
    pub(crate) rows: usize,
    /// sha256 of the file's bytes, hex; of several files, of their hashes one after the other.
    pub(crate) sha256: String,
}

/// Where a row is, for messages.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Place<'a> {
    /// The file's name without its folder.
    pub(crate) file: &'a str,
    /// From 1, in its file.
    pub(crate) row: usize,
}

/// Takes the rows of a pass, one after the other.
type Take<'a> = dyn FnMut(Place<'_>, Row) -> Result<(), RowsError> + 'a;

/// Why rows could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum RowsError {
    #[error("{file} is neither CSV, JSON Lines nor Parquet: its name must end in .csv, .jsonl or .parquet")]
    UnknownKind { file: String },
    #[error("failed to read {file}: {source}")]
    Unreadable { file: String, source: io::Error },
    #[error("{file} is empty: it must hold a header and rows")]
    Empty { file: String },
    #[error("{file} has no rows under its header")]
    NoRows { file: String },
    #[error("header of {file} {reason}")]
    Header { file: String, reason: String },
    #[error("row {row} of {file} (line {line}) {reason}")]
    Row { file: String, row: usize, line: u64, reason: String },
    #[error("failed to read {file} as Parquet{}: {reason}", if *row > 0 { format!(", row {row}") } else { String::new() })]
    Parquet { file: String, row: usize, reason: String },
    #[error("row {row} of {file} (line {line}) has more than {limit} bytes: cut it, or raise --max-row-bytes")]
    TooLong { file: String, row: usize, line: u64, limit: usize },
    #[error("{file} has more than {limit} rows: split it, or raise --max-rows")]
    TooManyRows { file: String, limit: usize },
    #[error("{folder} holds no .csv, .jsonl or .parquet file")]
    NoFile { folder: String },
    #[error("{folder} holds {first} and {other}: keep files of one notation in a folder")]
    Mixed { folder: String, first: String, other: String },
    #[error("the columns of {file} are {found}, but those of {first} are {expected}")]
    OtherColumns { file: String, first: String, found: String, expected: String },
    #[error("{file} has more than {limit} bytes: split it, or raise --max-source-bytes")]
    TooLarge { file: String, limit: u64 },
    #[error("reading {file} was stopped")]
    Stopped { file: String },
}

/// The notations that rows come in.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Kind {
    Csv,
    JsonLines,
    Parquet,
}

impl Kind {
    /// Tells the notation from the file's name.
    pub(crate) fn of(path: &Path) -> Result<Self, RowsError> {
        let extension = path.extension().and_then(|text| text.to_str()).map(str::to_lowercase);
        match extension.as_deref() {
            Some("csv") => Ok(Self::Csv),
            Some("jsonl" | "ndjson") => Ok(Self::JsonLines),
            Some("parquet") => Ok(Self::Parquet),
            _ => Err(RowsError::UnknownKind { file: file_name(path) }),
        }
    }
}

/// The last part of a path, for messages.
pub(crate) fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

/// The files that a path means, all of one notation.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Files {
    paths: Vec<PathBuf>,
    kind: Kind,
}

impl Files {
    /// A file, or a folder's files of rows in the order of their names.
    pub(crate) fn find(path: &Path) -> Result<Self, RowsError> {
        if !path.is_dir() {
            return Ok(Self { paths: vec![path.to_owned()], kind: Kind::of(path)? });
        }
        let folder = path.display().to_string();
        let unreadable = |source| RowsError::Unreadable { file: folder.clone(), source };
        let mut paths = Vec::new();
        for entry in std::fs::read_dir(path).map_err(unreadable)? {
            let path = entry.map_err(unreadable)?.path();
            if path.is_file() && !file_name(&path).starts_with('.') && Kind::of(&path).is_ok() {
                paths.push(path);
            }
        }
        paths.sort_unstable();
        let Some(first) = paths.first() else { return Err(RowsError::NoFile { folder }) };
        let kind = Kind::of(first)?;
        if let Some(other) = paths.iter().find(|path| Kind::of(path).ok() != Some(kind)) {
            return Err(RowsError::Mixed { folder, first: file_name(first), other: file_name(other) });
        }
        Ok(Self { paths, kind })
    }

    /// Keeps the files that `keep` says yes to.
    pub(crate) fn keep(mut self, folder: &Path, keep: impl Fn(&Path) -> bool) -> Result<Self, RowsError> {
        self.paths.retain(|path| keep(path));
        if self.paths.is_empty() { Err(RowsError::NoFile { folder: folder.display().to_string() }) } else { Ok(self) }
    }

    /// What messages call the whole.
    pub(crate) fn name(&self) -> String {
        match self.paths.as_slice() {
            [one] => file_name(one),
            all => format!("{} files, {} …", all.len(), all.first().map(|path| file_name(path)).unwrap_or_default()),
        }
    }

    /// The file, if it is one.
    pub(crate) fn single(&self) -> Option<&Path> {
        match self.paths.as_slice() {
            [one] => Some(one),
            _ => None,
        }
    }

    /// sha256 of the files, hex, as in [`Scan`]; not more than the limit is read.
    pub(crate) fn hash(&self, limits: &Limits) -> Result<String, RowsError> {
        let hashes = self.paths.iter().map(|path| {
            let mut source = Source::open(path, limits, true)?;
            source.drain()?;
            Ok(source.sha256())
        });
        Ok(hash_of(&hashes.collect::<Result<Vec<_>, RowsError>>()?))
    }

    /// Gives all rows, as they lie in the files, to a sink. The columns that are found are those of heads; the hash is
    /// empty unless it is asked for.
    pub(crate) fn read(&self, limits: &Limits, hashed: bool, sink: &mut dyn Sink) -> Result<Scan, RowsError> {
        let (mut scan, mut hashes) = (Scan::default(), Vec::new());
        for path in &self.paths {
            let mut source = Source::open(path, limits, hashed)?;
            if self.kind == Kind::Parquet && hashed {
                // It is read from its end: the hash takes a pass of its own, which also holds the file to its limit.
                source.drain()?;
            }
            let mut reading = Reading::new(path, limits, sink);
            reading.read(path, self.kind, &mut source)?;
            let Reading { file, columns, rows, .. } = reading;
            if rows == 0 {
                return Err(if columns.is_empty() { RowsError::Empty { file } } else { RowsError::NoRows { file } });
            }
            self.check_columns(&mut scan, columns, file)?;
            scan.rows += rows;
            hashes.push(source.sha256());
        }
        scan.sha256 = if hashed { hash_of(&hashes) } else { String::new() };
        Ok(scan)
    }

    /// Reads all rows, one at a time, and gives them to `take`, whose first error ends the pass.
    pub(crate) fn visit(&self, limits: &Limits, take: &mut Take<'_>) -> Result<Scan, RowsError> {
        let mut visit = Visit { head: None, columns: Columns::default(), limits, take };
        let scan = self.read(limits, true, &mut visit)?;
        let columns = if self.names_columns_by_row() { visit.columns.list } else { scan.columns };
        Ok(Scan { columns, ..scan })
    }

    /// Each row names its own columns.
    pub(crate) fn names_columns_by_row(&self) -> bool {
        self.kind == Kind::JsonLines
    }

    fn check_columns(&self, scan: &mut Scan, columns: Vec<String>, file: String) -> Result<(), RowsError> {
        if scan.columns.is_empty() {
            scan.columns = columns;
        } else if scan.columns != columns {
            let first = self.paths.first().map(|path| file_name(path)).unwrap_or_default();
            let (found, expected) = (columns.join(", "), scan.columns.join(", "));
            return Err(RowsError::OtherColumns { file, first, found, expected });
        }
        Ok(())
    }
}

/// Columns in order of their first appearance.
#[derive(Debug, Default)]
pub(crate) struct Columns {
    pub(crate) list: Vec<String>,
    seen: HashSet<String>,
}

impl Columns {
    pub(crate) fn add<'a>(&mut self, columns: impl IntoIterator<Item = &'a String>) {
        for column in columns {
            if !self.seen.contains(column) {
                self.seen.insert(column.clone());
                self.list.push(column.clone());
            }
        }
    }
}

/// Takes rows apart as they come.
struct Visit<'a, 'b> {
    head: Option<Arc<Head>>,
    columns: Columns,
    limits: &'a Limits,
    take: &'a mut Take<'b>,
}

impl Sink for Visit<'_, '_> {
    fn file(&mut self, head: Arc<Head>) {
        self.columns.add(&head.columns);
        self.head = Some(head);
    }

    fn row(&mut self, raw: Raw) -> Result<(), RowsError> {
        let Some(head) = &self.head else { return Ok(()) };
        let number = raw.row;
        let row = raw.decode(head, self.limits)?;
        self.columns.add(row.keys());
        (self.take)(Place { file: &head.file, row: number }, row)
    }
}

fn hash_of(hashes: &[String]) -> String {
    match hashes {
        [one] => one.clone(),
        all => crate::split::hex(&Sha256::digest(all.concat())),
    }
}

/// The columns of a file or a folder's first one, those of a JSON Lines file as its first row has them; none if it can't
/// be read: whoever prepares it says why.
pub fn columns(path: &Path) -> Vec<String> {
    let limits = Limits::default();
    let Ok(Files { paths, kind }) = Files::find(path) else { return Vec::new() };
    let Some(path) = paths.first() else { return Vec::new() };
    let mut stop = |place: Place<'_>, _: Row| Err(RowsError::Stopped { file: place.file.to_owned() });
    let mut visit = Visit { head: None, columns: Columns::default(), limits: &limits, take: &mut stop };
    if let Ok(mut source) = Source::open(path, &limits, false) {
        // The first row stops the reading, and what is known of the columns by then stays.
        let _ = Reading::new(path, &limits, &mut visit).read(path, kind, &mut source);
    }
    visit.columns.list
}

#[cfg(test)]
#[path = "rows_tests.rs"]
pub(crate) mod tests;
