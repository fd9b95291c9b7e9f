//! What lies between the products of a decoding step.

use burn::tensor::DType;

use super::Array;
use super::launch::{Kernel, Source, real};

pub(super) const DECODE: Source =
    Source { name: "decode.cu", text: concat!(include_str!("kernels/vector.cuh"), include_str!("kernels/decode.cu")) };

/// Parts of a row of logits that are looked through at once.
const PARTS: usize = 32;
/// Widest row of a norm.
const MOST_WIDTH: usize = 16_384;

/// A step's inputs, `[rows]` each and pages `[rows, pages]`.
#[derive(Debug)]
pub(crate) struct Inputs {
    /// All of them, with the rows' adapters.
    pub(crate) packed: Array,
    pub(crate) ids: Array,
    /// Tokens that a row sees, itself included; 0: the row only fills the batch up.
    pub(crate) lengths: Array,
    pub(crate) positions: Array,
    /// Where a row's keys and values go.
    pub(crate) slots: Array,
    /// Which of the tables is a row's.
    pub(crate) sequences: Array,
    pub(crate) tables: Array,
    pub(crate) pages: usize,
    /// How far each product's adapters are, `[launches]`: zeros before them.
    pub(crate) ready: Array,
}

/// Words of a step's packed inputs: see [`Inputs::new`].
pub(crate) fn packed_words(rows: usize, pages: usize) -> usize {
    5 * rows + rows * pages
}

impl Inputs {
    /// Takes i32 `[packed_words]` apart: ids, lengths, slots of adapters (−1: none), their ranks, the bits of their scales, each
    /// `[rows]`, and the sequences' pages `[rows, pages]`; for a step of so many launches of products.
    pub(crate) fn new(packed: &Array, rows: usize, pages: usize, launches: usize) -> Self {
        let whole = |count: usize| packed.empty([count], DType::I32);
        let [ids, lengths, positions, slots, sequences] = [(); 5].map(|()| whole(rows));
        let (tables, ready) = (whole(rows * pages), whole(launches));
        Kernel::new(&DECODE, "decode_inputs", &[], 256, 0).launch(
            [(rows * pages).max(launches).div_ceil(256), 1, 1],
            &[packed, &ids, &lengths, &positions, &slots, &sequences, &tables, &ready],
            &[rows as u64, pages as u64, launches as u64],
        );
        Self { packed: packed.clone(), ids, lengths, positions, slots, sequences, tables, pages, ready }
    }
}

/// True if norms of this width have a kernel.
pub(crate) fn norms_fit(width: usize) -> bool {
    width.is_multiple_of(8) && width <= MOST_WIDTH
}

/// Rows of `table` `[vocabulary, width]` times `scale`.
pub(crate) fn embed(table: &Array, ids: &Array, scale: f32) -> Array {
    let (rows, [_, width]) = (ids.len(), table.matrix());
    let x = table.empty([rows, width], DType::BF16);
    let words = [rows as u64, width as u64, real(f64::from(scale))];
    Kernel::new(&DECODE, "embed", &[], 256, 0).launch([rows, 1, 1], &[table, ids, &x], &words);
    x
}

/// `delta`, normed by its own weight if it has one, is added to `x` where it lies; gives the norm of the sum.
pub(crate) fn norm_add(delta: Option<(&Array, Option<&Array>)>, weight: &Array, x: &Array, eps: f32) -> Array {
    let [rows, width] = x.matrix();
    let y = x.empty([rows, width], DType::BF16);
    let after = delta.and_then(|(_, after)| after);
    let defines = [("D", width), ("ADD", usize::from(delta.is_some())), ("AFTER", usize::from(after.is_some()))];
    let mut arrays: Vec<&Array> = delta.map(|(delta, _)| delta).into_iter().collect();
    arrays.push(weight);
    arrays.extend(after);
    arrays.extend([x, &y]);
    let words = [rows as u64, real(f64::from(eps))];
    Kernel::new(&DECODE, "norm_add", &defines, 256, 0).launch([rows, 1, 1], &arrays, &words);
    y
}

/// The first index of each row's largest logit, i32 `[rows]`.
pub(crate) fn greedy(logits: &Array) -> Array {
    let [rows, width] = logits.matrix();
    let parts = logits.empty([rows * PARTS * 2], DType::F32);
    let out = logits.empty([rows], DType::I32);
    let words = [rows, width, PARTS].map(|word| word as u64);
    Kernel::new(&DECODE, "argmax_parts", &[], 256, 0).launch([PARTS, rows, 1], &[logits, &parts], &words);
    Kernel::new(&DECODE, "argmax_merge", &[], 32, 0).launch([rows, 1, 1], &[&parts, &out], &words);
    out
}
