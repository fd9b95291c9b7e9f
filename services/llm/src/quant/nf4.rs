//! NF4: the 16 quantiles of a normal distribution (Dettmers et al. 2023), a scale for 64 values.

use std::borrow::Cow;

use rayon::prelude::*;

use super::dynamic::DynamicBytes;

/// Values that share a scale.
const BLOCK: usize = 64;
/// Blocks that are worth a task of their own.
const BLOCKS_A_TASK: usize = 256;

/// What the codes stand for, as bitsandbytes has it.
const LEVELS: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// A value above the `i`th of these gets a code above `i`: the middles between the levels.
const BOUNDS: [f32; 15] = [
    -0.848_096_4,
    -0.610_632_9,
    -0.459_995_27,
    -0.339_679_43,
    -0.234_607_4,
    -0.137_911_73,
    -0.045_525_018,
    0.039_790_15,
    0.120_255_25,
    0.203_521_25,
    0.292_013_77,
    0.389_312_54,
    0.501_663_4,
    0.642_786_9,
    0.861_478_4,
];

/// Codes, two a byte, the first in the high half, and the largest absolute value of each block. Cores take blocks side
/// by side; a block's codes depend on nothing else.
pub(super) fn quantize(values: &[f32]) -> (Vec<u8>, Vec<f32>) {
    let mut codes = vec![0; values.len().div_ceil(2)];
    let mut absmax = vec![0.0; values.len().div_ceil(BLOCK)];
    values
        .par_chunks(BLOCK)
        .zip(codes.par_chunks_mut(BLOCK / 2))
        .zip(&mut absmax)
        .with_min_len(BLOCKS_A_TASK)
        .for_each(|((block, codes), top)| {
            *top = block.iter().fold(0.0f32, |top, v| top.max(v.abs()));
            let scale = if *top > 0.0 { 1.0 / *top } else { 0.0 };
            let block = block_codes(block, scale);
            for (byte, [high, low]) in codes.iter_mut().zip(block.as_chunks::<2>().0) {
                *byte = (high << 4) | low;
            }
        });
    (codes, absmax)
}

/// Codes of a block's scaled values; 0 where it has fewer. One bound after the other over all values is what a compiler
/// makes vectors of.
fn block_codes(block: &[f32], scale: f32) -> [u8; BLOCK] {
    let (mut scaled, mut above) = ([f32::NEG_INFINITY; BLOCK], [0u32; BLOCK]);
    for (scaled, value) in scaled.iter_mut().zip(block) {
        *scaled = value * scale;
    }
    for bound in BOUNDS {
        for (above, value) in above.iter_mut().zip(&scaled) {
            *above = above.wrapping_add(u32::from(*value > bound));
        }
    }
    above.map(|code| code as u8)
}

/// The first `count` values that the codes stand for.
pub(super) fn dequantize(codes: &[u8], absmax: &[f32], count: usize) -> Vec<f32> {
    let mut values = vec![0.0; count];
    values.par_chunks_mut(BLOCK).zip(codes.par_chunks(BLOCK / 2)).zip(absmax).with_min_len(BLOCKS_A_TASK).for_each(
        |((values, codes), scale)| {
            let levels = LEVELS.map(|level| level * scale);
            for (pair, byte) in values.chunks_mut(2).zip(codes) {
                for (value, code) in pair.iter_mut().zip([byte >> 4, byte & 15]) {
                    *value = levels[usize::from(code)];
                }
            }
        },
    );
    values
}

/// The blocks' scales.
#[derive(Clone, Debug)]
pub(super) enum Scales {
    Exact(Vec<f32>),
    /// Double quantisation: the distance from the mean scale, a byte each.
    Bytes {
        mean: f32,
        distance: DynamicBytes,
    },
}

impl Scales {
    pub(super) fn new(absmax: Vec<f32>, double: bool) -> Self {
        if !double {
            return Self::Exact(absmax);
        }
        let mean = absmax.iter().sum::<f32>() / absmax.len().max(1) as f32;
        let distance: Vec<f32> = absmax.iter().map(|scale| scale - mean).collect();
        Self::Bytes { mean, distance: DynamicBytes::new(&distance) }
    }

    pub(super) fn absmax(&self) -> Cow<'_, [f32]> {
        match self {
            Self::Exact(absmax) => Cow::Borrowed(absmax),
            Self::Bytes { mean, distance } => distance.values().map(|v| v + mean).collect(),
        }
    }

    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Exact(absmax) => 4 * absmax.len(),
            Self::Bytes { distance, .. } => 4 + distance.bytes(),
        }
    }
}
