//! The explicit backward of a transformer block: no tape spans layers.

use burn::tensor::Tensor;

use super::dropout::Dropout;
use crate::config::{Module, Norm};
use crate::model::{Adapter, Backward, Decoder, LinearGradients, LoraPair, Saved};
use crate::ops::attention::{self, Documents};
use crate::ops::glu;
use crate::ops::rope::Positions;

/// What a block's backward needs of its forward.
pub(crate) struct Kept {
    saved: Saved,
    attended: attention::Kept,
    /// `x·Aᵀ` of each adapted linear layer.
    inner: [Option<Tensor<2>>; 7],
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

impl BlockOf<'_> {
    fn lora(&self, module: Module) -> Option<&LoraPair> {
        self.model.adapter.and_then(|adapter| adapter.pair(self.index, module))
    }

    /// What the adapter of a linear layer sees of its input.
    fn mask(&self, module: Module, x: &Tensor<2>) -> Option<Tensor<2>> {
        self.lora(module)?;
        Some(self.model.dropout?.mask(self.index, module, x.dims(), &self.model.decoder.device.burn))
    }

    /// Output `[n, hidden]` of the block, and what its backward needs.
    pub(crate) fn forward(
        &self,
        x: Tensor<2>,
        documents: &Documents<'_>,
        positions: &Positions<'_>,
    ) -> (Tensor<2>, Kept) {
        let (decoder, heads) = (self.model.decoder, self.model.decoder.heads(self.index));
        let linears = &decoder.layers[self.index].linears;
        let mut inner: [Option<Tensor<2>>; 7] = Default::default();
        let mut attended = None;
        let linear = |module: Module, x: &Tensor<2>, residual: Option<Tensor<2>>| {
            let (y, kept) = linears[module.index()].forward(self.lora(module), x, self.mask(module, x), residual);
            inner[module.index()] = kept;
            y
        };
        let attend = |q: &Tensor<2>, k: &Tensor<2>, v: &Tensor<2>| {
            let (o, kept) = attention::forward(q, k, v, documents, heads);
            attended = Some(kept);
            o
        };
        let (y, saved) = decoder.block(self.index, x, positions, linear, attend);
        let Some(attended) = attended else { unreachable!("a block attends once") };
        (y, Kept { saved, attended, inner })
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
        let BlockGradients { mut norms, mut linears } = BlockGradients::default();
        let mut norm = |which: Norm, dy: Tensor<2>, residual: Option<Tensor<2>>| {
            let (dx, gradient) = decoder.norm_backward(index, which, dy, &saved, residual, train_weights);
            norms[which.index()] = gradient;
            dx
        };
        let mut linear = |module: Module, dy: &Tensor<2>, x: &Tensor<2>, sum: Option<Tensor<2>>| {
            let layer = &decoder.layers[index].linears[module.index()];
            let (lora, inner, mask) = (self.lora(module), inner[module.index()].as_ref(), self.mask(module, x));
            let (dx, gradients) = layer.backward(Backward { lora, dy, x, inner, mask, sum }, train_weights);
            linears[module.index()] = gradients;
            dx
        };
        let ddown = norm(Norm::AfterMlp, dy.clone(), None);
        let dactivation = linear(Module::Down, &ddown, &saved.activation, None);
        let (dgate, dup) = glu::backward(decoder.config.activation, &dactivation, &saved.gate, &saved.up);
        let dmlp = linear(Module::Gate, &dgate, &saved.mlp, None);
        let dmlp = linear(Module::Up, &dup, &saved.mlp, Some(dmlp));
        let dmiddle = norm(Norm::Mlp, dmlp, Some(dy));
        let dattention = norm(Norm::AfterAttention, dmiddle.clone(), None);
        let dout = linear(Module::O, &dattention, &saved.o, None);
        let [dq, dk, dv] = attention::backward(&dout, &saved.q, &saved.k, &saved.v, attended, documents, heads);
        let dq = norm(Norm::Query, rope.apply(dq, positions, true), None);
        let dk = norm(Norm::Key, rope.apply(dk, positions, true), None);
        let dh = linear(Module::Q, &dq, &saved.h, None);
        let dh = linear(Module::K, &dk, &saved.h, Some(dh));
        let dh = linear(Module::V, &dv, &saved.h, Some(dh));
        let dx = norm(Norm::Attention, dh, Some(dmiddle));
        (dx, BlockGradients { norms, linears })
    }
}
