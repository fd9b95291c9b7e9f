//! One transformer block: the forward that training and serving share, for every family.

use burn::tensor::Tensor;

use super::{Decoder, Linear};
use crate::config::{Module, Norm};
use crate::ops::rope::Positions;
use crate::ops::{glu, norm};

/// One block's weights.
#[derive(Clone, Debug)]
pub(crate) struct Layer {
    /// By [`Norm::index`]; `None` where the family has none.
    pub(crate) norms: [Option<Tensor<1>>; 6],
    /// By [`Module::index`].
    pub(crate) linears: Vec<Linear>,
}

/// A norm's input and `1 / rms`, which its backward needs.
pub(crate) struct Normed {
    pub(crate) x: Tensor<2>,
    pub(crate) rstd: Tensor<2>,
}

/// What a block's backward needs of its forward, beside what `linear` and `attend` kept.
pub(crate) struct Saved {
    /// By [`Norm::index`].
    pub(crate) norms: [Option<Normed>; 6],
    /// Input of the queries, keys and values.
    pub(crate) h: Tensor<2>,
    pub(crate) q: Tensor<2>,
    pub(crate) k: Tensor<2>,
    pub(crate) v: Tensor<2>,
    /// Attention's output before its linear layer.
    pub(crate) o: Tensor<2>,
    /// Input of gate and up.
    pub(crate) mlp: Tensor<2>,
    pub(crate) gate: Tensor<2>,
    pub(crate) up: Tensor<2>,
    pub(crate) activation: Tensor<2>,
}

impl Decoder {
    /// Output `[n, hidden]` of block `index`, and what its backward needs. `linear` applies a linear layer, with
    /// whatever adapter, and adds a residual if it is given one; `attend` gives the attention of rotated queries and keys,
    /// and values.
    pub(crate) fn block(
        &self,
        index: usize,
        x: Tensor<2>,
        positions: &Positions<'_>,
        mut linear: impl FnMut(Module, &Tensor<2>, Option<Tensor<2>>) -> Tensor<2>,
        attend: impl FnOnce(&Tensor<2>, &Tensor<2>, &Tensor<2>) -> Tensor<2>,
    ) -> (Tensor<2>, Saved) {
        let rope = &self.ropes[index];
        let mut norms: [Option<Normed>; 6] = Default::default();
        let mut norm = |which: Norm, x: Tensor<2>| self.norm_of(index, which, x, &mut norms);
        let h = norm(Norm::Attention, x.clone());
        let q = norm(Norm::Query, linear(Module::Q, &h, None));
        let k = norm(Norm::Key, linear(Module::K, &h, None));
        let (q, k) = (rope.apply(q, positions, false), rope.apply(k, positions, false));
        let v = linear(Module::V, &h, None);
        let o = attend(&q, &k, &v);
        // Without a norm after it the layer itself adds to the stream.
        let direct = |after: Norm| self.layers[index].norms[after.index()].is_none();
        let middle = match direct(Norm::AfterAttention) {
            true => linear(Module::O, &o, Some(x)),
            false => x + norm(Norm::AfterAttention, linear(Module::O, &o, None)),
        };
        let mlp = norm(Norm::Mlp, middle.clone());
        let (gate, up) = (linear(Module::Gate, &mlp, None), linear(Module::Up, &mlp, None));
        let activation = glu::forward(self.config.activation, &gate, &up);
        let y = match direct(Norm::AfterMlp) {
            true => linear(Module::Down, &activation, Some(middle)),
            false => middle + norm(Norm::AfterMlp, linear(Module::Down, &activation, None)),
        };
        (y, Saved { norms, h, q, k, v, o, mlp, gate, up, activation })
    }

    /// Applies a norm if the family has it, in rows of the norm's width: a head's, for queries and keys.
    fn norm_of(&self, index: usize, which: Norm, x: Tensor<2>, saved: &mut [Option<Normed>; 6]) -> Tensor<2> {
        let Some(weight) = &self.layers[index].norms[which.index()] else { return x };
        let [n, width] = x.dims();
        let part = weight.dims()[0];
        let x = x.reshape([n * width / part, part]);
        let (y, rstd) = norm::forward(&x, weight, self.config.rms_eps);
        saved[which.index()] = Some(Normed { x, rstd });
        y.reshape([n, width])
    }

    /// Gradient of the input of a norm plus `residual`, and of its weight if asked for. Where there is no norm, `dy`
    /// passes.
    pub(crate) fn norm_backward(
        &self,
        index: usize,
        which: Norm,
        dy: Tensor<2>,
        saved: &Saved,
        residual: Option<Tensor<2>>,
        train_weight: bool,
    ) -> (Tensor<2>, Option<Tensor<1>>) {
        let weight = &self.layers[index].norms[which.index()];
        let (Some(weight), Some(Normed { x, rstd })) = (weight, &saved.norms[which.index()]) else {
            return (residual.map_or(dy.clone(), |residual| residual + dy), None);
        };
        let shape = dy.dims();
        let dy = dy.reshape(x.dims());
        let dx = norm::backward(&dy, x, weight, rstd, residual).reshape(shape);
        (dx, train_weight.then(|| norm::weight_gradient(&dy, x, rstd)))
    }
}
