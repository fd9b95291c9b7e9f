//! Linear layers with optional low-rank adapters: `y = x·Wᵀ + b + s·(x·Aᵀ)·Bᵀ` (Hu et al. 2021). No dense `W + BA`
//! ever exists, and a frozen `W` has no gradient.

use std::array::from_fn;
use std::ops::Range;

use burn::tensor::{DType, Tensor};

use super::{LoraPair, Weight};
#[cfg(feature = "cuda")]
use crate::ops::cuda::{Array, linear};
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
}

/// Linear layers that read one input, in a training step. On a GPU what their adapters do to it is one product, and what they send
/// back to it is one.
pub(crate) struct Joint<'a, const N: usize> {
    pub(crate) layers: [&'a Linear; N],
    pub(crate) loras: [Option<&'a LoraPair>; N],
    /// Factors `[n, in]` of what the adapters see of the input: dropout.
    pub(crate) mask: Option<Tensor<2>>,
}

/// What the forward keeps of adapters for the backward.
#[derive(Debug)]
pub(crate) struct Inner {
    /// `s·x·Aᵀ` `[n, Σ r]`, side by side.
    rows: Tensor<2>,
    /// All `A` `[Σ r, in]`, below each other, as a GPU's kernels read them.
    #[cfg(feature = "cuda")]
    a: Option<Array>,
}

impl Inner {
    fn new(parts: Vec<Tensor<2>>) -> Option<Self> {
        (!parts.is_empty()).then(|| Self {
            rows: Tensor::cat(parts, 1),
            #[cfg(feature = "cuda")]
            a: None,
        })
    }
}

impl<const N: usize> Joint<'_, N> {
    /// Outputs `[n, out]`, each plus `residual`, and what the backward needs.
    pub(crate) fn forward(&self, x: &Tensor<2>, residual: Option<&Tensor<2>>) -> ([Tensor<2>; N], Option<Inner>) {
        #[cfg(feature = "cuda")]
        if let Some(out) = self.forward_on_gpu(x, residual) {
            return out;
        }
        let mut parts = Vec::new();
        let outputs = from_fn(|index| {
            let mut y = self.layers[index].apply(x);
            if let Some(lora) = self.loras[index] {
                let (delta, inner) = lora.delta(&masked(x, self.mask.as_ref()));
                parts.push(inner);
                y = y + delta;
            }
            match residual {
                Some(residual) => residual.clone() + y,
                None => y,
            }
        });
        (outputs, Inner::new(parts))
    }

    /// Gradient of `x`, from those of the outputs, and of the parameters that are trained: the adapter of a layer that has
    /// one, else weight and bias if `train_weights`.
    pub(crate) fn backward(
        &self,
        dys: [&Tensor<2>; N],
        x: &Tensor<2>,
        inner: Option<&Inner>,
        train_weights: bool,
    ) -> (Tensor<2>, [LinearGradients; N]) {
        #[cfg(feature = "cuda")]
        if !train_weights && let Some(out) = self.backward_on_gpu(dys, x, inner) {
            return out;
        }
        let (mut dx, mut gradients) = (None, from_fn(|_| LinearGradients::default()));
        for (index, (dy, gradients)) in dys.into_iter().zip(&mut gradients).enumerate() {
            let layer = self.layers[index];
            if train_weights {
                gradients.weight = Some(dy.clone().transpose().matmul(x.clone()));
                gradients.bias = layer.bias.as_ref().map(|_| dy.clone().sum_dim(0).flatten::<1>(0, 1));
            }
            let mut part = dy.clone().matmul(layer.weight.tensor());
            if let (Some(lora), Some(inner)) = (self.loras[index], inner) {
                let mask = self.mask.as_ref();
                let inner = inner.rows.clone().slice([0..x.dims()[0], self.columns(index)]);
                let [a, b] = [&lora.a, &lora.b].map(|factor| factor.clone().cast(dy.dtype()));
                let dinner = dy.clone().matmul(b) * lora.scale;
                let db = dy.clone().transpose().matmul(inner);
                let da = dinner.clone().transpose().matmul(masked(x, mask));
                [gradients.a, gradients.b] = [da, db].map(|gradient| Some(gradient.cast(DType::F32)));
                part = part + masked(&dinner.matmul(a), mask);
            }
            dx = Some(match dx {
                Some(dx) => dx + part,
                None => part,
            });
        }
        let Some(dx) = dx else { unreachable!("there are layers") };
        (dx, gradients)
    }

    /// Which columns of what the forward keeps are a layer's.
    fn columns(&self, index: usize) -> Range<usize> {
        let rank = |lora: &Option<&LoraPair>| lora.map_or(0, |lora| lora.a.dims()[0]);
        let first = self.loras[..index].iter().map(rank).sum();
        first..first + rank(&self.loras[index])
    }
}

#[cfg(feature = "cuda")]
impl<const N: usize> Joint<'_, N> {
    /// Factor of these adapters, which are one adapter's.
    fn scale(&self) -> f32 {
        let mut scales = self.loras.iter().flatten().map(|lora| lora.scale);
        let scale = scales.next().unwrap_or(1.0);
        debug_assert!(scales.all(|other| other == scale), "an adapter has one scale");
        scale
    }

    /// `A` of the adapters below each other; `None` where the kernels can't read that.
    fn stacked(&self, x: &Tensor<2>) -> Option<Array> {
        let loras: Vec<_> = self.loras.into_iter().flatten().collect();
        let widths = loras.iter().flat_map(|lora| [lora.a.dims()[0], lora.b.dims()[0]]).chain([x.dims()[1]]);
        if !linear::fits(x, &widths.collect::<Vec<_>>()) {
            return None;
        }
        match loras[..] {
            [lora] => lora.half_a().cloned(),
            _ => linear::stacked(&loras.iter().map(|lora| &lora.a).collect::<Vec<_>>()),
        }
    }

    fn forward_on_gpu(&self, x: &Tensor<2>, residual: Option<&Tensor<2>>) -> Option<([Tensor<2>; N], Option<Inner>)> {
        if x.dtype() != DType::BF16 {
            return None;
        }
        let (mut a, mut rows) = (None, None);
        if self.loras.iter().any(Option::is_some) {
            let stacked = self.stacked(x)?;
            rows = Some(linear::inner(&masked(x, self.mask.as_ref()), &stacked, self.scale())?);
            a = Some(stacked);
        }
        let mut outputs = Vec::with_capacity(N);
        for (index, layer) in self.layers.into_iter().enumerate() {
            let b = self.loras[index].map(LoraPair::half_b);
            let delta = match (b, &rows) {
                (Some(b), Some(rows)) => Some((rows, self.columns(index), b?)),
                _ => None,
            };
            outputs.push(linear::output(x, &layer.weight.tensor(), layer.bias.as_ref(), delta, residual)?);
        }
        Some((outputs.try_into().ok()?, rows.map(|rows| Inner { rows, a })))
    }

    fn backward_on_gpu(
        &self,
        dys: [&Tensor<2>; N],
        x: &Tensor<2>,
        inner: Option<&Inner>,
    ) -> Option<(Tensor<2>, [LinearGradients; N])> {
        let mut gradients = from_fn(|_| LinearGradients::default());
        let mut delta = None;
        if let Some(Inner { rows, a }) = inner {
            let a = a.as_ref().filter(|_| self.mask.is_none())?;
            let mut parts = Vec::with_capacity(N);
            for (index, dy) in dys.into_iter().enumerate() {
                if let Some(lora) = self.loras[index] {
                    parts.push((dy, lora.half_b()?, self.columns(index)));
                }
            }
            let (dinner, found) = linear::factor_gradients(&parts, x, rows, self.scale())?;
            let adapted = gradients.iter_mut().zip(&self.loras).filter(|(_, lora)| lora.is_some());
            for ((gradients, _), found) in adapted.zip(found) {
                [gradients.a, gradients.b] = found.map(Some);
            }
            delta = Some((dinner, a));
        }
        // A weight that is made dense for its product is alone in memory.
        let together = if self.layers.iter().all(|layer| matches!(layer.weight, Weight::Dense(_))) { N } else { 1 };
        let mut dx = None;
        for (layers, dys) in self.layers.chunks(together).zip(dys.chunks(together)) {
            let weights: Vec<_> = layers.iter().map(|layer| layer.weight.tensor()).collect();
            let pairs: Vec<_> = dys.iter().copied().zip(&weights).collect();
            dx = Some(linear::input_gradient(&pairs, delta.take(), dx.as_ref())?);
        }
        Some((dx?, gradients))
    }
}

fn masked(x: &Tensor<2>, mask: Option<&Tensor<2>>) -> Tensor<2> {
    match mask {
        Some(mask) => {
            let mask = mask.clone().cast(x.dtype());
            x.clone() * mask
        }
        None => x.clone(),
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Distribution;

    use super::*;
    use crate::device::Device;
    use crate::ops::to_vec;

    /// Three layers of one input, of which the second has no adapter and the others have different ranks, are what each is by
    /// itself, and their gradients of the input add up.
    #[test]
    fn joint_layers_are_what_each_is_alone() {
        let device = Device::cpu().burn;
        let random = |shape: [usize; 2]| Tensor::<2>::random(shape, Distribution::Uniform(-1.0, 1.0), &device);
        let (x, outputs) = (random([5, 12]), [7, 4, 9]);
        let linears = outputs.map(|output| Linear { weight: Weight::dense(random([output, 12])), bias: None });
        let pair = |rank, output| Some(LoraPair::new(random([rank, 12]), random([output, rank]), 0.5));
        let pairs = [pair(2, 7), None, pair(3, 9)];
        let dys = outputs.map(|output| random([5, output]));
        let (layers, loras) = (linears.each_ref(), pairs.each_ref().map(Option::as_ref));
        let joint = Joint { layers, loras, mask: None };
        let (ys, inner) = joint.forward(&x, None);
        let (dx, gradients) = joint.backward(dys.each_ref(), &x, inner.as_ref(), false);
        let mut sum = x.zeros_like();
        for (index, (y, gradients)) in ys.into_iter().zip(gradients).enumerate() {
            let alone = Joint { layers: [layers[index]], loras: [loras[index]], mask: None };
            let ([expected], inner) = alone.forward(&x, None);
            let (dx, [own]) = alone.backward([&dys[index]], &x, inner.as_ref(), false);
            y.to_data().assert_eq(&expected.to_data(), true);
            for (found, expected) in [(gradients.a, own.a), (gradients.b, own.b)] {
                assert_eq!(found.map(to_vec), expected.map(to_vec), "layer {index}");
            }
            sum = sum + dx;
        }
        for (found, expected) in to_vec(dx).into_iter().zip(to_vec(sum)) {
            assert!((found - expected).abs() < 1e-4, "{found} for {expected}");
        }
    }
}
