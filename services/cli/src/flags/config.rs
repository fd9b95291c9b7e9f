//! `--config FILE`: AutoTrain's YAML, as flags.

use std::path::Path;

use serde_json::{Map, Value};

/// Largest configuration in bytes.
const LARGEST: u64 = 1 << 20;
/// Sections and the fields that they may have; those of `params` are flags by name.
const TOP: [&str; 8] = ["task", "base_model", "project_name", "log", "backend", "data", "params", "hub"];
const DATA: [&str; 5] = ["path", "train_split", "valid_split", "chat_template", "column_mapping"];
const COLUMNS: [&str; 3] = ["text_column", "prompt_text_column", "rejected_text_column"];

/// What a file says.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Configured {
    pub(super) args: Vec<String>,
    pub(super) notes: Vec<String>,
}

/// Reads a file; `variable` gives the value of `${NAME}`.
pub(super) fn flags(file: &Path, variable: impl Fn(&str) -> Option<String>) -> Result<Configured, String> {
    let named = |reason: String| format!("--config {}: {reason}", file.display());
    let size = std::fs::metadata(file).map_err(|error| named(error.to_string()))?.len();
    if size > LARGEST {
        return Err(named(format!("it has {size} bytes, more than {LARGEST}")));
    }
    let text = std::fs::read_to_string(file).map_err(|error| named(error.to_string()))?;
    let value: Value = serde_saphyr::from_str(&text).map_err(|error| named(error.to_string()))?;
    let Value::Object(top) = value else { return Err(named("it must be a mapping: task, base_model, …".to_owned())) };
    let mut configured = Configured { args: vec!["--train".to_owned()], notes: Vec::new() };
    read(&top, &variable, &mut configured).map_err(named)?;
    Ok(configured)
}

fn read(
    top: &Map<String, Value>,
    variable: &impl Fn(&str) -> Option<String>,
    out: &mut Configured,
) -> Result<(), String> {
    known("", top, &TOP)?;
    let section = |name: &str| match top.get(name) {
        None | Some(Value::Null) => Ok(Map::new()),
        Some(Value::Object(section)) => Ok(section.clone()),
        Some(_) => Err(format!("{name} must be a mapping")),
    };
    let mut put = |flag: &str, field: &str, value: Option<&Value>| put(flag, field, value, variable, &mut out.args);
    if let Some(task) = top.get("task") {
        let task = task.as_str().unwrap_or_default();
        let trainer = match task {
            "llm" | "llm-sft" => "sft",
            "llm-generic" | "llm-default" => "default",
            "llm-dpo" => "dpo",
            "llm-orpo" => "orpo",
            "llm-reward" => "reward",
            _ => return Err(format!("task {task:?} must be llm-sft, llm-generic, llm-dpo, llm-orpo or llm-reward")),
        };
        put("trainer", "task", Some(&trainer.into()))?;
    }
    put("model", "base_model", top.get("base_model"))?;
    put("project-name", "project_name", top.get("project_name"))?;
    put("log", "log", top.get("log"))?;
    put("backend", "backend", top.get("backend"))?;
    let data = section("data")?;
    known("data.", &data, &DATA)?;
    for (flag, field) in [
        ("data-path", "path"),
        ("train-split", "train_split"),
        ("valid-split", "valid_split"),
        ("chat-template", "chat_template"),
    ] {
        put(flag, &format!("data.{field}"), data.get(field))?;
    }
    if let Some(columns) = data.get("column_mapping") {
        let columns = columns.as_object().ok_or("data.column_mapping must be a mapping")?;
        known("data.column_mapping.", columns, &COLUMNS)?;
        for (name, column) in columns {
            put(&name.replace('_', "-"), &format!("data.column_mapping.{name}"), Some(column))?;
        }
    }
    for (name, value) in &section("params")? {
        put(&name.replace('_', "-"), &format!("params.{name}"), Some(value))?;
    }
    let hub = section("hub")?;
    known("hub.", &hub, &["username", "token", "push_to_hub"])?;
    if hub.get("push_to_hub").and_then(Value::as_bool) == Some(true) {
        return Err("hub.push_to_hub: nothing is sent to a hub; copy the result folder yourself".to_owned());
    }
    if hub.contains_key("token") {
        out.notes.push("hub.token of the configuration is not read: HF_TOKEN in the environment is".to_owned());
    }
    Ok(())
}

fn known(section: &str, fields: &Map<String, Value>, known: &[&str]) -> Result<(), String> {
    match fields.keys().find(|field| !known.contains(&field.as_str())) {
        Some(field) => Err(format!("{section}{field} is not known: there is {}", known.join(", "))),
        None => Ok(()),
    }
}

/// Adds a flag for a field that is set.
fn put(
    flag: &str,
    field: &str,
    value: Option<&Value>,
    variable: &impl Fn(&str) -> Option<String>,
    args: &mut Vec<String>,
) -> Result<(), String> {
    let text = match value {
        None | Some(Value::Null | Value::Bool(false)) => return Ok(()),
        Some(Value::Bool(true)) => {
            args.push(format!("--{flag}"));
            return Ok(());
        }
        Some(Value::String(text)) => substituted(field, text, variable)?,
        Some(Value::Number(number)) => number.to_string(),
        Some(Value::Array(items)) => items
            .iter()
            .map(|item| item.as_str().map_or_else(|| item.to_string(), str::to_owned))
            .collect::<Vec<_>>()
            .join(","),
        Some(Value::Object(_)) => return Err(format!("{field} must be a value, not a mapping")),
    };
    // Joined, so that a value that begins with a hyphen is one.
    args.push(format!("--{flag}={text}"));
    Ok(())
}

/// The text with `${NAME}` replaced.
fn substituted(field: &str, text: &str, variable: &impl Fn(&str) -> Option<String>) -> Result<String, String> {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("${") {
        let (name, after) = after.split_once('}').ok_or_else(|| format!("{field} has ${{ without }}"))?;
        let value = variable(name).ok_or_else(|| format!("{field} needs the environment variable {name}"))?;
        out.push_str(before);
        out.push_str(&value);
        rest = after;
    }
    out.push_str(rest);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::{Configured, flags};

    fn read(text: &str) -> Result<Configured, String> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("run.yml");
        std::fs::write(&file, text).unwrap();
        flags(&file, |name| (name == "WHERE").then(|| "rows".to_owned()))
    }

    #[test]
    fn autotrains_shape_becomes_flags() {
        let text = "task: llm-orpo\nbase_model: org/name\nproject_name: out\nlog: none\nbackend: local\n\
                    data:\n  path: ${WHERE}/a\n  train_split: train\n  valid_split: null\n  chat_template: tokenizer\n  \
                    column_mapping:\n    text_column: chosen\n    rejected_text_column: rejected\n\
                    params:\n  block_size: 1024\n  lr: 3e-5\n  peft: true\n  merge_adapter: false\n  target_modules: [q_proj, v_proj]\n\
                    hub:\n  username: ${HF_USERNAME}\n  token: ${HF_TOKEN}\n  push_to_hub: false\n";
        let found = read(text).unwrap();
        let expected = [
            "--train",
            "--trainer=orpo",
            "--model=org/name",
            "--project-name=out",
            "--log=none",
            "--backend=local",
            "--data-path=rows/a",
            "--train-split=train",
            "--chat-template=tokenizer",
            "--text-column=chosen",
            "--rejected-text-column=rejected",
            "--block-size=1024",
            "--lr=0.00003",
            "--peft",
            "--target-modules=q_proj,v_proj",
        ];
        let number = |flag: &String| flag.strip_prefix("--lr=").map(|value| value.parse::<f64>().unwrap());
        assert_eq!(found.args.iter().find_map(number), Some(3e-5));
        assert_eq!(found.args.len(), expected.len());
        assert!(
            expected.iter().all(|flag| flag.starts_with("--lr") || found.args.iter().any(|arg| arg == flag)),
            "{found:?}"
        );
        assert!(found.notes[0].contains("HF_TOKEN"), "the token is told of, not taken: {:?}", found.notes);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, part) in [
            ("task: image-classification", "task \"image-classification\""),
            ("tusk: llm", "tusk is not known"),
            ("data:\n  pfad: x", "data.pfad is not known"),
            ("data: rows", "data must be a mapping"),
            ("params:\n  lr: {a: 1}", "params.lr must be a value"),
            ("base_model: ${NOWHERE}", "base_model needs the environment variable NOWHERE"),
            ("hub:\n  push_to_hub: true", "hub.push_to_hub"),
            ("- a", "must be a mapping"),
            ("a: [", "run.yml"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(part) && error.contains("--config"), "{error}");
        }
    }
}
