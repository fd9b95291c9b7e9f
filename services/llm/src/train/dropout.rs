//! Dropout on what goes into an adapter (Srivastava et al. 2014), as PEFT applies it: `s·(drop(x)·Aᵀ)·Bᵀ`.
//!
//! A mask is a function of the run's seed, the step, the block's place in it, the layer and the module. So it need not
//! be kept for the backward, does not depend on the number of threads, and is the same after a restart.

use burn::tensor::Tensor;

use crate::config::Module;
use crate::device::BurnDevice;
use crate::ops::tensor;

/// Dropout of one block of an update.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dropout {
    rate: f32,
    key: u64,
}

impl Dropout {
    /// `rate` is the share of inputs that are left out; `None` if that is none.
    pub(crate) fn new(rate: f32, seed: u64, step: u64, block: usize) -> Option<Self> {
        let key = [step, block as u64].iter().fold(mix(seed), |key, part| mix(key ^ part));
        (rate > 0.0).then_some(Self { rate, key })
    }

    /// Factors of an input `[n, in]`: 0, or `1 / (1 − rate)`.
    pub(crate) fn mask(&self, layer: usize, module: Module, shape: [usize; 2], device: &BurnDevice) -> Tensor<2> {
        let key = mix(self.key ^ (layer * Module::ALL.len() + module.index()) as u64);
        // A draw of 32 bits is below this with the chance `rate`.
        let limit = (f64::from(self.rate) * f64::from(u32::MAX)) as u32;
        let kept = 1.0 / (1.0 - self.rate);
        let factor = |draw: u32| if draw < limit { 0.0 } else { kept };
        let count = shape[0] * shape[1];
        let mut factors = Vec::with_capacity(count + 1);
        for pair in 0..count.div_ceil(2) as u64 {
            let draws = mix(key ^ pair);
            factors.push(factor(draws as u32));
            factors.push(factor((draws >> 32) as u32));
        }
        factors.truncate(count);
        tensor(factors, shape, device)
    }
}

/// SplitMix64 (Steele et al. 2014): every bit of the input changes half of the output's.
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::Dropout;
    use crate::config::Module;
    use crate::device::Device;
    use crate::ops::to_vec;

    #[test]
    fn a_mask_keeps_the_mean_and_depends_on_its_place_alone() {
        let device = Device::cpu();
        let mask = |seed, step, block, layer, module| {
            let dropout = Dropout::new(0.25, seed, step, block).unwrap();
            to_vec(dropout.mask(layer, module, [101, 99], &device.burn))
        };
        let one = mask(1, 2, 3, 4, Module::Q);
        let mean = one.iter().sum::<f32>() / one.len() as f32;
        assert!((mean - 1.0).abs() < 0.02, "{mean}");
        assert!(one.iter().all(|factor| *factor == 0.0 || (factor - 4.0 / 3.0).abs() < 1e-6));
        assert_eq!(one, mask(1, 2, 3, 4, Module::Q));
        for other in [
            mask(2, 2, 3, 4, Module::Q),
            mask(1, 3, 3, 4, Module::Q),
            mask(1, 2, 4, 4, Module::Q),
            mask(1, 2, 3, 5, Module::Q),
            mask(1, 2, 3, 4, Module::K),
        ] {
            let same = one.iter().zip(&other).filter(|(a, b)| a == b).count() as f32 / one.len() as f32;
            // Two that know nothing of each other agree in 0.25² + 0.75².
            assert!((same - 0.625).abs() < 0.03, "{same}");
        }
        assert!(Dropout::new(0.0, 1, 1, 1).is_none());
    }
}
