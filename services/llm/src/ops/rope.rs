//! Rotary position embedding (Su et al. 2021), in the half-split layout of Hugging Face's checkpoints.

use std::f64::consts::TAU;

use burn::tensor::{Tensor, TensorData};

use super::{update, view};
use crate::config::{ModelConfig, RopeScaling};

/// Cosine and sine of every position and frequency.
#[derive(Debug)]
pub(crate) struct RopeTable {
    cos: Vec<f32>,
    sin: Vec<f32>,
    half: usize,
}

impl RopeTable {
    pub(crate) fn new(config: &ModelConfig) -> Self {
        let half = config.head_dim / 2;
        let frequencies: Vec<f64> = (0..half)
            .map(|i| scaled(config.rope_theta.powf(-(i as f64) / half as f64), &config.rope_scaling))
            .collect();
        let angles = |f: fn(f64) -> f64| -> Vec<f32> {
            // The reference multiplies position and frequency in f32.
            (0..config.context)
                .flat_map(|p| frequencies.iter().map(move |w| f(f64::from(p as f32 * *w as f32)) as f32))
                .collect()
        };
        Self { cos: angles(f64::cos), sin: angles(f64::sin), half }
    }

    /// Rotates each head of `x` `[n, heads · head_dim]` by its row's position; `inverse` rotates back, which is also
    /// the gradient.
    pub(crate) fn apply(&self, x: Tensor<2>, positions: &[usize], inverse: bool) -> Tensor<2> {
        let [n, width] = x.dims();
        let half = self.half;
        let sign = if inverse { -1.0 } else { 1.0 };
        if view(&x).is_some() {
            return update(x, |values| {
                for (row, &position) in values.chunks_exact_mut(width).zip(positions) {
                    let at = position * half..(position + 1) * half;
                    let (cos, sin) = (&self.cos[at.clone()], &self.sin[at]);
                    for head in row.chunks_exact_mut(2 * half) {
                        let (low, high) = head.split_at_mut(half);
                        for (((a, b), c), s) in low.iter_mut().zip(high).zip(cos).zip(sin) {
                            let (x, y, s) = (*a, *b, s * sign);
                            *a = x * c - y * s;
                            *b = y * c + x * s;
                        }
                    }
                }
            });
        }
        let device = x.device();
        let table = |values: &[f32]| -> Tensor<3> {
            let rows = positions.iter().flat_map(|p| &values[p * half..(p + 1) * half]).copied().collect();
            Tensor::from_data(TensorData::new(rows, [n, 1, half]), &device)
        };
        let (cos, sin) = (table(&self.cos), table(&self.sin) * sign);
        let heads = width / (2 * half);
        let x = x.reshape([n, heads, 2 * half]);
        let (a, b) = (x.clone().slice([0..n, 0..heads, 0..half]), x.slice([0..n, 0..heads, half..2 * half]));
        let low = a.clone() * cos.clone() - b.clone() * sin.clone();
        let high = b * cos + a * sin;
        Tensor::cat(vec![low, high], 2).reshape([n, width])
    }
}

fn scaled(frequency: f64, scaling: &RopeScaling) -> f64 {
    match *scaling {
        RopeScaling::None => frequency,
        RopeScaling::Linear { factor } => frequency / factor,
        RopeScaling::Llama3 { factor, low, high, original } => {
            let wavelength = TAU / frequency;
            if wavelength > original / low {
                frequency / factor
            } else if wavelength < original / high {
                frequency
            } else {
                let blend = (original / wavelength - low) / (high - low);
                (1.0 - blend) * frequency / factor + blend * frequency
            }
        }
    }
}
