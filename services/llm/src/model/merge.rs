//! An adapter folded into the weights, and the proof that nothing else changed.

use burn::tensor::DType;
use serde::Serialize;

use super::{Adapter, Decoder, ModelError, Weight};
use crate::config::Module;
use crate::weights::StoredType;

/// Share of tokens where both must greedily choose the same.
pub const MERGE_AGREEMENT: f64 = 0.95;
/// Largest difference of a logit between base + adapter and merged weights that are stored in f32.
const F32_LIMIT: f32 = 1e-3;
/// The same where the merged weights are rounded to bf16, as the base's are.
const BF16_LIMIT: f32 = 0.5;
/// Made-up rows, and their length.
const PROBES: (u32, u32) = (8, 48);

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

impl MergeProof {
    /// Largest difference of a logit that rounding may make where the merged weights are stored so.
    pub fn limit(stored: StoredType) -> f32 {
        match stored {
            StoredType::F32 => F32_LIMIT,
            StoredType::Bf16 => BF16_LIMIT,
        }
    }

    /// Whether merged weights that are stored so compute the same. A difference that is no number is none that is allowed.
    pub fn holds(&self, stored: StoredType) -> bool {
        self.largest_logit_difference <= Self::limit(stored) && self.greedy_agreement >= MERGE_AGREEMENT
    }
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
            let differences = expected.iter().zip(found).map(|(a, b)| (a - b).abs());
            // `f32::max` would pass over what is no number.
            worst = differences.fold(worst, |worst, next| if next > worst || next.is_nan() { next } else { worst });
            agreed += usize::from(top(expected) == top(found));
            tokens += 1;
        }
    }
    let greedy_agreement = agreed as f64 / tokens.max(1) as f64;
    Ok(MergeProof { largest_logit_difference: worst, greedy_agreement, tokens })
}

/// Rows of made-up tokens to compare on where there are no others.
pub fn probes(vocab: usize, context: usize) -> Vec<Vec<u32>> {
    let (rows, length) = PROBES;
    let length = length.min(u32::try_from(context).unwrap_or(u32::MAX));
    let vocab = u32::try_from(vocab).unwrap_or(u32::MAX).max(1);
    // Fibonacci hashing: spread over the vocabulary, and the same on every run.
    let id = |at: u32| at.wrapping_mul(0x9E37_79B9) % vocab;
    (0..rows).map(|row| (0..length).map(|at| id(row * length + at + 1)).collect()).collect()
}

fn top(logits: &[f32]) -> Option<usize> {
    (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proof_holds_within_rounding_and_never_by_what_is_no_number() {
        let proof = |largest_logit_difference, greedy_agreement| MergeProof {
            largest_logit_difference,
            greedy_agreement,
            tokens: 9,
        };
        for (difference, agreement, as_f32, as_bf16) in [
            (1e-4, 1.0, true, true),
            (0.1, 1.0, false, true),
            (0.6, 1.0, false, false),
            (1e-4, 0.9, false, false),
            (f32::NAN, 1.0, false, false),
        ] {
            let proof = proof(difference, agreement);
            assert_eq!((proof.holds(StoredType::F32), proof.holds(StoredType::Bf16)), (as_f32, as_bf16), "{proof}");
        }
    }

    #[test]
    fn made_up_rows_are_of_the_model() {
        let rows = probes(300, 16);
        assert_eq!((rows.len(), rows.iter().all(|row| row.len() == 16)), (8, true));
        assert!(rows.concat().iter().all(|id| *id < 300));
        assert_eq!(rows, probes(300, 16), "the same on every run");
    }
}
