//! An adapter folded into the weights, and the proof that nothing else changed.

use burn::tensor::DType;
use serde::Serialize;

use super::{Adapter, Decoder, ModelError, Weight};
use crate::config::Module;

/// How far a merged model is from its base with the adapter.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct MergeProof {
    /// Largest absolute difference of a logit.
    pub largest_logit_difference: f32,
    /// Share of tokens where both would greedily choose the same next one.
    pub greedy_agreement: f64,
    /// Tokens compared.
    pub tokens: usize,
}

impl std::fmt::Display for MergeProof {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { largest_logit_difference, greedy_agreement, tokens } = self;
        let percent = greedy_agreement * 100.0;
        write!(
            f,
            "largest logit difference {largest_logit_difference:.2e}, greedy agreement {percent:.1} % on {tokens} tokens"
        )
    }
}

impl Decoder {
    /// A copy whose weights are `W + s·BA`: the adapter is part of it. Quantised weights become dense.
    pub fn merge(&self, adapter: &Adapter) -> Self {
        let mut merged = self.clone();
        for (index, layer) in merged.layers.iter_mut().enumerate() {
            for (module, linear) in Module::ALL.into_iter().zip(&mut layer.linears) {
                let mut weight = linear.weight.tensor();
                if let Some(pair) = adapter.pair(index, module) {
                    let delta = pair.b.clone().matmul(pair.a.clone()) * pair.scale;
                    let kept = weight.dtype();
                    weight = (weight.cast(DType::F32) + delta).cast(kept);
                }
                linear.weight = Weight::dense(weight);
            }
        }
        merged
    }
}

/// Compares `base` with `adapter` to `merged` on every token of these rows.
///
/// # Errors
/// An id is unknown, or a row is too long.
pub fn prove(base: &Decoder, adapter: &Adapter, merged: &Decoder, rows: &[Vec<u32>]) -> Result<MergeProof, ModelError> {
    let vocab = base.config().vocab;
    let (mut worst, mut agreed, mut tokens) = (0.0f32, 0usize, 0usize);
    for ids in rows {
        let (expected, found) = (base.logits(ids, Some(adapter))?, merged.logits(ids, None)?);
        for (expected, found) in expected.chunks(vocab).zip(found.chunks(vocab)) {
            let difference = expected.iter().zip(found).map(|(a, b)| (a - b).abs());
            worst = difference.fold(worst, f32::max);
            agreed += usize::from(top(expected) == top(found));
            tokens += 1;
        }
    }
    let greedy_agreement = agreed as f64 / tokens.max(1) as f64;
    Ok(MergeProof { largest_logit_difference: worst, greedy_agreement, tokens })
}

fn top(logits: &[f32]) -> Option<usize> {
    (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b]))
}
