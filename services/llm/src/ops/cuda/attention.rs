//! Causal attention within documents, without the matrix of scores (FlashAttention-2, Dao 2023).

use std::ops::Range;

use burn::tensor::{DType, Tensor};

use super::launch::{Define, Kernel, Source, is_hopper, processors, real};
use super::{Array, attention_wgmma};
use crate::device::BurnDevice;
use crate::ops::attention::Heads;

const FORWARD: Source = Source {
    name: "attention.cu",
    text: concat!(include_str!("kernels/mma.cuh"), include_str!("kernels/attention.cu")),
};
const BACKWARD: Source = Source {
    name: "attention_backward.cu",
    text: concat!(include_str!("kernels/mma.cuh"), include_str!("kernels/attention_backward.cu")),
};
/// Head dimensions that the kernels are made for.
const DIMS: [usize; 6] = [16, 32, 64, 96, 128, 256];

/// First and one past last token of each token's document, `[n]`.
#[derive(Debug)]
pub(crate) struct Bounds {
    start: Array,
    end: Array,
}

impl Bounds {
    pub(crate) fn new(documents: &[Range<usize>], device: &BurnDevice) -> Option<Self> {
        let of = |bound: fn(&Range<usize>) -> usize| {
            let each = |document: &Range<usize>| std::iter::repeat_n(bound(document) as i32, document.len());
            Array::whole(documents.iter().flat_map(each).collect(), device)
        };
        Some(Self { start: of(|document| document.start)?, end: of(|document| document.end)? })
    }
}

/// What the backward needs beside queries, keys and values.
#[derive(Debug)]
pub(crate) struct Kept {
    out: Array,
    /// Logarithm of the sum of each row's exponentials, `[heads, n]`.
    lse: Array,
}

/// True if the kernels can compute with heads of this width.
pub(crate) fn fits(head_dim: usize) -> bool {
    DIMS.contains(&head_dim)
}

/// True where the kernels for Hopper's tensor cores take over from those for all GPUs.
fn on_hopper(like: &Array, dim: usize) -> bool {
    is_hopper(like) && attention_wgmma::fits(dim)
}

/// Attention `[n, heads · dim]` of rotated queries and keys, and values.
pub(crate) fn forward([q, k, v]: [&Tensor<2>; 3], bounds: &Bounds, heads: Heads) -> Option<(Tensor<2>, Kept)> {
    let (q, k, v) = (Array::half(q)?, Array::half(k)?, Array::half(v)?);
    let [n, width] = q.matrix();
    let (out, lse) = (q.empty([n, width], DType::BF16), q.empty([width / heads.dim, n], DType::F32));
    if on_hopper(&q, heads.dim) {
        attention_wgmma::forward([&q, &k, &v], &bounds.start, [&out, &lse], heads, &words(n, heads));
        return Some((out.clone().tensor(), Kept { out, lse }));
    }
    let (warps, rows, keys) = if heads.dim > 128 { (4, 16, 32) } else { (4, 32, 64) };
    let tile = warps * rows;
    let shared = heads.dim * 2 * (tile + 4 * keys);
    let kernel = Kernel::new(&FORWARD, "attention_forward", &[("HEAD_DIM", heads.dim)], warps as u32 * 32, shared);
    let grid = [width / heads.dim, n.div_ceil(tile), 1];
    kernel.launch(grid, &[&q, &k, &v, &bounds.start, &out, &lse], &words(n, heads));
    Some((out.clone().tensor(), Kept { out, lse }))
}

/// Gradients of queries, keys and values.
pub(crate) fn backward(
    dout: &Tensor<2>,
    [q, k, v]: [&Tensor<2>; 3],
    kept: &Kept,
    bounds: &Bounds,
    heads: Heads,
) -> Option<[Tensor<2>; 3]> {
    let (dout, q, k, v) = (Array::half(dout)?, Array::half(q)?, Array::half(k)?, Array::half(v)?);
    let ([n, width], dim) = (q.matrix(), heads.dim);
    let hopper = on_hopper(&q, dim);
    let (count, words) = (width / dim, words(n, heads));
    let kernel = |entry| Kernel::new(&BACKWARD, entry, &[("HEAD_DIM", dim)], 256, 0);
    let delta = q.empty([count, n], DType::F32);
    let lanes = if dim.is_multiple_of(64) {
        8
    } else if dim.is_multiple_of(32) {
        4
    } else {
        2
    };
    kernel("attention_delta").launch([(n * count * lanes).div_ceil(256), 1, 1], &[&kept.out, &dout, &delta], &words);

    let (dq, [dk, dv]) = (q.empty([n, width], DType::BF16), [0; 2].map(|_| q.empty([n, heads.kv * dim], DType::BF16)));
    // Blocks differ in length, so a few for each processor are too few: then each query head has its own. A processor of
    // Hopper has one block at a time, of others two.
    let (rows, enough) = if hopper { (attention_wgmma::ROWS, 2) } else { (key_block(dim).1, 4) };
    let alone = heads.group > 1 && heads.kv * n.div_ceil(rows) < enough * processors(&q);
    let inputs = [&q, &k, &v, &dout, &kept.lse, &delta, &bounds.start, &bounds.end];
    let write = |outputs: [&Array; 2]| {
        if hopper {
            attention_wgmma::keys_and_values(inputs, outputs, heads, alone, &words);
        } else {
            keys_and_values(inputs, outputs, heads, alone, &words);
        }
    };
    if alone {
        let [dks, dvs] = [0; 2].map(|_| q.empty([n, width], DType::F32));
        write([&dks, &dvs]);
        for (sums, out) in [(&dks, &dk), (&dvs, &dv)] {
            let grid = [(n * heads.kv * dim / 4).div_ceil(256), 1, 1];
            kernel("attention_group_sum").launch(grid, &[sums, out], &words);
        }
    } else {
        write([&dk, &dv]);
    }
    if hopper {
        attention_wgmma::queries(inputs, &dq, heads, &words);
    } else {
        queries(inputs, &dq, heads, &words);
    }
    Some([dq.tensor(), dk.tensor(), dv.tensor()])
}

/// Warps of a block that makes the gradients of keys and values, and its keys.
fn key_block(dim: usize) -> (usize, usize) {
    let warps = if dim == 96 || dim == 128 { 8 } else { 4 };
    (warps, warps * if dim > 64 { 16 } else { 32 })
}

/// Writes the gradients of keys and values: of each key head, or `alone`, in f32, of each query head.
fn keys_and_values(inputs: [&Array; 8], outputs: [&Array; 2], heads: Heads, alone: bool, words: &[u64]) {
    let (dim, n) = (heads.dim, inputs[0].matrix()[0]);
    let (warps, rows) = key_block(dim);
    let queries = if dim > 128 { 16 } else { 64 };
    let (own, tiles) = (2 * rows * dim * 2, 4 * queries * dim * 2);
    let shared = if dim <= 128 { own.max(tiles) } else { own + tiles } + 2 * 3 * queries * 4;
    let defines: &[Define] = if alone { &[("HEAD_DIM", dim), ("SPLIT", 1)] } else { &[("HEAD_DIM", dim)] };
    let kernel = Kernel::new(&BACKWARD, "attention_backward_kv", defines, warps as u32 * 32, shared);
    let count = if alone { heads.kv * heads.group } else { heads.kv };
    let grid = [count, n.div_ceil(rows), if dim > 128 { 2 } else { 1 }];
    kernel.launch(grid, &[&inputs[..], &outputs].concat(), words);
}

/// Writes the gradient of queries.
fn queries([q, k, v, dout, lse, delta, start, _]: [&Array; 8], dq: &Array, heads: Heads, words: &[u64]) {
    let ([n, width], dim) = (q.matrix(), heads.dim);
    let rows = 4 * if dim > 128 { 16 } else { 32 };
    let keys = match dim {
        0..=64 => 64,
        65..=128 => 32,
        _ => 16,
    };
    let (own, tiles) = (2 * rows * dim * 2, 4 * keys * dim * 2);
    let shared = if dim <= 64 { own.max(tiles) } else { own + tiles };
    let kernel = Kernel::new(&BACKWARD, "attention_backward_q", &[("HEAD_DIM", dim)], 128, shared);
    kernel.launch([width / dim, n.div_ceil(rows), 1], &[q, k, v, dout, lse, delta, start, dq], words);
}

fn words(n: usize, heads: Heads) -> [u64; 5] {
    let [n, count, kv, window] =
        [n, heads.kv * heads.group, heads.kv, heads.window.unwrap_or(0)].map(|word| word as u64);
    [n, count, kv, window, real(f64::from(heads.scale))]
}
