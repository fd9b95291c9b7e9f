//! AdamW (Loshchilov & Hutter 2019) with global-norm clipping, on one flat buffer.

use burn::tensor::Tensor;

#[cfg(feature = "cuda")]
use crate::ops::cuda::adamw::{self, Update};
use crate::ops::{tensor, to_vec, view};

/// Hyper-parameters; the defaults are those of transformers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWConfig {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Largest global gradient norm; 0: no clipping.
    pub max_grad_norm: f64,
}

impl Default for AdamWConfig {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0, max_grad_norm: 1.0 }
    }
}

/// Optimiser state.
#[derive(Clone, Debug)]
pub(crate) struct AdamW {
    config: AdamWConfig,
    pub(crate) first: Tensor<1>,
    pub(crate) second: Tensor<1>,
    pub(crate) step: u64,
}

impl AdamW {
    pub(crate) fn new(config: AdamWConfig, parameters: &Tensor<1>) -> Self {
        Self { config, first: parameters.zeros_like(), second: parameters.zeros_like(), step: 0 }
    }

    /// Updates the parameters; gives them and the gradient's norm before clipping.
    pub(crate) fn step(&mut self, parameters: Tensor<1>, gradient: Tensor<1>, rate: f64) -> (Tensor<1>, f64) {
        let AdamWConfig { beta1, beta2, eps, weight_decay, max_grad_norm } = self.config;
        self.step += 1;
        let power = i32::try_from(self.step).unwrap_or(i32::MAX);
        let (c1, c2) = (1.0 - beta1.powi(power), (1.0 - beta2.powi(power)).sqrt());
        let keep = 1.0 - rate * weight_decay;
        let size = rate / c1;
        #[cfg(feature = "cuda")]
        {
            let betas = [beta1, beta2];
            let update = Update { max_norm: max_grad_norm, betas, eps, keep, size, root: 1.0 / c2 };
            if let Some(([p, m, v], norm)) = adamw::step([&parameters, &self.first, &self.second], &gradient, update) {
                (self.first, self.second) = (m, v);
                return (p, to_vec(norm).into_iter().map(f64::from).sum());
            }
        }
        let (m, v) = (self.first.clone(), self.second.clone());
        let norm = norm(&gradient);
        let clip = if max_grad_norm > 0.0 { (max_grad_norm / (norm + 1e-6)).min(1.0) } else { 1.0 };
        if view(&gradient).is_none() {
            let g = gradient * clip;
            self.first = m * beta1 + g.clone() * (1.0 - beta1);
            self.second = v * beta2 + g.square() * (1.0 - beta2);
            let denominator = self.second.clone().sqrt() / c2 + eps;
            return (parameters * keep - self.first.clone() / denominator * size, norm);
        }
        let (shape, device) = (parameters.dims(), parameters.device());
        let take = |slot: &mut Tensor<1>| to_vec(std::mem::replace(slot, Tensor::empty([1], &device)));
        drop((m, v));
        let (mut p, g) = (to_vec(parameters), to_vec(gradient));
        let (mut m, mut v) = (take(&mut self.first), take(&mut self.second));
        let (b1, b2, clip, keep) = (beta1 as f32, beta2 as f32, clip as f32, keep as f32);
        let (size, root, eps) = (size as f32, (1.0 / c2) as f32, eps as f32);
        for (((p, g), m), v) in p.iter_mut().zip(&g).zip(&mut m).zip(&mut v) {
            let g = g * clip;
            *m = *m * b1 + g * (1.0 - b1);
            *v = *v * b2 + g * g * (1.0 - b2);
            *p = *p * keep - size * *m / (v.sqrt() * root + eps);
        }
        self.first = tensor(m, shape, &device);
        self.second = tensor(v, shape, &device);
        (tensor(p, shape, &device), norm)
    }
}

fn norm(gradient: &Tensor<1>) -> f64 {
    match view(gradient) {
        // Summed in f64, so that the norm of millions of values keeps its digits.
        Some(values) => values.slice().iter().map(|v| f64::from(*v) * f64::from(*v)).sum::<f64>().sqrt(),
        None => f64::from(to_vec(gradient.clone().square().sum()).iter().sum::<f32>()).sqrt(),
    }
}
