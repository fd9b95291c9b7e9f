//! The launches of a decoding step on a GPU: one token of each of several sequences through all blocks.

use burn::tensor::Tensor;

use super::{Decoder, Weight};
use crate::config::{Activation, Module, Norm};
use crate::ops::attention::Heads;
use crate::ops::cuda::Array;
use crate::ops::cuda::adapters::{Adapted, Expanded};
use crate::ops::cuda::decode::{self, Delta, Inputs, Stream};
use crate::ops::cuda::few::{self, Group, Rows};
use crate::ops::cuda::graph::Output;
use crate::ops::cuda::paged::{self, Turn};

/// A model's weights as the kernels read them.
#[derive(Debug)]
pub(super) struct Weights {
    embedding: Array,
    embedding_scale: f32,
    blocks: Vec<Block>,
    norm: Array,
    head: Array,
    eps: f32,
    activation: Activation,
}

#[derive(Debug)]
struct Block {
    /// By [`Norm::index`].
    norms: [Option<Array>; 6],
    /// Queries, keys and values; output; gate and up; down.
    groups: [Layers; 4],
    heads: Heads,
    rope: [Array; 2],
    pools: [Array; 2],
}

/// Linear layers with one input.
#[derive(Debug)]
struct Layers {
    modules: &'static [Module],
    weights: Vec<Array>,
    biases: Vec<Array>,
}

const GROUPS: [&[Module]; 4] =
    [&[Module::Q, Module::K, Module::V], &[Module::O], &[Module::Gate, Module::Up], &[Module::Down]];

impl Weights {
    /// For a model whose keys and values lie in these pools; `None` if its kernels can't be recorded.
    pub(super) fn new(model: &Decoder, pools: &[[Tensor<2>; 2]]) -> Option<Self> {
        let config = model.config();
        let half = |tensor: &Tensor<2>| Array::half(tensor);
        let widths = [config.hidden, config.intermediate, config.heads * config.head_dim];
        if !decode::norms_fit(config.hidden) || widths.iter().any(|width| !width.is_multiple_of(8)) {
            return None;
        }
        let mut blocks = Vec::with_capacity(config.layers());
        for (index, (layer, [keys, values])) in model.layers.iter().zip(pools).enumerate() {
            let mut groups = Vec::with_capacity(GROUPS.len());
            for modules in GROUPS {
                let linears = modules.iter().map(|module| &layer.linears[module.index()]);
                let weights = linears
                    .clone()
                    .map(|linear| match &linear.weight {
                        Weight::Dense(weight) => half(weight),
                        Weight::Packed(_) => None,
                    })
                    .collect::<Option<Vec<_>>>()?;
                let biases = linears.filter_map(|linear| linear.bias.as_ref()).map(Array::of);
                let biases = biases.collect::<Option<Vec<_>>>()?;
                if !biases.is_empty() && biases.len() != modules.len() {
                    return None;
                }
                groups.push(Layers { modules, weights, biases });
            }
            let mut norms: [Option<Array>; 6] = Default::default();
            for (slot, norm) in norms.iter_mut().zip(&layer.norms) {
                if let Some(weight) = norm {
                    *slot = Some(Array::of(weight)?);
                }
            }
            let of = |norm: Norm| norms[norm.index()].is_some();
            if !of(Norm::Attention) || !of(Norm::Mlp) || of(Norm::Query) != of(Norm::Key) {
                return None;
            }
            let rope = model.ropes[index].arrays(&model.device.burn)?.clone();
            let (heads, pools) = (model.heads(index), [half(keys)?, half(values)?]);
            blocks.push(Block { norms, groups: groups.try_into().ok()?, heads, rope, pools });
        }
        Some(Self {
            embedding: half(&model.embedding)?,
            embedding_scale: config.embedding_scale,
            blocks,
            norm: Array::of(&model.norm)?,
            head: half(model.head_weight())?,
            eps: config.rms_eps,
            activation: config.activation,
        })
    }

    /// Products of a step that have adapters.
    pub(super) fn products(&self) -> usize {
        GROUPS.len() * self.blocks.len()
    }

    fn normed<'a>(&self, stream: &'a mut Stream, weight: &'a Array) -> Rows<'a> {
        Rows::Normed { stream, weight, eps: self.eps }
    }

    /// Heads of the first block.
    pub(super) fn heads(&self) -> Option<Heads> {
        Some(self.blocks.first()?.heads)
    }

    /// All launches of a step.
    pub(super) fn step(&self, inputs: &Inputs, adapted: Option<&Adapted>, splits: usize) -> Option<Output> {
        let mut stream = Stream { x: inputs.embed(&self.embedding, self.embedding_scale), delta: None };
        for (index, block) in self.blocks.iter().enumerate() {
            let group = |which: usize, rows: Rows<'_>, glu: Option<Activation>| {
                block.groups[which].products(rows, adapted, inputs, [index, which], glu)
            };
            let norm = |norm: Norm| block.norms[norm.index()].as_ref();
            let [q, k, v] =
                <[Array; 3]>::try_from(group(0, self.normed(&mut stream, norm(Norm::Attention)?), None)?).ok()?;
            let norms = norm(Norm::Query).zip(norm(Norm::Key)).map(|(q, k)| [q, k]);
            let [rope, pools] = [&block.rope, &block.pools].map(|[a, b]| [a, b]);
            let turn = Turn { rope, norms, eps: self.eps };
            let stretches = paged::attend_rows([&q, &k, &v], &turn, inputs, pools, splits, block.heads);
            let delta =
                |rows: Vec<Array>, after| Some(Delta { rows: rows.into_iter().next()?, norm: norm(after).cloned() });
            stream.delta = delta(group(1, Rows::Joined(&stretches), None)?, Norm::AfterAttention);
            let activation = group(2, self.normed(&mut stream, norm(Norm::Mlp)?), Some(self.activation))?.remove(0);
            stream.delta = delta(group(3, Rows::Ready(&activation), None)?, Norm::AfterMlp);
        }
        let head = Group { weights: std::slice::from_ref(&self.head), ..Group::default() };
        let logits = few::products(self.normed(&mut stream, &self.norm), &head)?.remove(0);
        let best = inputs.choose(&logits)?;
        Some(Output { logits, best })
    }
}

impl Layers {
    /// The layers' outputs with each row's own adapter.
    fn products(
        &self,
        rows: Rows<'_>,
        adapted: Option<&Adapted>,
        inputs: &Inputs,
        [layer, which]: [usize; 2],
        glu: Option<Activation>,
    ) -> Option<Vec<Array>> {
        let Self { modules, weights, biases } = self;
        let product = GROUPS.len() * layer + which;
        let of = |adapted: &'_ Adapted| adapted.factors.places(layer, modules);
        let expanded = adapted.map(|adapted| Expanded { inputs, adapted, places: of(adapted), product });
        few::products(rows, &Group { weights, biases, expanded, glu, fresh: false })
    }
}
