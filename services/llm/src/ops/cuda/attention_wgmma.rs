//! The launches of attention by Hopper's tensor cores.

use super::Array;
use super::launch::{Define, Kernel, Source};
use super::matrix::boxes;
use crate::ops::attention::Heads;

const FORWARD: Source = Source {
    name: "attention_wgmma.cu",
    text: concat!(
        include_str!("kernels/mma.cuh"),
        include_str!("kernels/wgmma.cuh"),
        include_str!("kernels/attention_wgmma.cuh"),
        include_str!("kernels/attention_wgmma.cu")
    ),
};
const BACKWARD: Source = Source {
    name: "attention_wgmma_backward.cu",
    text: concat!(
        include_str!("kernels/mma.cuh"),
        include_str!("kernels/wgmma.cuh"),
        include_str!("kernels/attention_wgmma.cuh"),
        include_str!("kernels/attention_wgmma_backward.cu")
    ),
};
/// Rows of a backward's block: two warpgroups of 64.
pub(super) const ROWS: usize = 128;
/// A producer warpgroup, and those two.
const THREADS: u32 = 384;
/// For barriers, and for the tiles' alignment.
const SPARE: usize = 2_048;

/// True if the kernels have heads of this width.
pub(super) fn fits(dim: usize) -> bool {
    dim == 64 || dim == 128
}

/// Writes attention and its logarithms of sums.
pub(super) fn forward(
    [q, k, v]: [&Array; 3],
    start: &Array,
    [out, lse]: [&Array; 2],
    Heads { dim, .. }: Heads,
    words: &[u64],
) {
    let [n, width] = q.matrix();
    let (groups, keys, stages) = if dim == 64 { (3, 128, 4) } else { (2, 128, 2) };
    let rows = 64 * groups;
    let shared = 2 * dim * (rows + 2 * stages * keys) + SPARE;
    let threads = 128 * (groups as u32 + 1);
    let kernel = Kernel::new(&FORWARD, "attention_forward", &[("HEAD_DIM", dim)], threads, shared);
    let maps = vec![boxes(q, rows), boxes(k, keys), boxes(v, keys)];
    kernel.launch_mapped([width / dim, n.div_ceil(rows), 1], maps, &[start, out, lse], words);
}

/// Writes the gradients of keys and values: of each key head, or in f32 of each query head by itself. Inputs are queries, keys,
/// values, the result's gradient, logarithms of sums, deltas, and the documents' bounds.
pub(super) fn keys_and_values(
    [q, k, v, dout, lse, delta, start, end]: [&Array; 8],
    [dk, dv]: [&Array; 2],
    Heads { kv, group, dim, .. }: Heads,
    alone: bool,
    words: &[u64],
) {
    let (queries, stages) = (64, 4);
    let shared = 2 * dim * (2 * ROWS + 2 * stages * queries) + stages * 3 * queries * 4 + SPARE;
    let defines: &[Define] = if alone { &[("HEAD_DIM", dim), ("SPLIT", 1)] } else { &[("HEAD_DIM", dim)] };
    let kernel = Kernel::new(&BACKWARD, "attention_backward_kv", defines, THREADS, shared);
    let maps = vec![boxes(k, ROWS), boxes(v, ROWS), boxes(q, queries), boxes(dout, queries)];
    let grid = [if alone { kv * group } else { kv }, q.matrix()[0].div_ceil(ROWS), 1];
    kernel.launch_mapped(grid, maps, &[lse, delta, start, end, dk, dv], words);
}

/// Writes the gradient of queries; inputs as in [`keys_and_values`].
pub(super) fn queries(
    [q, k, v, dout, lse, delta, start, _]: [&Array; 8],
    dq: &Array,
    Heads { dim, .. }: Heads,
    words: &[u64],
) {
    let ([n, width], keys, stages) = (q.matrix(), 128, if dim == 64 { 4 } else { 2 });
    let shared = 2 * dim * (2 * ROWS + 2 * stages * keys) + SPARE;
    let kernel = Kernel::new(&BACKWARD, "attention_backward_q", &[("HEAD_DIM", dim)], THREADS, shared);
    let maps = vec![boxes(q, ROWS), boxes(dout, ROWS), boxes(k, keys), boxes(v, keys)];
    kernel.launch_mapped([width / dim, n.div_ceil(ROWS), 1], maps, &[lse, delta, start, dq], words);
}
