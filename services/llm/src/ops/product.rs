//! `x·Wᵀ` for serving, on the CPU: a row's result has the same bits whatever rows come with it.
//!
//! A general matrix product chooses its kernel by the shape, and so rounds a row otherwise in a batch of sixteen than
//! alone: an answer would depend on its neighbours (He et al. 2025, "Defeating nondeterminism in LLM inference"). Here each
//! number is one dot product in a fixed order. Weights lie as checkpoints have them, `[out, in]`, so both operands are read
//! along their rows and nothing is packed, which suits the few rows of a decoding step.

use burn::tensor::Tensor;
use rayon::prelude::*;

use super::{tensor, view};

/// Floats of a vector register.
const LANES: usize = 8;
/// Rows of `x` and of `W` whose products are summed side by side: with twelve sums both units of a core have work.
const TILE: [usize; 2] = [4, 3];
/// Rows of `W` that one task takes: they stay in a core's cache while all rows of `x` pass.
const TASK_ROWS: usize = 48;
/// Multiplications from which on work is spread over the cores: below, waking them costs more.
pub(super) const SPREAD: usize = 1 << 19;

/// `x·Wᵀ` `[n, out]`, for `x` `[n, in]` and `w` `[out, in]`.
pub(crate) fn product(x: &Tensor<2>, w: &Tensor<2>) -> Tensor<2> {
    let ([n, width], [out, _]) = (x.dims(), w.dims());
    let (Some(xs), Some(ws)) = (view(x), view(w)) else {
        #[cfg(feature = "cuda")]
        if let Some(y) = super::cuda::linear::output(x, w, None, None, None) {
            return y;
        }
        return x.clone().matmul(w.clone().cast(x.dtype()).transpose());
    };
    let (xs, ws) = (xs.slice(), ws.slice());
    // By columns, so that each task has a part of its own.
    let mut columns = vec![0.0; n * out];
    let task = |(index, columns): (usize, &mut [f32])| {
        rows_product(xs, &ws[index * TASK_ROWS * width..], width, n, columns);
    };
    if n * width * out >= SPREAD {
        columns.par_chunks_mut(TASK_ROWS * n).enumerate().for_each(task);
    } else {
        columns.chunks_mut(TASK_ROWS * n).enumerate().for_each(task);
    }
    let values = if n == 1 { columns } else { transposed(&columns, n, out) };
    tensor(values, [n, out], &x.device())
}

/// Products of all rows of `xs` with the first rows of `ws`, as many as `columns` has room for: `[rows, n]`.
fn rows_product(xs: &[f32], ws: &[f32], width: usize, n: usize, columns: &mut [f32]) {
    let rows = columns.len() / n;
    let row = |index: usize| index * width..(index + 1) * width;
    let mut i = 0;
    while i < n {
        let height = TILE[0].min(n - i);
        let mut j = 0;
        while j < rows {
            let breadth = TILE[1].min(rows - j);
            // Places beyond the edge repeat the last row; their sums are dropped.
            let x: [&[f32]; TILE[0]] = std::array::from_fn(|at| &xs[row(i + at.min(height - 1))]);
            let w: [&[f32]; TILE[1]] = std::array::from_fn(|at| &ws[row(j + at.min(breadth - 1))]);
            let sums = if height == 1 {
                let [sums] = tile([x[0]], w);
                [sums; TILE[0]]
            } else {
                tile(x, w)
            };
            for (at, sums) in sums.iter().enumerate().take(height) {
                for (beside, sum) in sums.iter().enumerate().take(breadth) {
                    columns[(j + beside) * n + i + at] = *sum;
                }
            }
            j += breadth;
        }
        i += height;
    }
}

/// Dot products of every row of `x` with every row of `w`: lane by lane, then the lanes, then the rest.
#[inline(always)]
pub(super) fn tile<const I: usize, const J: usize>(x: [&[f32]; I], w: [&[f32]; J]) -> [[f32; J]; I] {
    let (x, w) = (x.map(|row| row.as_chunks::<LANES>()), w.map(|row| row.as_chunks::<LANES>()));
    let sums = lane_sums(x.map(|(head, _)| head), w.map(|(head, _)| head));
    let mut dots = [[0.0; J]; I];
    for i in 0..I {
        for j in 0..J {
            let [a, b, c, d, e, f, g, h] = sums[i][j];
            let lanes = ((a + e) + (c + g)) + ((b + f) + (d + h));
            dots[i][j] = x[i].1.iter().zip(w[j].1).fold(lanes, |sum, (x, w)| x.mul_add(*w, sum));
        }
    }
    dots
}

/// The loop that takes the time: its sums stay in registers, so nothing in it may panic or take an address.
#[inline(never)]
fn lane_sums<const I: usize, const J: usize>(
    x: [&[[f32; LANES]]; I],
    w: [&[[f32; LANES]]; J],
) -> [[[f32; LANES]; J]; I] {
    let count = x[0].len();
    for row in x.iter().chain(&w) {
        assert_eq!(row.len(), count, "all rows have the same width");
    }
    let mut sums = [[[0.0f32; LANES]; J]; I];
    for at in 0..count {
        for i in 0..I {
            let x = x[i][at];
            for j in 0..J {
                let w = w[j][at];
                for lane in 0..LANES {
                    sums[i][j][lane] = x[lane].mul_add(w[lane], sums[i][j][lane]);
                }
            }
        }
    }
    sums
}

fn transposed(columns: &[f32], n: usize, out: usize) -> Vec<f32> {
    let mut values = vec![0.0; n * out];
    for (row, values) in values.chunks_exact_mut(out).enumerate() {
        values.iter_mut().zip(columns.chunks_exact(n)).for_each(|(value, column)| *value = column[row]);
    }
    values
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::device::Device;
    use crate::ops::to_vec;

    fn random(rng: &mut ChaCha8Rng, shape: [usize; 2]) -> Tensor<2> {
        let values = (0..shape[0] * shape[1]).map(|_| rng.random_range(-1.0..1.0)).collect();
        tensor(values, shape, &Device::cpu().burn)
    }

    #[test]
    fn it_is_the_product() {
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        for (n, width, out) in [(1, 8, 3), (1, 100, 7), (5, 33, 50), (17, 64, 97), (3, 7, 1), (64, 576, 1_600)] {
            let (x, w) = (random(&mut rng, [n, width]), random(&mut rng, [out, width]));
            let expected = to_vec(x.clone().matmul(w.clone().transpose()));
            for (found, expected) in to_vec(product(&x, &w)).iter().zip(expected) {
                assert!((found - expected).abs() < 1e-4, "{found} for {expected}, {n} × {width} × {out}");
            }
        }
    }

    #[test]
    fn a_row_has_the_same_bits_alone_and_among_others() {
        let mut rng = ChaCha8Rng::seed_from_u64(6);
        let (x, w) = (random(&mut rng, [23, 203]), random(&mut rng, [331, 203]));
        let together = to_vec(product(&x, &w));
        for (row, together) in together.chunks_exact(331).enumerate() {
            for rows in [1, 2, 3, 4, 7] {
                let first = row.min(23 - rows);
                let part = to_vec(product(&x.clone().slice([first..first + rows]), &w));
                assert_eq!(&part[(row - first) * 331..][..331], together, "row {row} among {rows}");
            }
        }
    }
}
