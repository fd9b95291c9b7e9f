//! Whatever comes in: readers and templates give rows or a sentence, and never panic or hang.

use std::sync::Arc;

use parquet::{
    data_type::{ByteArray, ByteArrayType},
    file::{properties::WriterProperties, writer::SerializedFileWriter},
    schema::parser::parse_message_type,
};
use proptest::{collection::vec, prelude::*};
use serde_json::json;

use crate::{
    config::Limits,
    rows::{Files, Row},
    template::RowTemplate,
};

/// Reads a file with these bytes: its rows, or the sentence that refuses it.
fn read(name: &str, bytes: &[u8]) -> Result<Vec<Row>, String> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    let mut rows = Vec::new();
    let limits = Limits { max_row_bytes: 1 << 16, ..Limits::default() };
    let visited = Files::find(&path).and_then(|files| {
        files.visit(&limits, &mut |place, row| {
            assert_eq!(place.row, rows.len() + 1, "rows are numbered");
            rows.push(row);
            Ok(())
        })
    });
    match visited {
        Ok(scan) => {
            assert_eq!(scan.rows, rows.len());
            Ok(rows)
        }
        Err(error) => Err(error.to_string()),
    }
}

fn parquet() -> Vec<u8> {
    let schema = Arc::new(parse_message_type("message rows { required binary text (UTF8); }").unwrap());
    let mut bytes = Vec::new();
    let mut writer = SerializedFileWriter::new(&mut bytes, schema, Arc::new(WriterProperties::default())).unwrap();
    let mut group = writer.next_row_group().unwrap();
    let mut column = group.next_column().unwrap().unwrap();
    let values: Vec<ByteArray> = (0..40).map(|row| ByteArray::from(format!("row {row}").as_str())).collect();
    column.typed::<ByteArrayType>().write_batch(&values, None, None).unwrap();
    column.close().unwrap();
    group.close().unwrap();
    writer.close().unwrap();
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_are_rows_or_refused_by_name(bytes in vec(any::<u8>(), 0..400), csv in any::<bool>()) {
        let name = if csv { "a.csv" } else { "a.jsonl" };
        if let Err(sentence) = read(name, &bytes) {
            prop_assert!(sentence.contains(name), "{sentence}");
        }
    }

    #[test]
    fn csv_values_come_back(values in vec(("[^\0]{0,30}", "[^\0]{0,30}"), 1..8)) {
        let mut writer = csv::Writer::from_writer(Vec::new());
        writer.write_record(["a", "b"]).unwrap();
        for (a, b) in &values {
            writer.write_record([a, b]).unwrap();
        }
        let rows = read("a.csv", &writer.into_inner().unwrap()).unwrap();
        let found: Vec<_> = rows.iter().map(|row| (row["a"].as_str().unwrap(), row["b"].as_str().unwrap())).collect();
        let expected: Vec<_> = values.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
        prop_assert_eq!(found, expected);
    }

    #[test]
    fn a_damaged_parquet_file_is_rows_or_refused(changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..12), cut in 0usize..40) {
        let mut bytes = parquet();
        for (at, value) in &changes {
            let at = at.index(bytes.len());
            bytes[at] = *value;
        }
        bytes.truncate(bytes.len().saturating_sub(cut));
        if let Err(sentence) = read("a.parquet", &bytes) {
            prop_assert!(sentence.contains("a.parquet"), "{sentence}");
        }
    }

    #[test]
    fn any_template_renders_or_says_why(source in "[{}%| a-z0-9._'\"()\\[\\]+*-]{0,60}", value in ".{0,20}") {
        let row = json!({ "a": value, "b": 1 });
        if let Ok(template) = RowTemplate::new("prompt template", &source) {
            let _ = template.render(row.as_object().unwrap());
        }
    }
}

#[test]
fn a_template_that_does_not_end_is_stopped() {
    let loops = "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}x{% endfor %}{% endfor %}{% endfor %}";
    let template = RowTemplate::new("prompt template", loops).unwrap();
    let error = template.render(&Row::new()).unwrap_err().to_string();
    assert!(error.contains("prompt template"), "{error}");
}
