//! Rows out of Parquet files, as Snowflake unloads them.

use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, SerializedFileReader};

use crate::{raw::Reading, rows::RowsError};

/// Reads all rows, in the file's order. Numbers and lists keep their types; decimals, dates and times become text.
pub(crate) fn read(path: &Path, reading: &mut Reading<'_>) -> Result<(), RowsError> {
    let file = reading.file.clone();
    let failed =
        |row: usize, error: &ParquetError| RowsError::Parquet { file: file.clone(), row, reason: error.to_string() };
    let source = File::open(path).map_err(|source| RowsError::Unreadable { file: file.clone(), source })?;
    let reader = guarded(|| SerializedFileReader::new(source)).map_err(|error| failed(0, &error))?;
    let schema = reader.metadata().file_metadata().schema();
    reading.head(schema.get_fields().iter().map(|field| field.name().to_owned()).collect());
    let mut rows = guarded(|| reader.get_row_iter(None)).map_err(|error| failed(0, &error))?;
    while !reading.is_full() {
        let row = guarded(|| rows.next().transpose()).map_err(|error| failed(reading.rows + 1, &error))?;
        let Some(row) = row else { break };
        reading.parquet(row)?;
    }
    Ok(())
}

/// The library panics at some damaged pages: the file is refused like any other that it can't read.
fn guarded<T>(read: impl FnOnce() -> Result<T, ParquetError>) -> Result<T, ParquetError> {
    catch_unwind(AssertUnwindSafe(read))
        .unwrap_or_else(|_| Err(ParquetError::General("its pages are damaged".to_owned())))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parquet::basic::Compression;
    use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
    use parquet::file::properties::WriterProperties;
    use parquet::file::writer::SerializedFileWriter;
    use parquet::schema::parser::parse_message_type;
    use serde_json::json;

    use crate::config::Limits;
    use crate::rows::tests::read;

    const SCHEMA: &str = "message offers { required binary NAME (UTF8); optional int64 AMOUNT; }";

    fn write(path: &std::path::Path, compression: Compression) {
        let properties = Arc::new(WriterProperties::builder().set_compression(compression).build());
        let schema = Arc::new(parse_message_type(SCHEMA).unwrap());
        let mut writer = SerializedFileWriter::new(std::fs::File::create(path).unwrap(), schema, properties).unwrap();
        let mut group = writer.next_row_group().unwrap();
        let mut names = group.next_column().unwrap().unwrap();
        let values = ["Fern & \"Co\"", "Salt", "Ümlaut"].map(ByteArray::from);
        names.typed::<ByteArrayType>().write_batch(&values, None, None).unwrap();
        names.close().unwrap();
        let mut amounts = group.next_column().unwrap().unwrap();
        amounts.typed::<Int64Type>().write_batch(&[25, 7], Some(&[1, 0, 1]), None).unwrap();
        amounts.close().unwrap();
        group.close().unwrap();
        writer.close().unwrap();
    }

    #[test]
    fn rows_keep_their_order_and_types() {
        let dir = tempfile::tempdir().unwrap();
        for compression in [Compression::UNCOMPRESSED, Compression::SNAPPY, Compression::ZSTD(Default::default())] {
            let path = dir.path().join("offers.parquet");
            write(&path, compression);
            let table = read(&path, &Limits::default()).unwrap();
            assert_eq!(table.columns, ["NAME", "AMOUNT"]);
            let rows: Vec<_> = table.rows.iter().map(|row| serde_json::to_value(row).unwrap()).collect();
            assert_eq!(rows[0], json!({ "NAME": "Fern & \"Co\"", "AMOUNT": 25 }));
            assert_eq!(rows[1], json!({ "NAME": "Salt", "AMOUNT": null }));
            assert_eq!((rows.len(), &rows[2]["NAME"]), (3, &json!("Ümlaut")));
            assert_eq!(table.sha256, crate::rows::tests::hash_file(&path, &Limits::default()).unwrap());
            let few = Limits { max_rows: 2, ..Limits::default() };
            assert!(read(&path, &few).err().unwrap().to_string().contains("more than 2 rows"));
        }
    }

    #[test]
    fn what_is_no_parquet_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("offers.parquet");
        let refusal = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            read(&path, &Limits::default()).err().unwrap().to_string()
        };
        assert!(refusal(b"").starts_with("failed to read offers.parquet as Parquet: "));
        assert!(refusal(b"NAME,AMOUNT\nFern,25\n").starts_with("failed to read offers.parquet as Parquet: "));
        write(&path, Compression::SNAPPY);
        let whole = std::fs::read(&path).unwrap();
        assert!(refusal(&whole[..whole.len() - 20]).starts_with("failed to read offers.parquet as Parquet: "));
    }

    #[test]
    fn no_damaged_byte_breaks_the_reader() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("offers.parquet");
        write(&path, Compression::UNCOMPRESSED);
        let whole = std::fs::read(&path).unwrap();
        let mut refused = 0;
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 0xFF;
            std::fs::write(&path, damaged).unwrap();
            if let Err(error) = read(&path, &Limits::default()) {
                assert!(error.to_string().contains("offers.parquet"), "byte {at}: {error}");
                refused += 1;
            }
        }
        assert!(refused > 10, "{refused} of {}", whole.len());
    }
}
