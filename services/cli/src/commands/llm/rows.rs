//! Which rows are meant, and what their columns are for.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use firn_proto::dataprep::v1::row_format::Format;
use firn_proto::dataprep::v1::{MessagesFormat, PreferenceFormat, PromptFormat, TextFormat, TokensFormat};

use super::args::RowArgs;

/// The rows that are meant, as an absolute path.
pub(crate) fn source(args: &RowArgs) -> Result<PathBuf> {
    let path = args.data_path.as_ref().context("--data-path is missing: a CSV, JSONL or Parquet file, or a folder")?;
    data_file(path, &args.train_split)
}

/// The rows that are meant: a file; a folder's file of that name; or, without one, the folder with all
/// its files of rows.
fn data_file(path: &Path, split: &str) -> Result<PathBuf> {
    let found =
        if path.is_dir() { split_file(path, split).unwrap_or_else(|| path.to_path_buf()) } else { path.to_path_buf() };
    let found = found.canonicalize().with_context(|| format!("failed to open {}", found.display()))?;
    ensure!(
        !found.is_dir() || !firn_data_prep::columns(&found).is_empty(),
        "{} holds neither {split}.csv, {split}.jsonl nor {split}.parquet, and no other rows: name the file, or --train-split",
        path.display()
    );
    Ok(found)
}

/// The file of --valid-split, as an absolute path; empty without.
pub(crate) fn held_out_source(args: &RowArgs) -> Result<String> {
    match (&args.valid_split, &args.data_path) {
        (Some(split), Some(path)) => valid_source(path, split),
        _ => Ok(String::new()),
    }
}

fn valid_source(path: &Path, split: &str) -> Result<String> {
    let folder = if path.is_dir() { path } else { path.parent().unwrap_or(path) };
    let file = split_file(folder, split).with_context(|| {
        format!("--valid-split: {} holds neither {split}.csv, {split}.jsonl nor {split}.parquet", folder.display())
    })?;
    let file = file.canonicalize().with_context(|| format!("failed to open {}", file.display()))?;
    Ok(file.to_str().context("the path of the validation rows is no UTF-8")?.to_owned())
}

fn split_file(folder: &Path, split: &str) -> Option<PathBuf> {
    let names = ["csv", "jsonl", "parquet"].map(|ending| folder.join(format!("{split}.{ending}")));
    names.into_iter().find(|file| file.is_file())
}

/// How a row becomes tokens.
pub(crate) fn format(args: &RowArgs, pairs: bool, source: &Path) -> Result<Format> {
    let format = chosen_format(args, pairs, source);
    ensure!(
        args.system.is_empty() || matches!(format, Format::Prompt(_)),
        "--system needs a prompt to stand before: give --prompt-template, or leave it out"
    );
    Ok(format)
}

/// As the flags say, else as the columns' names do.
fn chosen_format(args: &RowArgs, pairs: bool, source: &Path) -> Format {
    if let (Some(prompt), Some(completion)) = (&args.prompt_template, &args.completion_template) {
        return prompt_format(&prompt.replace("\\n", "\n"), &completion.replace("\\n", "\n"), &args.system);
    }
    let columns = firn_data_prep::columns(source);
    let has = |name: &str| columns.iter().any(|column| column == name);
    if pairs {
        if has("prompt_ids") {
            return Format::Tokens(TokensFormat { pairs: true });
        }
        let default = if has("chosen") { "chosen" } else { "text" };
        return Format::Preference(PreferenceFormat {
            prompt: args.prompt_text_column.clone(),
            chosen: args.text_column.clone().unwrap_or_else(|| default.to_owned()),
            rejected: args.rejected_text_column.clone(),
        });
    }
    match &args.text_column {
        Some(column) => Format::Text(TextFormat { column: column.clone() }),
        None if has("text") => Format::Text(TextFormat { column: "text".to_owned() }),
        None if has("input_ids") => Format::Tokens(TokensFormat { pairs: false }),
        None if has("messages") => Format::Messages(MessagesFormat { column: "messages".to_owned() }),
        None if has("prompt") && has("completion") => prompt_format("{{ prompt }}", "{{ completion }}", &args.system),
        // Data-prep says what the file has instead.
        None => Format::Text(TextFormat { column: "text".to_owned() }),
    }
}

fn prompt_format(prompt: &str, completion: &str, system: &str) -> Format {
    Format::Prompt(PromptFormat {
        prompt_template: prompt.to_owned(),
        completion_template: completion.to_owned(),
        system: system.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use clap::Parser;
    use firn_proto::dataprep::v1::row_format::Format;

    use super::super::args::LlmArgs;
    use super::{data_file, format};

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: LlmArgs,
    }

    fn chosen(flags: &[&str], name: &str, text: &str) -> Format {
        told(flags, name, text).unwrap_or_else(|error| panic!("{error}"))
    }

    fn told(flags: &[&str], name: &str, text: &str) -> anyhow::Result<Format> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join(name);
        std::fs::write(&file, text).unwrap();
        let always = ["llm", "--train", "--project-name", "x", "--data-path", "y"];
        let cli = Cli::try_parse_from(always.iter().chain(flags)).unwrap_or_else(|error| panic!("{error}"));
        format(&cli.args.rows, cli.args.trainer.is_preference(), &file)
    }

    #[test]
    fn a_system_message_without_a_prompt_is_refused() {
        let system = ["--system", "Be brief."];
        assert!(
            matches!(chosen(&system, "a.csv", "prompt,completion\n"), Format::Prompt(p) if p.system == "Be brief.")
        );
        for header in ["text\n", "text,prompt,completion\n", "prompt,chosen,rejected\n"] {
            let error = told(&system, "a.csv", header).unwrap_err().to_string();
            assert!(error.contains("--system"), "{header}: {error}");
        }
    }

    #[test]
    fn a_chat_template_is_the_bases_own_or_one_that_comes_along() {
        let named = |flags: &[&str]| {
            let always = ["llm", "--train", "--project-name", "x", "--data-path", "y"];
            let cli = Cli::try_parse_from(always.iter().chain(flags)).map_err(|error| error.to_string())?;
            Ok::<_, String>(cli.args.rows.template_name())
        };
        assert_eq!(named(&[]).unwrap(), "");
        for (given, name) in [("tokenizer", ""), ("none", ""), ("chatml", "chatml"), ("Zephyr", "zephyr")] {
            assert_eq!(named(&["--chat-template", given]).unwrap(), name);
        }
        let error = named(&["--chat-template", "alpaca"]).unwrap_err();
        assert!(error.contains("tokenizer, chatml, zephyr") && error.contains("chat_template.jinja"), "{error}");
    }

    #[test]
    fn a_folder_without_the_split_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let error = data_file(dir.path(), "train").unwrap_err().to_string();
        assert!(error.contains("train.csv") && error.contains("--train-split"), "{error}");
        std::fs::write(dir.path().join("train.jsonl"), "{}").unwrap();
        assert!(data_file(dir.path(), "train").unwrap().ends_with("train.jsonl"));
        assert!(data_file(Path::new("/none/at/all.csv"), "train").unwrap_err().to_string().contains("all.csv"));
    }

    #[test]
    fn columns_say_what_rows_are() {
        assert!(matches!(chosen(&[], "a.csv", "text,input_ids\n"), Format::Text(_)));
        assert!(matches!(chosen(&[], "a.jsonl", "\n{\"input_ids\":[],\"labels\":[]}"), Format::Tokens(t) if !t.pairs));
        assert!(matches!(chosen(&[], "a.jsonl", "{\"messages\":[]}"), Format::Messages(_)));
        assert!(matches!(chosen(&[], "a.csv", "prompt,completion\n"), Format::Prompt(_)));
        assert!(matches!(chosen(&["--text-column", "b"], "a.csv", "text,b\n"), Format::Text(t) if t.column == "b"));
        let dpo = ["--trainer", "dpo"];
        assert!(matches!(chosen(&dpo, "a.jsonl", "{\"prompt_ids\":[]}"), Format::Tokens(t) if t.pairs));
        assert!(
            matches!(chosen(&dpo, "a.csv", "prompt,chosen,rejected\n"), Format::Preference(p) if p.chosen == "chosen")
        );
        assert!(matches!(chosen(&dpo, "a.csv", "prompt,text,rejected\n"), Format::Preference(p) if p.chosen == "text"));
    }
}
