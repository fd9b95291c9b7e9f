//! Bad input: one sentence that names it, and a failure's exit status.

use std::net::TcpListener;
use std::path::Path;

use firn_tests::{Work, binary, firn, workspace};

/// Runs `firn` and expects a failure whose message holds all of these.
fn refused(folder: &Path, args: &[&str], names: &[&str]) {
    let output = firn(folder, args).unwrap();
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success(), "{args:?} succeeded");
    for name in names {
        assert!(message.contains(name), "{args:?}: {name:?} is not in {message:?}");
    }
    let sentence = message.lines().filter(|line| line.starts_with("error: ")).count();
    assert_eq!(sentence, 1, "{args:?}: {message:?}");
    assert!(!message.contains("panicked"), "{message}");
}

fn train<'a>(extra: &[&'a str]) -> Vec<&'a str> {
    [&["llm", "--train", "--project-name", "out"], extra].concat()
}

#[test]
fn rows() {
    let dir = Work::new().unwrap();
    let write = |name: &str, text: &[u8]| std::fs::write(dir.path().join(name), text).unwrap();
    write("rows.csv", b"text\nGood morning\n");
    write("empty.csv", b"");
    write("header.csv", b"text\n");
    write("broken.csv", b"text,other\nGood morning,1\nGood evening\n");
    write("broken.jsonl", b"{\"text\":\"Good morning\"}\n{\"text\":\n");
    write("bytes.csv", b"text\n\xff\xfe\n");
    write("rows.xlsx", b"PK");
    for (file, names) in [
        ("empty.csv", vec!["empty.csv"]),
        ("header.csv", vec!["header.csv"]),
        ("broken.csv", vec!["broken.csv", "2"]),
        ("broken.jsonl", vec!["broken.jsonl", "2"]),
        ("bytes.csv", vec!["bytes.csv"]),
        ("rows.xlsx", vec!["rows.xlsx"]),
        ("missing.csv", vec!["missing.csv"]),
    ] {
        refused(dir.path(), &train(&["--data-path", file]), &names);
    }
    refused(dir.path(), &train(&["--data-path", "rows.csv", "--text-column", "body"]), &["body", "rows.csv", "text"]);
    let templates = ["--prompt-template", "{{ NAME }}", "--completion-template", "{{ text }}"];
    refused(dir.path(), &train(&[&["--data-path", "rows.csv"], &templates[..]].concat()), &["NAME"]);
}

#[test]
fn bases() {
    let dir = Work::new().unwrap();
    std::fs::write(dir.path().join("rows.csv"), "text\nGood morning\n").unwrap();
    let base = dir.path().join("base");
    std::fs::create_dir(&base).unwrap();
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(workspace().join("tests/fixtures/llama").join(file), base.join(file)).unwrap();
    }
    refused(dir.path(), &train(&["--data-path", "rows.csv", "--model", "base"]), &["base", "tokenizer.json"]);
    refused(dir.path(), &train(&["--data-path", "rows.csv", "--model", "no/where"]), &["no/where"]);
}

#[test]
fn flags() {
    let dir = Work::new().unwrap();
    std::fs::write(dir.path().join("rows.csv"), "text\nGood morning\n").unwrap();
    refused(dir.path(), &train(&["--data-path", "rows.csv", "--push-to-hub"]), &["--push-to-hub"]);
    refused(dir.path(), &train(&["--data-path", "rows.csv", "--nonsense"]), &["--nonsense"]);
    refused(dir.path(), &["score", "--model", "x", "--input", "y", "--device", "tpu"], &["tpu", "cpu"]);
}

#[test]
fn stages_and_ports() {
    let dir = Work::new().unwrap();
    std::fs::write(dir.path().join("file"), "").unwrap();
    refused(dir.path(), &["up", "--stage", "file"], &["file"]);
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    refused(dir.path(), &["up", "--stage", "stage", "--http", &address], &[&address]);
    let output = std::process::Command::new(binary("firn-model-registry").unwrap())
        .args(["--stage", "stage", "--listen", &address])
        .current_dir(dir.path())
        .output()
        .unwrap();
    assert!(!output.status.success());
    assert!(String::from_utf8(output.stderr).unwrap().contains(&address));
}
