//! Weights of a decoder and its cached forward.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use burn::tensor::{Int, Tensor, TensorData};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{Adapter, AdapterError, KvCache};
use crate::config::{ConfigError, ModelConfig, Module};
use crate::device::Device;
use crate::ops::attention::{self, Heads};
use crate::ops::rope::RopeTable;
use crate::ops::{cross_entropy, norm, swiglu, tensor, to_vec};
use crate::weights::{self, NamedTensor, StoredType, Weights, WeightsError};

/// Why a model could not be opened, saved or run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// `config.json`.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The weights.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The adapter.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    /// An id is outside the vocabulary.
    #[error("token id {id} is outside the vocabulary of {vocab} ids")]
    UnknownId {
        /// The id.
        id: u32,
        /// Size of the vocabulary.
        vocab: usize,
    },
    /// The tokens don't fit.
    #[error("{tokens} tokens do not fit into the model's context of {context}")]
    TooLong {
        /// Tokens asked for.
        tokens: usize,
        /// The model's context.
        context: usize,
    },
}

/// One block's weights.
#[derive(Clone, Debug)]
pub(crate) struct Layer {
    pub(crate) input_norm: Tensor<1>,
    pub(crate) linears: [Tensor<2>; 7],
    pub(crate) post_norm: Tensor<1>,
}

/// A decoder's weights on a device. Clones share them.
#[derive(Clone, Debug)]
pub struct Decoder {
    pub(crate) config: ModelConfig,
    pub(crate) embedding: Tensor<2>,
    pub(crate) layers: Vec<Layer>,
    pub(crate) norm: Tensor<1>,
    /// `None` if tied.
    pub(crate) head: Option<Tensor<2>>,
    pub(crate) rope: Arc<RopeTable>,
    pub(crate) device: Device,
}

/// Rows of a batch that belong to one sequence.
#[derive(Debug)]
pub(crate) struct Run<'a> {
    pub(crate) ids: &'a [u32],
    pub(crate) cache: &'a mut KvCache,
    pub(crate) adapter: Option<&'a Adapter>,
}

/// A parameter in checkpoint order, for loading, saving, initialising and training alike.
enum Parameter<'a> {
    Matrix(&'a mut Tensor<2>),
    Vector(&'a mut Tensor<1>),
}

impl Decoder {
    /// Loads a checkpoint folder, one tensor at a time.
    ///
    /// # Errors
    /// A file is missing or does not fit its configuration.
    pub fn load(dir: &Path, device: &Device) -> Result<Self, ModelError> {
        let config = ModelConfig::from_dir(dir)?;
        let weights = Weights::open_dir(dir)?;
        let mut decoder = Self::zeros(config, device);
        for (name, parameter) in decoder.parameters_mut() {
            match parameter {
                Parameter::Matrix(slot) => {
                    let shape = slot.dims();
                    *slot = tensor(weights.read_shaped(&name, &shape)?, shape, &device.burn);
                }
                Parameter::Vector(slot) => {
                    let shape = slot.dims();
                    *slot = tensor(weights.read_shaped(&name, &shape)?, shape, &device.burn);
                }
            }
        }
        Ok(decoder)
    }

    /// Random weights: normal with deviation 0.02, scaled down by depth where a layer writes to the residual stream
    /// (Radford et al. 2019), norms 1.
    pub fn random(config: ModelConfig, seed: u64, device: &Device) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let depth = ((2 * config.layers) as f32).sqrt();
        let mut decoder = Self::zeros(config, device);
        for (name, parameter) in decoder.parameters_mut() {
            match parameter {
                Parameter::Matrix(slot) => {
                    let shape = slot.dims();
                    let residual = name.ends_with("o_proj.weight") || name.ends_with("down_proj.weight");
                    let deviation = if residual { 0.02 / depth } else { 0.02 };
                    let values = (0..shape[0] * shape[1]).map(|_| normal(&mut rng) * deviation).collect();
                    *slot = tensor(values, shape, &device.burn);
                }
                Parameter::Vector(slot) => *slot = Tensor::ones(slot.dims(), &device.burn),
            }
        }
        decoder
    }

    fn zeros(config: ModelConfig, device: &Device) -> Self {
        let burn = &device.burn;
        let layer = || Layer {
            input_norm: Tensor::zeros([config.hidden], burn),
            linears: Module::ALL.map(|module| Tensor::zeros(config.linear_shape(module), burn)),
            post_norm: Tensor::zeros([config.hidden], burn),
        };
        Self {
            embedding: Tensor::zeros([config.vocab, config.hidden], burn),
            layers: (0..config.layers).map(|_| layer()).collect(),
            norm: Tensor::zeros([config.hidden], burn),
            head: (!config.tied).then(|| Tensor::zeros([config.vocab, config.hidden], burn)),
            rope: Arc::new(RopeTable::new(&config)),
            config,
            device: device.clone(),
        }
    }

    /// Writes `model.safetensors`; `config.json` and the tokenizer are the caller's to copy.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn save(&self, dir: &Path, stored: StoredType) -> Result<(), ModelError> {
        let mut copy = self.clone();
        let tensors: Vec<_> = copy
            .parameters_mut()
            .into_iter()
            .map(|(name, parameter)| match parameter {
                Parameter::Matrix(t) => NamedTensor { name, shape: t.dims().to_vec(), values: to_vec(t.clone()) },
                Parameter::Vector(t) => NamedTensor { name, shape: t.dims().to_vec(), values: to_vec(t.clone()) },
            })
            .collect();
        Ok(weights::write(&dir.join("model.safetensors"), &tensors, stored)?)
    }

    /// Shape of the model.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Where it computes.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// All parameters as one vector, in checkpoint order.
    pub(crate) fn flat(&self) -> Tensor<1> {
        let mut copy = self.clone();
        let parts = copy.parameters_mut().into_iter().map(|(_, parameter)| match parameter {
            Parameter::Matrix(t) => t.clone().flatten::<1>(0, 1),
            Parameter::Vector(t) => t.clone(),
        });
        Tensor::cat(parts.collect(), 0)
    }

    /// Sets all parameters from one vector.
    pub(crate) fn set_flat(&mut self, flat: &Tensor<1>) {
        let mut at = 0;
        let mut take = |count: usize| {
            at += count;
            flat.clone().slice([at - count..at])
        };
        for (_, parameter) in self.parameters_mut() {
            match parameter {
                Parameter::Matrix(slot) => {
                    let shape = slot.dims();
                    *slot = take(shape[0] * shape[1]).reshape(shape);
                }
                Parameter::Vector(slot) => *slot = take(slot.dims()[0]),
            }
        }
    }

    fn parameters_mut(&mut self) -> Vec<(String, Parameter<'_>)> {
        let mut all = vec![("model.embed_tokens.weight".to_owned(), Parameter::Matrix(&mut self.embedding))];
        for (index, layer) in self.layers.iter_mut().enumerate() {
            let name = |part: &str| format!("model.layers.{index}.{part}.weight");
            all.push((name("input_layernorm"), Parameter::Vector(&mut layer.input_norm)));
            for (module, weight) in Module::ALL.into_iter().zip(&mut layer.linears) {
                all.push((name(&module.path()), Parameter::Matrix(weight)));
            }
            all.push((name("post_attention_layernorm"), Parameter::Vector(&mut layer.post_norm)));
        }
        all.push(("model.norm.weight".to_owned(), Parameter::Vector(&mut self.norm)));
        if let Some(head) = &mut self.head {
            all.push(("lm_head.weight".to_owned(), Parameter::Matrix(head)));
        }
        all
    }

    pub(crate) fn heads(&self) -> Heads {
        let config = &self.config;
        Heads { kv: config.kv_heads, group: config.heads / config.kv_heads, dim: config.head_dim }
    }

    pub(crate) fn head_weight(&self) -> &Tensor<2> {
        self.head.as_ref().unwrap_or(&self.embedding)
    }

    /// Checks that ids are in the vocabulary and fit the context.
    pub(crate) fn check(&self, ids: &[u32], seen: usize) -> Result<(), ModelError> {
        let (tokens, context) = (seen + ids.len(), self.config.context);
        if tokens > context {
            return Err(ModelError::TooLong { tokens, context });
        }
        match ids.iter().find(|id| **id as usize >= self.config.vocab) {
            Some(&id) => Err(ModelError::UnknownId { id, vocab: self.config.vocab }),
            None => Ok(()),
        }
    }

    pub(crate) fn embed(&self, ids: &[u32]) -> Tensor<2> {
        let ids: Vec<i64> = ids.iter().map(|id| i64::from(*id)).collect();
        let count = ids.len();
        let ids = Tensor::<1, Int>::from_data(TensorData::new(ids, [count]), &self.device.burn);
        self.embedding.clone().select(0, ids)
    }

    /// Runs the new tokens of several sequences through all blocks, in one batch, and extends their caches. Gives the
    /// normed hidden rows `[tokens, hidden]`.
    pub(crate) fn hidden(&self, runs: &mut [Run<'_>]) -> Result<Tensor<2>, ModelError> {
        let mut spans = Vec::with_capacity(runs.len());
        let (mut ids, mut positions) = (Vec::new(), Vec::new());
        for run in runs.iter() {
            self.check(run.ids, run.cache.len())?;
            spans.push(ids.len()..ids.len() + run.ids.len());
            positions.extend(run.cache.len()..run.cache.len() + run.ids.len());
            ids.extend_from_slice(run.ids);
        }
        let mut x = self.embed(&ids);
        for (index, layer) in self.layers.iter().enumerate() {
            let apply = |module: Module, x: &Tensor<2>, runs: &[Run<'_>]| {
                let y = x.clone().matmul(layer.linears[module.index()].clone().transpose());
                add_adapters(y, x, runs, &spans, index, module)
            };
            let (h, _) = norm::forward(&x, &layer.input_norm, self.config.rms_eps);
            let q = self.rope.apply(apply(Module::Q, &h, runs), &positions, false);
            let k = self.rope.apply(apply(Module::K, &h, runs), &positions, false);
            let v = apply(Module::V, &h, runs);
            let outputs = runs.iter_mut().zip(&spans).map(|(run, span)| {
                let rows = |t: &Tensor<2>| t.clone().slice([span.clone()]);
                let [keys, values] = run.cache.extend(index, [rows(&k), rows(&v)]);
                attention::attend(rows(&q), keys, values, self.heads())
            });
            let o = Tensor::cat(outputs.collect(), 0);
            x = x + apply(Module::O, &o, runs);
            let (h, _) = norm::forward(&x, &layer.post_norm, self.config.rms_eps);
            let a = swiglu::forward(&apply(Module::Gate, &h, runs), &apply(Module::Up, &h, runs));
            x = x + apply(Module::Down, &a, runs);
        }
        for run in runs.iter_mut() {
            run.cache.advance(run.ids.len());
        }
        Ok(norm::forward(&x, &self.norm, self.config.rms_eps).0)
    }

    /// Logits `[ids, vocab]` of one sequence, for tests and tools.
    ///
    /// # Errors
    /// An id is unknown, or there are too many.
    pub fn logits(&self, ids: &[u32], adapter: Option<&Adapter>) -> Result<Vec<f32>, ModelError> {
        let mut cache = KvCache::new(&self.config, &self.device);
        let hidden = self.hidden(&mut [Run { ids, cache: &mut cache, adapter }])?;
        Ok(to_vec(hidden.matmul(self.head_weight().clone().transpose())))
    }

    /// Log-probability of each id but the first, given those before it, nats.
    ///
    /// # Errors
    /// An id is unknown, or there are too many.
    pub fn score(&self, ids: &[u32], adapter: Option<&Adapter>) -> Result<Vec<f32>, ModelError> {
        let Some((_, targets)) = ids.split_first().filter(|(_, rest)| !rest.is_empty()) else {
            self.check(ids, 0)?;
            return Ok(Vec::new());
        };
        self.check(targets, 1)?;
        let mut cache = KvCache::new(&self.config, &self.device);
        let hidden = self.hidden(&mut [Run { ids: &ids[..targets.len()], cache: &mut cache, adapter }])?;
        Ok(cross_entropy::log_probabilities(&hidden, self.head_weight(), targets))
    }
}

/// Adds each sequence's own adapter to its rows; neighbours with the same adapter share one product.
fn add_adapters(
    y: Tensor<2>,
    x: &Tensor<2>,
    runs: &[Run<'_>],
    spans: &[Range<usize>],
    layer: usize,
    module: Module,
) -> Tensor<2> {
    let [rows, width] = y.dims();
    let mut y = y;
    let mut start = 0;
    while start < runs.len() {
        let adapter = runs[start].adapter;
        let same = |run: &Run<'_>| match (run.adapter, adapter) {
            (Some(a), Some(b)) => std::ptr::eq(a, b),
            (None, None) => true,
            _ => false,
        };
        let end = start + runs[start..].iter().take_while(|run| same(run)).count();
        if let Some(pair) = adapter.and_then(|adapter| adapter.pair(layer, module)) {
            let span = spans[start].start..spans[end - 1].end;
            if span == (0..rows) {
                return y + pair.delta(x).0;
            }
            let sum = y.clone().slice([span.clone()]) + pair.delta(&x.clone().slice([span.clone()])).0;
            y = y.slice_assign([span, 0..width], sum);
        }
        start = end;
    }
    y
}

/// A standard normal variate by Box and Muller's transform.
fn normal(rng: &mut ChaCha8Rng) -> f32 {
    let (u, v): (f32, f32) = (rng.random_range(f32::EPSILON..1.0), rng.random());
    (-2.0 * u.ln()).sqrt() * (std::f32::consts::TAU * v).cos()
}
