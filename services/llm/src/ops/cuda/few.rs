//! Products of few rows, as a decoding step has them: bound by the weights' way from memory.

use std::cell::RefCell;

use burn::tensor::{DType, Int, Tensor};

use super::Array;
use super::launch::{Kernel, Source};

const MATVEC: Source = Source { name: "matvec.cu", text: include_str!("kernels/matvec.cu") };
/// Rows from which on the kernels for many rows are faster.
pub(crate) const MOST_ROWS: usize = 64;
/// Shared memory of a block: four steps of 24 KB.
const SHARED: usize = 4 * 24_576;
/// Blocks that keep the machine busy.
const BUSY: usize = 256;

thread_local! {
    /// How many blocks of a tile have arrived: zeros before and after each launch. A thread has one stream, so launches
    /// that share it follow each other.
    static ARRIVED: RefCell<Option<Array>> = const { RefCell::new(None) };
}

/// `x·Wᵀ` `[rows, out]`, for at most [`MOST_ROWS`] rows; a row's bits do not depend on the others.
pub(crate) fn product(x: &Array, weight: &Array) -> Option<Array> {
    let ([rows, width], [out, _]) = (x.matrix(), weight.matrix());
    if rows > MOST_ROWS || !width.is_multiple_of(8) {
        return None;
    }
    let batch = rows.next_power_of_two().max(8);
    let tiles = out.div_ceil(2 * batch);
    let most = batch / 8;
    let mut splits = if batch == 64 { 2 } else { 1 };
    while splits < most && tiles * splits < BUSY {
        splits *= 2;
    }
    let y = x.empty([rows, out], DType::BF16);
    let kernel = Kernel::new(&MATVEC, "product", &[("BATCH", batch), ("SPLITS", splits)], 256, SHARED);
    let words = [rows, width, out, 0, 0, 0].map(|word| word as u64);
    let grid = [tiles * splits, 1, 1];
    if splits == 1 {
        kernel.launch(grid, &[x, weight, &y], &words);
        return Some(y);
    }
    let partial = x.empty([tiles * splits * 2 * batch * batch], DType::F32);
    ARRIVED.with_borrow_mut(|slot| {
        let arrived = match slot.take().filter(|arrived| arrived.len() >= tiles && arrived.beside(x)) {
            Some(arrived) => arrived,
            None => Array::of_whole(&Tensor::<1, Int>::zeros([tiles.next_power_of_two()], (&x.device(), DType::I32)))?,
        };
        kernel.launch(grid, &[x, weight, &y, &partial, &arrived], &words);
        *slot = Some(arrived);
        Some(y)
    })
}
