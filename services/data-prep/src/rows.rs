//! Reads rows out of CSV, JSON Lines and Parquet files.

use std::{
    collections::HashSet,
    fs::File,
    io::{self, BufRead, BufReader, Read},
    path::Path,
};

use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::{columnar, config::Limits};

/// Column name → value, in the file's column order. CSV values are strings, byte for byte.
pub(crate) type Row = Map<String, Value>;

/// A file's rows.
#[derive(Debug)]
pub(crate) struct Table {
    /// The file's name without its folder: what messages call it.
    pub(crate) file: String,
    /// All columns, in order of their first appearance.
    pub(crate) columns: Vec<String>,
    /// Rows in file order.
    pub(crate) rows: Vec<Row>,
    /// sha256 of the file's bytes, hex.
    pub(crate) sha256: String,
}

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
    #[error("{file} has more than {limit} rows: split it, or raise --max-rows")]
    TooManyRows { file: String, limit: usize },
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

/// sha256 of a file, hex; not more than the limit is read.
pub(crate) fn hash_file(path: &Path, limits: &Limits) -> Result<String, RowsError> {
    let mut source = Source::open(path, limits)?;
    io::copy(&mut source, &mut io::sink()).map_err(|error| source.failed(error))?;
    Ok(source.sha256())
}

/// Reads all rows. `keep_on` is asked before each row with the number of rows so far; `false` stops the reading.
pub(crate) fn read(path: &Path, limits: &Limits, mut keep_on: impl FnMut(usize) -> bool) -> Result<Table, RowsError> {
    let kind = Kind::of(path)?;
    let mut source = Source::open(path, limits)?;
    let mut table = Table { file: file_name(path), columns: Vec::new(), rows: Vec::new(), sha256: String::new() };
    let mut push = |table: &mut Table, row: Row| {
        if table.rows.len() >= limits.max_rows {
            return Err(RowsError::TooManyRows { file: table.file.clone(), limit: limits.max_rows });
        }
        if !keep_on(table.rows.len()) {
            return Err(RowsError::Stopped { file: table.file.clone() });
        }
        table.rows.push(row);
        Ok(())
    };
    if kind == Kind::Parquet {
        // It is read from its end: the hash takes a pass of its own, which also holds the file to its limit.
        io::copy(&mut source, &mut io::sink()).map_err(|error| source.failed(error))?;
    }
    read_into(path, kind, &mut source, &mut table, &mut push)?;
    if table.rows.is_empty() {
        let file = table.file;
        return Err(if table.columns.is_empty() { RowsError::Empty { file } } else { RowsError::NoRows { file } });
    }
    table.sha256 = source.sha256();
    Ok(table)
}

/// The columns of a file, those of a JSON Lines file as its first row has them; none if it can't be read: whoever
/// prepares it says why.
pub fn columns(path: &Path) -> Vec<String> {
    let mut table = Table { file: file_name(path), columns: Vec::new(), rows: Vec::new(), sha256: String::new() };
    let mut stop = |table: &mut Table, _: Row| Err(RowsError::Stopped { file: table.file.clone() });
    if let (Ok(kind), Ok(mut source)) = (Kind::of(path), Source::open(path, &Limits::default())) {
        // The first row stops the reading, and what is known of the columns by then stays.
        let _ = read_into(path, kind, &mut source, &mut table, &mut stop);
    }
    table.columns
}

fn read_into(
    path: &Path,
    kind: Kind,
    source: &mut Source,
    table: &mut Table,
    push: &mut impl FnMut(&mut Table, Row) -> Result<(), RowsError>,
) -> Result<(), RowsError> {
    match kind {
        Kind::Csv => read_csv(source, table, push),
        Kind::JsonLines => read_json_lines(source, table, push),
        Kind::Parquet => columnar::read(path, table, push),
    }
}

fn read_csv(
    source: &mut Source,
    table: &mut Table,
    push: &mut impl FnMut(&mut Table, Row) -> Result<(), RowsError>,
) -> Result<(), RowsError> {
    // Flexible: a row of another length is told in our own words, with its number.
    let mut reader = csv::ReaderBuilder::new().flexible(true).from_reader(without_bom(source)?);
    let header = reader.byte_headers().map_err(|error| csv_failed(&table.file, 0, &error))?.clone();
    table.columns = header_columns(&table.file, &header)?;
    let mut record = csv::ByteRecord::new();
    loop {
        let row = table.rows.len() + 1;
        if !reader.read_byte_record(&mut record).map_err(|error| csv_failed(&table.file, row, &error))? {
            return Ok(());
        }
        let line = record.position().map_or(0, csv::Position::line);
        let refuse = |reason: String| RowsError::Row { file: table.file.clone(), row, line, reason };
        if record.len() != table.columns.len() {
            return Err(refuse(format!("has {} values, but the header has {}", record.len(), table.columns.len())));
        }
        let mut values = Row::new();
        for (column, bytes) in table.columns.iter().zip(&record) {
            let text = std::str::from_utf8(bytes).map_err(|_| refuse(format!("is not UTF-8 in column {column}")))?;
            values.insert(column.clone(), Value::from(text));
        }
        push(table, values)?;
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

fn read_json_lines(
    source: &mut Source,
    table: &mut Table,
    push: &mut impl FnMut(&mut Table, Row) -> Result<(), RowsError>,
) -> Result<(), RowsError> {
    let file = table.file.clone();
    let mut reader = BufReader::new(without_bom(source)?);
    let mut seen = HashSet::new();
    let mut bytes = Vec::new();
    for line in 1.. {
        bytes.clear();
        if reader.read_until(b'\n', &mut bytes).map_err(|error| failed(&file, error))? == 0 {
            break;
        }
        if bytes.trim_ascii().is_empty() {
            continue;
        }
        let refuse = |reason: String| RowsError::Row { file: file.clone(), row: table.rows.len() + 1, line, reason };
        let value: Value = serde_json::from_slice(&bytes).map_err(|error| refuse(format!("is not JSON: {error}")))?;
        let Value::Object(row) = value else { return Err(refuse("is not a JSON object".to_owned())) };
        for column in row.keys() {
            if seen.insert(column.clone()) {
                table.columns.push(column.clone());
            }
        }
        push(table, row)?;
    }
    Ok(())
}

fn csv_failed(file: &str, row: usize, error: &csv::Error) -> RowsError {
    if let csv::ErrorKind::Io(error) = error.kind() {
        return failed(file, io::Error::new(error.kind(), error.to_string()));
    }
    let line = error.position().map_or(0, csv::Position::line);
    RowsError::Row { file: file.to_owned(), row, line, reason: format!("is not CSV: {error}") }
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
}

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
        Ok(Self { name, file, digest: Sha256::new(), read: 0, limit: limits.max_source_bytes })
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
        let read = self.file.read(buffer)?;
        self.digest.update(&buffer[..read]);
        self.read += read as u64;
        if self.read > self.limit { Err(io::Error::other(PastLimit(self.limit))) } else { Ok(read) }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::PathBuf};

    use super::*;

    fn file(name: &str, bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        fs::write(&path, bytes).unwrap();
        (dir, path)
    }

    fn read_all(name: &str, bytes: &[u8]) -> Result<Table, RowsError> {
        let (_dir, path) = file(name, bytes);
        read(&path, &Limits::default(), |_| true)
    }

    fn refusal(name: &str, bytes: &[u8]) -> String {
        read_all(name, bytes).unwrap_err().to_string()
    }

    #[test]
    fn csv_keeps_bytes_and_column_order() {
        let table = read_all("a.csv", b"\xEF\xBB\xBFZ,A\r\n\" x, \"\"y\"\"\n\", 1 \r\n").unwrap();
        assert_eq!(table.columns, ["Z", "A"]);
        assert_eq!(serde_json::to_string(&table.rows[0]).unwrap(), r#"{"Z":" x, \"y\"\n","A":" 1 "}"#);
    }

    #[test]
    fn json_lines_keep_types_and_collect_columns() {
        let table = read_all("a.jsonl", b"{\"b\":1,\"a\":null}\n\n{\"c\":[true],\"b\":\"x\"}").unwrap();
        assert_eq!(table.columns, ["b", "a", "c"]);
        assert_eq!(table.rows[1]["c"], serde_json::json!([true]));
    }

    #[test]
    fn columns_are_known_without_the_rows() {
        let of = |name: &str, bytes: &[u8]| {
            let (_dir, path) = file(name, bytes);
            columns(&path)
        };
        assert_eq!(of("a.csv", b"Z,A\n"), ["Z", "A"]);
        assert_eq!(of("a.csv", b"Z,A\n1,2\nbroken\n"), ["Z", "A"]);
        assert_eq!(of("a.jsonl", b"\n{\"b\":1,\"a\":2}\nbroken"), ["b", "a"]);
        assert!(of("a.txt", b"Z,A\n").is_empty() && of("a.jsonl", b"").is_empty());
    }

    #[test]
    fn the_hash_is_that_of_the_whole_file() {
        let bytes = b"\xEF\xBB\xBFA\n1\n2\n";
        let (_dir, path) = file("a.csv", bytes);
        let expected = crate::split::hex(&Sha256::digest(bytes));
        assert_eq!(hash_file(&path, &Limits::default()).unwrap(), expected);
        assert_eq!(read(&path, &Limits::default(), |_| true).unwrap().sha256, expected);
    }

    #[test]
    fn refusals_name_file_and_row() {
        assert_eq!(refusal("offers.csv", b""), "offers.csv is empty: it must hold a header and rows");
        assert_eq!(refusal("offers.jsonl", b"\n\n"), "offers.jsonl is empty: it must hold a header and rows");
        assert_eq!(refusal("offers.csv", b"A,B\n"), "offers.csv has no rows under its header");
        assert_eq!(refusal("offers.csv", b"A,A\n1,2\n"), "header of offers.csv names column A twice");
        assert_eq!(refusal("offers.csv", b"A,\n1,2\n"), "header of offers.csv has no name for column 2");
        assert_eq!(
            refusal("offers.csv", b"A,B\n1,2\n3\n"),
            "row 2 of offers.csv (line 3) has 1 values, but the header has 2"
        );
        assert_eq!(refusal("offers.csv", b"A,B\n1,\xFF\n"), "row 1 of offers.csv (line 2) is not UTF-8 in column B");
        assert!(refusal("o.jsonl", b"{\"a\":1}\n{\"a\"\n").starts_with("row 2 of o.jsonl (line 2) is not JSON: "));
        assert_eq!(refusal("o.jsonl", b"[1]\n"), "row 1 of o.jsonl (line 1) is not a JSON object");
        assert!(refusal("o.xlsx", b"x").contains("must end in .csv, .jsonl or .parquet"));
    }

    #[test]
    fn limits_hold() {
        let (_dir, path) = file("a.csv", b"A\n1\n2\n3\n");
        let rows = Limits { max_rows: 2, ..Limits::default() };
        assert!(read(&path, &rows, |_| true).unwrap_err().to_string().contains("more than 2 rows"));
        let bytes = Limits { max_source_bytes: 7, ..Limits::default() };
        assert!(read(&path, &bytes, |_| true).unwrap_err().to_string().contains("more than 7 bytes"));
        assert!(hash_file(&path, &bytes).unwrap_err().to_string().contains("more than 7 bytes"));
        assert!(matches!(read(&path, &Limits::default(), |row| row < 1), Err(RowsError::Stopped { .. })));
    }
}
