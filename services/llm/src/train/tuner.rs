//! The training loop's engine: a model, what is trained of it, and the optimiser.

use std::path::Path;

use burn::tensor::Tensor;

use super::adamw::AdamWConfig;
use super::block::Model;
use super::dropout::Dropout;
use super::gradients::{block_gradients, pair_gradients, pairs, scored};
use super::memory::JOINED_TOKENS;
use super::pack::Block;
use super::preference::{PairLogs, PairState, Preference, StepSizes};
use super::replica::{self, Replica, Sum};
use crate::model::{Adapter, Decoder, ModelError};
use crate::ops::{tensor, to_vec};
use crate::weights::{self, NamedTensor, StoredType, Weights, WeightsError};
use crate::workers::Workers;

/// What an optimiser step reports.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepReport {
    /// What was minimised: the mean negative log-likelihood over the step's loss tokens, nats, or the preference's loss.
    pub loss: f64,
    /// Global gradient norm before clipping.
    pub grad_norm: f64,
    /// Tokens in the step's blocks.
    pub tokens: usize,
}

/// What a step on pairs reports.
#[derive(Clone, Debug, PartialEq)]
pub struct PairReport {
    /// Loss, gradient norm, tokens.
    pub step: StepReport,
    /// The model's log-probabilities of each pair, before the update.
    pub pairs: Vec<PairLogs>,
    /// The reference's; zeros where the objective has none.
    pub reference: Vec<PairLogs>,
}

/// What to train.
#[derive(Clone, Debug, Default)]
pub struct TunerConfig {
    /// Optimiser.
    pub optimizer: AdamWConfig,
    /// Keep the untrained weights, where all weights are trained: DPO refers to them.
    pub keep_reference: bool,
    /// Seed of the adapter's dropout.
    pub seed: u64,
    /// Blocks whose activations exist at once, at most; `None`: one for each worker of a CPU, and what keeps an accelerator
    /// busy.
    pub parallel_blocks: Option<usize>,
    /// Keep of each layer only its input, and compute the rest again in the backward: half more work, a fraction of the memory
    /// (Chen et al. 2016, "Training deep nets with sublinear memory cost"). Changes no bit.
    pub recompute: bool,
}

/// Trains an adapter on a frozen decoder, or the decoder itself.
#[derive(Debug)]
pub struct Tuner {
    /// One on each device, the first of which is measured and saved.
    replicas: Vec<Replica>,
    workers: Workers,
    /// Blocks whose activations may exist at once on an accelerator.
    side_by_side: usize,
    /// Seed of the adapter's dropout.
    seed: u64,
    recompute: bool,
    /// The decoder before training: what DPO refers to, where there is no adapter to leave out.
    untrained: Option<Decoder>,
}

impl Tuner {
    /// Trains `adapter` if there is one, else all weights of the decoder. An adapter is trained on all of the decoder's devices.
    pub fn new(decoder: Decoder, adapter: Option<Adapter>, config: &TunerConfig) -> Self {
        let workers = decoder.device.workers();
        let workers = Workers::new(config.parallel_blocks.map_or(workers, |most| workers.min(most)));
        let untrained = (adapter.is_none() && config.keep_reference).then(|| decoder.clone());
        let others = if adapter.is_some() { decoder.device.others() } else { Vec::new() };
        let first = Replica::new(decoder, adapter, config.optimizer);
        let others: Vec<_> = others.iter().map(|device| first.on(device, config.optimizer)).collect();
        let replicas = std::iter::once(first).chain(others).collect();
        let (side_by_side, seed) = (config.parallel_blocks.unwrap_or(usize::MAX), config.seed);
        Self { replicas, workers, side_by_side, seed, recompute: config.recompute, untrained }
    }

    fn first(&self) -> &Replica {
        &self.replicas[0]
    }

    /// One optimiser step on these blocks. Blocks compute in parallel; their gradients are added in the blocks' order,
    /// so that the result does not depend on the number of workers. Devices take blocks in turn, and add their sums.
    pub fn step(&mut self, blocks: &[Block], learning_rate: f64) -> StepReport {
        let joined = self.joined(blocks);
        let blocks = joined.as_deref().unwrap_or(blocks);
        let loss_tokens: usize = blocks.iter().map(Block::loss_tokens).sum();
        let weight = 1.0 / loss_tokens.max(1) as f32;
        let mut sums: Vec<Sum> = self.replicas.iter().map(|_| Sum::default()).collect();
        for blocks in numbered(blocks).chunks(self.at_once()) {
            let results = self.map(blocks, |(at, block)| block_gradients(self.model(*at), block, weight));
            for ((at, _), result) in blocks.iter().zip(results) {
                sums[at % self.replicas.len()].add(result);
            }
        }
        let grad_norm = replica::update(&mut self.replicas, &mut sums, learning_rate);
        let loss: f64 = sums.iter_mut().map(Sum::loss).sum();
        StepReport { loss: loss / loss_tokens.max(1) as f64, grad_norm, tokens: blocks.iter().map(Block::tokens).sum() }
    }

    /// One optimiser step on these blocks of pairs, as [`Self::step`]. The host looks at each block's log-probabilities before its
    /// backward.
    pub fn step_pairs(&mut self, blocks: &[Block], objective: Preference, learning_rate: f64) -> PairReport {
        let answers = || blocks.iter().flat_map(|block| block.loss_rows.chunks_exact(2));
        let chosen_tokens = answers().map(|pair| pair[0].len()).sum();
        let sizes = StepSizes { pairs: answers().count().max(1), chosen_tokens };
        let mut sums: Vec<Sum> = self.replicas.iter().map(|_| Sum::default()).collect();
        let (mut logs, mut reference) = (Vec::new(), Vec::new());
        let work = |(at, block): &(usize, &Block)| {
            let base = self.untrained.as_ref().unwrap_or(&self.replica(*at).decoder);
            let reference = match objective.needs_reference() {
                true => pairs(Model::new(base, None), block),
                false => vec![PairLogs::default(); block.loss_rows.len() / 2],
            };
            (pair_gradients(self.model(*at), block, objective, &reference, sizes), reference)
        };
        for blocks in numbered(blocks).chunks(self.at_once()) {
            for ((at, _), (mut result, of)) in blocks.iter().zip(self.map(blocks, work)) {
                logs.append(&mut result.pairs);
                reference.extend(of);
                sums[at % self.replicas.len()].add(result);
            }
        }
        let grad_norm = replica::update(&mut self.replicas, &mut sums, learning_rate);
        let loss = sums.iter_mut().map(Sum::loss).sum();
        let step = StepReport { loss, grad_norm, tokens: blocks.iter().map(Block::tokens).sum() };
        PairReport { step, pairs: logs, reference }
    }

    /// Applies `work` to blocks with their places in an update; results are in the blocks' order. Devices work side by side, or the
    /// workers of the only one do.
    fn map<R: Send>(&self, blocks: &[(usize, &Block)], work: impl Fn(&(usize, &Block)) -> R + Sync) -> Vec<R> {
        let devices = self.replicas.len();
        if devices < 2 {
            return self.workers.map(blocks, work);
        }
        let of = |device: usize| blocks.iter().filter(move |(at, _)| at % devices == device);
        let shares = replica::side_by_side(0..devices, |device| of(device).map(&work).collect::<Vec<R>>());
        let mut shares: Vec<_> = shares.into_iter().map(Vec::into_iter).collect();
        blocks.iter().filter_map(|(at, _)| shares[at % devices].next()).collect()
    }

    /// Who computes the block of an update at a place.
    fn replica(&self, at: usize) -> &Replica {
        &self.replicas[at % self.replicas.len()]
    }

    /// What is trained, for the block of an update at a place.
    fn model(&self, at: usize) -> Model<'_> {
        let Replica { decoder, adapter, optimizer, .. } = self.replica(at);
        let rate = adapter.as_ref().map_or(0.0, |adapter| adapter.config().dropout);
        let dropout = Dropout::new(rate, self.seed, optimizer.step, at);
        Model { dropout, recompute: self.recompute, ..Model::new(decoder, adapter.as_ref()) }
    }

    /// The objective on blocks of pairs that are not trained on, without dropout.
    ///
    /// # Errors
    /// None of the blocks' ids may be unknown to the model.
    pub fn held_out_pairs(&self, blocks: &[Block], objective: Preference) -> Result<HeldOutPairs, ModelError> {
        let Replica { decoder, adapter, .. } = self.first();
        let logs = compare(decoder, adapter.as_ref(), blocks)?;
        let reference = match objective.needs_reference() {
            true => compare(self.untrained.as_ref().unwrap_or(decoder), None, blocks)?,
            false => vec![PairLogs::default(); logs.len()],
        };
        let rows = blocks.iter().flat_map(|block| block.loss_rows.chunks_exact(2));
        let tokens: Vec<[usize; 2]> = rows.map(|pair| [pair[0].len(), pair[1].len()]).collect();
        let sizes = StepSizes { pairs: logs.len().max(1), chosen_tokens: tokens.iter().map(|pair| pair[0]).sum() };
        let pairs = logs.iter().zip(reference).zip(tokens);
        let losses = pairs.map(|((logs, reference), tokens)| {
            objective.loss(PairState { logs: *logs, reference, tokens }, sizes).loss
        });
        let loss = losses.sum();
        let preferred = logs.iter().filter(|pair| pair.chosen > pair.rejected).count();
        Ok(HeldOutPairs { loss, preferred, pairs: logs.len() })
    }

    /// The blocks in pieces that keep a GPU busy; `None` on a CPU, where each worker takes one, and where attention would
    /// write the scores of a whole piece.
    fn joined(&self, blocks: &[Block]) -> Option<Vec<Block>> {
        let tokens: usize = blocks.iter().map(Block::tokens).sum();
        // Each device has its share.
        let most = JOINED_TOKENS.min(tokens.div_ceil(self.replicas.len()));
        let decoder = self.decoder();
        let by_kernel = decoder.device.attends_by_kernel(decoder.config.head_dim);
        by_kernel.then(|| Block::join(blocks, self.side_by_side, most))
    }

    /// Blocks whose gradients exist side by side: a few for each worker, however many an update has.
    fn at_once(&self) -> usize {
        4 * self.workers.count() * self.replicas.len()
    }

    /// Steps done.
    pub fn steps(&self) -> u64 {
        self.first().optimizer.step
    }

    /// The decoder: frozen under an adapter.
    pub fn decoder(&self) -> &Decoder {
        &self.first().decoder
    }

    /// The adapter, if one is trained.
    pub fn adapter(&self) -> Option<&Adapter> {
        self.first().adapter.as_ref()
    }

    /// Writes parameters and optimiser state to one file, exactly.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn save_state(&self, path: &Path) -> Result<(), WeightsError> {
        let named = |name: &str, tensor: &Tensor<1>| NamedTensor {
            name: name.to_owned(),
            shape: tensor.dims().to_vec(),
            values: to_vec(tensor.clone()),
        };
        // A u64 in two exact f32 halves of 24 bits: more steps than any run has.
        let Replica { parameters, optimizer, .. } = self.first();
        let step = [optimizer.step & 0xFF_FFFF, optimizer.step >> 24].map(|half| half as f32);
        let tensors = [
            named("parameters", parameters),
            named("first_moment", &optimizer.first),
            named("second_moment", &optimizer.second),
            NamedTensor { name: "step".to_owned(), shape: vec![2], values: step.to_vec() },
        ];
        weights::write(path, &tensors, StoredType::F32)
    }

    /// Restores what [`Tuner::save_state`] wrote.
    ///
    /// # Errors
    /// The file can't be read, or belongs to another model.
    pub fn load_state(&mut self, path: &Path) -> Result<(), WeightsError> {
        let file = Weights::open_file(path)?;
        let shape = self.first().parameters.dims();
        let read = |name: &str| file.read_shaped(name, &shape);
        let values = [read("parameters")?, read("first_moment")?, read("second_moment")?];
        let step = file.read_shaped("step", &[2])?;
        for replica in &mut self.replicas {
            let device = &replica.decoder.device.burn;
            let [parameters, first, second] = [0, 1, 2].map(|at| tensor(values[at].clone(), shape, device));
            replica.optimizer.first = first;
            replica.optimizer.second = second;
            replica.optimizer.step = step[0] as u64 + ((step[1] as u64) << 24);
            replica.set_parameters(parameters);
        }
        Ok(())
    }

    /// Gives the trained parts back.
    pub fn into_parts(self) -> (Decoder, Option<Adapter>) {
        let mut replicas = self.replicas;
        let Replica { decoder, adapter, .. } = replicas.swap_remove(0);
        (decoder, adapter)
    }
}

/// Loss on documents that are not trained on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HeldOutLoss {
    /// Mean negative log-likelihood of loss tokens, nats.
    pub loss: f64,
    /// Loss tokens.
    pub tokens: usize,
    /// Those among them that a greedy answer would hold.
    pub correct: usize,
}

/// An objective on pairs that are not trained on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HeldOutPairs {
    /// Mean loss, nats.
    pub loss: f64,
    /// Pairs whose chosen answer is more probable, or has the larger reward.
    pub preferred: usize,
    /// Pairs.
    pub pairs: usize,
}

fn numbered(blocks: &[Block]) -> Vec<(usize, &Block)> {
    blocks.iter().enumerate().collect()
}

/// Measures the loss of blocks, in parallel; `done` is told of each block that is finished.
///
/// # Errors
/// None of the blocks' ids may be unknown to the model.
pub fn held_out_loss(
    decoder: &Decoder,
    adapter: Option<&Adapter>,
    blocks: &[Block],
    done: &(dyn Fn() + Sync),
) -> Result<HeldOutLoss, ModelError> {
    check(decoder, blocks)?;
    let sums = Workers::new(decoder.device.workers()).map(blocks, |block| {
        let scored = scored(Model::new(decoder, adapter), block);
        done();
        (-scored.logs.into_iter().map(f64::from).sum::<f64>(), scored.best)
    });
    let tokens: usize = blocks.iter().map(Block::loss_tokens).sum();
    let (loss, correct) = sums.into_iter().fold((0.0, 0), |sum, block| (sum.0 + block.0, sum.1 + block.1));
    Ok(HeldOutLoss { loss: loss / tokens.max(1) as f64, tokens, correct })
}

/// What the model says of the blocks' pairs: log-probabilities of their answers, or, with a reward adapter, their rewards.
///
/// # Errors
/// None of the blocks' ids may be unknown to the model.
pub fn compare(decoder: &Decoder, adapter: Option<&Adapter>, blocks: &[Block]) -> Result<Vec<PairLogs>, ModelError> {
    check(decoder, blocks)?;
    let model = Model::new(decoder, adapter);
    Ok(Workers::new(decoder.device.workers()).map(blocks, |block| pairs(model, block)).concat())
}

fn check(decoder: &Decoder, blocks: &[Block]) -> Result<(), ModelError> {
    for block in blocks {
        for document in &block.documents {
            decoder.check(&block.ids[document.clone()], 0)?;
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "tuner_tests.rs"]
mod tests;
