//! Snapshots of the same rows keep their bytes and ids from version to version: hashes of all files, as they were first
//! recorded. `UPDATE_SNAPSHOTS=1 cargo test -p firn-data-prep` records them anew, after a change that is meant.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use parquet::{
    data_type::{ByteArray, ByteArrayType, Int64Type},
    file::{properties::WriterProperties, writer::SerializedFileWriter},
    schema::parser::parse_message_type,
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::*;
use crate::plan::Request;

const RECORD: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/unchanged.txt");
const ROWS: usize = 1_500;

/// Deterministic draws: the record must not depend on a crate's generator.
struct Draw(u64);

impl Draw {
    fn next(&mut self, below: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % below
    }

    fn text(&mut self, words: usize) -> String {
        const PIECES: [&str; 32] = [
            "harbour",
            " the",
            " Lantern's",
            "don't",
            " 1234",
            " 7",
            ".",
            ",\n",
            "  ",
            "\t",
            " “quoted”",
            " naïve",
            " Ümlaut",
            " 日本語",
            " Привет",
            " 😀🏽",
            "\u{a0}",
            " e\u{301}t\u{e9}",
            "\r\n\r\n",
            "   \n  x",
            " I'LL",
            "'ſ",
            " ½Ⅷ",
            "<|im_end|>",
            "<|eot_id|>",
            "</s>",
            " a_b-c",
            " {\"k\":[1]}",
            "\u{200d}",
            "ﬁ",
            "\"",
            " ' s",
        ];
        (0..words).map(|_| PIECES[self.next(PIECES.len())]).collect()
    }
}

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(name)
}

/// A base as it is, or one whose template does not mark answers.
fn base(dir: &Path, from: &str, marked: bool) -> String {
    let path = folder(from);
    if marked {
        return path.display().to_string();
    }
    let to = dir.join("base");
    fs::create_dir_all(&to).unwrap();
    for file in ["tokenizer.json", "tokenizer_config.json", "config.json"] {
        fs::copy(path.join(file), to.join(file)).unwrap();
    }
    let template = fs::read_to_string(path.join("chat_template.jinja")).unwrap();
    let bare = template.replace("{% generation %}", "").replace("{% endgeneration %}", "");
    fs::write(to.join("chat_template.jinja"), bare).unwrap();
    to.display().to_string()
}

fn csv(dir: &Path) -> PathBuf {
    let (path, mut draw) = (dir.join("rows.csv"), Draw(1));
    let mut writer = csv::Writer::from_path(&path).unwrap();
    writer.write_record(["NAME", "id", "text", "chosen", "rejected"]).unwrap();
    for row in 0..ROWS {
        let id = row % (ROWS - 20);
        let mut own = Draw(id as u64 + 7);
        let words = 1 + own.next(40);
        let fields = [format!("Fern, {id}"), id.to_string(), format!("x{}", own.text(words)), own.text(6), own.text(7)];
        let filled = |text: String| if text.trim().is_empty() { "none".to_owned() } else { text };
        writer.write_record(fields.map(filled)).unwrap();
        draw.next(2);
    }
    writer.flush().unwrap();
    path
}

fn json_lines(dir: &Path, name: &str, seed: u64, rows: usize) -> PathBuf {
    let (path, mut draw, mut text) = (dir.join(name), Draw(seed), String::new());
    for row in 0..rows {
        let mut turns = Vec::new();
        if draw.next(3) == 0 {
            turns.push(json!({ "role": "system", "content": draw.text(4) }));
        }
        for _ in 0..1 + draw.next(3) {
            let words = draw.next(20);
            turns.push(json!({ "role": "user", "content": draw.text(words) }));
            let words = draw.next(20);
            turns.push(json!({ "role": "assistant", "content": draw.text(words) }));
        }
        let mut line = json!({ "messages": turns, "n": row, "z": { "b": 1.5, "a": [null, true] } });
        if draw.next(4) == 0 {
            line["extra"] = json!(draw.text(2));
        }
        writeln!(text, "{line}").unwrap();
        if draw.next(9) == 0 {
            text.push('\n');
        }
    }
    fs::write(&path, text).unwrap();
    path
}

fn parquet(dir: &Path) -> PathBuf {
    let path = dir.join("rows.parquet");
    let schema = "message rows { required binary NAME (UTF8); optional int64 AMOUNT; required binary TEXT (UTF8); }";
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let file = fs::File::create(&path).unwrap();
    let mut writer = SerializedFileWriter::new(file, schema, Arc::new(WriterProperties::default())).unwrap();
    let mut draw = Draw(5);
    for group in 0..3 {
        let mut out = writer.next_row_group().unwrap();
        let names: Vec<_> = (0..300).map(|row| ByteArray::from(format!("Salt {group} {row}").as_str())).collect();
        let texts: Vec<_> = (0..300).map(|_| ByteArray::from(format!("x{}", draw.text(12)).as_str())).collect();
        let amounts: Vec<i64> = (0..150).collect();
        let levels: Vec<i16> = (0..300).map(|row| row % 2).collect();
        let mut column = out.next_column().unwrap().unwrap();
        column.typed::<ByteArrayType>().write_batch(&names, None, None).unwrap();
        column.close().unwrap();
        let mut column = out.next_column().unwrap().unwrap();
        column.typed::<Int64Type>().write_batch(&amounts, Some(&levels), None).unwrap();
        column.close().unwrap();
        let mut column = out.next_column().unwrap().unwrap();
        column.typed::<ByteArrayType>().write_batch(&texts, None, None).unwrap();
        column.close().unwrap();
        out.close().unwrap();
    }
    writer.close().unwrap();
    path
}

async fn record(out: &mut String, case: &str, request: Request) {
    let plan = Arc::new(Plan::open(request, None, &Limits::default()).unwrap());
    let (limits, stop) = (Limits::default(), CancellationToken::new());
    let (stage, create_time) = (Stage::memory(), "2031-01-01T00:00:00Z".to_owned());
    let (report, path) = make(&stage, Arc::clone(&plan), create_time, limits.clone(), |_| (), &stop).await.unwrap();
    writeln!(out, "{case} id {}", plan.id).unwrap();
    for file in stage.manifest(&path).await.unwrap().files.into_iter().filter(|file| file.path != REPORT) {
        let bytes = stage.get(&format!("{path}/{}", file.path)).await.unwrap();
        writeln!(out, "{case} {} {}", file.path, hex(&Sha256::digest(bytes))).unwrap();
    }
    let digest = |value: Value| hex(&Sha256::digest(value.to_string()));
    writeln!(out, "{case} report {}", digest(serde_json::to_value(&report).unwrap())).unwrap();
    let looked = look(&plan, &limits, |_| (), &stop).unwrap();
    writeln!(out, "{case} lint {}", digest(serde_json::to_value(looked).unwrap())).unwrap();
}

#[tokio::test]
async fn the_bytes_are_those_that_were_recorded() {
    let dir = tempfile::tempdir().unwrap();
    let (csv, parquet) = (csv(dir.path()), parquet(dir.path()));
    let (lines, few) = (json_lines(dir.path(), "rows.jsonl", 3, 900), json_lines(dir.path(), "few.jsonl", 4, 50));
    let prompt = |prompt: &str, completion: &str| FormatSpec::Prompt {
        prompt_template: prompt.to_owned(),
        completion_template: completion.to_owned(),
        system: "Be brief.".to_owned(),
    };
    let column = |name: &str| name.to_owned();
    let messages = FormatSpec::Messages { column: column("messages") };
    let preference =
        FormatSpec::Preference { prompt: column("text"), chosen: column("chosen"), rejected: column("rejected") };
    let text = FormatSpec::Text { column: column("text") };
    let of_csv = prompt("{{ row | tojson }}\n{{ NAME }}", "{{ text }} {{ id }}");
    let of_parquet = prompt("{{ row | tojson }}", "{{ TEXT }} {{ AMOUNT }}");
    let cases = [
        ("prompt-csv", &csv, &of_csv, None),
        ("text-csv", &csv, &text, None),
        ("preference-csv", &csv, &preference, None),
        ("messages-jsonl", &lines, &messages, None),
        ("validation-jsonl", &lines, &messages, Some(&few)),
        ("prompt-parquet", &parquet, &of_parquet, None),
        ("text-parquet", &parquet, &FormatSpec::Text { column: column("TEXT") }, None),
    ];
    let mut found = String::new();
    for (folder, marked) in [("tests/fixtures/llama", true), ("services/cli/base", true), ("services/cli/base", false)]
    {
        let base = base(dir.path(), folder, marked);
        for (case, source, format, validation) in &cases {
            let request = Request {
                dataset: "rows".to_owned(),
                source: source.display().to_string(),
                base: base.clone(),
                format: (*format).clone(),
                held_out_rows: 40,
                held_out_source: validation.map(|path| path.display().to_string()).unwrap_or_default(),
                seed: 7,
                max_tokens: 200,
                chat_template: None,
            };
            record(&mut found, &format!("{folder} {marked} {case}"), request).await;
        }
    }
    if std::env::var_os("UPDATE_SNAPSHOTS").is_some() {
        fs::write(RECORD, &found).unwrap();
    }
    let expected = fs::read_to_string(RECORD).unwrap();
    for (found, expected) in found.lines().zip(expected.lines()) {
        assert_eq!(found, expected);
    }
    assert_eq!(found.lines().count(), expected.lines().count());
}
