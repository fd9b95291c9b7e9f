//! `firn template`: chat rows through a checkpoint's own template.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;

use anyhow::{Context, Result};
use firn_llm::tokenizer::{Message, Tokenizer};
use serde::Deserialize;

/// Renders chat rows with a checkpoint's own template: a JSON line in, a JSON line out.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  echo '{\"messages\":[{\"role\":\"user\",\"content\":\"Hello\"}],\"add_generation_prompt\":true}' > rows.jsonl\n  firn template --model base --input rows.jsonl"
)]
pub(crate) struct TemplateArgs {
    /// Checkpoint folder.
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// JSON lines {"messages": [{"role","content"}], "add_generation_prompt": bool}.
    #[arg(long, value_name = "FILE")]
    input: PathBuf,
}

#[derive(Deserialize)]
struct Row {
    messages: Vec<Message>,
    #[serde(default)]
    add_generation_prompt: bool,
}

/// Runs the command.
pub(crate) fn run(args: &TemplateArgs) -> Result<()> {
    let tokenizer = Tokenizer::from_dir(&args.model)?;
    each_line(&args.input, |row: Row| {
        println!("{}", serde_json::to_string(&tokenizer.render(&row.messages, row.add_generation_prompt)?)?);
        Ok(())
    })
}

/// Calls `work` with every line of a JSONL file; an error names the file and the line.
pub(crate) fn each_line<T: for<'a> Deserialize<'a>>(
    path: &PathBuf,
    mut work: impl FnMut(T) -> Result<()>,
) -> Result<()> {
    let file = std::fs::File::open(path).with_context(|| format!("failed to open {}", path.display()))?;
    for (index, line) in BufReader::new(file).lines().enumerate() {
        let place = || format!("{} line {}", path.display(), index + 1);
        let line = line.with_context(place)?;
        if !line.trim().is_empty() {
            work(serde_json::from_str(&line).with_context(place)?).with_context(place)?;
        }
    }
    Ok(())
}
