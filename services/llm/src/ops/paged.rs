//! Attention of a few query rows to keys and values that lie in pages, on the CPU.
//!
//! The plain definition is [`super::attention::attend`] over the joined pages.

use rayon::prelude::*;

use super::attention::Heads;
use super::product::{SPREAD, tile};
use crate::cache::PAGE_TOKENS;

/// Where a query row looks: at the first `end` tokens of its sequence, or at those of them that its window holds. Each page
/// holds rows `[PAGE_TOKENS, kv·dim]`.
#[derive(Clone, Copy)]
pub(crate) struct Row<'a> {
    pub(crate) keys: &'a [&'a [f32]],
    pub(crate) values: &'a [&'a [f32]],
    pub(crate) end: usize,
}

/// Attention of query rows `[rows, kv·group·dim]` of whatever sequences. A row's result does not depend on the others.
pub(crate) fn attend(queries: &[f32], rows: &[Row<'_>], heads: Heads) -> Vec<f32> {
    let width = heads.kv * heads.group * heads.dim;
    let mut out = vec![0.0; queries.len()];
    let products: usize = rows.iter().map(|row| row.end * width).sum();
    if rows.len() > 1 && products >= SPREAD {
        let parts = out.par_chunks_exact_mut(width).zip(queries.par_chunks_exact(width)).zip(rows);
        parts.for_each(|((out, query), row)| attend_row(query, row, heads, out));
    } else {
        let parts = out.chunks_exact_mut(width).zip(queries.chunks_exact(width)).zip(rows);
        parts.for_each(|((out, query), row)| attend_row(query, row, heads, out));
    }
    out
}

/// Attention of one row to the first `end` tokens, or to those of them that its window holds.
fn attend_row(query: &[f32], row: &Row<'_>, heads: Heads, out: &mut [f32]) {
    let Heads { kv, group, dim, scale, window } = heads;
    let begin = window.map_or(0, |window| row.end.saturating_sub(window));
    let mut weights = vec![0.0; row.end - begin];
    for head in 0..kv * group {
        let part = Part { width: kv * dim, column: head / group * dim, begin };
        part.scores(&query[head * dim..][..dim], row.keys, &mut weights);
        let top = weights.iter().fold(f32::NEG_INFINITY, |top, v| top.max(*v));
        let mut sum = 0.0;
        for weight in &mut weights {
            *weight = exp_of_negative((*weight - top) * scale);
        }
        for weight in &weights {
            sum += weight;
        }
        let norm = 1.0 / sum;
        weights.iter_mut().for_each(|weight| *weight *= norm);
        part.mean(row.values, &weights, &mut out[head * dim..][..dim]);
    }
}

/// A head's columns of pages whose rows have `width` floats, from token `begin` on.
#[derive(Clone, Copy)]
struct Part {
    width: usize,
    column: usize,
    begin: usize,
}

impl Part {
    /// A token's floats.
    #[inline(always)]
    fn of<'a>(self, pages: &[&'a [f32]], token: usize, dim: usize) -> &'a [f32] {
        &pages[token / PAGE_TOKENS][token % PAGE_TOKENS * self.width + self.column..][..dim]
    }

    /// Products of a query with each token's key. Several at once: one alone waits for its own sum at each step.
    fn scores(self, query: &[f32], keys: &[&[f32]], scores: &mut [f32]) {
        const AT_ONCE: usize = 4;
        let dim = query.len();
        let mut token = self.begin;
        let (fours, rest) = scores.as_chunks_mut::<AT_ONCE>();
        for scores in fours {
            [*scores] = tile([query], std::array::from_fn(|beside| self.of(keys, token + beside, dim)));
            token += AT_ONCE;
        }
        for score in rest {
            [[*score]] = tile([query], [self.of(keys, token, dim)]);
            token += 1;
        }
    }

    /// The mean of the tokens' values by their weights.
    fn mean(self, values: &[&[f32]], weights: &[f32], out: &mut [f32]) {
        const BLOCK: usize = 32;
        let (blocks, rest) = out.as_chunks_mut::<BLOCK>();
        let mut part = self;
        for block in blocks {
            // Sums that stay in registers while the tokens pass.
            let mut sums = [0.0f32; BLOCK];
            for (token, weight) in (self.begin..).zip(weights) {
                let Some(value) = part.of(values, token, BLOCK).first_chunk::<BLOCK>() else { unreachable!("a block") };
                for (sum, value) in sums.iter_mut().zip(value) {
                    *sum = weight.mul_add(*value, *sum);
                }
            }
            *block = sums;
            part.column += BLOCK;
        }
        if rest.is_empty() {
            return;
        }
        rest.fill(0.0);
        for (token, weight) in (self.begin..).zip(weights) {
            let value = part.of(values, token, rest.len());
            rest.iter_mut().zip(value).for_each(|(sum, value)| *sum = weight.mul_add(*value, *sum));
        }
    }
}

/// `eˣ` for `x` from −∞ to 0, within 2 units in the last place, without a call, so that the loop over it is vector
/// instructions: a power of two, times a polynomial of what is left (the Cephes library's).
#[inline(always)]
fn exp_of_negative(x: f32) -> f32 {
    const LN2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
    const TERMS: [f32; 6] = [1.987_569_1e-4, 1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5];
    let x = x.max(-87.0);
    let power = (x * std::f32::consts::LOG2_E).round_ties_even();
    let rest = power.mul_add(-LN2[1], power.mul_add(-LN2[0], x));
    let series = TERMS.iter().fold(0.0f32, |sum, term| sum.mul_add(rest, *term));
    let value = series.mul_add(rest * rest, rest) + 1.0;
    value * f32::from_bits(((power as i32 + 127) << 23) as u32)
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::device::Device;
    use crate::ops::{attention, tensor, to_vec};

    #[test]
    fn exponentials_are_exact_enough() {
        for step in 0..=87_000 {
            let x = -step as f32 / 1_000.0;
            let (found, expected) = (exp_of_negative(x), x.exp());
            assert!((found - expected).abs() <= expected * 3e-7, "{x}: {found} for {expected}");
        }
        assert!(exp_of_negative(0.0) == 1.0 && exp_of_negative(f32::NEG_INFINITY) < 1e-37);
    }

    #[test]
    fn pages_give_what_joined_rows_give() {
        let device = Device::cpu();
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        for (kv, group, dim, window, length, rows) in
            [(2, 2, 8, None, 37, 1), (1, 4, 12, None, 16, 3), (3, 1, 16, Some(5), 40, 4), (2, 3, 20, Some(100), 9, 7)]
        {
            let heads = Heads { kv, group, dim, scale: 0.37, window };
            let mut draw = |count: usize| (0..count).map(|_| rng.random_range(-1.0..1.0)).collect::<Vec<f32>>();
            let (q, k, v) = (draw(rows * kv * group * dim), draw(length * kv * dim), draw(length * kv * dim));
            let pages = |rows: &[f32]| {
                let mut rows = rows.to_vec();
                // What lies behind the last token must not matter.
                rows.resize(length.div_ceil(PAGE_TOKENS) * PAGE_TOKENS * kv * dim, f32::NAN);
                rows
            };
            let (k_pages, v_pages) = (pages(&k), pages(&v));
            let [k_pages, v_pages] =
                [&k_pages, &v_pages].map(|rows| rows.chunks_exact(PAGE_TOKENS * kv * dim).collect::<Vec<_>>());
            let seen = (length - rows + 1..=length).map(|end| Row { keys: &k_pages, values: &v_pages, end });
            let got = attend(&q, &seen.collect::<Vec<_>>(), heads);
            let of = |values: Vec<f32>, rows: usize, width: usize| tensor(values, [rows, width], &device.burn);
            let expected = attention::attend(
                of(q, rows, kv * group * dim),
                of(k, length, kv * dim),
                of(v, length, kv * dim),
                heads,
            );
            for (got, expected) in got.iter().zip(to_vec(expected)) {
                assert!((got - expected).abs() < 1e-5, "{got} for {expected}");
            }
        }
    }
}
