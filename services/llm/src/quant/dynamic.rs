//! Dynamic 8-bit quantisation (Dettmers 2015): bytes whose exponent and fraction share seven bits.

use std::sync::LazyLock;

use rayon::prelude::*;

/// Values that share a scale.
const BLOCK: usize = 256;
/// Steps from −1 to 1.
const GRID: f32 = 65_535.0;
/// Powers of ten that the exponent spans.
const EXPONENTS: i32 = 7;

/// What the bytes stand for, ascending: for each power of ten the middles of ever more equal parts of 0.1 to 1, both
/// signs, and 0 and 1.
static LEVELS: LazyLock<Vec<f32>> = LazyLock::new(|| {
    let mut levels = vec![0.0, 1.0];
    for exponent in 0..EXPONENTS {
        let (parts, power) = (1usize << exponent, 10f64.powi(exponent + 1 - EXPONENTS));
        let bound = |i: usize| (0.1 + 0.9 * i as f64 / parts as f64) as f32;
        for part in 0..parts {
            let middle = (bound(part) + bound(part + 1)) / 2.0;
            let level = (power * f64::from(middle)) as f32;
            levels.extend([level, -level]);
        }
    }
    levels.sort_by(f32::total_cmp);
    levels
});

/// Quantised values.
#[derive(Clone, Debug)]
pub(super) struct DynamicBytes {
    codes: Vec<u8>,
    absmax: Vec<f32>,
}

impl DynamicBytes {
    pub(super) fn new(values: &[f32]) -> Self {
        let mut codes = vec![0; values.len()];
        let mut absmax = vec![0.0; values.len().div_ceil(BLOCK)];
        let blocks = values.par_chunks(BLOCK).zip(codes.par_chunks_mut(BLOCK)).zip(&mut absmax);
        blocks.for_each(|((block, codes), top)| {
            *top = block.iter().fold(0.0f32, |top, v| top.max(v.abs()));
            for (code, v) in codes.iter_mut().zip(block) {
                *code = nearest(if *top > 0.0 { v / *top } else { 0.0 });
            }
        });
        Self { codes, absmax }
    }

    pub(super) fn values(&self) -> impl Iterator<Item = f32> {
        let blocks = self.codes.chunks(BLOCK).zip(&self.absmax);
        blocks.flat_map(|(codes, top)| codes.iter().map(move |code| LEVELS[usize::from(*code)] * top))
    }

    pub(super) fn bytes(&self) -> usize {
        self.codes.len() + 4 * self.absmax.len()
    }
}

/// Nearest level of a value in −1 to 1, to the grid of 65,536 steps over which bitsandbytes looks levels up on a CPU.
fn nearest(value: f32) -> u8 {
    let value = ((value + 1.0) * 0.5 * GRID).round() / GRID * 2.0 - 1.0;
    let above = LEVELS.partition_point(|level| *level < value).min(LEVELS.len() - 1);
    let below = above.saturating_sub(1);
    let index = if LEVELS[above] - value < value - LEVELS[below] { above } else { below };
    u8::try_from(index).unwrap_or(u8::MAX)
}
