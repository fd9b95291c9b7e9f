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

/// How a block's linear layers are applied: those that read one input, together.
pub(crate) trait Linears {
    /// Outputs of layers, with whatever adapters, each plus `residual`.
    fn apply<const N: usize>(
        &mut self,
        modules: [Module; N],
        x: &Tensor<2>,
        residual: Option<&Tensor<2>>,
    ) -> [Tensor<2>; N];
}

impl Decoder {
    /// Output `[n, hidden]` of block `index`, and what its backward needs. `attend` gives the attention of rotated queries and
    /// keys, and values.
    pub(crate) fn block(
        &self,
        index: usize,
        x: Tensor<2>,
        positions: &Positions<'_>,
        linears: &mut impl Linears,
        attend: impl FnOnce(&Tensor<2>, &Tensor<2>, &Tensor<2>) -> Tensor<2>,
    ) -> (Tensor<2>, Saved) {
        let rope = &self.ropes[index];
        let mut norms: [Option<Normed>; 6] = Default::default();
        let mut norm = |which: Norm, x: Tensor<2>| self.norm_of(index, which, x, &mut norms);
        let h = norm(Norm::Attention, x.clone());
        let [q, k, v] = linears.apply([Module::Q, Module::K, Module::V], &h, None);
        let (q, k) = (norm(Norm::Query, q), norm(Norm::Key, k));
        let (q, k) = (rope.apply(q, positions, false), rope.apply(k, positions, false));
        let o = attend(&q, &k, &v);
        // Without a norm after it the layer itself adds to the stream.
        let direct = |after: Norm| self.layers[index].norms[after.index()].is_none();
        let added = direct(Norm::AfterAttention);
        let [y] = linears.apply([Module::O], &o, added.then_some(&x));
        let middle = if added { y } else { x + norm(Norm::AfterAttention, y) };
        let mlp = norm(Norm::Mlp, middle.clone());
        let [gate, up] = linears.apply([Module::Gate, Module::Up], &mlp, None);
        let activation = glu::forward(self.config.activation, &gate, &up);
        let added = direct(Norm::AfterMlp);
        let [y] = linears.apply([Module::Down], &activation, added.then_some(&middle));
        let y = if added { y } else { middle + norm(Norm::AfterMlp, y) };
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
