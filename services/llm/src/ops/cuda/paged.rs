//! Keys and values in pages, and the attention of a batch's rows to them.

use std::ops::Range;

use burn::tensor::{DType, Tensor};

use super::Array;
use super::decode::Inputs;
use super::launch::{Kernel, Source, real};
use crate::cache::{PAGE_TOKENS, PageTable};
use crate::device::BurnDevice;
use crate::ops::attention::Heads;

const PAGED: Source = Source {
    name: "paged.cu",
    text: concat!(
        include_str!("kernels/vector.cuh"),
        include_str!("kernels/tiles.cuh"),
        include_str!("kernels/join.cuh"),
        include_str!("kernels/paged.cu")
    ),
};
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
        let stretches = Stretches::new(&q, lengths, 0, splits, heads);
        stretches.attend(&[&q, keys, values, lengths, sequences, &plan.tables], &[], plan.pages, [0; 2]);
        outputs.push(stretches.join().tensor());
    }
    Some(if outputs.len() == 1 { outputs.remove(0) } else { Tensor::cat(outputs, 0) })
}

/// The attention of rows to stretches of their sequences.
#[derive(Debug)]
pub(crate) struct Stretches {
    /// f32 `[rows, heads, splits, dim]`.
    pub(super) sums: Array,
    /// f32 `[rows, heads, splits, 2]`.
    pub(super) tops: Array,
    /// Where the tokens that each row sees are counted, from `lengths_at` on.
    pub(super) lengths: Array,
    lengths_at: usize,
    rows: usize,
    /// Stretches that there is room for.
    pub(super) splits: usize,
    pub(super) heads: Heads,
}

impl Stretches {
    /// Room for that of queries `[rows, heads · dim]` whose longest sequence has at most `splits` stretches.
    fn new(q: &Array, lengths: &Array, lengths_at: usize, splits: usize, heads: Heads) -> Self {
        let ([rows, _], dim, count) = (q.matrix(), heads.dim, heads.kv * heads.group);
        // A row sees no more of its sequence than the window.
        let splits = heads.window.map_or(splits, |window| splits.min((window - 1).div_ceil(split(dim)) + 1));
        let sums = q.empty([rows, count, splits * dim], DType::F32);
        let tops = q.empty([rows, count, splits * 2], DType::F32);
        Self { sums, tops, lengths: lengths.clone(), lengths_at, rows, splits, heads }
    }

    fn attend(&self, arrays: &[&Array], defines: &[(&'static str, usize)], pages: usize, more: [u64; 2]) {
        let Self { rows, splits, heads, .. } = self;
        let (dim, count) = (heads.dim, heads.kv * heads.group);
        let mut words = [*rows, count, heads.kv, pages, *splits, self.window()].map(|word| word as u64).to_vec();
        words.push(real(f64::from(heads.scale)));
        words.extend(more);
        let defines = [&[("HEAD_DIM", dim)], defines].concat();
        let shared = (4 * split(dim) * dim).max(256 * (dim + 8));
        let grid = [*splits, heads.kv * heads.group.div_ceil(16), *rows];
        let arrays = [arrays, &[&self.sums, &self.tops]].concat();
        Kernel::new(&PAGED, "paged_attention", &defines, 128, shared).launch(grid, &arrays, &words);
    }

    /// Of what comes out, `[rows, heads · dim]`.
    pub(super) fn shape(&self) -> [usize; 2] {
        [self.rows, self.heads.kv * self.heads.group * self.heads.dim]
    }

    /// The window of the rows, 0 if they see all.
    pub(super) fn window(&self) -> usize {
        self.heads.window.unwrap_or(0)
    }

    /// bf16 `[rows, heads · dim]`.
    pub(crate) fn join(&self) -> Array {
        let (dim, count) = (self.heads.dim, self.heads.kv * self.heads.group);
        let out = self.sums.empty(self.shape(), DType::BF16);
        Kernel::new(&PAGED, "paged_combine", &[("HEAD_DIM", dim)], 128, 0).launch(
            [(self.rows * count).div_ceil(4), 1, 1],
            &[&self.sums, &self.tops, &self.lengths, &out],
            &[self.rows, count, self.splits, self.window(), self.lengths_at].map(|word| word as u64),
        );
        out
    }
}

/// True if a step of so many rows, whose sequences have so many parts, has room for its partial sums.
pub(crate) fn fits_at_once(rows: usize, splits: usize, heads: Heads) -> bool {
    rows * splits * heads.kv * heads.group * heads.dim <= MOST_PARTIAL
}

/// How a decoding step turns queries and keys: cosines and sines `[context, dim / 2]`, and the norms of each head before, if
/// there are any.
#[derive(Debug)]
pub(crate) struct Turn<'a> {
    pub(crate) rope: [&'a Array; 2],
    pub(crate) norms: Option<[&'a Array; 2]>,
    pub(crate) eps: f32,
}

/// Attention of a decoding step's rows: queries and keys are turned by their positions on their way, keys and values stored.
pub(crate) fn attend_rows(
    [q, k, v]: [&Array; 3],
    turn: &Turn<'_>,
    inputs: &Inputs,
    [keys, values]: [&Array; 2],
    splits: usize,
    heads: Heads,
) -> Stretches {
    let Inputs { words: step, packed } = inputs;
    let [cos, sin] = turn.rope;
    let mut arrays = vec![q, keys, values, packed, k, v, cos, sin];
    arrays.extend(turn.norms.into_iter().flatten());
    let defines = [("FRESH", 1), ("QK_NORM", usize::from(turn.norms.is_some()))];
    let stretches = Stretches::new(q, packed, step.rows, splits, heads);
    let words = [cos.matrix()[0] as u64, real(f64::from(turn.eps))];
    stretches.attend(&arrays, &defines, step.pages, words);
    stretches
}
