//! The training loop's engine: a model, what is trained of it, and the optimiser.

use std::path::Path;

use burn::tensor::Tensor;

use super::adamw::{AdamW, AdamWConfig};
use super::block::Model;
use super::dropout::Dropout;
use super::gradients::{BlockResult, block_gradients, pair_gradients, pairs, scored};
use super::pack::Block;
use super::preference::{PairLogs, PairState, Preference, StepSizes};
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

/// Tokens that an accelerator computes at once: more would be no faster, and take more memory.
const JOINED_TOKENS: usize = 16_384;

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
    /// Blocks whose activations exist side by side, at most; `None`: one for each worker of a CPU, and what keeps an
    /// accelerator busy.
    pub parallel_blocks: Option<usize>,
}

/// What the blocks of an update add up to, in their order.
#[derive(Default)]
struct Sum {
    loss: f64,
    gradient: Option<Tensor<1>>,
    pairs: Vec<PairLogs>,
}

impl Sum {
    fn add(&mut self, block: BlockResult) {
        self.loss += block.loss;
        self.pairs.extend(block.pairs);
        self.gradient = Some(match self.gradient.take() {
            Some(sum) => sum + block.gradient,
            None => block.gradient,
        });
    }
}

/// Trains an adapter on a frozen decoder, or the decoder itself.
#[derive(Debug)]
pub struct Tuner {
    decoder: Decoder,
    adapter: Option<Adapter>,
    parameters: Tensor<1>,
    optimizer: AdamW,
    workers: Workers,
    /// Blocks whose activations may exist at once on an accelerator.
    side_by_side: usize,
    /// Seed of the adapter's dropout.
    seed: u64,
    /// The decoder before training: what DPO refers to, where there is no adapter to leave out.
    untrained: Option<Decoder>,
}

impl Tuner {
    /// Trains `adapter` if there is one, else all weights of the decoder.
    pub fn new(decoder: Decoder, adapter: Option<Adapter>, config: &TunerConfig) -> Self {
        let parameters = match &adapter {
            Some(adapter) => {
                Tensor::cat(adapter.tensors().map(|factor| factor.clone().flatten::<1>(0, 1)).collect(), 0)
            }
            None => decoder.flat(),
        };
        let workers = decoder.device.workers();
        let workers = Workers::new(config.parallel_blocks.map_or(workers, |most| workers.min(most)));
        let optimizer = AdamW::new(config.optimizer, &parameters);
        let untrained = (adapter.is_none() && config.keep_reference).then(|| decoder.clone());
        let side_by_side = config.parallel_blocks.unwrap_or(usize::MAX);
        Self { decoder, adapter, parameters, optimizer, workers, side_by_side, seed: config.seed, untrained }
    }

    /// One optimiser step on these blocks. Blocks compute in parallel; their gradients are added in the blocks' order,
    /// so that the result does not depend on the number of workers.
    pub fn step(&mut self, blocks: &[Block], learning_rate: f64) -> StepReport {
        let joined = self.joined(blocks);
        let blocks = joined.as_deref().unwrap_or(blocks);
        let loss_tokens: usize = blocks.iter().map(Block::loss_tokens).sum();
        let weight = 1.0 / loss_tokens.max(1) as f32;
        let mut sum = Sum::default();
        for blocks in numbered(blocks).chunks(self.at_once()) {
            let results = self.workers.map(blocks, |(at, block)| block_gradients(self.model(*at), block, weight));
            results.into_iter().for_each(|result| sum.add(result));
        }
        let loss = sum.loss;
        let grad_norm = self.update(sum, learning_rate);
        StepReport { loss: loss / loss_tokens.max(1) as f64, grad_norm, tokens: blocks.iter().map(Block::tokens).sum() }
    }

    /// One optimiser step on these blocks of pairs.
    pub fn step_pairs(&mut self, blocks: &[Block], objective: Preference, learning_rate: f64) -> PairReport {
        let answers = || blocks.iter().flat_map(|block| block.loss_rows.chunks_exact(2));
        let chosen_tokens = answers().map(|pair| pair[0].len()).sum();
        let sizes = StepSizes { pairs: answers().count().max(1), chosen_tokens };
        let base = Model::new(self.untrained.as_ref().unwrap_or(&self.decoder), None);
        let (mut sum, mut reference) = (Sum::default(), Vec::new());
        let work = |(at, block): &(usize, &Block)| {
            let reference = match objective.needs_reference() {
                true => pairs(base, block),
                false => vec![PairLogs::default(); block.loss_rows.len() / 2],
            };
            (pair_gradients(self.model(*at), block, objective, &reference, sizes), reference)
        };
        for blocks in numbered(blocks).chunks(self.at_once()) {
            for (result, of) in self.workers.map(blocks, work) {
                sum.add(result);
                reference.extend(of);
            }
        }
        let (loss, pairs) = (sum.loss, std::mem::take(&mut sum.pairs));
        let grad_norm = self.update(sum, learning_rate);
        let step = StepReport { loss, grad_norm, tokens: blocks.iter().map(Block::tokens).sum() };
        PairReport { step, pairs, reference }
    }

    /// What is trained, for the block of an update at a place.
    fn model(&self, at: usize) -> Model<'_> {
        let rate = self.adapter.as_ref().map_or(0.0, |adapter| adapter.config().dropout);
        let dropout = Dropout::new(rate, self.seed, self.optimizer.step, at);
        Model { dropout, ..Model::new(&self.decoder, self.adapter.as_ref()) }
    }

    /// The objective on blocks of pairs that are not trained on, without dropout.
    ///
    /// # Errors
    /// None of the blocks' ids may be unknown to the model.
    pub fn held_out_pairs(&self, blocks: &[Block], objective: Preference) -> Result<HeldOutPairs, ModelError> {
        let logs = compare(&self.decoder, self.adapter.as_ref(), blocks)?;
        let reference = match objective.needs_reference() {
            true => compare(self.untrained.as_ref().unwrap_or(&self.decoder), None, blocks)?,
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
        self.decoder.attends_by_kernel().then(|| Block::join(blocks, self.side_by_side, JOINED_TOKENS))
    }

    /// Blocks whose gradients exist side by side: a few for each worker, however many an update has.
    fn at_once(&self) -> usize {
        4 * self.workers.count()
    }

    /// Applies the sum of the blocks' gradients; gives its norm before clipping.
    fn update(&mut self, sum: Sum, learning_rate: f64) -> f64 {
        let gradient = sum.gradient.unwrap_or_else(|| self.parameters.zeros_like());
        let parameters = std::mem::replace(&mut self.parameters, Tensor::empty([1], &self.decoder.device.burn));
        let (parameters, grad_norm) = self.optimizer.step(parameters, gradient, learning_rate);
        self.set_parameters(parameters);
        grad_norm
    }

    fn set_parameters(&mut self, parameters: Tensor<1>) {
        match &mut self.adapter {
            Some(adapter) => {
                let mut at = 0;
                for factor in adapter.tensors_mut() {
                    let [rows, columns] = factor.dims();
                    *factor = parameters.clone().slice([at..at + rows * columns]).reshape([rows, columns]);
                    at += rows * columns;
                }
            }
            None => self.decoder.set_flat(&parameters),
        }
        self.parameters = parameters;
    }

    /// Steps done.
    pub fn steps(&self) -> u64 {
        self.optimizer.step
    }

    /// The decoder: frozen under an adapter.
    pub fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    /// The adapter, if one is trained.
    pub fn adapter(&self) -> Option<&Adapter> {
        self.adapter.as_ref()
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
        let step = [self.optimizer.step & 0xFF_FFFF, self.optimizer.step >> 24].map(|half| half as f32);
        let tensors = [
            named("parameters", &self.parameters),
            named("first_moment", &self.optimizer.first),
            named("second_moment", &self.optimizer.second),
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
        let shape = self.parameters.dims();
        let read = |name: &str| Ok(tensor(file.read_shaped(name, &shape)?, shape, &self.decoder.device.burn));
        let (parameters, first, second) = (read("parameters")?, read("first_moment")?, read("second_moment")?);
        let step = file.read_shaped("step", &[2])?;
        self.optimizer.first = first;
        self.optimizer.second = second;
        self.optimizer.step = step[0] as u64 + ((step[1] as u64) << 24);
        self.set_parameters(parameters);
        Ok(())
    }

    /// Gives the trained parts back.
    pub fn into_parts(self) -> (Decoder, Option<Adapter>) {
        (self.decoder, self.adapter)
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
