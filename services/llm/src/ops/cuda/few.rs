//! Products of few rows, as a decoding step has them: bound by the weights' way from memory.

use std::cell::RefCell;

use burn::tensor::{DType, Int, Tensor};

use super::Array;
use super::adapters::{Adapted, Expanded};
use super::decode::{Stream, norm_arrays, norm_defines};
use super::launch::{Define, Kernel, Source, processors, real, shared_limit};
use super::paged::Stretches;
use crate::config::Activation;

const FEW_ROWS: Source = Source {
    name: "matvec.cu",
    text: concat!(
        include_str!("kernels/vector.cuh"),
        include_str!("kernels/tiles.cuh"),
        include_str!("kernels/product.cuh"),
        include_str!("kernels/adapters.cuh"),
        include_str!("kernels/share.cuh"),
        include_str!("kernels/matvec.cu")
    ),
};
const ONE_ROW: Source = Source {
    name: "one_row.cu",
    text: concat!(
        include_str!("kernels/vector.cuh"),
        include_str!("kernels/norm_row.cuh"),
        include_str!("kernels/join.cuh"),
        include_str!("kernels/tiles.cuh"),
        include_str!("kernels/product.cuh"),
        include_str!("kernels/adapters.cuh"),
        include_str!("kernels/one_row.cu")
    ),
};
/// Rows from which on the kernels for many rows are faster.
pub(crate) const MOST_ROWS: usize = 64;
/// Rows of which a block reads the weights once: with more, its sums leave room for one block on a multiprocessor.
const BAND: usize = 32;
/// Shared memory of a block, bytes, at least: on Hopper two of them have room on a multiprocessor. Four steps of 24 KB, or at
/// least four of 16 KB and one row.
const SHARED: usize = 98_304;
/// What a block has beside: its own variables, and what the system takes.
const ASIDE: usize = 4_608;
/// A step of one row's weights, bytes.
const STEP: usize = 16_384;
/// Blocks that keep the machine busy.
const BUSY: usize = 256;
/// Widest row that has room behind four steps.
const MOST_WIDTH: usize = (SHARED - 4 * STEP) / 2;
/// Stretches of attention that each block can join by itself before a launch for it takes less.
const MOST_SPLITS: usize = 16;

thread_local! {
    /// How many blocks of a tile have arrived: zeros before and after each launch. A thread that decodes has one stream, so
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
    /// The weights may be written by the launch before, as those that are made dense for one product.
    pub(crate) fresh: bool,
}

/// Where the rows of a product come from. A single row is made by the product's own blocks, with the same bits as by a launch
/// before it: waiting for one takes longer.
#[derive(Debug)]
pub(crate) enum Rows<'a> {
    /// bf16 `[rows, in]`.
    Ready(&'a Array),
    /// The norm of the stream, after what is to be added to it.
    Normed { stream: &'a mut Stream, weight: &'a Array, eps: f32 },
    /// Attention.
    Joined(&'a Stretches),
}

/// A launch's constants, arrays and words, as far as they are known.
#[derive(Debug, Default)]
struct Launch {
    defines: Vec<Define>,
    arrays: Vec<Array>,
    /// The step's inputs, where the launch reads them.
    packed: Option<Array>,
    words: [u64; 18],
}

impl Launch {
    /// Takes rows over, or what they are made of; gives their shape and an array beside them.
    fn rows(&mut self, rows: Rows<'_>) -> ([usize; 2], Array) {
        let x = match rows {
            Rows::Normed { stream, weight, eps } if is_one(stream.x.matrix()) => {
                let (x, delta) = (stream.x.clone(), stream.delta.take());
                self.defines.push(("ROW", 1));
                self.defines.extend(norm_defines(&x, delta.as_ref()));
                self.arrays.push(x.clone());
                self.arrays.extend(norm_arrays(delta.as_ref(), weight).into_iter().cloned());
                if delta.is_some() {
                    stream.x = x.empty(x.matrix(), DType::BF16);
                    self.arrays.push(stream.x.clone());
                }
                self.words[17] = real(f64::from(eps));
                return (x.matrix(), x);
            }
            Rows::Joined(stretches) if is_one(stretches.shape()) && stretches.splits <= MOST_SPLITS => {
                self.defines.extend([("ROW", 2), ("HEAD_DIM", stretches.heads.dim)]);
                self.arrays.extend([stretches.sums.clone(), stretches.tops.clone()]);
                self.packed = Some(stretches.lengths.clone());
                self.words[15..17].copy_from_slice(&[stretches.splits, stretches.window()].map(|word| word as u64));
                return (stretches.shape(), stretches.sums.clone());
            }
            Rows::Ready(x) => x.clone(),
            Rows::Normed { stream, weight, eps } => stream.norm(weight, eps),
            Rows::Joined(stretches) => stretches.join(),
        };
        self.arrays.push(x.clone());
        (x.matrix(), x)
    }

    /// Takes over what adds the rows' adapters to so many products; gives the tiles of their first factors.
    fn expand(&mut self, expanded: &Expanded<'_>, tile_rows: usize, weights: usize) -> usize {
        let Expanded { inputs, adapted, places, product } = expanded;
        let (step, factors) = (inputs.words, &adapted.factors);
        self.defines.extend([("LORA", 1), ("RANKS", factors.ranks)]);
        self.arrays.extend([inputs.packed.clone(), factors.pool.clone(), adapted.told.clone()]);
        self.words[5] = factors.slot as u64;
        for (at, [first, second]) in places.iter().enumerate() {
            (self.words[6 + at], self.words[9 + at]) = (*first as u64, *second as u64);
        }
        self.words[12..15].copy_from_slice(&[step.adapters, step.adapters_at(), *product].map(|word| word as u64));
        weights * (step.adapters * factors.ranks).div_ceil(tile_rows)
    }

    fn run(&self, source: &Source, blocks: usize, shared: usize) {
        let arrays: Vec<&Array> = self.arrays.iter().collect();
        Kernel::new(source, "product", &self.defines, 256, shared).launch([blocks, 1, 1], &arrays, &self.words);
    }

    /// Takes over one to three arrays where the kernel has three.
    fn three(&mut self, arrays: &[Array]) {
        self.arrays.extend((0..3).filter_map(|at| arrays.get(at).or(arrays.first())).cloned());
    }
}

/// True for a single row that has room in a block.
fn is_one([rows, width]: [usize; 2]) -> bool {
    rows == 1 && width <= MOST_WIDTH
}

/// `x·Wᵀ` `[rows, out]`, for at most [`MOST_ROWS`] rows; a row's bits do not depend on the others.
pub(crate) fn product(x: &Array, weight: &Array) -> Option<Array> {
    let group = Group { weights: std::slice::from_ref(weight), fresh: true, ..Group::default() };
    products(Rows::Ready(x), &group).map(|mut results| results.remove(0))
}

/// The products of a group, or their one result; `None` if it has too many rows, or widths that the kernel can't read.
pub(crate) fn products(rows: Rows<'_>, group: &Group<'_>) -> Option<Vec<Array>> {
    let mut launch = Launch::default();
    let ([rows, width], beside) = launch.rows(rows);
    if rows > MOST_ROWS || !width.is_multiple_of(8) {
        return None;
    }
    let one = is_one([rows, width]);
    let batch = rows.next_power_of_two().clamp(8, BAND);
    let bands = rows.div_ceil(batch);
    let outs: Vec<usize> = group.weights.iter().map(|weight| weight.matrix()[0]).collect();
    let results = if group.glu.is_some() { &outs[..1] } else { &outs[..] };
    let tile = if group.glu.is_some() { batch } else { 2 * batch };
    let tiles: usize = results.iter().map(|out| out.div_ceil(tile)).sum();
    let mut splits = 1;
    while splits < batch / 8 && bands * tiles * splits < BUSY {
        splits *= 2;
    }
    let glu = match group.glu {
        None => 0,
        Some(Activation::Silu) => 1,
        Some(Activation::GeluTanh) => 2,
    };
    launch.defines.extend([
        ("WEIGHTS", outs.len()),
        ("GLU", glu),
        ("BIAS", usize::from(!group.biases.is_empty())),
        ("LATE", usize::from(group.fresh)),
    ]);
    (launch.words[0], launch.words[1]) = (rows as u64, width as u64);
    for (word, out) in launch.words[2..5].iter_mut().zip(&outs) {
        *word = *out as u64;
    }
    launch.three(group.weights);
    launch.three(group.biases);
    let at_once = 2 * processors(&beside);
    let mut factors = 0;
    if let Some(expanded) = &group.expanded {
        let count = launch.expand(expanded, 2 * batch, outs.len());
        // A block that begins late ends late.
        let late = bands * (count * Adapted::SPLITS + tiles * splits) > at_once;
        let shares = if batch == 8 || late { Adapted::SPLITS / 2 } else { Adapted::SPLITS };
        launch.defines.push(("FACTOR_SPLITS", shares));
        factors = count * shares;
    } else {
        launch.arrays.extend(launch.packed.take());
    }
    let y: Vec<Array> = results.iter().map(|out| beside.empty([rows, *out], DType::BF16)).collect();
    launch.three(&y);
    if one {
        // As many steps on their way as have room: with few, memory waits. A third block on a multiprocessor would leave another
        // with one.
        let row = (2 * width).next_multiple_of(128);
        let room = (shared_limit(&beside) / 2).saturating_sub(ASIDE).max(SHARED);
        let steps = room.saturating_sub(row) / STEP;
        launch.defines.push(("STAGES", steps));
        let blocks = tiles.min(at_once.saturating_sub(factors).max(at_once / 2));
        launch.run(&ONE_ROW, factors + blocks, (steps * STEP + row).max(SHARED));
        return Some(y);
    }
    launch.defines.extend([("BATCH", batch), ("BANDS", bands), ("SPLITS", splits)]);
    if splits > 1 {
        launch.arrays.push(beside.empty([bands * tiles * splits * 2 * batch * batch], DType::F32));
        launch.arrays.push(arrived(&beside, bands * tiles)?);
    }
    launch.run(&FEW_ROWS, bands * (factors + tiles * splits), SHARED);
    Some(y)
}

/// What is counted of one launch, tiles or rows, at most.
const MOST_COUNTED: usize = 1 << 18;

/// The thread's counts of arrived blocks, for so many tiles or rows.
pub(super) fn arrived(x: &Array, tiles: usize) -> Option<Array> {
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
