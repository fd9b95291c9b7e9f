//! The explicit backward of a transformer block: no tape spans layers.

use burn::tensor::Tensor;

use super::dropout::Dropout;
use crate::config::{Module, Norm};
use crate::model::{Adapter, Decoder, LinearGradients, LoraPair, Saved};
use crate::ops::attention::{self, Documents};
use crate::ops::glu;

/// What a block's backward needs of its forward.
pub(crate) struct Kept {
    saved: Saved,
    probabilities: Vec<Tensor<3>>,
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
}

impl<'a> Model<'a> {
    /// As it is measured: without dropout.
    pub(crate) fn new(decoder: &'a Decoder, adapter: Option<&'a Adapter>) -> Self {
        Self { decoder, adapter, dropout: None }
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
    pub(crate) fn forward(&self, x: Tensor<2>, documents: &Documents<'_>, positions: &[usize]) -> (Tensor<2>, Kept) {
        let (decoder, heads) = (self.model.decoder, self.model.decoder.heads(self.index));
        let linears = &decoder.layers[self.index].linears;
        let mut inner: [Option<Tensor<2>>; 7] = Default::default();
        let mut probabilities = Vec::new();
        let linear = |module: Module, x: &Tensor<2>| {
            let (y, kept) = linears[module.index()].forward(self.lora(module), x, self.mask(module, x));
            inner[module.index()] = kept;
            y
        };
        let attend = |q: &Tensor<2>, k: &Tensor<2>, v: &Tensor<2>| {
            let (o, p) = attention::forward(q, k, v, documents, heads);
            probabilities = p;
            o
        };
        let (y, saved) = decoder.block(self.index, x, positions, linear, attend);
        (y, Kept { saved, probabilities, inner })
    }

    /// Gradient of the input, and of the block's parameters.
    pub(crate) fn backward(
        &self,
        dy: Tensor<2>,
        kept: Kept,
        documents: &Documents<'_>,
        positions: &[usize],
        train_weights: bool,
    ) -> (Tensor<2>, BlockGradients) {
        let Kept { saved, probabilities, inner } = kept;
        let (decoder, index) = (self.model.decoder, self.index);
        let (heads, rope) = (decoder.heads(index), &decoder.ropes[index]);
        let BlockGradients { mut norms, mut linears } = BlockGradients::default();
        let mut norm = |which: Norm, dy: Tensor<2>| {
            let (dx, gradient) = decoder.norm_backward(index, which, dy, &saved, train_weights);
            norms[which.index()] = gradient;
            dx
        };
        let mut linear = |module: Module, dy: &Tensor<2>, x: &Tensor<2>| {
            let layer = &decoder.layers[index].linears[module.index()];
            let (inner, mask) = (inner[module.index()].as_ref(), self.mask(module, x));
            let (dx, gradients) = layer.backward(self.lora(module), dy, x, inner, mask, train_weights);
            linears[module.index()] = gradients;
            dx
        };
        let ddown = norm(Norm::AfterMlp, dy.clone());
        let dactivation = linear(Module::Down, &ddown, &saved.activation);
        let (dgate, dup) = glu::backward(decoder.config.activation, &dactivation, &saved.gate, &saved.up);
        let dmlp = linear(Module::Gate, &dgate, &saved.mlp) + linear(Module::Up, &dup, &saved.mlp);
        let dmiddle = dy + norm(Norm::Mlp, dmlp);
        let dattention = norm(Norm::AfterAttention, dmiddle.clone());
        let dout = linear(Module::O, &dattention, &saved.o);
        let [dq, dk, dv] = attention::backward(&dout, &saved.q, &saved.k, &saved.v, probabilities, documents, heads);
        let dq = norm(Norm::Query, rope.apply(dq, positions, true));
        let dk = norm(Norm::Key, rope.apply(dk, positions, true));
        let dh = linear(Module::Q, &dq, &saved.h) + linear(Module::K, &dk, &saved.h) + linear(Module::V, &dv, &saved.h);
        let dx = dmiddle + norm(Norm::Attention, dh);
        (dx, BlockGradients { norms, linears })
    }
}
