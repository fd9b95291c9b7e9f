//! Causal attention within documents, without the matrix of scores (FlashAttention-2, Dao 2023).

use std::ops::Range;

use burn::tensor::{DType, Tensor};

use super::Array;
use super::launch::{Define, Kernel, Source, is_hopper, processors, real};
use super::matrix::boxes;
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
/// The forward for Hopper's tensor cores.
const FORWARD_WGMMA: Source = Source {
    name: "attention_wgmma.cu",
    text: concat!(
        include_str!("kernels/mma.cuh"),
        include_str!("kernels/wgmma.cuh"),
        include_str!("kernels/attention_wgmma.cuh"),
        include_str!("kernels/attention_wgmma.cu")
    ),
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
fn wgmma(like: &Array, dim: usize) -> bool {
    is_hopper(like) && (dim == 64 || dim == 128)
}

/// Attention `[n, heads · dim]` of rotated queries and keys, and values.
pub(crate) fn forward([q, k, v]: [&Tensor<2>; 3], bounds: &Bounds, heads: Heads) -> Option<(Tensor<2>, Kept)> {
    let (q, k, v) = (Array::half(q)?, Array::half(k)?, Array::half(v)?);
    let [n, width] = q.matrix();
    let (out, lse) = (q.empty([n, width], DType::BF16), q.empty([width / heads.dim, n], DType::F32));
    if wgmma(&q, heads.dim) {
        forward_wgmma([&q, &k, &v], bounds, heads, [&out, &lse]);
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

fn forward_wgmma([q, k, v]: [&Array; 3], bounds: &Bounds, heads: Heads, [out, lse]: [&Array; 2]) {
    let ([n, width], dim) = (q.matrix(), heads.dim);
    let (groups, keys, stages) = if dim == 64 { (3, 128, 4) } else { (2, 128, 2) };
    let rows = 64 * groups;
    let shared = 2 * dim * (rows + 2 * stages * keys) + 2_048;
    let threads = 128 * (groups as u32 + 1);
    let kernel = Kernel::new(&FORWARD_WGMMA, "attention_forward", &[("HEAD_DIM", dim)], threads, shared);
    let maps = vec![boxes(q, rows), boxes(k, keys), boxes(v, keys)];
    kernel.launch_mapped([width / dim, n.div_ceil(rows), 1], maps, &[&bounds.start, out, lse], &words(n, heads));
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
    let (count, words) = (width / dim, words(n, heads));
    let kernel = |entry, threads: usize, shared| {
        Kernel::new(&BACKWARD, entry, &[("HEAD_DIM", dim)] as &[Define], threads as u32, shared)
    };
    let delta = q.empty([count, n], DType::F32);
    let lanes = if dim.is_multiple_of(64) {
        8
    } else if dim.is_multiple_of(32) {
        4
    } else {
        2
    };
    kernel("attention_delta", 256, 0).launch(
        [(n * count * lanes).div_ceil(256), 1, 1],
        &[&kept.out, &dout, &delta],
        &words,
    );

    let [dk, dv] = [0; 2].map(|_| q.empty([n, heads.kv * dim], DType::BF16));
    let warps = if dim == 96 || dim == 128 { 8 } else { 4 };
    let rows = warps * if dim > 64 { 16 } else { 32 };
    let queries = if dim > 128 { 16 } else { 64 };
    let (own, tiles) = (2 * rows * dim * 2, 4 * queries * dim * 2);
    let shared = if dim <= 128 { own.max(tiles) } else { own + tiles } + 2 * 3 * queries * 4;
    let (blocks, parts) = (n.div_ceil(rows), if dim > 128 { 2 } else { 1 });
    // Blocks differ in length, so a few for each processor are too few: then each query head has its own.
    let alone = heads.group > 1 && heads.kv * blocks < 4 * processors(&q);
    let inputs = [&q, &k, &v, &dout, &kept.lse, &delta, &bounds.start, &bounds.end];
    if alone {
        let [dks, dvs] = [0; 2].map(|_| q.empty([n, width], DType::F32));
        let defines = [("HEAD_DIM", dim), ("SPLIT", 1)];
        let split = Kernel::new(&BACKWARD, "attention_backward_kv", &defines, warps as u32 * 32, shared);
        split.launch([count, blocks, parts], &[&inputs[..], &[&dks, &dvs]].concat(), &words);
        for (sums, out) in [(&dks, &dk), (&dvs, &dv)] {
            let grid = [(n * heads.kv * dim / 4).div_ceil(256), 1, 1];
            kernel("attention_group_sum", 256, 0).launch(grid, &[sums, out], &words);
        }
    } else {
        let whole = kernel("attention_backward_kv", warps * 32, shared);
        whole.launch([heads.kv, blocks, parts], &[&inputs[..], &[&dk, &dv]].concat(), &words);
    }

    let dq = q.empty([n, width], DType::BF16);
    let rows = 4 * if dim > 128 { 16 } else { 32 };
    let keys = match dim {
        0..=64 => 64,
        65..=128 => 32,
        _ => 16,
    };
    let (own, tiles) = (2 * rows * dim * 2, 4 * keys * dim * 2);
    let shared = if dim <= 64 { own.max(tiles) } else { own + tiles };
    kernel("attention_backward_q", 128, shared).launch(
        [count, n.div_ceil(rows), 1],
        &[&q, &k, &v, &dout, &kept.lse, &delta, &bounds.start, &dq],
        &words,
    );
    Some([dq.tensor(), dk.tensor(), dv.tensor()])
}

fn words(n: usize, heads: Heads) -> [u64; 5] {
    let [n, count, kv, window] =
        [n, heads.kv * heads.group, heads.kv, heads.window.unwrap_or(0)].map(|word| word as u64);
    [n, count, kv, window, real(f64::from(heads.scale))]
}
