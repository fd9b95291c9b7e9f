//! Decoding of several sequences with several adapters in one batch, in models of all families' peculiarities.

use burn::tensor::Tensor;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::Run;
use crate::cache::KvCache;
use crate::config::{Activation, ModelConfig, NormPlacement, Widths};
use crate::device::Device;
use crate::generate::{Part, Sampling, Sequence, Stepped, step};
use crate::model::{Adapter, Decoder, LoraConfig, ModelError};
use crate::ops::{tensor, to_vec};
use crate::random::normal;

/// Lengths of the prompts, in turn: less than a page, a page, more than a block of attention.
const PROMPTS: [usize; 5] = [3, 16, 40, 150, 9];
/// Which adapter each sequence has, in turn.
const OWN: [Option<usize>; 5] = [None, Some(0), Some(1), None, Some(0)];
/// More than a step needs to be begun before it is asked for.
const TOKENS: usize = 26;
/// Sequences of a batch, and with them how the blocks of a product share its sums.
const FEW: usize = 5;
const MORE: [usize; 2] = [17, 40];

fn prompt_length(at: usize) -> usize {
    PROMPTS[at % PROMPTS.len()]
}

fn own(at: usize) -> Option<usize> {
    OWN[at % OWN.len()]
}

impl Run<'_> {
    /// Tokens and log-probabilities of a batch's answers, beside what the CPU says of the same texts.
    pub(super) fn decoding(&mut self) {
        let widths =
            Widths { vocab: 503, hidden: 256, intermediate: 512, layers: 3, heads: 4, kv_heads: 2, context: 1_024 };
        let plain = ModelConfig::llama(widths);
        let mut windowed = plain.clone();
        windowed.attention[1].window = Some(50);
        let biased = ModelConfig { qkv_bias: true, tied: false, ..plain.clone() };
        let wide = ModelConfig { head_dim: 128, qk_norm: true, ..plain.clone() };
        let double = ModelConfig {
            norms: NormPlacement::BeforeAndAfter,
            activation: Activation::GeluTanh,
            embedding_scale: 16.0,
            head_dim: 256,
            qk_norm: true,
            ..windowed.clone()
        };
        let all = [
            ("plain", plain),
            ("windowed", windowed),
            ("biased", biased.clone()),
            ("wide", wide),
            ("normed after", double),
        ];
        match self.comings_and_goings(&biased) {
            Ok([together, alone]) => self.compare_within("decoding, some come and go".to_owned(), together, alone, 0.0),
            Err(error) => self.fail(format!("decoding, some come and go: {error}")),
        }
        let all = all.map(|(name, config)| (name.to_owned(), FEW, config));
        // Wide enough that a dot product is cut, and that its parts are shared in another way than a row alone has them.
        let deep = ModelConfig::llama(Widths { intermediate: 8_192, layers: 2, ..widths });
        let more = MORE.map(|count| (format!("{count} rows"), count, deep.clone()));
        for (name, count, config) in all.into_iter().chain(more) {
            match self.answers(&config, count) {
                Ok([logs, expected_logs, tops, expected_tops, together, alone]) => {
                    self.compare_within(format!("decoding, {name}: alone"), alone, together, 0.0);
                    self.compare_within(format!("decoding, {name}: log-probabilities"), logs, expected_logs, 2e-2);
                    self.compare_within(format!("decoding, {name}: likeliest"), tops, expected_tops, 2e-2);
                }
                Err(error) => self.fail(format!("decoding, {name}: {error}")),
            }
        }
    }

    /// What three sequences say, two of which come when the other is at it and stay when it goes, and what each says by itself step by
    /// step, as it does where log-probabilities are asked for: no step is begun before, and none that was shows.
    fn comings_and_goings(&self, config: &ModelConfig) -> Result<[Tensor<1>; 2], ModelError> {
        let model = model(config, self.device);
        let adapters = [(16, 3), (12, 4)].map(|of| adapter(config, of, self.device));
        let adapter = |at: usize| own(at).map(|own| &adapters[own]);
        let said = |turns: &[(usize, &[usize])], step_by_step: bool| -> Result<Vec<Vec<u32>>, ModelError> {
            let mut cache = KvCache::new(&model, config.context);
            let prompts = [40, 9, 22].map(|length| (0..length).map(|place| (place * 5 + length) % 503).collect());
            let mut sequences = Vec::new();
            for (at, prompt) in prompts.into_iter().enumerate() {
                let sequence = Sequence::new(&model, prompt, Sampling::greedy())?;
                let mut sequence = if step_by_step { sequence.with_logprobs(0) } else { sequence };
                sequence.attach(&mut cache, adapter(at));
                sequences.push(sequence);
            }
            for (turns, which) in turns {
                for _ in 0..*turns {
                    let there = sequences.iter_mut().enumerate().filter(|(at, _)| which.contains(at));
                    let mut parts: Vec<Part<'_>> = there
                        .map(|(at, sequence)| Part { sequence, adapter: adapter(at), tokens: usize::MAX })
                        .collect();
                    step(&model, &mut cache, &mut parts)?;
                }
            }
            Ok(sequences.iter().map(|sequence| sequence.ids().to_vec()).collect())
        };
        let together = said(&[(24, &[0]), (30, &[0, 1, 2]), (24, &[1, 2])], false)?;
        let alone = said(&[(54, &[0]), (54, &[1]), (54, &[2])], true)?;
        Ok([together, alone].map(|ids| self.told(ids.into_iter().flatten().map(|id| id as f32).collect())))
    }

    /// Values to compare.
    fn told(&self, values: Vec<f32>) -> Tensor<1> {
        let count = values.len();
        tensor(values, [count], &self.host.burn)
    }

    /// Of the sequences that ask for log-probabilities theirs and the CPU's; of the others the CPU's logit of each token and its
    /// largest one; and all that was told of a batch's sequences, and of each by itself: a row's bits do not depend on others.
    fn answers(&mut self, config: &ModelConfig, count: usize) -> Result<[Tensor<1>; 6], ModelError> {
        let models = [self.device, &self.host].map(|device| model(config, device));
        let adapters = [self.device, &self.host].map(|device| [(16, 3), (12, 4)].map(|of| adapter(config, of, device)));
        let all: Vec<usize> = (0..count).collect();
        let batch = answer(&models[0], &adapters[0], &all)?;
        let (mut together, mut alone) = (Vec::new(), Vec::new());
        for at in &all {
            let single = answer(&models[0], &adapters[0], &[*at])?;
            for (all, one) in [(&mut together, &batch[*at]), (&mut alone, &single[0])] {
                all.extend(one.ids.iter().map(|id| *id as f32).chain(one.logprobs.iter().copied()));
            }
        }
        let [mut logs, mut expected_logs, mut tops, mut expected_tops] = [(); 4].map(|()| Vec::new());
        for (at, answer) in batch.iter().enumerate() {
            let (ids, begin) = (&answer.ids, prompt_length(at));
            let logits = models[1].logits(ids, own(at).map(|own| &adapters[1][own]))?;
            for (&id, row) in ids[begin..].iter().zip(logits.chunks_exact(config.vocab).skip(begin - 1)) {
                let top = row.iter().fold(f32::NEG_INFINITY, |top, logit| top.max(*logit));
                let sum: f32 = row.iter().map(|logit| (logit - top).exp()).sum();
                if answer.logprobs.is_empty() {
                    tops.push(row[id as usize]);
                    expected_tops.push(top);
                } else {
                    expected_logs.push(row[id as usize] - top - sum.ln());
                }
            }
            logs.extend(&answer.logprobs);
        }
        Ok([logs, expected_logs, tops, expected_tops, together, alone].map(|values| self.told(values)))
    }
}

/// A sequence's tokens, and what was told of those that it chose if it asked.
struct Answer {
    ids: Vec<u32>,
    logprobs: Vec<f32>,
}

/// Answers of some of the sequences: each reads its prompt by itself, then all speak in one batch.
fn answer(model: &Decoder, adapters: &[Adapter; 2], which: &[usize]) -> Result<Vec<Answer>, ModelError> {
    let mut cache = KvCache::new(model, 4 * model.config().context);
    let mut sequences = Vec::new();
    for &at in which {
        let length = prompt_length(at);
        // None begins as another does: pages that are shared are not read again.
        let prompt = (0..length).map(|place| (place * 7 + length + at) as u32 % 503).collect();
        let sequence = Sequence::new(model, prompt, Sampling::greedy())?;
        let mut sequence = if at % 2 == 0 { sequence.with_logprobs(0) } else { sequence };
        sequence.attach(&mut cache, own(at).map(|own| &adapters[own]));
        sequences.push(sequence);
    }
    let mut logprobs = vec![Vec::new(); which.len()];
    let count = which.len();
    let batches = (0..count).map(|at| at..at + 1).chain((1..TOKENS).map(|_| 0..count));
    for batch in batches {
        let mut parts: Vec<Part<'_>> = Vec::new();
        for (sequence, at) in sequences[batch.clone()].iter_mut().zip(&which[batch.clone()]) {
            parts.push(Part { sequence, adapter: own(*at).map(|own| &adapters[own]), tokens: usize::MAX });
        }
        for (told, stepped) in logprobs[batch].iter_mut().zip(step(model, &mut cache, &mut parts)?) {
            if let Stepped::Chose(token) = stepped {
                told.extend(token.logprob);
            }
        }
    }
    let answers = sequences.iter().zip(logprobs);
    Ok(answers.map(|(sequence, logprobs)| Answer { ids: sequence.ids().to_vec(), logprobs }).collect())
}

/// A model whose norms and biases count: new ones are 1 and 0.
fn model(config: &ModelConfig, device: &Device) -> Decoder {
    let mut model = Decoder::random(config.clone(), 5, device);
    let mut rng = ChaCha8Rng::seed_from_u64(8);
    let mut shake = |values: &mut Tensor<1>, deviation: f32| {
        let shaken: Vec<f32> = to_vec(values.clone()).iter().map(|v| v + normal(&mut rng) * deviation).collect();
        let count = shaken.len();
        *values = tensor(shaken, [count], &device.burn);
    };
    for layer in &mut model.layers {
        layer.norms.iter_mut().flatten().for_each(|norm| shake(norm, 0.3));
        layer.linears.iter_mut().filter_map(|linear| linear.bias.as_mut()).for_each(|bias| shake(bias, 0.5));
    }
    model
}

/// An adapter both of whose factors count: a new one's second is zero.
pub(super) fn adapter(config: &ModelConfig, (rank, seed): (usize, u64), device: &Device) -> Adapter {
    let mut adapter = Adapter::new(config, LoraConfig::all_linear(rank), seed, device);
    let mut rng = ChaCha8Rng::seed_from_u64(seed + 1);
    adapter.tensors_mut().for_each(|factor| {
        let shape = factor.dims();
        let values = (0..shape[0] * shape[1]).map(|_| normal(&mut rng) * 0.05).collect();
        *factor = tensor(values, shape, &device.burn);
    });
    adapter
}
