//! One transformer block with an explicit backward: it keeps what the backward needs, and no tape spans layers.

use burn::tensor::Tensor;

use crate::config::Module;
use crate::model::{Adapter, Decoder, Layer, Linear, LinearGradients};
use crate::ops::attention::{self, Documents};
use crate::ops::{norm, swiglu};

/// What a block's backward needs of its forward.
pub(crate) struct Saved {
    x: Tensor<2>,
    rstd: Tensor<2>,
    h: Tensor<2>,
    q: Tensor<2>,
    k: Tensor<2>,
    v: Tensor<2>,
    probabilities: Vec<Tensor<3>>,
    o: Tensor<2>,
    middle: Tensor<2>,
    post_rstd: Tensor<2>,
    post_h: Tensor<2>,
    gate: Tensor<2>,
    up: Tensor<2>,
    activation: Tensor<2>,
    inner: [Option<Tensor<2>>; 7],
}

/// Gradients of one block's parameters.
pub(crate) struct BlockGradients {
    pub(crate) linears: [LinearGradients; 7],
    /// Of the two norms' weights, when all weights are trained.
    pub(crate) norms: Option<[Tensor<1>; 2]>,
}

/// A block of a decoder, with the adapter that is trained on it.
pub(crate) struct BlockOf<'a> {
    pub(crate) decoder: &'a Decoder,
    pub(crate) index: usize,
    pub(crate) adapter: Option<&'a Adapter>,
}

impl BlockOf<'_> {
    fn layer(&self) -> &Layer {
        &self.decoder.layers[self.index]
    }

    fn linear(&self, module: Module) -> Linear<'_> {
        Linear {
            weight: &self.layer().linears[module.index()],
            lora: self.adapter.and_then(|adapter| adapter.pair(self.index, module)),
        }
    }

    /// Output `[n, hidden]` of the block, and what its backward needs.
    pub(crate) fn forward(&self, x: Tensor<2>, documents: &Documents<'_>, positions: &[usize]) -> (Tensor<2>, Saved) {
        let (layer, eps, rope) = (self.layer(), self.decoder.config.rms_eps, &self.decoder.rope);
        let mut inner: [Option<Tensor<2>>; 7] = Default::default();
        let mut apply = |module: Module, x: &Tensor<2>| {
            let (y, kept) = self.linear(module).forward(x);
            inner[module.index()] = kept;
            y
        };
        let (h, rstd) = norm::forward(&x, &layer.input_norm, eps);
        let q = rope.apply(apply(Module::Q, &h), positions, false);
        let k = rope.apply(apply(Module::K, &h), positions, false);
        let v = apply(Module::V, &h);
        let (o, probabilities) = attention::forward(&q, &k, &v, documents, self.decoder.heads());
        let middle = x.clone() + apply(Module::O, &o);
        let (post_h, post_rstd) = norm::forward(&middle, &layer.post_norm, eps);
        let (gate, up) = (apply(Module::Gate, &post_h), apply(Module::Up, &post_h));
        let activation = swiglu::forward(&gate, &up);
        let y = middle.clone() + apply(Module::Down, &activation);
        let saved =
            Saved { x, rstd, h, q, k, v, probabilities, o, middle, post_rstd, post_h, gate, up, activation, inner };
        (y, saved)
    }

    /// Gradient of the input, and of the block's parameters.
    pub(crate) fn backward(
        &self,
        dy: Tensor<2>,
        saved: Saved,
        documents: &Documents<'_>,
        positions: &[usize],
        train_weights: bool,
    ) -> (Tensor<2>, BlockGradients) {
        let (layer, rope) = (self.layer(), &self.decoder.rope);
        let mut linears: [LinearGradients; 7] = Default::default();
        let mut back = |module: Module, dy: &Tensor<2>, x: &Tensor<2>| {
            let inner = saved.inner[module.index()].as_ref();
            let (dx, gradients) = self.linear(module).backward(dy, x, inner, train_weights);
            linears[module.index()] = gradients;
            dx
        };
        let dactivation = back(Module::Down, &dy, &saved.activation);
        let (dgate, dup) = swiglu::backward(&dactivation, &saved.gate, &saved.up);
        let dpost = back(Module::Gate, &dgate, &saved.post_h) + back(Module::Up, &dup, &saved.post_h);
        let dmiddle = dy + norm::backward(&dpost, &saved.middle, &layer.post_norm, &saved.post_rstd);
        let dout = back(Module::O, &dmiddle, &saved.o);
        let [dq, dk, dv] = attention::backward(
            &dout,
            &saved.q,
            &saved.k,
            &saved.v,
            saved.probabilities,
            documents,
            self.decoder.heads(),
        );
        let (dq, dk) = (rope.apply(dq, positions, true), rope.apply(dk, positions, true));
        let dh = back(Module::Q, &dq, &saved.h) + back(Module::K, &dk, &saved.h) + back(Module::V, &dv, &saved.h);
        let norms = train_weights.then(|| {
            [
                norm::weight_gradient(&dh, &saved.x, &saved.rstd),
                norm::weight_gradient(&dpost, &saved.middle, &saved.post_rstd),
            ]
        });
        let dx = dmiddle + norm::backward(&dh, &saved.x, &layer.input_norm, &saved.rstd);
        (dx, BlockGradients { linears, norms })
    }
}
