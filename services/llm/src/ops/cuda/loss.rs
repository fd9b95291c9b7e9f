//! Cross-entropy of rows of logits.

use burn::tensor::{DType, Tensor};

use super::Array;
use super::launch::{Kernel, Source, shared_limit};
use super::matrix::{self, Extra, Layout};
use crate::ops::cross_entropy::KERNEL_CHUNK as CHUNK;

const CROSS_ENTROPY: Source = Source {
    name: "cross_entropy.cu",
    text: concat!(include_str!("kernels/vector.cuh"), include_str!("kernels/cross_entropy.cu")),
};
const THREADS: usize = 1_024;

/// What the head gives.
pub(crate) struct Loss {
    /// Negative log-likelihood of each row `[m]`, nats; by chunk.
    pub(crate) losses: Vec<Tensor<1>>,
    /// Gradient of the weighted sum for the hidden rows `[m, d]`.
    pub(crate) dhidden: Tensor<2>,
}

/// Loss of `hidden` `[m, d]` against `targets` under the head `[v, d]`; in the gradient each row has its weight.
pub(crate) fn loss_and_gradient(
    hidden: &Tensor<2>,
    head: &Tensor<2>,
    targets: &[u32],
    weights: &[f32],
) -> Option<Loss> {
    let (rows, table) = (Array::half(hidden)?, Array::half(head)?);
    let ([_, width], [vocab, _]) = (rows.matrix(), table.matrix());
    if targets.is_empty() || !matrix::fits(&rows, &[width, vocab]) {
        return None;
    }
    let device = hidden.device();
    let cached = (2 * vocab).next_multiple_of(16).min(shared_limit(&rows).saturating_sub(7_168) / 16 * 16);
    let defines = [("THREADS", THREADS), ("CACHED_BYTES", cached)];
    let kernel = Kernel::new(&CROSS_ENTROPY, "cross_entropy", &defines, THREADS as u32, cached);
    let (mut losses, mut pieces) = (Vec::new(), Vec::new());
    for (index, (targets, weights)) in targets.chunks(CHUNK).zip(weights.chunks(CHUNK)).enumerate() {
        let count = targets.len();
        let rows = Array::half(&hidden.clone().slice([index * CHUNK..index * CHUNK + count]))?;
        let logits =
            matrix::product(&[((&rows).into(), (&table).into())], Layout::Inner, Layout::Inner, &Extra::default());
        // An id of the vocabulary is far below 2³¹.
        let targets = Array::whole(targets.iter().map(|id| *id as i32).collect(), &device)?;
        let weights = Array::of(&Tensor::<1>::from_data(weights, (&device, DType::F32)))?;
        let loss = rows.empty([count], DType::F32);
        let correct = rows.empty([count], DType::I32);
        let words = [count as u64, vocab as u64];
        kernel.launch([count, 1, 1], &[&targets, &weights, &logits, &loss, &correct], &words);
        losses.push(loss.tensor());
        pieces.push(
            matrix::product(&[((&logits).into(), (&table).into())], Layout::Inner, Layout::Outer, &Extra::default())
                .tensor(),
        );
    }
    Some(Loss { losses, dhidden: Tensor::cat(pieces, 0) })
}
