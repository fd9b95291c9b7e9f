//! A snapshot's files, as data-prep writes them.

use std::{
    fs::File,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
};

use firn_llm::{config::ModelConfig, tokenizer::Message};
use serde::Deserialize;

pub(crate) use crate::rows::Rows;

/// Why a snapshot cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DatasetError {
    #[error("failed to read {}: {reason}", path.display())]
    File { path: PathBuf, reason: String },
    #[error("the snapshot has no {part}-*.safetensors: prepare it again")]
    NoShard { part: &'static str },
    #[error("{file} is damaged: {reason}")]
    Damaged { file: String, reason: String },
    #[error(
        "row {row} of {file} has {tokens} tokens, but the base's context is {context}: set data.max_tokens to at most \
         {context}"
    )]
    TooLong { file: String, row: usize, tokens: usize, context: usize },
    #[error("row {row} of {file} has the token id {id}, but the base has {vocab} ids: its tokenizer is not its own")]
    UnknownId { file: String, row: usize, id: u32, vocab: usize },
}

/// A held-out row.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct HeldOutRow {
    /// Prompt turns; none for ready-made text.
    pub(crate) messages: Vec<Message>,
    /// The prompt as the model sees it; empty if the row can't be answered.
    pub(crate) prompt_ids: Vec<u32>,
    /// The row's values as text.
    pub(crate) fields: serde_json::Map<String, serde_json::Value>,
}

/// Rows to train on and rows held out.
#[derive(Debug)]
pub(crate) struct Dataset {
    pub(crate) train: Rows,
    pub(crate) held_out: HeldOut,
}

/// The held-out rows: whole, for the loss, and some as questions.
#[derive(Debug)]
pub(crate) struct HeldOut {
    pub(crate) documents: Rows,
    pub(crate) rows: Vec<HeldOutRow>,
}

impl Dataset {
    /// Opens a snapshot's folder on the local disk and checks that the model can take its rows; at most `answered` of the
    /// held-out ones are read as questions. The folder must stay. Blocks.
    pub(crate) fn read(dir: &Path, model: &ModelConfig, pairs: bool, answered: usize) -> Result<Self, DatasetError> {
        let rows = |part| Rows::open(dir, part, model, pairs);
        let (train, held_out) = (rows("train")?, rows("held_out")?);
        let rows = questions(&dir.join("held_out.jsonl"), model.context, answered)?;
        Ok(Self { train, held_out: HeldOut { documents: held_out, rows } })
    }
}

/// The first rows whose prompts leave room for an answer.
fn questions(path: &Path, context: usize, answered: usize) -> Result<Vec<HeldOutRow>, DatasetError> {
    let failed = |reason: String| DatasetError::File { path: path.to_owned(), reason };
    let lines = BufReader::new(File::open(path).map_err(|error| failed(error.to_string()))?).lines();
    let mut rows = Vec::new();
    for line in lines {
        if rows.len() >= answered {
            break;
        }
        let line = line.map_err(|error| failed(error.to_string()))?;
        let row: HeldOutRow = serde_json::from_str(&line)
            .map_err(|error| DatasetError::Damaged { file: "held_out.jsonl".to_owned(), reason: error.to_string() })?;
        if (1..=context).contains(&row.prompt_ids.len()) {
            rows.push(row);
        }
    }
    Ok(rows)
}

#[cfg(test)]
#[path = "dataset_tests.rs"]
pub(crate) mod tests;
