//! A linear layer with an optional low-rank adapter: `y = x·Wᵀ + b + s·(x·Aᵀ)·Bᵀ` (Hu et al. 2021). No dense `W + BA`
//! ever exists, and a frozen `W` has no gradient.

use burn::tensor::{DType, Tensor};

use super::{LoraPair, Weight};
#[cfg(feature = "cuda")]
use crate::ops::cuda::linear;
use crate::ops::product::product;

/// Weight `[out, in]` and bias `[out]` as a checkpoint has them.
#[derive(Clone, Debug)]
pub(crate) struct Linear {
    pub(crate) weight: Weight,
    pub(crate) bias: Option<Tensor<1>>,
}

/// Gradients of a linear layer's parameters.
#[derive(Debug, Default)]
pub(crate) struct LinearGradients {
    pub(crate) weight: Option<Tensor<2>>,
    pub(crate) bias: Option<Tensor<1>>,
    pub(crate) a: Option<Tensor<2>>,
    pub(crate) b: Option<Tensor<2>>,
}

/// What the backward of a linear layer is given.
pub(crate) struct Backward<'a> {
    /// The layer's adapter.
    pub(crate) lora: Option<&'a LoraPair>,
    /// Gradient of the output `[n, out]`.
    pub(crate) dy: &'a Tensor<2>,
    /// The input `[n, in]`.
    pub(crate) x: &'a Tensor<2>,
    /// What the forward kept.
    pub(crate) inner: Option<&'a Tensor<2>>,
    /// What the adapter saw of the input.
    pub(crate) mask: Option<Tensor<2>>,
    /// Gradient that others send to the input.
    pub(crate) sum: Option<Tensor<2>>,
}

impl Linear {
    /// Output `[n, out]` without an adapter.
    fn apply(&self, x: &Tensor<2>) -> Tensor<2> {
        self.biased(x.clone().matmul(self.weight.tensor().transpose()))
    }

    /// As [`Self::apply`], with the same bits for a row whatever rows come with it: for serving.
    pub(crate) fn serve(&self, x: &Tensor<2>) -> Tensor<2> {
        self.biased(product(x, &self.weight.tensor()))
    }

    fn biased(&self, y: Tensor<2>) -> Tensor<2> {
        match &self.bias {
            Some(bias) => {
                let bias = bias.clone().cast(y.dtype()).unsqueeze::<2>();
                y + bias
            }
            None => y,
        }
    }

    /// Output `[n, out]` plus `residual`, and `s·x·Aᵀ` `[n, r]` for the backward. The adapter sees `x` times the mask
    /// `[n, in]`.
    pub(crate) fn forward(
        &self,
        lora: Option<&LoraPair>,
        x: &Tensor<2>,
        mask: Option<Tensor<2>>,
        residual: Option<Tensor<2>>,
    ) -> (Tensor<2>, Option<Tensor<2>>) {
        #[cfg(feature = "cuda")]
        if x.dtype() == DType::BF16 {
            let seen = mask.as_ref().map(|mask| masked(x.clone(), Some(mask)));
            let factors = lora.and_then(LoraPair::factors);
            let bias = self.bias.as_ref();
            let weight = &self.weight.tensor();
            if let Some(out) = linear::forward(x, weight, bias, factors, seen.as_ref(), residual.as_ref()) {
                return out;
            }
        }
        let y = self.apply(x);
        let (y, inner) = match lora {
            Some(lora) => {
                let (delta, inner) = lora.delta(&masked(x.clone(), mask.as_ref()));
                (y + delta, Some(inner))
            }
            None => (y, None),
        };
        let y = match residual {
            Some(residual) => residual + y,
            None => y,
        };
        (y, inner)
    }

    /// Gradient of `x` plus `sum`, and of the parameters that are trained: the adapter if there is one, else weight and
    /// bias.
    pub(crate) fn backward(&self, layer: Backward<'_>, train_weight: bool) -> (Tensor<2>, LinearGradients) {
        let Backward { lora, dy, x, inner, mask, sum } = layer;
        #[cfg(feature = "cuda")]
        if !train_weight && mask.is_none() && dy.dtype() == DType::BF16 {
            let factors = lora.and_then(LoraPair::factors);
            let weight = &self.weight.tensor();
            if let Some(out) = linear::backward(dy, x, weight, factors.zip(inner), sum.as_ref()) {
                let [a, b] = out.factors.map_or([None, None], |factors| factors.map(Some));
                return (out.dx, LinearGradients { a, b, ..LinearGradients::default() });
            }
        }
        let mut gradients = LinearGradients::default();
        if train_weight {
            gradients.weight = Some(dy.clone().transpose().matmul(x.clone()));
            gradients.bias = self.bias.as_ref().map(|_| dy.clone().sum_dim(0).flatten::<1>(0, 1));
        }
        let mut dx = dy.clone().matmul(self.weight.tensor());
        if let (Some(lora), Some(inner)) = (lora, inner) {
            let [a, b] = [&lora.a, &lora.b].map(|factor| factor.clone().cast(dy.dtype()));
            let dinner = dy.clone().matmul(b) * lora.scale;
            let db = dy.clone().transpose().matmul(inner.clone());
            let da = dinner.clone().transpose().matmul(masked(x.clone(), mask.as_ref()));
            [gradients.a, gradients.b] = [da, db].map(|gradient| Some(gradient.cast(DType::F32)));
            dx = dx + masked(dinner.matmul(a), mask.as_ref());
        }
        let dx = match sum {
            Some(sum) => sum + dx,
            None => dx,
        };
        (dx, gradients)
    }
}

fn masked(x: Tensor<2>, mask: Option<&Tensor<2>>) -> Tensor<2> {
    match mask {
        Some(mask) => {
            let mask = mask.clone().cast(x.dtype());
            x * mask
        }
        None => x,
    }
}
