//! A linear layer with an optional low-rank adapter: `y = x·Wᵀ + s·(x·Aᵀ)·Bᵀ` (Hu et al. 2021). No dense `W + BA` ever
//! exists, and a frozen `W` has no gradient.

use burn::tensor::Tensor;

use super::LoraPair;

/// Weight `[out, in]` with the adapter that is trained on it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Linear<'a> {
    pub(crate) weight: &'a Tensor<2>,
    pub(crate) lora: Option<&'a LoraPair>,
}

/// Gradients of a linear layer's parameters.
#[derive(Debug, Default)]
pub(crate) struct LinearGradients {
    pub(crate) weight: Option<Tensor<2>>,
    pub(crate) a: Option<Tensor<2>>,
    pub(crate) b: Option<Tensor<2>>,
}

impl Linear<'_> {
    /// Output `[n, out]`, and `x·Aᵀ` `[n, r]` for the backward.
    pub(crate) fn forward(&self, x: &Tensor<2>) -> (Tensor<2>, Option<Tensor<2>>) {
        let y = x.clone().matmul(self.weight.clone().transpose());
        let Some(lora) = self.lora else { return (y, None) };
        let (delta, inner) = lora.delta(x);
        (y + delta, Some(inner))
    }

    /// Gradient of `x`, and of the parameters that are trained: the adapter if there is one, else the weight.
    pub(crate) fn backward(
        &self,
        dy: &Tensor<2>,
        x: &Tensor<2>,
        inner: Option<&Tensor<2>>,
        train_weight: bool,
    ) -> (Tensor<2>, LinearGradients) {
        let mut gradients = LinearGradients::default();
        if train_weight {
            gradients.weight = Some(dy.clone().transpose().matmul(x.clone()));
        }
        let mut dx = dy.clone().matmul(self.weight.clone());
        if let (Some(lora), Some(inner)) = (self.lora, inner) {
            let dinner = dy.clone().matmul(lora.b.clone()) * lora.scale;
            gradients.b = Some(dy.clone().transpose().matmul(inner.clone()) * lora.scale);
            gradients.a = Some(dinner.clone().transpose().matmul(x.clone()));
            dx = dx + dinner.matmul(lora.a.clone());
        }
        (dx, gradients)
    }
}
