//! Keys and values in pages, and the attention of a batch's rows to them.

use std::ops::Range;

use burn::tensor::{DType, Tensor};

use super::Array;
use super::decode::Inputs;
use super::launch::{Kernel, Source, real};
use crate::cache::{PAGE_TOKENS, PageTable};
use crate::device::BurnDevice;
use crate::ops::attention::Heads;

const PAGED: Source =
    Source { name: "paged.cu", text: concat!(include_str!("kernels/vector.cuh"), include_str!("kernels/paged.cu")) };
/// Partial sums that exist at once, numbers: 256 MB.
const MOST_PARTIAL: usize = 64 << 20;

/// What a step's rows see, the same for all layers.
#[derive(Debug)]
pub(crate) struct Plan {
    /// Where each new row's keys and values go, `[rows]`.
    slots: Array,
    /// Pages of each sequence, `[sequences, pages]`.
    tables: Array,
    pages: usize,
    /// Rows that are computed together.
    pieces: Vec<Piece>,
}

#[derive(Debug)]
struct Piece {
    rows: Range<usize>,
    /// Tokens that each row sees, and its sequence.
    lengths: Array,
    sequences: Array,
    longest: usize,
}

/// True if the kernels can compute with these heads.
pub(crate) fn fits(heads: Heads) -> bool {
    [64, 128, 256].contains(&heads.dim)
}

/// Tokens of a block.
pub(crate) fn split(dim: usize) -> usize {
    if dim == 256 { 64 } else { 128 }
}

impl Plan {
    /// For the new rows of sequences, whose pages are reserved.
    pub(crate) fn new(sequences: &[(&PageTable, Range<usize>)], heads: Heads, device: &BurnDevice) -> Option<Self> {
        // Pages, rows and lengths are far below 2³¹.
        let whole = |values: Vec<usize>| Array::whole(values.into_iter().map(|value| value as i32).collect(), device);
        let pages = sequences.iter().map(|(table, _)| table.pages().len()).max()?.max(1);
        let (mut tables, mut slots, mut rows) = (Vec::new(), Vec::new(), Vec::new());
        for (index, (table, span)) in sequences.iter().enumerate() {
            tables.extend(table.pages().iter().map(|page| *page as usize));
            tables.resize((index + 1) * pages, 0);
            for at in table.len()..table.len() + span.len() {
                slots.push(table.pages()[at / PAGE_TOKENS] as usize * PAGE_TOKENS + at % PAGE_TOKENS);
                rows.push((at + 1, index));
            }
        }
        let longest = rows.iter().map(|(length, _)| *length).max()?;
        let a_row = heads.kv * heads.group * heads.dim * longest.div_ceil(split(heads.dim));
        // A grid has at most so many blocks in its third dimension.
        let at_once = (MOST_PARTIAL / a_row).clamp(1, 65_535);
        let piece = |(index, rows): (usize, &[(usize, usize)])| {
            Some(Piece {
                rows: index * at_once..index * at_once + rows.len(),
                lengths: whole(rows.iter().map(|(length, _)| *length).collect())?,
                sequences: whole(rows.iter().map(|(_, sequence)| *sequence).collect())?,
                longest: rows.iter().map(|(length, _)| *length).max()?,
            })
        };
        let pieces = rows.chunks(at_once).enumerate().map(piece).collect::<Option<_>>()?;
        Some(Self { slots: whole(slots)?, tables: whole(tables)?, pages, pieces })
    }
}

/// Stores new keys and values in the pools `[pages, kv, 16, dim]`, and gives the attention of the new queries.
pub(crate) fn attend([q, k, v]: [&Tensor<2>; 3], pools: [&Array; 2], plan: &Plan, heads: Heads) -> Option<Tensor<2>> {
    let (k, v) = (Array::half(k)?, Array::half(v)?);
    let ([n, _], dim, [keys, values]) = (q.dims(), heads.dim, pools);
    Kernel::new(&PAGED, "paged_store", &[("HEAD_DIM", dim)], 256, 0).launch(
        [(n * heads.kv * (dim / 8)).div_ceil(256), 1, 1],
        &[&k, &v, &plan.slots, keys, values],
        &[n as u64, heads.kv as u64],
    );
    let mut outputs = Vec::with_capacity(plan.pieces.len());
    for Piece { rows, lengths, sequences, longest } in &plan.pieces {
        let q = if plan.pieces.len() == 1 { q.clone() } else { q.clone().slice([rows.clone()]) };
        let q = Array::half(&q)?;
        let splits = longest.div_ceil(split(dim));
        let seen = Seen { lengths, sequences, tables: &plan.tables, pages: plan.pages };
        outputs.push(attention(&q, pools, &seen, splits, heads).tensor());
    }
    Some(if outputs.len() == 1 { outputs.remove(0) } else { Tensor::cat(outputs, 0) })
}

/// What rows see: how many tokens of which sequence, and the sequences' pages `[sequences, pages]`.
struct Seen<'a> {
    lengths: &'a Array,
    sequences: &'a Array,
    tables: &'a Array,
    pages: usize,
}

/// Attention of rows `[rows, heads · dim]` whose longest sequence has at most `splits` parts.
fn attention(q: &Array, [keys, values]: [&Array; 2], seen: &Seen<'_>, splits: usize, heads: Heads) -> Array {
    let ([rows, width], dim, count) = (q.matrix(), heads.dim, heads.kv * heads.group);
    let kernel = |entry, shared| Kernel::new(&PAGED, entry, &[("HEAD_DIM", dim)], 128, shared);
    let window = heads.window.unwrap_or(0);
    // A row sees no more of its sequence than the window.
    let splits = if window > 0 { splits.min((window - 1).div_ceil(split(dim)) + 1) } else { splits };
    let partial = q.empty([rows, count, splits * dim], DType::F32);
    let tops = q.empty([rows, count, splits * 2], DType::F32);
    let out = q.empty([rows, width], DType::BF16);
    let mut words = [rows, count, heads.kv, seen.pages, splits, window].map(|word| word as u64).to_vec();
    words.push(real(f64::from(heads.scale)));
    kernel("paged_attention", (4 * split(dim) * dim).max(256 * (dim + 8))).launch(
        [splits, heads.kv * heads.group.div_ceil(16), rows],
        &[q, keys, values, seen.lengths, seen.sequences, seen.tables, &partial, &tops],
        &words,
    );
    kernel("paged_combine", 0).launch(
        [(rows * count).div_ceil(4), 1, 1],
        &[&partial, &tops, seen.lengths, &out],
        &[rows, count, splits, window].map(|word| word as u64),
    );
    out
}

/// True if a step of so many rows, whose sequences have so many parts, has room for its partial sums.
pub(crate) fn fits_at_once(rows: usize, splits: usize, heads: Heads) -> bool {
    rows * splits * heads.kv * heads.group * heads.dim <= MOST_PARTIAL
}

/// Attention of a decoding step's rows.
pub(crate) fn attend_rows(q: &Array, pools: [&Array; 2], inputs: &Inputs, splits: usize, heads: Heads) -> Array {
    let Inputs { lengths, sequences, tables, pages, .. } = inputs;
    attention(q, pools, &Seen { lengths, sequences, tables, pages: *pages }, splits, heads)
}

/// Turns queries where they lie, and keys on their way into the pool, by their rows' positions, each head normed by `scales` before
/// if there are any; stores values.
pub(crate) fn rope_store(
    [q, k, v]: [&Array; 3],
    [cos, sin]: [&Array; 2],
    scales: Option<[&Array; 2]>,
    eps: f32,
    inputs: &Inputs,
    pools: [&Array; 2],
    heads: Heads,
) {
    let (rows, dim, count) = (inputs.ids.len(), heads.dim, heads.kv * heads.group);
    let defines = [("HEAD_DIM", dim), ("QK_NORM", usize::from(scales.is_some()))];
    let mut arrays = vec![k, v, cos, sin, &inputs.positions, &inputs.slots];
    arrays.extend(scales.into_iter().flatten());
    arrays.push(q);
    arrays.extend(pools);
    let mut words = [rows, count, heads.kv, cos.matrix()[0]].map(|word| word as u64).to_vec();
    words.push(real(f64::from(eps)));
    let threads = rows * (count + 2 * heads.kv) * (dim / 16);
    Kernel::new(&PAGED, "rope_store", &defines, 256, 0).launch([threads.div_ceil(256), 1, 1], &arrays, &words);
}
