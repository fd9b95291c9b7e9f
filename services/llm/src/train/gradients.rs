//! Loss and gradients of a packed block.

use burn::tensor::{IndexingUpdateOp, Int, Tensor, TensorData};

use super::block::{BlockGradients, BlockOf};
use super::pack::Block;
use crate::model::{Adapter, Decoder};
use crate::ops::attention::Documents;
use crate::ops::{cross_entropy, norm};

/// What one block gives.
pub(crate) struct BlockResult {
    /// Sum of negative log-likelihoods, nats.
    pub(crate) loss: f64,
    /// Gradient of `weight · loss`, flat, in the parameters' order.
    pub(crate) gradient: Tensor<1>,
}

pub(crate) fn select(ids: &[usize], decoder: &Decoder) -> Tensor<1, Int> {
    let ids: Vec<i64> = ids.iter().map(|id| *id as i64).collect();
    let count = ids.len();
    Tensor::from_data(TensorData::new(ids, [count]), &decoder.device.burn)
}

/// Normed hidden rows that carry loss, for an evaluation without gradients.
pub(crate) fn loss_rows(decoder: &Decoder, adapter: Option<&Adapter>, block: &Block) -> Tensor<2> {
    let mut x = decoder.embed(&block.ids);
    let documents = Documents::new(&block.documents, &x);
    for index in 0..decoder.layers.len() {
        x = BlockOf { decoder, index, adapter }.forward(x, &documents, &block.positions).0;
    }
    let rows = x.select(0, select(&block.rows, decoder));
    norm::forward(&rows, &decoder.norm, decoder.config.rms_eps).0
}

/// Forward and backward of one block. With an adapter, its factors are trained; without, all weights are.
pub(crate) fn block_gradients(decoder: &Decoder, adapter: Option<&Adapter>, block: &Block, weight: f32) -> BlockResult {
    let full = adapter.is_none();
    let of = |index| BlockOf { decoder, index, adapter };
    let mut saved = Vec::with_capacity(decoder.layers.len());
    let mut x = decoder.embed(&block.ids);
    let documents = Documents::new(&block.documents, &x);
    for index in 0..decoder.layers.len() {
        let (y, kept) = of(index).forward(x, &documents, &block.positions);
        saved.push(kept);
        x = y;
    }
    let rows = select(&block.rows, decoder);
    let last = x.clone().select(0, rows.clone());
    let (hidden, rstd) = norm::forward(&last, &decoder.norm, decoder.config.rms_eps);
    let head = cross_entropy::loss_and_gradients(&hidden, decoder.head_weight(), &block.targets, weight, full);
    let dlast = norm::backward(&head.dhidden, &last, &decoder.norm, &rstd);
    let dnorm = full.then(|| norm::weight_gradient(&head.dhidden, &last, &rstd));
    let mut dx = x.zeros_like().select_assign(0, rows, dlast, IndexingUpdateOp::Add);
    let mut layers = Vec::with_capacity(saved.len());
    for (index, kept) in saved.into_iter().enumerate().rev() {
        let (gradient, parameters) = of(index).backward(dx, kept, &documents, &block.positions, full);
        dx = gradient;
        layers.push(parameters);
    }
    layers.reverse();
    let mut parts = Vec::new();
    if full {
        let ids: Vec<usize> = block.ids.iter().map(|id| *id as usize).collect();
        let zeros = match (&decoder.head, &head.dhead) {
            // A tied head's gradient is the embedding's too.
            (None, Some(dhead)) => dhead.clone(),
            _ => decoder.embedding.zeros_like(),
        };
        let dembedding = zeros.select_assign(0, select(&ids, decoder), dx, IndexingUpdateOp::Add);
        parts.push(dembedding.flatten::<1>(0, 1));
    }
    for layer in layers {
        push_layer(&mut parts, layer);
    }
    parts.extend(dnorm);
    if let (true, Some(_), Some(dhead)) = (full, &decoder.head, head.dhead) {
        parts.push(dhead.flatten::<1>(0, 1));
    }
    BlockResult { loss: head.sum, gradient: Tensor::cat(parts, 0) }
}

/// In the order of [`Decoder::flat`], or of [`Adapter::tensors`].
fn push_layer(parts: &mut Vec<Tensor<1>>, layer: BlockGradients) {
    let (first, last) = match layer.norms {
        Some([first, last]) => (Some(first), Some(last)),
        None => (None, None),
    };
    parts.extend(first);
    for gradients in layer.linears {
        let matrices = [gradients.weight, gradients.a, gradients.b];
        parts.extend(matrices.into_iter().flatten().map(|gradient| gradient.flatten::<1>(0, 1)));
    }
    parts.extend(last);
}

#[cfg(test)]
#[path = "gradients_tests.rs"]
mod tests;
