//! Reads rows out of CSV, JSON Lines and Parquet files.

use std::{
    collections::HashSet,
    fs::File,
    io::{self, BufRead, BufReader, Read},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::{columnar, config::Limits, snapshot::PrepareError};

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
    /// What the taker of the rows failed with.
    #[error(transparent)]
    Taken(Box<PrepareError>),
}

impl From<PrepareError> for RowsError {
    fn from(error: PrepareError) -> Self {
        Self::Taken(Box::new(error))
    }
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

    /// sha256 of the files, hex, as in [`Scan`]; not more than the limit is read.
    pub(crate) fn hash(&self, limits: &Limits) -> Result<String, RowsError> {
        let hashes = self.paths.iter().map(|path| {
            let mut source = Source::open(path, limits)?;
            io::copy(&mut source, &mut io::sink()).map_err(|error| source.failed(error))?;
            Ok(source.sha256())
        });
        Ok(hash_of(&hashes.collect::<Result<Vec<_>, RowsError>>()?))
    }

    /// Reads all rows, one at a time, and gives them to `take`, whose first error ends the pass.
    pub(crate) fn visit(&self, limits: &Limits, take: &mut Take<'_>) -> Result<Scan, RowsError> {
        let (mut scan, mut hashes) = (Scan::default(), Vec::new());
        for path in &self.paths {
            let mut source = Source::open(path, limits)?;
            let mut reading = Reading { file: file_name(path), columns: Vec::new(), row: 0, limits, take };
            if self.kind == Kind::Parquet {
                // It is read from its end: the hash takes a pass of its own, which also holds the file to its limit.
                io::copy(&mut source, &mut io::sink()).map_err(|error| source.failed(error))?;
            }
            reading.read(path, self.kind, &mut source)?;
            let Reading { file, columns, row, .. } = reading;
            if row == 0 {
                return Err(if columns.is_empty() { RowsError::Empty { file } } else { RowsError::NoRows { file } });
            }
            self.add_columns(&mut scan, columns, file)?;
            scan.rows += row;
            hashes.push(source.sha256());
        }
        scan.sha256 = hash_of(&hashes);
        Ok(scan)
    }

    fn add_columns(&self, scan: &mut Scan, columns: Vec<String>, file: String) -> Result<(), RowsError> {
        if scan.columns.is_empty() {
            scan.columns = columns;
        } else if self.kind == Kind::JsonLines {
            let new = columns.into_iter().filter(|column| !scan.columns.contains(column)).collect::<Vec<_>>();
            scan.columns.extend(new);
        } else if scan.columns != columns {
            let first = self.paths.first().map(|path| file_name(path)).unwrap_or_default();
            let (found, expected) = (columns.join(", "), scan.columns.join(", "));
            return Err(RowsError::OtherColumns { file, first, found, expected });
        }
        Ok(())
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
    let mut stop = |place: Place<'_>, _: Row| Err(RowsError::Stopped { file: place.file.to_owned() });
    let Ok(Files { paths, kind }) = Files::find(path) else { return Vec::new() };
    let Some(path) = paths.first() else { return Vec::new() };
    let mut reading = Reading { file: file_name(path), columns: Vec::new(), row: 0, limits: &limits, take: &mut stop };
    if let Ok(mut source) = Source::open(path, &limits) {
        // The first row stops the reading, and what is known of the columns by then stays.
        let _ = reading.read(path, kind, &mut source);
    }
    reading.columns
}

/// A file on its way.
pub(crate) struct Reading<'a> {
    pub(crate) file: String,
    pub(crate) columns: Vec<String>,
    /// Rows so far.
    pub(crate) row: usize,
    limits: &'a Limits,
    take: &'a mut Take<'a>,
}

impl Reading<'_> {
    fn read(&mut self, path: &Path, kind: Kind, source: &mut Source) -> Result<(), RowsError> {
        match kind {
            Kind::Csv => read_csv(source, self),
            Kind::JsonLines => read_json_lines(source, self),
            Kind::Parquet => columnar::read(path, self),
        }
    }

    /// Hands on the next row.
    pub(crate) fn push(&mut self, row: Row) -> Result<(), RowsError> {
        if self.row >= self.limits.max_rows {
            return Err(RowsError::TooManyRows { file: self.file.clone(), limit: self.limits.max_rows });
        }
        self.row += 1;
        (self.take)(Place { file: &self.file, row: self.row }, row)
    }

    fn too_long(&self, line: u64) -> RowsError {
        let (file, row) = (self.file.clone(), self.row + 1);
        RowsError::TooLong { file, row, line, limit: self.limits.max_row_bytes }
    }
}

fn read_csv(source: &mut Source, reading: &mut Reading<'_>) -> Result<(), RowsError> {
    let row_limit = Arc::clone(&source.row_left);
    let most = reading.limits.max_row_bytes as u64;
    // Flexible: a row of another length is told in our own words, with its number.
    let mut reader = csv::ReaderBuilder::new().flexible(true).from_reader(without_bom(source)?);
    row_limit.store(most, Ordering::Relaxed);
    let header = reader.byte_headers().map_err(|error| csv_failed(reading, 0, &error))?.clone();
    reading.columns = header_columns(&reading.file, &header)?;
    let mut record = csv::ByteRecord::new();
    loop {
        row_limit.store(most, Ordering::Relaxed);
        let row = reading.row + 1;
        if !reader.read_byte_record(&mut record).map_err(|error| csv_failed(reading, row, &error))? {
            return Ok(());
        }
        let line = record.position().map_or(0, csv::Position::line);
        let refuse = |reason: String| RowsError::Row { file: reading.file.clone(), row, line, reason };
        if record.len() != reading.columns.len() {
            return Err(refuse(format!("has {} values, but the header has {}", record.len(), reading.columns.len())));
        }
        let mut values = Row::new();
        for (column, bytes) in reading.columns.iter().zip(&record) {
            let text = std::str::from_utf8(bytes).map_err(|_| refuse(format!("is not UTF-8 in column {column}")))?;
            values.insert(column.clone(), Value::from(text));
        }
        reading.push(values)?;
    }
}

fn header_columns(file: &str, header: &csv::ByteRecord) -> Result<Vec<String>, RowsError> {
    let refuse = |reason: String| RowsError::Header { file: file.to_owned(), reason };
    let mut seen = HashSet::new();
    let mut columns = Vec::with_capacity(header.len());
    for (index, bytes) in header.iter().enumerate() {
        let name = std::str::from_utf8(bytes).map_err(|_| refuse(format!("is not UTF-8 in column {}", index + 1)))?;
        if name.trim().is_empty() {
            return Err(refuse(format!("has no name for column {}", index + 1)));
        }
        if !seen.insert(name) {
            return Err(refuse(format!("names column {name} twice")));
        }
        columns.push(name.to_owned());
    }
    Ok(columns)
}

fn read_json_lines(source: &mut Source, reading: &mut Reading<'_>) -> Result<(), RowsError> {
    let file = reading.file.clone();
    let most = reading.limits.max_row_bytes;
    let mut reader = BufReader::new(without_bom(source)?);
    let mut seen = HashSet::new();
    let mut bytes = Vec::new();
    for line in 1.. {
        bytes.clear();
        let read = reader.by_ref().take(most as u64 + 1).read_until(b'\n', &mut bytes);
        if read.map_err(|error| failed(&file, error))? == 0 {
            break;
        }
        if bytes.len() > most {
            return Err(reading.too_long(line));
        }
        if bytes.trim_ascii().is_empty() {
            continue;
        }
        let refuse = |reason: String| RowsError::Row { file: file.clone(), row: reading.row + 1, line, reason };
        let value: Value = serde_json::from_slice(&bytes).map_err(|error| refuse(format!("is not JSON: {error}")))?;
        let Value::Object(row) = value else { return Err(refuse("is not a JSON object".to_owned())) };
        for column in row.keys() {
            if seen.insert(column.clone()) {
                reading.columns.push(column.clone());
            }
        }
        reading.push(row)?;
    }
    Ok(())
}

fn csv_failed(reading: &Reading<'_>, row: usize, error: &csv::Error) -> RowsError {
    let line = error.position().map_or(0, csv::Position::line);
    if let csv::ErrorKind::Io(error) = error.kind() {
        if error.get_ref().is_some_and(|inner| inner.is::<LongRow>()) {
            return reading.too_long(line);
        }
        return failed(&reading.file, io::Error::new(error.kind(), error.to_string()));
    }
    RowsError::Row { file: reading.file.clone(), row, line, reason: format!("is not CSV: {error}") }
}

fn failed(file: &str, source: io::Error) -> RowsError {
    match source.get_ref().and_then(|inner| inner.downcast_ref::<PastLimit>()) {
        Some(&PastLimit(limit)) => RowsError::TooLarge { file: file.to_owned(), limit },
        None => RowsError::Unreadable { file: file.to_owned(), source },
    }
}

/// Skips a UTF-8 byte order mark, which spreadsheets write.
fn without_bom(source: &mut Source) -> Result<impl Read + '_, RowsError> {
    let mut start = Vec::with_capacity(3);
    source.by_ref().take(3).read_to_end(&mut start).map_err(|error| source.failed(error))?;
    if start == b"\xEF\xBB\xBF" {
        start.clear();
    }
    Ok(io::Cursor::new(start).chain(source))
}

/// A file that is hashed while it is read, and read up to a limit.
struct Source {
    name: String,
    file: File,
    digest: Sha256,
    read: u64,
    limit: u64,
    /// Bytes that may come before the next row begins.
    row_left: Arc<AtomicU64>,
}

/// A row does not end.
#[derive(Debug, thiserror::Error)]
#[error("the row is too long")]
struct LongRow;

/// More bytes than the limit came.
#[derive(Debug, thiserror::Error)]
#[error("more than {0} bytes")]
struct PastLimit(u64);

impl Source {
    fn open(path: &Path, limits: &Limits) -> Result<Self, RowsError> {
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
            digest: Sha256::new(),
            read: 0,
            limit: limits.max_source_bytes,
            row_left: Arc::new(AtomicU64::new(u64::MAX)),
        })
    }

    fn failed(&self, error: io::Error) -> RowsError {
        failed(&self.name, error)
    }

    fn sha256(self) -> String {
        crate::split::hex(&self.digest.finalize())
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
        self.digest.update(&buffer[..read]);
        self.read += read as u64;
        if self.read > self.limit { Err(io::Error::other(PastLimit(self.limit))) } else { Ok(read) }
    }
}

#[cfg(test)]
#[path = "rows_tests.rs"]
pub(crate) mod tests;
