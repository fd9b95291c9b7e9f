//! A snapshot's files, as data-prep writes them.

use std::path::{Path, PathBuf};

use firn_llm::{
    config::ModelConfig,
    tokenizer::Message,
    train::{Document, Pair},
};
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;

/// Why a snapshot cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DatasetError {
    #[error("failed to read {}: {reason}", path.display())]
    File { path: PathBuf, reason: String },
    #[error("{file} is damaged: {reason}")]
    Damaged { file: &'static str, reason: String },
    #[error(
        "row {row} of {file} has {tokens} tokens, but the base's context is {context}: set data.max_tokens to at most \
         {context}"
    )]
    TooLong { file: &'static str, row: usize, tokens: usize, context: usize },
    #[error("row {row} of {file} has the token id {id}, but the base has {vocab} ids: its tokenizer is not its own")]
    UnknownId { file: &'static str, row: usize, id: u32, vocab: usize },
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

/// Rows in tokens: one by one, or as preferences.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Rows {
    Documents(Vec<Document>),
    Pairs(Vec<Pair>),
}

impl Rows {
    /// Pairs lie one after the other, the chosen answer first.
    fn new(documents: Vec<Document>, pairs: bool, file: &'static str) -> Result<Self, DatasetError> {
        if !pairs {
            return Ok(Self::Documents(documents));
        }
        if !documents.len().is_multiple_of(2) {
            let reason = format!("it has {} rows, but preferences come in twos", documents.len());
            return Err(DatasetError::Damaged { file, reason });
        }
        let pair = |pair: &[Document]| Pair { chosen: pair[0].clone(), rejected: pair[1].clone() };
        Ok(Self::Pairs(documents.chunks(2).map(pair).collect()))
    }

    /// Number of rows; a pair is one.
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Documents(documents) => documents.len(),
            Self::Pairs(pairs) => pairs.len(),
        }
    }

    /// Tokens of the longest row.
    pub(crate) fn longest(&self) -> usize {
        match self {
            Self::Documents(documents) => documents.iter().map(|document| document.ids.len()).max().unwrap_or(0),
            Self::Pairs(pairs) => {
                pairs.iter().map(|pair| pair.chosen.ids.len() + pair.rejected.ids.len()).max().unwrap_or(0)
            }
        }
    }
}

/// Rows to train on and rows held out.
#[derive(Debug)]
pub(crate) struct Dataset {
    pub(crate) train: Rows,
    pub(crate) held_out: HeldOut,
}

/// The held-out rows: whole, for the loss, and as questions.
#[derive(Debug)]
pub(crate) struct HeldOut {
    pub(crate) documents: Rows,
    pub(crate) rows: Vec<HeldOutRow>,
}

impl Dataset {
    /// Reads a snapshot's folder on the local disk and checks that the model can take its rows. Blocks.
    pub(crate) fn read(dir: &Path, model: &ModelConfig, pairs: bool) -> Result<Self, DatasetError> {
        let rows = |file| Rows::new(documents(dir, file, model)?, pairs, file);
        let (train, held_out) = (rows("train.safetensors")?, rows("held_out.safetensors")?);
        let lines = read(&dir.join("held_out.jsonl"))?;
        let parse = |line: &[u8]| {
            serde_json::from_slice(line)
                .map_err(|error| DatasetError::Damaged { file: "held_out.jsonl", reason: error.to_string() })
        };
        let lines = lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        let rows = lines.map(parse).collect::<Result<_, _>>()?;
        Ok(Self { train, held_out: HeldOut { documents: held_out, rows } })
    }
}

fn documents(dir: &Path, file: &'static str, model: &ModelConfig) -> Result<Vec<Document>, DatasetError> {
    let damaged = |reason: String| DatasetError::Damaged { file, reason };
    let bytes = read(&dir.join(file))?;
    let tensors = SafeTensors::deserialize(&bytes).map_err(|error| damaged(error.to_string()))?;
    let data = |name: &str, dtype: Dtype| {
        let tensor = tensors.tensor(name).map_err(|error| damaged(error.to_string()))?;
        if tensor.dtype() != dtype {
            return Err(damaged(format!("{name} is {:?}, expected {dtype:?}", tensor.dtype())));
        }
        Ok(tensor.data())
    };
    let ids: Vec<u32> =
        data("input_ids", Dtype::U32)?.as_chunks::<4>().0.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect();
    let mask = data("loss_mask", Dtype::U8)?;
    let offsets: Vec<usize> = data("row_offsets", Dtype::U64)?
        .as_chunks::<8>()
        .0
        .iter()
        .map(|bytes| usize::try_from(u64::from_le_bytes(*bytes)).unwrap_or(usize::MAX))
        .collect();
    let ordered = offsets.is_sorted() && offsets.first() == Some(&0) && offsets.last() == Some(&ids.len());
    if !ordered || mask.len() != ids.len() {
        return Err(damaged("its row_offsets and loss_mask do not fit its input_ids".to_owned()));
    }
    let rows = offsets.windows(2).enumerate().map(|(row, pair)| {
        let range = pair[0]..pair[1];
        if range.len() > model.context {
            let (tokens, context) = (range.len(), model.context);
            return Err(DatasetError::TooLong { file, row: row + 1, tokens, context });
        }
        let ids = &ids[range.clone()];
        if let Some(&id) = ids.iter().find(|id| **id as usize >= model.vocab) {
            return Err(DatasetError::UnknownId { file, row: row + 1, id, vocab: model.vocab });
        }
        Ok(Document { ids: ids.to_vec(), loss_mask: mask[range].to_vec() })
    });
    rows.collect()
}

fn read(path: &Path) -> Result<Vec<u8>, DatasetError> {
    std::fs::read(path).map_err(|error| DatasetError::File { path: path.to_owned(), reason: error.to_string() })
}

#[cfg(test)]
mod tests {
    use safetensors::tensor::TensorView;

    use super::*;

    fn model() -> ModelConfig {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/llama");
        ModelConfig { context: 4, vocab: 100, ..ModelConfig::from_dir(&dir).unwrap() }
    }

    fn write(dir: &Path, file: &str, rows: &[&[u32]], offsets_shift: u64) {
        let ids: Vec<u8> = rows.concat().iter().flat_map(|id| id.to_le_bytes()).collect();
        let count = ids.len() / 4;
        let mask = vec![1; count];
        let mut offsets = vec![0];
        for row in rows {
            offsets.push(offsets.last().unwrap() + row.len() as u64 + offsets_shift);
        }
        let bytes: Vec<u8> = offsets.iter().flat_map(|offset| offset.to_le_bytes()).collect();
        let tensors = [
            ("input_ids", TensorView::new(Dtype::U32, vec![count], &ids).unwrap()),
            ("loss_mask", TensorView::new(Dtype::U8, vec![count], &mask).unwrap()),
            ("row_offsets", TensorView::new(Dtype::U64, vec![offsets.len()], &bytes).unwrap()),
        ];
        std::fs::write(dir.join(file), safetensors::serialize(tensors, None).unwrap()).unwrap();
    }

    #[test]
    fn rows_come_out_as_they_went_in() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "train.safetensors", &[&[1, 2, 3], &[9]], 0);
        write(dir.path(), "held_out.safetensors", &[], 0);
        let line = r#"{"row":7,"sha256":"00","messages":[{"role":"user","content":"hi"}],"prompt_ids":[1,2],"completion":"x","fields":{"A":"$5"}}"#;
        std::fs::write(dir.path().join("held_out.jsonl"), format!("{line}\n")).unwrap();
        let dataset = Dataset::read(dir.path(), &model(), false).unwrap();
        let first = Document { ids: vec![1, 2, 3], loss_mask: vec![1, 1, 1] };
        let second = Document { ids: vec![9], loss_mask: vec![1] };
        assert_eq!(dataset.train, Rows::Documents(vec![first.clone(), second.clone()]));
        assert_eq!(dataset.held_out.documents.len(), 0);
        let pairs = Dataset::read(dir.path(), &model(), true).unwrap();
        assert_eq!(pairs.train, Rows::Pairs(vec![Pair { chosen: first, rejected: second }]));
        let row = &dataset.held_out.rows[0];
        assert_eq!((row.prompt_ids.as_slice(), row.messages[0].content.as_str()), ([1, 2].as_slice(), "hi"));
        assert_eq!(row.fields["A"], "$5");
    }

    #[test]
    fn what_the_model_cannot_take_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let refuse = || Dataset::read(dir.path(), &model(), false).unwrap_err().to_string();
        assert!(refuse().contains("train.safetensors"));
        write(dir.path(), "train.safetensors", &[&[1], &[1, 2, 3, 4, 5]], 0);
        assert!(refuse().starts_with("row 2 of train.safetensors has 5 tokens, but the base's context is 4"));
        write(dir.path(), "train.safetensors", &[&[1, 100]], 0);
        assert!(refuse().starts_with("row 1 of train.safetensors has the token id 100"));
        write(dir.path(), "train.safetensors", &[&[1, 2]], 1);
        assert!(refuse().starts_with("train.safetensors is damaged"));
    }
}
