//! What lies between the products of a decoding step.

use burn::tensor::DType;

use super::Array;
use super::few::arrived;
use super::launch::{Kernel, Source, real};
use crate::ops::step_words::StepWords;

pub(super) const DECODE: Source = Source {
    name: "decode.cu",
    text: concat!(
        include_str!("kernels/vector.cuh"),
        include_str!("kernels/norm_row.cuh"),
        include_str!("kernels/decode.cu")
    ),
};

/// Parts of a row of logits that are looked through at once.
const PARTS: usize = 32;
/// Widest row of a norm.
const MOST_WIDTH: usize = 16_384;

/// A step's inputs.
#[derive(Debug)]
pub(crate) struct Inputs {
    pub(crate) words: StepWords,
    /// i32 `[words]`.
    pub(crate) packed: Array,
}

impl Inputs {
    /// Begins a step: rows of `table` `[vocabulary, width]` times `scale`.
    pub(crate) fn embed(&self, table: &Array, scale: f32) -> Array {
        let (Self { words: StepWords { rows, .. }, packed }, [_, width]) = (self, table.matrix());
        let x = table.empty([*rows, width], DType::BF16);
        let words = [*rows as u64, width as u64, real(f64::from(scale))];
        Kernel::new(&DECODE, "embed", &[], 256, 0).launch([*rows, 1, 1], &[table, packed, &x], &words);
        x
    }

    /// Ends a step: the first index of each row's largest logit, i32 `[rows]`, which goes to the inputs of the next if it is asked
    /// for.
    pub(crate) fn choose(&self, logits: &Array) -> Option<Array> {
        let [rows, width] = logits.matrix();
        let parts = logits.empty([rows * PARTS * 2], DType::F32);
        let out = logits.empty([rows], DType::I32);
        let words = [rows, width, PARTS, self.words.number_at()].map(|word| word as u64);
        let arrays = [logits, &parts, &arrived(logits, rows)?, &out, &self.packed];
        Kernel::new(&DECODE, "argmax", &[], 256, 0).launch([PARTS, rows, 1], &arrays, &words);
        Some(out)
    }
}

/// True if norms of this width have a kernel.
pub(crate) fn norms_fit(width: usize) -> bool {
    width.is_multiple_of(8) && width <= MOST_WIDTH
}

/// The residual stream: rows bf16 `[rows, width]`, and what is still to be added to them.
#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) x: Array,
    pub(crate) delta: Option<Delta>,
}

/// What a block of layers adds to the stream, and the norm of its own that it may have.
#[derive(Debug)]
pub(crate) struct Delta {
    pub(crate) rows: Array,
    pub(crate) norm: Option<Array>,
}

impl Stream {
    /// Adds to the rows, where they lie, what is to be added, and gives their norm.
    pub(crate) fn norm(&mut self, weight: &Array, eps: f32) -> Array {
        let [rows, _] = self.x.matrix();
        let y = self.x.empty(self.x.matrix(), DType::BF16);
        let delta = self.delta.take();
        let mut arrays = norm_arrays(delta.as_ref(), weight);
        arrays.extend([&self.x, &y]);
        let defines = norm_defines(&self.x, delta.as_ref());
        Kernel::new(&DECODE, "norm_add", &defines, 256, 0).launch(
            [rows, 1, 1],
            &arrays,
            &[rows as u64, real(f64::from(eps))],
        );
        y
    }
}

/// The constants of `norm_row`.
pub(super) fn norm_defines(x: &Array, delta: Option<&Delta>) -> [(&'static str, usize); 3] {
    let after = delta.is_some_and(|delta| delta.norm.is_some());
    [("D", x.matrix()[1]), ("ADD", usize::from(delta.is_some())), ("AFTER", usize::from(after))]
}

/// What `norm_row` reads beside the stream's rows.
pub(super) fn norm_arrays<'a>(delta: Option<&'a Delta>, weight: &'a Array) -> Vec<&'a Array> {
    let mut arrays: Vec<&Array> = delta.map(|delta| &delta.rows).into_iter().collect();
    arrays.push(weight);
    arrays.extend(delta.and_then(|delta| delta.norm.as_ref()));
    arrays
}
