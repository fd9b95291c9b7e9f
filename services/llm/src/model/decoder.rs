//! Weights of a decoder and its cached forward.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use burn::tensor::{DType, Int, Tensor, TensorData};

use super::build::rope_tables;
use super::{Adapter, AdapterError, Layer, Linears, Weight};
use crate::cache::{KvCache, PageTable};
use crate::config::{ConfigError, ModelConfig, Module, Norm};
use crate::device::Device;
use crate::generate::Scorer;
use crate::ops::attention::{Documents, Heads};
use crate::ops::product::product;
use crate::ops::rope::{Positions, RopeTable};
use crate::ops::{norm, to_vec};
use crate::weights::{self, NamedTensor, StoredType, WeightsError};

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
    /// The key-value cache has no page left.
    #[error("the cache of {limit} tokens is full")]
    CacheFull {
        /// Tokens that it holds.
        limit: usize,
    },
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
    /// One a block; blocks with the same parameters share a table.
    pub(crate) ropes: Vec<Arc<RopeTable>>,
    pub(crate) device: Device,
}

/// Rows of a batch that belong to one sequence.
#[derive(Debug)]
pub(crate) struct Run<'a> {
    pub(crate) ids: &'a [u32],
    /// Pages for them are reserved.
    pub(crate) table: &'a mut PageTable,
    pub(crate) adapter: Option<&'a Adapter>,
}

/// A parameter in checkpoint order, for loading, saving, initialising and training alike.
enum Parameter<'a> {
    Matrix(&'a mut Tensor<2>),
    Bias(&'a mut Tensor<1>),
    Norm(&'a mut Tensor<1>),
}

impl Decoder {
    /// Writes `model.safetensors`; `config.json` and the tokenizer are the caller's to copy.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn save(&self, dir: &Path, stored: StoredType) -> Result<(), ModelError> {
        let mut copy = self.clone();
        let offset = self.config.norm_offset;
        let tensors: Vec<_> = copy
            .parameters_mut()
            .into_iter()
            .map(|(name, parameter)| match parameter {
                Parameter::Matrix(t) => NamedTensor { name, shape: t.dims().to_vec(), values: to_vec(t.clone()) },
                Parameter::Bias(t) => NamedTensor { name, shape: t.dims().to_vec(), values: to_vec(t.clone()) },
                Parameter::Norm(t) => {
                    NamedTensor { name, shape: t.dims().to_vec(), values: to_vec(t.clone() - offset) }
                }
            })
            .collect();
        Ok(weights::write(&dir.join("model.safetensors"), &tensors, stored)?)
    }

    /// A copy on another device of the same kind.
    pub(crate) fn on(&self, device: &Device) -> Self {
        let mut copy = self.clone();
        let burn = &device.burn;
        copy.embedding = copy.embedding.to_device(burn);
        copy.norm = copy.norm.to_device(burn);
        copy.head = copy.head.map(|head| head.to_device(burn));
        for layer in &mut copy.layers {
            for norm in layer.norms.iter_mut().flatten() {
                *norm = norm.clone().to_device(burn);
            }
            for linear in &mut layer.linears {
                linear.weight = linear.weight.on(device);
                linear.bias = linear.bias.take().map(|bias| bias.to_device(burn));
            }
        }
        // A table stays on the device that asks first.
        copy.ropes = rope_tables(&self.config);
        copy.device = device.clone();
        copy
    }

    /// Shape of the model.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Bytes that the blocks' linear layers take.
    #[cfg(test)]
    pub(crate) fn linear_bytes(&self) -> usize {
        self.layers.iter().flat_map(|layer| &layer.linears).map(|linear| linear.weight.bytes()).sum()
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
            Parameter::Bias(t) | Parameter::Norm(t) => t.clone(),
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
                Parameter::Bias(slot) | Parameter::Norm(slot) => *slot = take(slot.dims()[0]),
            }
        }
    }

    fn parameters_mut(&mut self) -> Vec<(String, Parameter<'_>)> {
        let placement = self.config.norms;
        let mut all = vec![("model.embed_tokens.weight".to_owned(), Parameter::Matrix(&mut self.embedding))];
        for (index, layer) in self.layers.iter_mut().enumerate() {
            let name = |part: &str, kind: &str| format!("model.layers.{index}.{part}.{kind}");
            for (norm, weight) in Norm::ALL.into_iter().zip(&mut layer.norms) {
                all.extend(weight.as_mut().map(|w| (name(norm.path(placement), "weight"), Parameter::Norm(w))));
            }
            for (module, linear) in Module::ALL.into_iter().zip(&mut layer.linears) {
                let path = module.path();
                if let Weight::Dense(weight) = &mut linear.weight {
                    all.push((name(&path, "weight"), Parameter::Matrix(weight)));
                }
                all.extend(linear.bias.as_mut().map(|bias| (name(&path, "bias"), Parameter::Bias(bias))));
            }
        }
        all.push(("model.norm.weight".to_owned(), Parameter::Norm(&mut self.norm)));
        if let Some(head) = &mut self.head {
            all.push(("lm_head.weight".to_owned(), Parameter::Matrix(head)));
        }
        all
    }

    /// Heads of block `index`.
    pub(crate) fn heads(&self, index: usize) -> Heads {
        let config = &self.config;
        Heads {
            kv: config.kv_heads,
            group: config.heads / config.kv_heads,
            dim: config.head_dim,
            scale: config.score_scale,
            window: config.attention[index].window,
        }
    }

    /// Documents of a packed block whose embedded rows are `x`.
    pub(crate) fn documents<'a>(&self, ranges: &'a [Range<usize>], x: &Tensor<2>) -> Documents<'a> {
        let heads: Vec<_> = (0..self.layers.len()).map(|index| self.heads(index)).collect();
        Documents::new(ranges, x, &heads)
    }

    pub(crate) fn head_weight(&self) -> &Tensor<2> {
        self.head.as_ref().unwrap_or(&self.embedding)
    }

    /// Checks that a sequence can be computed.
    ///
    /// # Errors
    /// An id is unknown, or there are too many.
    pub fn check_row(&self, ids: &[u32]) -> Result<(), ModelError> {
        self.check(ids, 0)
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
        let rows = self.embedding.clone().select(0, ids);
        if self.config.embedding_scale == 1.0 { rows } else { rows * self.config.embedding_scale }
    }

    /// Runs the new tokens of several sequences through all blocks, in one batch, and extends their tables. Gives the
    /// normed hidden rows `[tokens, hidden]`.
    pub(crate) fn hidden(&self, cache: &mut KvCache, runs: &mut [Run<'_>]) -> Result<Tensor<2>, ModelError> {
        let mut spans = Vec::with_capacity(runs.len());
        let (mut ids, mut positions) = (Vec::new(), Vec::new());
        for run in runs.iter() {
            self.check(run.ids, run.table.len())?;
            spans.push(ids.len()..ids.len() + run.ids.len());
            positions.extend(run.table.len()..run.table.len() + run.ids.len());
            ids.extend_from_slice(run.ids);
        }
        let positions = Positions::new(&positions, &self.device.burn);
        let adapters: Vec<_> = runs.iter().map(|run| run.adapter).collect();
        let mut x = self.embed(&ids);
        let store = &mut cache.store;
        let prepared: Vec<_> = runs.iter().zip(&spans).map(|(run, span)| (&*run.table, span.clone())).collect();
        store.prepare(&prepared, self.heads(0));
        drop(prepared);
        for (index, layer) in self.layers.iter().enumerate() {
            let heads = self.heads(index);
            let mut linears = Served { layer, index, adapters: &adapters, spans: &spans };
            let attend = |q: &Tensor<2>, k: &Tensor<2>, v: &Tensor<2>| {
                let sequences: Vec<_> =
                    runs.iter().zip(&spans).map(|(run, span)| (&*run.table, span.clone())).collect();
                store.attend(index, &sequences, [q, k, v], heads)
            };
            x = self.block(index, x, &positions, &mut linears, attend).0;
        }
        for run in runs.iter_mut() {
            cache.pages.advance(run.table, run.ids);
        }
        Ok(norm::forward(&x, &self.norm, self.config.rms_eps).0)
    }

    /// Normed hidden rows `[ids, hidden]` of one sequence by itself.
    fn hidden_alone(&self, ids: &[u32], adapter: Option<&Adapter>) -> Result<Tensor<2>, ModelError> {
        let mut cache = KvCache::new(self, ids.len());
        let mut table = PageTable::default();
        cache.require(&mut table, ids.len())?;
        self.hidden(&mut cache, &mut [Run { ids, table: &mut table, adapter }])
    }

    /// Logits `[ids, vocab]` of one sequence, for tests and tools.
    ///
    /// # Errors
    /// An id is unknown, or there are too many.
    pub fn logits(&self, ids: &[u32], adapter: Option<&Adapter>) -> Result<Vec<f32>, ModelError> {
        let hidden = self.hidden_alone(ids, adapter)?;
        Ok(to_vec(product(&hidden, self.head_weight())))
    }

    /// Log-probability of each id but the first, given those before it, nats.
    ///
    /// # Errors
    /// An id is unknown, or there are too many.
    pub fn score(&self, ids: &[u32], adapter: Option<&Adapter>) -> Result<Vec<f32>, ModelError> {
        let mut scorer = Scorer::new(self, ids.to_vec())?;
        scorer.advance(self, adapter, usize::MAX)?;
        Ok(scorer.into_logs())
    }

    /// Reward of a sequence, if the adapter gives one.
    ///
    /// # Errors
    /// An id is unknown, or there are too many.
    pub fn reward(&self, ids: &[u32], adapter: &Adapter) -> Result<Option<f32>, ModelError> {
        let Some(score) = adapter.score().filter(|_| !ids.is_empty()) else { return Ok(None) };
        let hidden = self.hidden_alone(ids, Some(adapter))?;
        let last = hidden.slice([ids.len() - 1..ids.len()]);
        Ok(to_vec(product(&last.cast(DType::F32), score)).first().copied())
    }
}

/// A block's linear layers with the adapters of a batch's sequences.
struct Served<'a> {
    layer: &'a Layer,
    /// Which of the model's blocks it is.
    index: usize,
    /// Each sequence's own, and its rows.
    adapters: &'a [Option<&'a Adapter>],
    spans: &'a [Range<usize>],
}

impl Linears for Served<'_> {
    fn apply<const N: usize>(
        &mut self,
        modules: [Module; N],
        x: &Tensor<2>,
        residual: Option<&Tensor<2>>,
    ) -> [Tensor<2>; N] {
        modules.map(|module| {
            let y = self.add_adapters(self.layer.linears[module.index()].serve(x), x, module);
            match residual {
                Some(residual) => residual.clone() + y,
                None => y,
            }
        })
    }
}

impl Served<'_> {
    /// Adds each sequence's own adapter to its rows; neighbours with the same adapter share one product.
    fn add_adapters(&self, y: Tensor<2>, x: &Tensor<2>, module: Module) -> Tensor<2> {
        let Self { index, adapters, spans, .. } = *self;
        let [rows, width] = y.dims();
        let mut y = y;
        let mut start = 0;
        while start < adapters.len() {
            let adapter = adapters[start];
            let same = |other: &Option<&Adapter>| match (*other, adapter) {
                (Some(a), Some(b)) => std::ptr::eq(a, b),
                (None, None) => true,
                _ => false,
            };
            let end = start + adapters[start..].iter().take_while(|other| same(other)).count();
            if let Some(pair) = adapter.and_then(|adapter| adapter.pair(index, module)) {
                let span = spans[start].start..spans[end - 1].end;
                if span == (0..rows) {
                    return y + pair.serve(x);
                }
                let sum = y.clone().slice([span.clone()]) + pair.serve(&x.clone().slice([span.clone()]));
                y = y.slice_assign([span, 0..width], sum);
            }
            start = end;
        }
        y
    }
}
