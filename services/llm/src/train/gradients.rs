//! Loss and gradients of a packed block.

use burn::tensor::{DType, IndexingUpdateOp, Int, Tensor, TensorData};

use super::block::{BlockGradients, Kept, Model};
use super::pack::Block;
use super::preference::{PairLogs, PairState, Preference, StepSizes};
use crate::model::{Decoder, LinearGradients};
use crate::ops::attention::Documents;
use crate::ops::cross_entropy::LossSum;
use crate::ops::rope::Positions;
use crate::ops::{cross_entropy, norm, tensor, to_vec};

/// What one block gives.
pub(crate) struct BlockResult {
    /// The block's part of the loss: for likelihood, the sum of negative log-likelihoods, nats.
    pub(crate) loss: LossSum,
    /// Gradient, flat, in the parameters' order.
    pub(crate) gradient: Tensor<1>,
    /// Log-probabilities or rewards of the block's pairs, if it holds pairs.
    pub(crate) pairs: Vec<PairLogs>,
}

pub(crate) fn select(ids: &[usize], decoder: &Decoder) -> Tensor<1, Int> {
    let ids: Vec<i64> = ids.iter().map(|id| *id as i64).collect();
    let count = ids.len();
    Tensor::from_data(TensorData::new(ids, [count]), &decoder.device.burn)
}

/// Puts rows at their places among `count`; the others are 0. By a gather, which an accelerator does at the speed of its
/// memory: adding at places goes row after row.
fn spread(rows: Tensor<2>, places: &[usize], count: usize, decoder: &Decoder) -> Tensor<2> {
    let [given, width] = rows.dims();
    let mut from = vec![given; count];
    places.iter().enumerate().for_each(|(row, place)| from[*place] = row);
    let zero = Tensor::zeros([1, width], (&rows.device(), rows.dtype()));
    Tensor::cat(vec![rows, zero], 0).select(0, select(&from, decoder))
}

/// Normed hidden rows of a block, for an evaluation without gradients.
pub(crate) fn hidden_rows(model: Model<'_>, block: &Block, rows: &[usize]) -> Tensor<2> {
    let decoder = model.decoder;
    let mut x = decoder.embed(&block.ids);
    let documents = decoder.documents(&block.documents, &x);
    let positions = Positions::new(&block.positions, &decoder.device.burn);
    for index in 0..decoder.layers.len() {
        x = model.block(index).forward(x, &documents, &positions).0;
    }
    norm::forward(&x.select(0, select(rows, decoder)), &decoder.norm, decoder.config.rms_eps).0
}

/// Log-probability of each of a block's loss tokens, nats.
pub(crate) fn log_probabilities(model: Model<'_>, block: &Block) -> Vec<f32> {
    scored(model, block).logs
}

/// The same, with how many of the tokens are those that the model finds most probable.
pub(crate) fn scored(model: Model<'_>, block: &Block) -> cross_entropy::Scored {
    cross_entropy::score(&hidden_rows(model, block, &block.rows), model.decoder.head_weight(), &block.targets)
}

/// What an objective compares of a block's pairs: sums of log-probabilities of their answers, or, if the adapter has a
/// score, the rewards of prompt and answer.
pub(crate) fn pairs(model: Model<'_>, block: &Block) -> Vec<PairLogs> {
    match model.adapter.and_then(|adapter| adapter.score()) {
        Some(score) => rewards(&hidden_rows(model, block, &block.last_rows()), score),
        None => pair_logs(&log_probabilities(model, block), block),
    }
}

/// Sums of log-probabilities over the answers of a block of pairs.
fn pair_logs(logs: &[f32], block: &Block) -> Vec<PairLogs> {
    let sum = |rows: &std::ops::Range<usize>| logs[rows.clone()].iter().copied().map(f64::from).sum();
    let pairs = block.loss_rows.chunks_exact(2);
    pairs.map(|pair| PairLogs { chosen: sum(&pair[0]), rejected: sum(&pair[1]) }).collect()
}

/// Rewards of a block of pairs, from the normed hidden rows `[documents, hidden]` of their last tokens.
fn rewards(hidden: &Tensor<2>, score: &Tensor<2>) -> Vec<PairLogs> {
    let all = to_vec(hidden.clone().cast(DType::F32).matmul(score.clone().transpose()));
    let pairs = all.chunks_exact(2);
    pairs.map(|pair| PairLogs { chosen: pair[0].into(), rejected: pair[1].into() }).collect()
}

/// Loss and gradient of `weight` times the block's negative log-likelihood. With an adapter, its factors are trained;
/// without, all weights are.
pub(crate) fn block_gradients(model: Model<'_>, block: &Block, weight: f32) -> BlockResult {
    let pass = Pass { model, block };
    let tape = pass.forward(&block.rows);
    let weights = vec![weight; block.targets.len()];
    let (loss, gradient) = pass.backward(tape, &weights);
    BlockResult { loss, gradient, pairs: Vec::new() }
}

/// The same for an objective on pairs; `reference` has the reference's log-probabilities of each pair.
pub(crate) fn pair_gradients(
    model: Model<'_>,
    block: &Block,
    objective: Preference,
    reference: &[PairLogs],
    step: StepSizes,
) -> BlockResult {
    let pass = Pass { model, block };
    let of = |index: usize, logs: PairLogs| {
        let tokens = [2 * index, 2 * index + 1].map(|document| block.loss_rows[document].len());
        let reference = reference.get(index).copied().unwrap_or_default();
        objective.loss(PairState { logs, reference, tokens }, step)
    };
    if let Some(score) = model.adapter.and_then(|adapter| adapter.score()) {
        let tape = pass.forward(&block.last_rows());
        let pairs = rewards(&tape.hidden, score);
        let losses: Vec<_> = pairs.iter().enumerate().map(|(index, rewards)| of(index, *rewards)).collect();
        let slopes: Vec<f32> = losses.iter().flat_map(|pair| pair.weights.map(|weight| -weight as f32)).collect();
        let count = slopes.len();
        let slopes = tensor(slopes, [count, 1], &model.decoder.device.burn);
        let dscore = slopes.clone().transpose().matmul(tape.hidden.clone().cast(DType::F32));
        let dhidden = slopes.matmul(score.clone()).cast(tape.hidden.dtype());
        let mut parts = pass.backward_blocks(tape, dhidden).parts;
        parts.push(dscore.flatten::<1>(0, 1));
        let loss: f64 = losses.iter().map(|pair| pair.loss).sum();
        return BlockResult { loss: loss.into(), gradient: Tensor::cat(parts, 0), pairs };
    }
    let tape = pass.forward(&block.rows);
    let logs = cross_entropy::log_probabilities(&tape.hidden, model.decoder.head_weight(), &block.targets);
    let pairs = pair_logs(&logs, block);
    let (mut loss, mut weights) = (0.0, vec![0.0; block.targets.len()]);
    for (index, (rows, logs)) in block.loss_rows.chunks_exact(2).zip(&pairs).enumerate() {
        let pair = of(index, *logs);
        loss += pair.loss;
        for (rows, weight) in rows.iter().zip(pair.weights) {
            weights[rows.clone()].fill(weight as f32);
        }
    }
    let (_, gradient) = pass.backward(tape, &weights);
    BlockResult { loss: loss.into(), gradient, pairs }
}

/// One block through the model.
struct Pass<'a> {
    model: Model<'a>,
    block: &'a Block,
}

/// What a block's backward needs of its forward, or what it is computed from.
enum Held {
    All(Box<Kept>),
    Input(Box<Tensor<2>>),
}

/// What the backward needs of the forward.
struct Tape<'a> {
    documents: Documents<'a>,
    positions: Positions<'a>,
    kept: Vec<Held>,
    /// Residual stream after the last block.
    x: Tensor<2>,
    /// Which of its rows the loss is computed from.
    rows: Vec<usize>,
    last: Tensor<2>,
    rstd: Tensor<2>,
    /// Those rows, normed.
    hidden: Tensor<2>,
}

/// Gradients below the head.
struct Below {
    /// Of the embedded tokens.
    dx: Tensor<2>,
    /// Of the blocks' parameters, flat, in order.
    parts: Vec<Tensor<1>>,
}

impl<'a> Pass<'a> {
    fn forward(&self, rows: &[usize]) -> Tape<'a> {
        let (decoder, block) = (self.model.decoder, self.block);
        let mut kept = Vec::with_capacity(decoder.layers.len());
        let mut x = decoder.embed(&block.ids);
        let documents = decoder.documents(&block.documents, &x);
        let positions = Positions::new(&block.positions, &decoder.device.burn);
        for index in 0..decoder.layers.len() {
            let input = self.model.recompute.then(|| x.clone());
            let (y, saved) = self.model.block(index).forward(x, &documents, &positions);
            kept.push(match input {
                Some(input) => Held::Input(Box::new(input)),
                None => Held::All(Box::new(saved)),
            });
            x = y;
        }
        let last = x.clone().select(0, select(rows, decoder));
        let (hidden, rstd) = norm::forward(&last, &decoder.norm, decoder.config.rms_eps);
        Tape { documents, positions, kept, x, rows: rows.to_vec(), last, rstd, hidden }
    }

    /// Sum of the loss tokens' negative log-likelihoods, and the gradient of their sum with these weights.
    fn backward(&self, tape: Tape<'_>, weights: &[f32]) -> (LossSum, Tensor<1>) {
        let (decoder, block, full) = (self.model.decoder, self.block, self.model.adapter.is_none());
        let head =
            cross_entropy::loss_and_gradients(&tape.hidden, decoder.head_weight(), &block.targets, weights, full);
        let dnorm = full.then(|| norm::weight_gradient(&head.dhidden, &tape.last, &tape.rstd));
        let Below { dx, parts: blocks } = self.backward_blocks(tape, head.dhidden);
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
        parts.extend(blocks);
        parts.extend(dnorm);
        if let (true, Some(_), Some(dhead)) = (full, &decoder.head, head.dhead) {
            parts.push(dhead.flatten::<1>(0, 1));
        }
        (head.sum, Tensor::cat(parts, 0))
    }

    /// Back through the last norm and all blocks, from the gradient of the normed rows.
    fn backward_blocks(&self, tape: Tape<'_>, dhidden: Tensor<2>) -> Below {
        let (decoder, full) = (self.model.decoder, self.model.adapter.is_none());
        let dlast = norm::backward(&dhidden, &tape.last, &decoder.norm, &tape.rstd, None);
        let mut dx = spread(dlast, &tape.rows, tape.x.dims()[0], decoder);
        let mut layers = Vec::with_capacity(tape.kept.len());
        for (index, kept) in tape.kept.into_iter().enumerate().rev() {
            let block = self.model.block(index);
            let kept = match kept {
                Held::All(kept) => *kept,
                Held::Input(x) => block.forward(*x, &tape.documents, &tape.positions).1,
            };
            let (gradient, parameters) = block.backward(dx, kept, &tape.documents, &tape.positions, full);
            dx = gradient;
            layers.push(parameters);
        }
        let mut parts = Vec::new();
        layers.into_iter().rev().for_each(|layer| push_layer(&mut parts, layer));
        Below { dx, parts }
    }
}

/// In the order of [`Decoder::flat`], or of [`crate::model::Adapter::tensors`].
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
