//! Attention of a few query rows to keys and values that lie in pages, on the CPU.
//!
//! The plain definition is [`super::attention::attend`] over the joined pages.

use rayon::prelude::*;

use super::attention::Heads;
use crate::cache::PAGE_TOKENS;

/// Products of a row with a key from which on rows are spread over the cores: below, waking them costs more.
const SPREAD: usize = 1 << 16;

/// Attention of the last rows of a sequence of `length` tokens. `queries` are their rows `[rows, kv·group·dim]`; each page
/// holds rows `[PAGE_TOKENS, kv·dim]`. Gives `[rows, kv·group·dim]`.
pub(crate) fn attend(queries: &[f32], keys: &[&[f32]], values: &[&[f32]], length: usize, heads: Heads) -> Vec<f32> {
    let width = heads.kv * heads.group * heads.dim;
    let rows = queries.len() / width;
    let mut out = vec![0.0; queries.len()];
    let row = |(index, (out, query)): (usize, (&mut [f32], &[f32]))| {
        attend_row(query, keys, values, length - rows + index + 1, heads, out);
    };
    if rows > 1 && rows * length * heads.kv * heads.group >= SPREAD {
        out.par_chunks_exact_mut(width).zip(queries.par_chunks_exact(width)).enumerate().for_each(row);
    } else {
        out.chunks_exact_mut(width).zip(queries.chunks_exact(width)).enumerate().for_each(row);
    }
    out
}

/// Attention of one row to the first `end` tokens, or to those of them that its window holds.
fn attend_row(query: &[f32], keys: &[&[f32]], values: &[&[f32]], end: usize, heads: Heads, out: &mut [f32]) {
    let Heads { kv, group, dim, scale, window } = heads;
    let begin = window.map_or(0, |window| end.saturating_sub(window));
    let mut scores = vec![0.0; end - begin];
    for head in 0..kv * group {
        let query = &query[head * dim..][..dim];
        let out = &mut out[head * dim..][..dim];
        let at = |token: usize| token % PAGE_TOKENS * kv * dim + head / group * dim;
        let mut top = f32::NEG_INFINITY;
        for (token, score) in (begin..end).zip(&mut scores) {
            *score = dot(query, &keys[token / PAGE_TOKENS][at(token)..][..dim]);
            top = top.max(*score);
        }
        let mut sum = 0.0;
        for score in &mut scores {
            *score = ((*score - top) * scale).exp();
            sum += *score;
        }
        for (token, weight) in (begin..end).zip(&scores) {
            let value = &values[token / PAGE_TOKENS][at(token)..][..dim];
            out.iter_mut().zip(value).for_each(|(out, value)| *out += weight * value);
        }
        let norm = 1.0 / sum;
        out.iter_mut().for_each(|out| *out *= norm);
    }
}

/// Scalar product in eight lanes, which the compiler turns into vector instructions.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    const LANES: usize = 8;
    let mut lanes = [0.0f32; LANES];
    let (a_chunks, b_chunks) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    for (a, b) in a_chunks.0.iter().zip(b_chunks.0) {
        for lane in 0..LANES {
            lanes[lane] += a[lane] * b[lane];
        }
    }
    let rest: f32 = a_chunks.1.iter().zip(b_chunks.1).map(|(a, b)| a * b).sum();
    lanes.iter().sum::<f32>() + rest
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::device::Device;
    use crate::ops::{attention, tensor, to_vec};

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
            let got = attend(&q, &k_pages, &v_pages, length, heads);
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
