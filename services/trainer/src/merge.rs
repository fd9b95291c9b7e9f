//! What folding a trained adapter into its base changes: the proof that a version keeps.

use std::path::Path;

use firn_llm::{
    model::{Adapter, Decoder, ModelError, probes, prove},
    weights::Weights,
};

use crate::{
    dataset::{DatasetError, Rows},
    error::WorkError,
    record::MergeProof,
};

/// Most held-out rows that are compared.
const MOST_ROWS: usize = 32;
/// Most tokens of each: the logits of all of them are in memory at once.
const MOST_TOKENS: usize = 256;
/// Merged weights are stored as these are.
const EMBEDDING: &str = "model.embed_tokens.weight";

/// Folds the adapter into the decoder, which is that of the folder `base` and not quantised, writes the weights to the local
/// folder `into`, which is there, and compares what was written, rounding and all, with both. Blocks.
pub(crate) fn compare(
    decoder: &Decoder,
    adapter: &Adapter,
    base: &Path,
    held_out: &Rows,
    into: &Path,
) -> Result<MergeProof, WorkError> {
    let stored = Weights::open_dir(base).map_err(ModelError::from)?.stored_type(EMBEDDING);
    decoder.merge(adapter).save(into, stored)?;
    std::fs::copy(base.join("config.json"), into.join("config.json"))
        .map_err(|source| WorkError::Scratch { folder: into.display().to_string(), source })?;
    let merged = Decoder::load(into, decoder.device())?;
    let rows = rows(held_out)?;
    let proof = if rows.is_empty() {
        prove(decoder, adapter, &merged, &probes(decoder.config().vocab, decoder.config().context))?
    } else {
        prove(decoder, adapter, &merged, &rows)?
    };
    let difference = proof.largest_logit_difference;
    Ok(MergeProof {
        // JSON has no word for what is no number.
        largest_logit_difference: if difference.is_finite() { difference } else { f32::MAX },
        greedy_agreement: proof.greedy_agreement,
        tokens: proof.tokens as u64,
        rows: rows.len() as u64,
        accepted: proof.holds(stored),
    })
}

/// Beginnings of the first held-out rows; of pairs, of their chosen answers.
fn rows(held_out: &Rows) -> Result<Vec<Vec<u32>>, DatasetError> {
    let mut rows = Vec::new();
    for row in (0..).take(held_out.len().min(MOST_ROWS)) {
        let mut ids = held_out.document(row)?.ids;
        ids.truncate(MOST_TOKENS);
        if !ids.is_empty() {
            rows.push(ids);
        }
    }
    Ok(rows)
}
