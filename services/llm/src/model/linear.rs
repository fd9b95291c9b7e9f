//! A linear layer with an optional low-rank adapter: `y = x·Wᵀ + b + s·(x·Aᵀ)·Bᵀ` (Hu et al. 2021). No dense `W + BA`
//! ever exists, and a frozen `W` has no gradient.

use burn::tensor::Tensor;

use super::{LoraPair, Weight};
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

impl Linear {
    /// Output `[n, out]` without an adapter.
    pub(crate) fn apply(&self, x: &Tensor<2>) -> Tensor<2> {
        self.biased(x.clone().matmul(self.weight.tensor().transpose()))
    }

    /// As [`Self::apply`], with the same bits for a row whatever rows come with it: for serving.
    pub(crate) fn serve(&self, x: &Tensor<2>) -> Tensor<2> {
        self.biased(product(x, &self.weight.tensor()))
    }

    fn biased(&self, y: Tensor<2>) -> Tensor<2> {
        match &self.bias {
            Some(bias) => y + bias.clone().unsqueeze::<2>(),
            None => y,
        }
    }

    /// Output `[n, out]`, and `x·Aᵀ` `[n, r]` for the backward. The adapter sees `x` times the mask `[n, in]`.
    pub(crate) fn forward(
        &self,
        lora: Option<&LoraPair>,
        x: &Tensor<2>,
        mask: Option<Tensor<2>>,
    ) -> (Tensor<2>, Option<Tensor<2>>) {
        let y = self.apply(x);
        let Some(lora) = lora else { return (y, None) };
        let (delta, inner) = lora.delta(&masked(x.clone(), mask.as_ref()));
        (y + delta, Some(inner))
    }

    /// Gradient of `x`, and of the parameters that are trained: the adapter if there is one, else weight and bias.
    pub(crate) fn backward(
        &self,
        lora: Option<&LoraPair>,
        dy: &Tensor<2>,
        x: &Tensor<2>,
        inner: Option<&Tensor<2>>,
        mask: Option<Tensor<2>>,
        train_weight: bool,
    ) -> (Tensor<2>, LinearGradients) {
        let mut gradients = LinearGradients::default();
        if train_weight {
            gradients.weight = Some(dy.clone().transpose().matmul(x.clone()));
            gradients.bias = self.bias.as_ref().map(|_| dy.clone().sum_dim(0).flatten::<1>(0, 1));
        }
        let mut dx = dy.clone().matmul(self.weight.tensor());
        if let (Some(lora), Some(inner)) = (lora, inner) {
            let dinner = dy.clone().matmul(lora.b.clone()) * lora.scale;
            gradients.b = Some(dy.clone().transpose().matmul(inner.clone()) * lora.scale);
            gradients.a = Some(dinner.clone().transpose().matmul(masked(x.clone(), mask.as_ref())));
            dx = dx + masked(dinner.matmul(lora.a.clone()), mask.as_ref());
        }
        (dx, gradients)
    }
}

fn masked(x: Tensor<2>, mask: Option<&Tensor<2>>) -> Tensor<2> {
    match mask {
        Some(mask) => x * mask.clone(),
        None => x,
    }
}
