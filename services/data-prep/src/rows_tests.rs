use std::fs;

use super::*;

/// A file's rows.
pub(crate) struct Table {
    pub(crate) columns: Vec<String>,
    pub(crate) rows: Vec<Row>,
    pub(crate) sha256: String,
}

pub(crate) fn read(path: &Path, limits: &Limits) -> Result<Table, RowsError> {
    let mut rows = Vec::new();
    let scan = Files::find(path)?.visit(limits, &mut |_, row| {
        rows.push(row);
        Ok(())
    })?;
    Ok(Table { columns: scan.columns, rows, sha256: scan.sha256 })
}

pub(crate) fn hash_file(path: &Path, limits: &Limits) -> Result<String, RowsError> {
    Files::find(path)?.hash(limits)
}

fn file(name: &str, bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    fs::write(&path, bytes).unwrap();
    (dir, path)
}

fn read_all(name: &str, bytes: &[u8]) -> Result<Table, RowsError> {
    let (_dir, path) = file(name, bytes);
    read(&path, &Limits::default())
}

fn refusal(name: &str, bytes: &[u8]) -> String {
    read_all(name, bytes).err().unwrap().to_string()
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
    assert_eq!(read(&path, &Limits::default()).unwrap().sha256, expected);
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
    assert!(read(&path, &rows).err().unwrap().to_string().contains("more than 2 rows"));
    let bytes = Limits { max_source_bytes: 7, ..Limits::default() };
    assert!(read(&path, &bytes).err().unwrap().to_string().contains("more than 7 bytes"));
    assert!(hash_file(&path, &bytes).unwrap_err().to_string().contains("more than 7 bytes"));
    let stop = &mut |place: Place<'_>, _: Row| Err(RowsError::Stopped { file: place.file.to_owned() });
    let stopped = Files::find(&path).unwrap().visit(&Limits::default(), stop);
    assert!(matches!(stopped, Err(RowsError::Stopped { .. })));
}

#[test]
fn a_long_row_is_refused_before_it_is_held() {
    let limits = Limits { max_row_bytes: 20_000, ..Limits::default() };
    let long = "x".repeat(60_000);
    for (name, text) in [("a.csv", format!("A\n1\n{long}\n")), ("a.jsonl", format!("{{}}\n{{\"a\":\"{long}\"}}\n"))] {
        let (_dir, path) = file(name, text.as_bytes());
        let error = read(&path, &limits).err().unwrap().to_string();
        assert!(error.starts_with(&format!("row 2 of {name} (line ")), "{error}");
        assert!(error.contains("more than 20000 bytes"), "{error}");
        assert_eq!(read(&path, &Limits::default()).unwrap().rows.len(), 2);
    }
}

#[test]
fn a_folder_is_its_files_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let put = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
    assert!(matches!(Files::find(dir.path()), Err(RowsError::NoFile { .. })));
    put("b.csv", "A,B\n3,4\n");
    put("a.csv", "A,B\n1,2\n");
    put(".hidden.csv", "X\n1\n");
    put("notes.txt", "x");
    let table = read(dir.path(), &Limits::default()).unwrap();
    assert_eq!((table.rows.len(), table.rows[0]["A"].as_str()), (2, Some("1")));
    assert_eq!(table.sha256, hash_file(dir.path(), &Limits::default()).unwrap());
    assert_eq!(columns(dir.path()), ["A", "B"]);
    put("c.csv", "A,C\n5,6\n");
    let error = read(dir.path(), &Limits::default()).err().unwrap().to_string();
    assert_eq!(error, "the columns of c.csv are A, C, but those of a.csv are A, B");
    put("d.jsonl", "{}\n");
    assert!(Files::find(dir.path()).unwrap_err().to_string().contains("a.csv and d.jsonl"));
}
