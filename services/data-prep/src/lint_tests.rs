use std::{fs, path::PathBuf};

use firn_proto::dataprep::v1::{MessagesFormat, PromptFormat, RowFormat, TextFormat, TokensFormat, row_format::Format};

use super::*;

const LLAMA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/llama");

struct Rows {
    dir: tempfile::TempDir,
    request: CreateSnapshotRequest,
}

impl Rows {
    fn new(name: &str, text: &str, format: Format) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(name), text).unwrap();
        let request = CreateSnapshotRequest {
            dataset: "rows".to_owned(),
            source: dir.path().join(name).display().to_string(),
            base: LLAMA.to_owned(),
            format: Some(RowFormat { format: Some(format) }),
            ..CreateSnapshotRequest::default()
        };
        Self { dir, request }
    }

    fn beside(&self, name: &str, text: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        fs::write(&path, text).unwrap();
        path
    }

    fn lint(&self) -> LintReport {
        lint(self.request.clone(), None, &AtomicBool::new(false)).unwrap()
    }
}

fn text() -> Format {
    Format::Text(TextFormat { column: "text".to_owned() })
}

fn finding<'a>(report: &'a LintReport, code: &str) -> &'a Finding {
    report.findings.iter().find(|finding| finding.code == code).unwrap_or_else(|| panic!("no {code} in {report:?}"))
}

fn rows_of(report: &LintReport, code: &str) -> Vec<u64> {
    finding(report, code).examples.iter().map(|example| example.row).collect()
}

#[test]
fn good_rows_have_no_findings() {
    let report = Rows::new("a.csv", "text\nGood morning\nGood night\n", text()).lint();
    assert_eq!(report.findings, []);
    assert_eq!((report.rows, report.train_rows, report.held_out_rows), (2, 2, 0));
    assert!(report.train_tokens > 4 && report.tokens.min > 1 && report.tokens.max >= report.tokens.median);
}

#[test]
fn bad_rows_are_named_and_passed_over() {
    let report = Rows::new("a.csv", "text,x\nGood morning,1\n,2\nGood night,3\n", text()).lint();
    let refused = finding(&report, "row-refused");
    assert_eq!((refused.severity, refused.count, refused.examples[0].row), (Severity::Error, 1, 2));
    assert_eq!(
        (refused.examples[0].file.as_str(), refused.examples[0].detail.as_str()),
        ("a.csv", "column text is empty")
    );
    assert_eq!((report.rows, report.train_rows), (3, 2));
}

#[test]
fn duplicates_and_leaks_are_told_apart() {
    let mut rows = Rows::new("a.csv", "text\nGood morning\nGood night\nGood morning\nGood day\n", text());
    rows.request.held_out_source = rows.beside("valid.csv", "text\nGood day\nGood evening\n").display().to_string();
    let report = rows.lint();
    assert_eq!(rows_of(&report, "duplicate"), [1, 3]);
    assert_eq!(rows_of(&report, "leakage"), [4]);
    assert_eq!((report.train_rows, report.held_out_rows), (3, 2));
    rows.request.held_out_source = rows.request.source.clone();
    let error = lint(rows.request.clone(), None, &AtomicBool::new(false)).unwrap_err().to_string();
    assert!(error.starts_with("all rows of a.csv stand in the validation file"), "{error}");
}

#[test]
fn cut_rows_and_silent_ones_are_told() {
    let long = "Good morning ".repeat(40);
    let mut rows = Rows::new("a.csv", &format!("text\n{long}\nGood night\n"), text());
    rows.request.max_tokens = 20;
    assert_eq!(rows_of(&rows.lint(), "truncated"), [1]);
    let format = Format::Tokens(TokensFormat { pairs: false });
    let lines = "{\"input_ids\":[5,6],\"labels\":[-100,-100]}\n{\"input_ids\":[5,6],\"labels\":[-100,6]}\n\
                 {\"input_ids\":[5,999999],\"labels\":[-100,999999]}\n";
    let report = Rows::new("a.jsonl", lines, format).lint();
    assert_eq!(rows_of(&report, "nothing-learnt"), [1]);
    assert_eq!(rows_of(&report, "unknown-token-id"), [3]);
    assert_eq!(report.findings[0].severity, Severity::Error, "errors come first");
}

#[test]
fn special_tokens_are_found_where_they_would_be_doubled() {
    let tokenizer = firn_llm::tokenizer::Tokenizer::from_dir(Path::new(LLAMA)).unwrap();
    let bos = tokenizer.decode(&[tokenizer.bos_id().unwrap()], false).unwrap();
    let report = Rows::new("a.csv", &format!("text\n{bos}Good morning\nGood night\n"), text()).lint();
    assert_eq!(rows_of(&report, "doubled-special-token"), [1]);
    let template = |text: &str| text.to_owned();
    let prompt = Format::Prompt(PromptFormat {
        prompt_template: template("{{ q }}"),
        completion_template: template("{{ a }}"),
        system: String::new(),
    });
    let report = Rows::new("a.csv", &format!("q,a\nWhat?,{bos}That\nWhat?, \nWhat?,This\n"), prompt).lint();
    assert_eq!(rows_of(&report, "special-token-inside"), [1]);
    assert_eq!(rows_of(&report, "empty-completion"), [2]);
}

#[test]
fn chats_with_two_turns_of_a_role_are_told() {
    let chat = |roles: [&str; 3]| {
        let turns: Vec<_> =
            roles.iter().map(|role| serde_json::json!({ "role": role, "content": "Good morning" })).collect();
        serde_json::json!({ "messages": turns }).to_string()
    };
    let lines = format!("{}\n{}\n", chat(["user", "user", "assistant"]), chat(["system", "user", "assistant"]));
    let report =
        Rows::new("a.jsonl", &lines, Format::Messages(MessagesFormat { column: "messages".to_owned() })).lint();
    assert_eq!(rows_of(&report, "roles-repeat"), [1]);
}

#[test]
fn a_stop_ends_it() {
    let many: String = (0..3_000).map(|row| format!("Good morning {row}\n")).collect();
    let rows = Rows::new("a.csv", &format!("text\n{many}"), text());
    let error = lint(rows.request.clone(), None, &AtomicBool::new(true)).unwrap_err().to_string();
    assert!(error.contains("stopped"), "{error}");
}

#[test]
fn the_spread_is_of_sorted_rows() {
    let lengths = (1..=100).map(|length| (length, 1)).collect();
    assert_eq!(spread(&lengths), Spread { min: 1, median: 50, p95: 95, max: 100 });
    assert_eq!(spread(&BTreeMap::new()), Spread::default());
}
