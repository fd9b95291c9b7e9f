//! Loss and gradients of a packed block.

use burn::tensor::{IndexingUpdateOp, Int, Tensor, TensorData};

use super::block::{BlockGradients, BlockOf, Kept};
use super::pack::Block;
use super::preference::{PairLogs, PairState, Preference, StepSizes};
use crate::model::{Adapter, Decoder, LinearGradients};
use crate::ops::attention::Documents;
use crate::ops::{cross_entropy, norm};

/// What one block gives.
pub(crate) struct BlockResult {
    /// The block's part of the loss: for likelihood, the sum of negative log-likelihoods, nats.
    pub(crate) loss: f64,
    /// Gradient, flat, in the parameters' order.
    pub(crate) gradient: Tensor<1>,
    /// Log-probabilities of the block's pairs, if it holds pairs.
    pub(crate) pairs: Vec<PairLogs>,
}

pub(crate) fn select(ids: &[usize], decoder: &Decoder) -> Tensor<1, Int> {
    let ids: Vec<i64> = ids.iter().map(|id| *id as i64).collect();
    let count = ids.len();
    Tensor::from_data(TensorData::new(ids, [count]), &decoder.device.burn)
}

/// Normed hidden rows that carry loss, for an evaluation without gradients.
pub(crate) fn loss_rows(decoder: &Decoder, adapter: Option<&Adapter>, block: &Block) -> Tensor<2> {
    let mut x = decoder.embed(&block.ids);
    let documents = decoder.documents(&block.documents, &x);
    for index in 0..decoder.layers.len() {
        x = BlockOf { decoder, index, adapter }.forward(x, &documents, &block.positions).0;
    }
    let rows = x.select(0, select(&block.rows, decoder));
    norm::forward(&rows, &decoder.norm, decoder.config.rms_eps).0
}

/// Log-probability of each of a block's loss tokens, nats.
pub(crate) fn log_probabilities(decoder: &Decoder, adapter: Option<&Adapter>, block: &Block) -> Vec<f32> {
    let hidden = loss_rows(decoder, adapter, block);
    cross_entropy::log_probabilities(&hidden, decoder.head_weight(), &block.targets)
}

/// Sums of log-probabilities over the answers of a block of pairs.
pub(crate) fn pair_logs(logs: &[f32], block: &Block) -> Vec<PairLogs> {
    let sum = |rows: &std::ops::Range<usize>| logs[rows.clone()].iter().copied().map(f64::from).sum();
    let pairs = block.loss_rows.chunks_exact(2);
    pairs.map(|pair| PairLogs { chosen: sum(&pair[0]), rejected: sum(&pair[1]) }).collect()
}

/// Loss and gradient of `weight` times the block's negative log-likelihood. With an adapter, its factors are trained;
/// without, all weights are.
pub(crate) fn block_gradients(decoder: &Decoder, adapter: Option<&Adapter>, block: &Block, weight: f32) -> BlockResult {
    let pass = Pass { decoder, adapter, block };
    let tape = pass.forward();
    let weights = vec![weight; block.targets.len()];
    let (loss, gradient) = pass.backward(tape, &weights);
    BlockResult { loss, gradient, pairs: Vec::new() }
}

/// The same for an objective on pairs; `reference` has the reference's log-probabilities of each pair.
pub(crate) fn pair_gradients(
    decoder: &Decoder,
    adapter: Option<&Adapter>,
    block: &Block,
    objective: Preference,
    reference: &[PairLogs],
    step: StepSizes,
) -> BlockResult {
    let pass = Pass { decoder, adapter, block };
    let tape = pass.forward();
    let logs = cross_entropy::log_probabilities(&tape.hidden, decoder.head_weight(), &block.targets);
    let pairs = pair_logs(&logs, block);
    let (mut loss, mut weights) = (0.0, vec![0.0; block.targets.len()]);
    for (index, (rows, logs)) in block.loss_rows.chunks_exact(2).zip(&pairs).enumerate() {
        let tokens = [rows[0].len(), rows[1].len()];
        let reference = reference.get(index).copied().unwrap_or_default();
        let pair = objective.loss(PairState { logs: *logs, reference, tokens }, step);
        loss += pair.loss;
        for (rows, weight) in rows.iter().zip(pair.weights) {
            weights[rows.clone()].fill(weight as f32);
        }
    }
    let (_, gradient) = pass.backward(tape, &weights);
    BlockResult { loss, gradient, pairs }
}

/// One block through the model.
struct Pass<'a> {
    decoder: &'a Decoder,
    adapter: Option<&'a Adapter>,
    block: &'a Block,
}

/// What the backward needs of the forward.
struct Tape<'a> {
    documents: Documents<'a>,
    kept: Vec<Kept>,
    /// Residual stream after the last block.
    x: Tensor<2>,
    /// Its rows that carry loss.
    last: Tensor<2>,
    rstd: Tensor<2>,
    /// Those rows, normed.
    hidden: Tensor<2>,
}

impl<'a> Pass<'a> {
    fn layer(&self, index: usize) -> BlockOf<'a> {
        BlockOf { decoder: self.decoder, index, adapter: self.adapter }
    }

    fn forward(&self) -> Tape<'a> {
        let Pass { decoder, block, .. } = *self;
        let mut kept = Vec::with_capacity(decoder.layers.len());
        let mut x = decoder.embed(&block.ids);
        let documents = decoder.documents(&block.documents, &x);
        for index in 0..decoder.layers.len() {
            let (y, saved) = self.layer(index).forward(x, &documents, &block.positions);
            kept.push(saved);
            x = y;
        }
        let last = x.clone().select(0, select(&block.rows, decoder));
        let (hidden, rstd) = norm::forward(&last, &decoder.norm, decoder.config.rms_eps);
        Tape { documents, kept, x, last, rstd, hidden }
    }

    /// Sum of the loss tokens' negative log-likelihoods, and the gradient of their sum with these weights.
    fn backward(&self, tape: Tape<'_>, weights: &[f32]) -> (f64, Tensor<1>) {
        let (decoder, block, full) = (self.decoder, self.block, self.adapter.is_none());
        let head =
            cross_entropy::loss_and_gradients(&tape.hidden, decoder.head_weight(), &block.targets, weights, full);
        let dlast = norm::backward(&head.dhidden, &tape.last, &decoder.norm, &tape.rstd);
        let dnorm = full.then(|| norm::weight_gradient(&head.dhidden, &tape.last, &tape.rstd));
        let mut dx = tape.x.zeros_like().select_assign(0, select(&block.rows, decoder), dlast, IndexingUpdateOp::Add);
        let mut layers = Vec::with_capacity(tape.kept.len());
        for (index, kept) in tape.kept.into_iter().enumerate().rev() {
            let (gradient, parameters) = self.layer(index).backward(dx, kept, &tape.documents, &block.positions, full);
            dx = gradient;
            layers.push(parameters);
        }
        let mut parts = Vec::new();
        if full {
            let ids: Vec<usize> = block.ids.iter().map(|id| *id as usize).collect();
            let zeros = match (&decoder.head, &head.dhead) {
                // A tied head's gradient is the embedding's too.
                (None, Some(dhead)) => dhead.clone(),
                _ => decoder.embedding.zeros_like(),
            };
            let drows = dx * decoder.config.embedding_scale;
            let dembedding = zeros.select_assign(0, select(&ids, decoder), drows, IndexingUpdateOp::Add);
            parts.push(dembedding.flatten::<1>(0, 1));
        }
        layers.into_iter().rev().for_each(|layer| push_layer(&mut parts, layer));
        parts.extend(dnorm);
        if let (true, Some(_), Some(dhead)) = (full, &decoder.head, head.dhead) {
            parts.push(dhead.flatten::<1>(0, 1));
        }
        (head.sum, Tensor::cat(parts, 0))
    }
}

/// In the order of [`Decoder::flat`], or of [`Adapter::tensors`].
fn push_layer(parts: &mut Vec<Tensor<1>>, layer: BlockGradients) {
    parts.extend(layer.norms.into_iter().flatten());
    for LinearGradients { weight, bias, a, b } in layer.linears {
        parts.extend(weight.map(|gradient| gradient.flatten::<1>(0, 1)));
        parts.extend(bias);
        parts.extend([a, b].into_iter().flatten().map(|gradient| gradient.flatten::<1>(0, 1)));
    }
}

#[cfg(test)]
#[path = "gradients_tests.rs"]
mod tests;
