//! Products of few rows, as a decoding step has them: bound by the weights' way from memory.

use std::cell::RefCell;

use burn::tensor::{DType, Int, Tensor};

use super::Array;
use super::adapters::Expanded;
use super::launch::{Kernel, Source};
use crate::config::Activation;

const MATVEC: Source =
    Source { name: "matvec.cu", text: concat!(include_str!("kernels/vector.cuh"), include_str!("kernels/matvec.cu")) };
/// Rows from which on the kernels for many rows are faster.
pub(crate) const MOST_ROWS: usize = 64;
/// Shared memory of a block: four steps of 24 KB.
const SHARED: usize = 4 * 24_576;
/// Blocks that keep the machine busy.
const BUSY: usize = 256;

thread_local! {
    /// How many blocks of a tile have arrived: zeros before and after each launch. A thread has one stream, so
    /// launches that share it follow each other. It stays where it is: recorded steps read and write it.
    static ARRIVED: RefCell<Option<Array>> = const { RefCell::new(None) };
}

/// Up to three weights `[out, in]` that share their input, and what becomes of their products.
#[derive(Debug, Default)]
pub(crate) struct Group<'a> {
    pub(crate) weights: &'a [Array],
    /// f32 `[out]`, of all weights or of none.
    pub(crate) biases: &'a [Array],
    /// What each row's own adapter adds.
    pub(crate) expanded: Option<Expanded<'a>>,
    /// Of two weights: the activation of the first product times the second is the one result.
    pub(crate) glu: Option<Activation>,
}

/// `x·Wᵀ` `[rows, out]`, for at most [`MOST_ROWS`] rows; a row's bits do not depend on the others.
pub(crate) fn product(x: &Array, weight: &Array) -> Option<Array> {
    let group = Group { weights: std::slice::from_ref(weight), ..Group::default() };
    products(x, &group).map(|mut results| results.remove(0))
}

/// The products of a group, or their one result; `None` if it has too many rows, or widths that the kernel can't read.
pub(crate) fn products(x: &Array, group: &Group<'_>) -> Option<Vec<Array>> {
    let [rows, width] = x.matrix();
    if rows > MOST_ROWS || !width.is_multiple_of(8) {
        return None;
    }
    let batch = rows.next_power_of_two().max(8);
    let outs: Vec<usize> = group.weights.iter().map(|weight| weight.matrix()[0]).collect();
    let results = if group.glu.is_some() { &outs[..1] } else { &outs[..] };
    let tile = if group.glu.is_some() { batch } else { 2 * batch };
    let tiles: usize = results.iter().map(|out| out.div_ceil(tile)).sum();
    let most = batch / 8;
    let mut splits = if batch == 64 { 2 } else { 1 };
    while splits < most && tiles * splits < BUSY {
        splits *= 2;
    }
    let glu = match group.glu {
        None => 0,
        Some(Activation::Silu) => 1,
        Some(Activation::GeluTanh) => 2,
    };
    let mut defines = vec![("BATCH", batch), ("SPLITS", splits)];
    defines.extend([("WEIGHTS", outs.len()), ("GLU", glu), ("BIAS", usize::from(!group.biases.is_empty()))]);
    let mut words = [0; 14];
    (words[0], words[1]) = (rows as u64, width as u64);
    for (word, out) in words[2..5].iter_mut().zip(&outs) {
        *word = *out as u64;
    }
    let inner;
    let mut shrinks = 0;
    let mut arrays: Vec<&Array> = vec![x];
    arrays.extend(group.weights);
    arrays.extend(group.biases);
    if let Some(expanded) = &group.expanded {
        let Expanded { inputs, factors, places, launch } = expanded;
        let ranks = factors.ranks;
        // The sums and x·Aᵀ of the rows lie side by side; ranks beyond a hundred have no room beside many rows.
        let sums = 64 / batch * batch * (2 * batch + 4) + outs.len() / results.len() * batch * ranks;
        if 4 * sums > SHARED {
            return None;
        }
        // Many rows bring many blocks: then each does more, unless that took long.
        let side = if rows <= 8 || width > 4_096 { 4 } else { 16 };
        shrinks = rows * outs.len() * ranks.div_ceil(side);
        defines.extend([("LORA", 1), ("RANKS", ranks), ("SIDE", side)]);
        inner = x.empty([rows * outs.len() * ranks], DType::F32);
        arrays.extend([&inputs.packed, &factors.pool, &inner, &inputs.ready]);
        words[5] = factors.slot as u64;
        for (at, [first, second]) in places.iter().enumerate() {
            (words[6 + at], words[9 + at]) = (*first as u64, *second as u64);
        }
        (words[12], words[13]) = (shrinks as u64, *launch as u64);
    }
    let y: Vec<Array> = results.iter().map(|out| x.empty([rows, *out], DType::BF16)).collect();
    arrays.extend(&y);
    let kernel = Kernel::new(&MATVEC, "product", &defines, 256, SHARED);
    let grid = [shrinks + tiles * splits, 1, 1];
    if splits == 1 {
        kernel.launch(grid, &arrays, &words);
        return Some(y);
    }
    let partial = x.empty([tiles * splits * 2 * batch * batch], DType::F32);
    let arrived = arrived(x, tiles)?;
    arrays.extend([&partial, &arrived]);
    kernel.launch(grid, &arrays, &words);
    Some(y)
}

/// Tiles of one launch whose blocks can be counted.
const MOST_COUNTED: usize = 1 << 18;

/// The thread's counts of arrived blocks, for at most [`MOST_COUNTED`] tiles.
fn arrived(x: &Array, tiles: usize) -> Option<Array> {
    if tiles > MOST_COUNTED {
        return None;
    }
    ARRIVED.with_borrow_mut(|slot| {
        if !slot.as_ref().is_some_and(|arrived| arrived.beside(x)) {
            let zeros = Tensor::<1, Int>::zeros([MOST_COUNTED], (&x.device(), DType::I32));
            *slot = Some(Array::of_whole(&zeros)?);
        }
        slot.clone()
    })
}
