//! The explicit backward of a transformer block: no tape spans layers.

use std::ops::Add;

use burn::tensor::Tensor;

use super::dropout::Dropout;
use crate::config::{Module, Norm};
use crate::model::{Adapter, Decoder, Inner, Joint, LinearGradients, Linears, LoraPair, Saved};
use crate::ops::attention::{self, Documents};
use crate::ops::glu;
use crate::ops::rope::Positions;

/// What a block's backward needs of its forward.
pub(crate) struct Kept {
    saved: Saved,
    attended: attention::Kept,
    /// What linear layers kept that read one input, by the first one's [`Module::index`]; under dropout each its own.
    inner: [Option<Inner>; 7],
}

/// Gradients of one block's parameters.
#[derive(Default)]
pub(crate) struct BlockGradients {
    /// By [`Norm::index`], when all weights are trained.
    pub(crate) norms: [Option<Tensor<1>>; 6],
    /// By [`Module::index`].
    pub(crate) linears: [LinearGradients; 7],
}

/// A decoder with the adapter that is trained on it, if one is.
#[derive(Clone, Copy)]
pub(crate) struct Model<'a> {
    pub(crate) decoder: &'a Decoder,
    pub(crate) adapter: Option<&'a Adapter>,
    /// Of the packed block that is computed; none but in a step.
    pub(crate) dropout: Option<Dropout>,
    /// The backward computes each block's forward again.
    pub(crate) recompute: bool,
}

impl<'a> Model<'a> {
    /// As it is measured: without dropout.
    pub(crate) fn new(decoder: &'a Decoder, adapter: Option<&'a Adapter>) -> Self {
        Self { decoder, adapter, dropout: None, recompute: false }
    }

    /// Its block `index`.
    pub(crate) fn block(self, index: usize) -> BlockOf<'a> {
        BlockOf { model: self, index }
    }
}

/// A block of a decoder.
#[derive(Clone, Copy)]
pub(crate) struct BlockOf<'a> {
    model: Model<'a>,
    index: usize,
}

impl<'a> BlockOf<'a> {
    fn lora(&self, module: Module) -> Option<&'a LoraPair> {
        self.model.adapter.and_then(|adapter| adapter.pair(self.index, module))
    }

    /// What the adapter of a linear layer sees of its input.
    fn mask(&self, module: Module, x: &Tensor<2>) -> Option<Tensor<2>> {
        self.lora(module)?;
        Some(self.model.dropout?.mask(self.index, module, x.dims(), &self.model.decoder.device.burn))
    }

    /// Layers that read one input.
    fn joint<const N: usize>(&self, modules: [Module; N]) -> Joint<'a, N> {
        let linears = &self.model.decoder.layers[self.index].linears;
        let (layers, loras) = (modules.map(|module| &linears[module.index()]), modules.map(|module| self.lora(module)));
        Joint { layers, loras, mask: None }
    }

    /// One of those that read `x`, whose adapter sees its own part of it.
    fn masked(&self, module: Module, x: &Tensor<2>) -> Joint<'a, 1> {
        Joint { mask: self.mask(module, x), ..self.joint([module]) }
    }

    /// Output `[n, hidden]` of the block, and what its backward needs.
    pub(crate) fn forward(
        &self,
        x: Tensor<2>,
        documents: &Documents<'_>,
        positions: &Positions<'_>,
    ) -> (Tensor<2>, Kept) {
        let (decoder, heads) = (self.model.decoder, self.model.decoder.heads(self.index));
        let mut linears = Forward { block: *self, inner: Default::default() };
        let mut attended = None;
        let attend = |q: &Tensor<2>, k: &Tensor<2>, v: &Tensor<2>| {
            let (o, kept) = attention::forward(q, k, v, documents, heads);
            attended = Some(kept);
            o
        };
        let (y, saved) = decoder.block(self.index, x, positions, &mut linears, attend);
        let Some(attended) = attended else { unreachable!("a block attends once") };
        (y, Kept { saved, attended, inner: linears.inner })
    }

    /// Gradient of the input, and of the block's parameters.
    pub(crate) fn backward(
        &self,
        dy: Tensor<2>,
        kept: Kept,
        documents: &Documents<'_>,
        positions: &Positions<'_>,
        train_weights: bool,
    ) -> (Tensor<2>, BlockGradients) {
        let Kept { saved, attended, inner } = kept;
        let (decoder, index) = (self.model.decoder, self.index);
        let (heads, rope) = (decoder.heads(index), &decoder.ropes[index]);
        let mut norms: [Option<Tensor<1>>; 6] = Default::default();
        let mut linears = Backward { block: *self, inner, train_weights, gradients: Default::default() };
        let mut norm = |which: Norm, dy: Tensor<2>, residual: Option<Tensor<2>>| {
            let (dx, gradient) = decoder.norm_backward(index, which, dy, &saved, residual, train_weights);
            norms[which.index()] = gradient;
            dx
        };
        let ddown = norm(Norm::AfterMlp, dy.clone(), None);
        let dactivation = linears.apply([Module::Down], [&ddown], &saved.activation);
        let (dgate, dup) = glu::backward(decoder.config.activation, &dactivation, &saved.gate, &saved.up);
        let dmlp = linears.apply([Module::Gate, Module::Up], [&dgate, &dup], &saved.mlp);
        let dmiddle = norm(Norm::Mlp, dmlp, Some(dy));
        let dattention = norm(Norm::AfterAttention, dmiddle.clone(), None);
        let dout = linears.apply([Module::O], [&dattention], &saved.o);
        let [dq, dk, dv] = attention::backward(&dout, &saved.q, &saved.k, &saved.v, attended, documents, heads);
        let dq = norm(Norm::Query, rope.apply(dq, positions, true), None);
        let dk = norm(Norm::Key, rope.apply(dk, positions, true), None);
        let dh = linears.apply([Module::Q, Module::K, Module::V], [&dq, &dk, &dv], &saved.h);
        let dx = norm(Norm::Attention, dh, Some(dmiddle));
        (dx, BlockGradients { norms, linears: linears.gradients })
    }
}

/// A block's linear layers in the forward of a training step.
struct Forward<'a> {
    block: BlockOf<'a>,
    inner: [Option<Inner>; 7],
}

impl Linears for Forward<'_> {
    fn apply<const N: usize>(
        &mut self,
        modules: [Module; N],
        x: &Tensor<2>,
        residual: Option<&Tensor<2>>,
    ) -> [Tensor<2>; N] {
        if self.block.model.dropout.is_some() {
            return modules.map(|module| {
                let ([y], inner) = self.block.masked(module, x).forward(x, residual);
                self.inner[module.index()] = inner;
                y
            });
        }
        let (outputs, inner) = self.block.joint(modules).forward(x, residual);
        self.inner[modules[0].index()] = inner;
        outputs
    }
}

/// The same in the backward.
struct Backward<'a> {
    block: BlockOf<'a>,
    inner: [Option<Inner>; 7],
    train_weights: bool,
    gradients: [LinearGradients; 7],
}

impl Backward<'_> {
    /// Gradient of the input `x` of these layers, from those of their outputs.
    fn apply<const N: usize>(&mut self, modules: [Module; N], dys: [&Tensor<2>; N], x: &Tensor<2>) -> Tensor<2> {
        if self.block.model.dropout.is_none() {
            return self.joint(&self.block.joint(modules), modules, dys, x);
        }
        let parts = modules.into_iter().zip(dys);
        let sum =
            parts.map(|(module, dy)| self.joint(&self.block.masked(module, x), [module], [dy], x)).reduce(Add::add);
        let Some(sum) = sum else { unreachable!("there are layers") };
        sum
    }

    fn joint<const N: usize>(
        &mut self,
        joint: &Joint<'_, N>,
        modules: [Module; N],
        dys: [&Tensor<2>; N],
        x: &Tensor<2>,
    ) -> Tensor<2> {
        let inner = self.inner[modules[0].index()].take();
        let (dx, gradients) = joint.backward(dys, x, inner.as_ref(), self.train_weights);
        for (module, gradients) in modules.into_iter().zip(gradients) {
            self.gradients[module.index()] = gradients;
        }
        dx
    }
}
