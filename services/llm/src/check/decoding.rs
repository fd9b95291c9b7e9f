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

/// Lengths of the prompts: less than a page, a page, more than a block of attention.
const PROMPTS: [usize; 5] = [3, 16, 40, 150, 9];
/// Which adapter each sequence has.
const OWN: [Option<usize>; 5] = [None, Some(0), Some(1), None, Some(0)];
const TOKENS: usize = 12;

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
        let all =
            [("plain", plain), ("windowed", windowed), ("biased", biased), ("wide", wide), ("normed after", double)];
        for (name, config) in all {
            match self.answers(&config) {
                Ok([logs, expected_logs, tops, expected_tops]) => {
                    self.compare_within(format!("decoding, {name}: log-probabilities"), logs, expected_logs, 2e-2);
                    self.compare_within(format!("decoding, {name}: likeliest"), tops, expected_tops, 2e-2);
                }
                Err(error) => self.fail(format!("decoding, {name}: {error}")),
            }
        }
    }

    /// Of the sequences that ask for log-probabilities theirs and the CPU's; of the others the CPU's logit of each token and its
    /// largest one.
    fn answers(&mut self, config: &ModelConfig) -> Result<[Tensor<1>; 4], ModelError> {
        let models = [self.device, &self.host].map(|device| model(config, device));
        let adapters = [self.device, &self.host].map(|device| [(16, 3), (12, 4)].map(|of| adapter(config, of, device)));
        let prompts = PROMPTS.map(|length| (0..length).map(|at| (at * 7 + length) as u32 % 503).collect::<Vec<u32>>());
        let mut cache = KvCache::new(&models[0], 4 * models[0].config().context);
        let mut sequences = Vec::new();
        for (at, prompt) in prompts.iter().enumerate() {
            let sequence = Sequence::new(&models[0], prompt.clone(), Sampling::greedy())?;
            let mut sequence = if at % 2 == 0 { sequence.with_logprobs(0) } else { sequence };
            sequence.attach(&mut cache, OWN[at].map(|own| &adapters[0][own]));
            sequences.push(sequence);
        }
        let mut told: Vec<Vec<f32>> = vec![Vec::new(); sequences.len()];
        for _ in 0..TOKENS {
            let mut parts: Vec<Part<'_>> = sequences
                .iter_mut()
                .zip(OWN)
                .map(|(sequence, own)| Part { sequence, adapter: own.map(|own| &adapters[0][own]), tokens: usize::MAX })
                .collect();
            for (told, stepped) in told.iter_mut().zip(step(&models[0], &mut cache, &mut parts)?) {
                if let Stepped::Chose(token) = stepped {
                    told.extend(token.logprob);
                }
            }
        }
        let [mut logs, mut expected_logs, mut tops, mut expected_tops] = [(); 4].map(|()| Vec::new());
        for (at, sequence) in sequences.iter().enumerate() {
            let (ids, begin) = (sequence.ids(), PROMPTS[at]);
            let logits = models[1].logits(ids, OWN[at].map(|own| &adapters[1][own]))?;
            for (&id, row) in ids[begin..].iter().zip(logits.chunks_exact(config.vocab).skip(begin - 1)) {
                let top = row.iter().fold(f32::NEG_INFINITY, |top, logit| top.max(*logit));
                let sum: f32 = row.iter().map(|logit| (logit - top).exp()).sum();
                if told[at].is_empty() {
                    tops.push(row[id as usize]);
                    expected_tops.push(top);
                } else {
                    expected_logs.push(row[id as usize] - top - sum.ln());
                }
            }
            logs.append(&mut told[at]);
        }
        let host = &self.host;
        let of = |values: Vec<f32>| {
            let count = values.len();
            tensor(values, [count], &host.burn)
        };
        Ok([logs, expected_logs, tops, expected_tops].map(of))
    }
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
