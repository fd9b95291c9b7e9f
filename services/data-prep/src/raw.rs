//! Rows as they lie in files, not yet taken apart: what one thread must do in order, so that many can do the rest.

use std::{
    collections::HashSet,
    io::{self, BufRead, BufReader, Read as _},
    path::Path,
    sync::{Arc, atomic::Ordering},
};

use serde_json::Value;

use crate::{
    columnar,
    config::Limits,
    rows::{Kind, Row, RowsError, file_name},
    source::{LongRow, Source, failed, without_bom},
};

/// Bytes that a reader of lines takes at once.
const BLOCK: usize = 256 << 10;

/// A file whose rows are read.
#[derive(Debug)]
pub(crate) struct Head {
    /// Its name without its folder.
    pub(crate) file: String,
    /// None where each row names its own.
    pub(crate) columns: Vec<String>,
}

/// A row that is not yet taken apart.
#[derive(Debug)]
pub(crate) struct Raw {
    /// From 1, in its file.
    pub(crate) row: usize,
    line: u64,
    content: Content,
}

#[derive(Debug)]
enum Content {
    /// The values one after the other, and where each ends.
    Csv {
        bytes: Box<[u8]>,
        ends: Box<[usize]>,
    },
    Json(Vec<u8>),
    Parquet(parquet::record::Row),
}

/// Takes a file's rows in order.
pub(crate) trait Sink {
    /// The rows of another file follow.
    fn file(&mut self, head: Arc<Head>);

    /// The next row; the first error ends the reading.
    fn row(&mut self, raw: Raw) -> Result<(), RowsError>;
}

impl Raw {
    /// Bytes that it takes, about.
    pub(crate) fn size(&self) -> usize {
        match &self.content {
            Content::Csv { bytes, .. } => bytes.len(),
            Content::Json(line) => line.len(),
            Content::Parquet(row) => row.get_column_iter().map(|(_, field)| value_size(field)).sum(),
        }
    }

    /// Takes the row apart.
    pub(crate) fn decode(self, head: &Head, limits: &Limits) -> Result<Row, RowsError> {
        let (row, line) = (self.row, self.line);
        let refuse = |reason: String| RowsError::Row { file: head.file.clone(), row, line, reason };
        let values = match self.content {
            Content::Csv { bytes, ends } => {
                let (found, expected) = (ends.len(), head.columns.len());
                if found != expected {
                    return Err(refuse(format!("has {found} values, but the header has {expected}")));
                }
                let (mut values, mut start) = (Row::with_capacity(expected), 0);
                for (column, end) in head.columns.iter().zip(ends) {
                    let text = std::str::from_utf8(&bytes[start..end])
                        .map_err(|_| refuse(format!("is not UTF-8 in column {column}")))?;
                    values.insert(column.clone(), Value::from(text));
                    start = end;
                }
                values
            }
            Content::Json(bytes) => {
                let value = serde_json::from_slice(&bytes).map_err(|error| refuse(format!("is not JSON: {error}")))?;
                let Value::Object(values) = value else { return Err(refuse("is not a JSON object".to_owned())) };
                values
            }
            // A row is an object by its type.
            Content::Parquet(row) => match row.to_json_value() {
                Value::Object(values) => values,
                _ => Row::new(),
            },
        };
        if row > limits.max_rows {
            return Err(RowsError::TooManyRows { file: head.file.clone(), limit: limits.max_rows });
        }
        Ok(values)
    }
}

fn value_size(field: &parquet::record::Field) -> usize {
    use parquet::record::Field;
    match field {
        Field::Str(text) => text.len(),
        Field::Bytes(bytes) => bytes.len(),
        Field::Group(group) => group.get_column_iter().map(|(_, field)| value_size(field)).sum(),
        Field::ListInternal(list) => list.elements().iter().map(value_size).sum(),
        Field::MapInternal(map) => map.entries().iter().map(|(key, value)| value_size(key) + value_size(value)).sum(),
        _ => size_of::<Field>(),
    }
}

/// A file that is read.
pub(crate) struct Reading<'a> {
    pub(crate) file: String,
    /// Rows so far.
    pub(crate) rows: usize,
    pub(crate) columns: Vec<String>,
    limits: &'a Limits,
    sink: &'a mut dyn Sink,
}

impl<'a> Reading<'a> {
    pub(crate) fn new(path: &Path, limits: &'a Limits, sink: &'a mut dyn Sink) -> Self {
        Self { file: file_name(path), rows: 0, columns: Vec::new(), limits, sink }
    }

    /// Reads all rows, or those up to the limit and one more, which is refused when it is taken apart.
    pub(crate) fn read(&mut self, path: &Path, kind: Kind, source: &mut Source) -> Result<(), RowsError> {
        match kind {
            Kind::Csv => self.csv(source),
            Kind::JsonLines => self.json_lines(source),
            Kind::Parquet => columnar::read(path, self),
        }
    }

    /// What the rows' columns are.
    pub(crate) fn head(&mut self, columns: Vec<String>) {
        self.columns.clone_from(&columns);
        self.sink.file(Arc::new(Head { file: self.file.clone(), columns }));
    }

    /// True once there are more rows than may be.
    pub(crate) fn is_full(&self) -> bool {
        self.rows > self.limits.max_rows
    }

    /// Hands on a row of Parquet.
    pub(crate) fn parquet(&mut self, row: parquet::record::Row) -> Result<(), RowsError> {
        self.push(0, Content::Parquet(row))
    }

    fn push(&mut self, line: u64, content: Content) -> Result<(), RowsError> {
        self.rows += 1;
        self.sink.row(Raw { row: self.rows, line, content })
    }

    fn too_long(&self, line: u64) -> RowsError {
        let (file, row) = (self.file.clone(), self.rows + 1);
        RowsError::TooLong { file, row, line, limit: self.limits.max_row_bytes }
    }

    fn csv(&mut self, source: &mut Source) -> Result<(), RowsError> {
        let row_limit = Arc::clone(&source.row_left);
        let most = self.limits.max_row_bytes as u64;
        // Flexible: a row of another length is told in our own words, with its number.
        let mut reader = csv::ReaderBuilder::new().flexible(true).from_reader(without_bom(source)?);
        row_limit.store(most, Ordering::Relaxed);
        let header = reader.byte_headers().map_err(|error| self.csv_failed(0, &error))?;
        let columns = header_columns(&self.file, header)?;
        self.head(columns);
        let mut record = csv::ByteRecord::new();
        while !self.is_full() {
            row_limit.store(most, Ordering::Relaxed);
            if !reader.read_byte_record(&mut record).map_err(|error| self.csv_failed(self.rows + 1, &error))? {
                break;
            }
            let ends = (0..record.len()).filter_map(|index| Some(record.range(index)?.end)).collect();
            let content = Content::Csv { bytes: record.as_slice().into(), ends };
            self.push(record.position().map_or(0, csv::Position::line), content)?;
        }
        Ok(())
    }

    fn csv_failed(&self, row: usize, error: &csv::Error) -> RowsError {
        let line = error.position().map_or(0, csv::Position::line);
        if let csv::ErrorKind::Io(error) = error.kind() {
            if error.get_ref().is_some_and(|inner| inner.is::<LongRow>()) {
                return self.too_long(line);
            }
            return failed(&self.file, io::Error::new(error.kind(), error.to_string()));
        }
        RowsError::Row { file: self.file.clone(), row, line, reason: format!("is not CSV: {error}") }
    }

    fn json_lines(&mut self, source: &mut Source) -> Result<(), RowsError> {
        let most = self.limits.max_row_bytes;
        let mut reader = BufReader::with_capacity(BLOCK, without_bom(source)?);
        self.head(Vec::new());
        for line in 1.. {
            let mut bytes = Vec::new();
            let read = reader.by_ref().take(most as u64 + 1).read_until(b'\n', &mut bytes);
            if read.map_err(|error| failed(&self.file, error))? == 0 || self.is_full() {
                break;
            }
            if bytes.len() > most {
                return Err(self.too_long(line));
            }
            if !bytes.trim_ascii().is_empty() {
                self.push(line, Content::Json(bytes))?;
            }
        }
        Ok(())
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
