//! Rotary position embedding (Su et al. 2021), in the half-split layout of Hugging Face's checkpoints.

use std::f64::consts::TAU;

use burn::tensor::{Tensor, TensorData};

#[cfg(feature = "cuda")]
use super::cuda::{self, Array};
use super::{update, view};
use crate::config::{Rope, RopeScaling};
use crate::device::BurnDevice;

/// Where rows stand in their documents.
#[derive(Debug)]
pub(crate) struct Positions<'a> {
    of: &'a [usize],
    /// The same on a GPU.
    #[cfg(feature = "cuda")]
    array: Option<Array>,
}

impl<'a> Positions<'a> {
    pub(crate) fn new(of: &'a [usize], device: &BurnDevice) -> Self {
        #[cfg(not(feature = "cuda"))]
        let _ = device;
        Self {
            of,
            // Contexts are far shorter than 2³¹.
            #[cfg(feature = "cuda")]
            array: Array::whole(of.iter().map(|position| *position as i32).collect(), device),
        }
    }
}

/// Cosine and sine of every position and frequency.
#[derive(Debug)]
pub(crate) struct RopeTable {
    cos: Vec<f32>,
    sin: Vec<f32>,
    half: usize,
    /// Both on the GPU that asked first.
    #[cfg(feature = "cuda")]
    arrays: std::sync::OnceLock<Option<[Array; 2]>>,
}

impl RopeTable {
    pub(crate) fn new(rope: &Rope, head_dim: usize, context: usize) -> Self {
        let half = head_dim / 2;
        let frequencies: Vec<f64> = (0..half).map(|i| frequency(rope, i, half)).collect();
        let factor = match rope.scaling {
            RopeScaling::Yarn { attention_factor, .. } => attention_factor,
            _ => 1.0,
        };
        let angles = |f: fn(f64) -> f64| -> Vec<f32> {
            // The reference multiplies position and frequency in f32.
            let of = |p: usize, w: f64| (f(f64::from(p as f32 * w as f32)) * factor) as f32;
            (0..context).flat_map(|p| frequencies.iter().map(move |w| of(p, *w))).collect()
        };
        Self {
            cos: angles(f64::cos),
            sin: angles(f64::sin),
            half,
            #[cfg(feature = "cuda")]
            arrays: std::sync::OnceLock::new(),
        }
    }

    /// Rotates each head of `x` `[n, heads · head_dim]` by its row's position; `inverse` rotates back, which is also
    /// the gradient.
    pub(crate) fn apply(&self, x: Tensor<2>, positions: &Positions<'_>, inverse: bool) -> Tensor<2> {
        let [n, width] = x.dims();
        let half = self.half;
        let sign = if inverse { -1.0 } else { 1.0 };
        if view(&x).is_some() {
            return update(x, |values| {
                for (row, &position) in values.chunks_exact_mut(width).zip(positions.of) {
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
        #[cfg(feature = "cuda")]
        if let Some(out) = self.fused(&x, positions, inverse, &device) {
            return out;
        }
        let table = |values: &[f32]| -> Tensor<3> {
            let rows = positions.of.iter().flat_map(|p| &values[p * half..(p + 1) * half]).copied().collect();
            let data = TensorData::new::<f32, _>(rows, [n, 1, half]);
            Tensor::from_data(data.convert_dtype(x.dtype()), (&device, x.dtype()))
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

#[cfg(feature = "cuda")]
impl RopeTable {
    /// Cosines and sines `[context, head_dim / 2]` on a GPU.
    pub(crate) fn arrays(&self, device: &BurnDevice) -> Option<&[Array; 2]> {
        let load = |values: &[f32]| {
            let data = TensorData::new(values.to_vec(), [values.len() / self.half, self.half]);
            Array::of(&Tensor::<2>::from_data(data, device))
        };
        self.arrays.get_or_init(|| Some([load(&self.cos)?, load(&self.sin)?])).as_ref()
    }

    /// [`Self::apply`] by one kernel, where the device has it.
    fn fused(&self, x: &Tensor<2>, positions: &Positions<'_>, inverse: bool, device: &BurnDevice) -> Option<Tensor<2>> {
        let [cos, sin] = self.arrays(device)?;
        cuda::rope::apply(x, [cos, sin], positions.array.as_ref()?, inverse)
    }
}

/// Angular frequency of pair `i` of `half`, radians a token.
fn frequency(rope: &Rope, i: usize, half: usize) -> f64 {
    let frequency = rope.theta.powf(-(i as f64) / half as f64);
    match rope.scaling {
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
        RopeScaling::Yarn { factor, beta_fast, beta_slow, original, truncate, .. } => {
            // The pair that turns so often within the original context.
            let pair = |turns: f64| half as f64 * (original / (turns * TAU)).ln() / rope.theta.ln();
            let (low, high) = (pair(beta_fast), pair(beta_slow));
            let (low, high) = if truncate { (low.floor(), high.ceil()) } else { (low, high) };
            let (low, high) = (low.max(0.0), high.min((2 * half - 1) as f64));
            let width = if low == high { 0.001 } else { high - low };
            let divided = ((i as f64 - low) / width).clamp(0.0, 1.0);
            frequency * (1.0 - divided) + frequency / factor * divided
        }
    }
}
