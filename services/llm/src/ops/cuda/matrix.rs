//! Matrix products in bf16 with f32 sums.

use std::ops::Range;

use burn::tensor::DType;
use cubecl::ir::{ElemType, FloatKind};
use cubecl::prelude::{OobFill, TensorMapFormat, TensorMapInterleave, TensorMapPrefetch, TensorMapSwizzle, TiledArgs};
use cubecl::server::{TensorMapBinding, TensorMapMeta};
use cubecl::zspace::metadata::Metadata;
use cubecl::zspace::{Shape, Strides};

use super::Array;
use super::launch::{Kernel, Source, is_hopper, processors, real};

const GEMM: Source =
    Source { name: "gemm.cu", text: concat!(include_str!("kernels/wgmma.cuh"), include_str!("kernels/gemm.cu")) };
/// Rows of a tile.
const TILE: usize = 128;
const THREADS: u32 = 384;

/// How an operand lies in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    /// Rows of the summed dimension: `[m, k]` for the left operand, `[n, k]` for the right, as a weight is stored.
    Inner,
    /// The summed dimension first: `[k, m]` or `[k, n]`.
    Outer,
}

/// Some columns of a matrix, or all of an array that `parts` writes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Columns<'a> {
    array: &'a Array,
    first: usize,
    width: usize,
}

impl<'a> Columns<'a> {
    /// Columns `range` of a matrix of bf16; both ends are multiples of 8.
    pub(crate) fn new(array: &'a Array, range: &Range<usize>) -> Self {
        Self { array, first: range.start, width: range.len() }
    }

    fn matrix(self) -> [usize; 2] {
        [self.array.matrix()[0], self.width]
    }

    /// Rows or columns of a product that this operand stands for.
    fn size(self, layout: Layout) -> usize {
        self.matrix()[usize::from(layout == Layout::Outer)]
    }

    /// Length of the summed dimension.
    fn depth(self, layout: Layout) -> usize {
        self.matrix()[usize::from(layout == Layout::Inner)]
    }
}

impl<'a> From<&'a Array> for Columns<'a> {
    fn from(array: &'a Array) -> Self {
        Self { array, first: 0, width: array.matrix()[1] }
    }
}

/// What is added to a product.
#[derive(Debug, Default)]
pub(crate) struct Extra<'a> {
    /// f32 `[n]`.
    pub(crate) bias: Option<&'a Array>,
    /// bf16 `[m, n]`.
    pub(crate) residual: Option<&'a Array>,
    /// Factor of the sum, before the others are added.
    pub(crate) scale: Option<f32>,
}

/// Operands of one product.
pub(crate) type Pair<'a> = (Columns<'a>, Columns<'a>);

/// True if the kernel can compute with these widths on this device: rows must start at multiples of 16 bytes.
pub(crate) fn fits(like: &Array, widths: &[usize]) -> bool {
    is_hopper(like) && widths.iter().all(|width| width.is_multiple_of(8))
}

/// Sum over the pairs of left · right, bf16 `[m, n]`; all pairs lie alike. At most six.
pub(crate) fn product(pairs: &[Pair<'_>], left: Layout, right: Layout, extra: &Extra<'_>) -> Array {
    let (a, b) = pairs[0];
    let out = a.array.empty([a.size(left), b.size(right)], DType::BF16);
    product_into(pairs, left, right, extra, (&out).into());
    out
}

/// The same into columns of a matrix.
pub(crate) fn product_into(pairs: &[Pair<'_>], left: Layout, right: Layout, extra: &Extra<'_>, out: Columns<'_>) {
    let [m, n] = out.matrix();
    let tile = if n <= 64 {
        64
    } else if n <= 128 || fill(m, n, 256) < fill(m, n, 128) {
        128
    } else {
        256
    };
    launch(pairs, [left, right], extra, tile, 1, out);
}

/// Left · right where the summed dimension is far longer than the result's: f32 parts of the sum `[parts, m, n]`, to be
/// added in order.
pub(crate) fn parts((a, b): Pair<'_>, left: Layout, right: Layout) -> Array {
    let [m, n] = [a.size(left), b.size(right)];
    let tile = if n <= 64 { 64 } else { 256 };
    let steps = a.depth(left).div_ceil(64);
    // Enough parts to fill the machine, each long enough to pay for its sum being written.
    let splits = processors(a.array).div_ceil(m.div_ceil(TILE) * n.div_ceil(tile)).min(steps.div_ceil(8)).max(1);
    let out = a.array.empty([splits, m, n], DType::F32);
    let written = Columns { array: &out, first: 0, width: n };
    launch(&[(a, b)], [left, right], &Extra::default(), tile, splits, written);
    out
}

/// Share of the tiles' area that lies within the result.
fn fill(m: usize, n: usize, tile: usize) -> usize {
    1_000 * m * n / (m.next_multiple_of(TILE) * n.next_multiple_of(tile))
}

fn launch(
    pairs: &[Pair<'_>],
    [left, right]: [Layout; 2],
    extra: &Extra<'_>,
    tile: usize,
    splits: usize,
    out: Columns<'_>,
) {
    let (a, b) = pairs[0];
    let [m, n] = [a.size(left), b.size(right)];
    debug_assert!(out.width == n && out.array.len() >= m * n, "the result has room");
    let partial = usize::from(out.array.0.dtype == DType::F32);
    let transposed = |layout: Layout| usize::from(layout == Layout::Outer);
    let defines = [
        ("TILE_N", tile),
        ("SEGMENTS", pairs.len()),
        ("A_TRANSPOSED", transposed(left)),
        ("B_TRANSPOSED", transposed(right)),
        ("PARTIAL", partial),
    ];
    let stages = match tile {
        256 => 4,
        128 => 6,
        _ => 8,
    };
    let staged = if partial == 1 { 0 } else { 2 * TILE * tile.min(128) };
    let shared = stages * (2 * TILE * 64 + 2 * tile * 64) + staged + 2_048;
    let kernel = Kernel::new(&GEMM, "gemm", &defines, THREADS, shared);
    let mut maps: Vec<_> = pairs.iter().flat_map(|&(a, b)| [map(a, left, TILE), map(b, right, tile)]).collect();
    // What is not added is not read: any array will do.
    let added = [extra.bias.unwrap_or(out.array), extra.residual.unwrap_or(out.array)];
    let arrays = if partial == 1 { &[out.array][..] } else { &added[..] };
    if partial == 0 {
        maps.push(boxes(out, 64));
    }
    let with = [extra.bias, extra.residual].map(|array| u64::from(array.is_some()));
    let mut words = vec![m as u64, n as u64, splits as u64, with[0], with[1]];
    words.push(real(f64::from(extra.scale.unwrap_or(1.0))));
    words.extend(pairs.iter().map(|(a, _)| a.depth(left) as u64));
    let tiles = m.div_ceil(TILE) * n.div_ceil(tile) * splits;
    kernel.launch_mapped([tiles.min(processors(a.array)), 1, 1], maps, arrays, &words);
}

/// The operand in boxes of 64 columns, swizzled so that reads of eight rows meet no bank twice.
fn map(operand: Columns<'_>, layout: Layout, rows: usize) -> TensorMapBinding {
    boxes(operand, if layout == Layout::Inner { rows } else { 64 })
}

/// A matrix in boxes of 64 columns and so many rows, at most 256, each row of a box swizzled by 128 bytes.
pub(super) fn boxes<'a>(matrix: impl Into<Columns<'a>>, rows: usize) -> TensorMapBinding {
    let Columns { array, first, width } = matrix.into();
    let [height, pitch] = array.matrix();
    let meta = TensorMapMeta {
        format: TensorMapFormat::Tiled(TiledArgs { tile_size: Shape::new([rows, 64]) }),
        metadata: Metadata::new(Shape::new([height, width]), Strides::new(&[pitch, 1])),
        elem_stride: Strides::new(&[1, 1]),
        interleave: TensorMapInterleave::None,
        swizzle: TensorMapSwizzle::B128,
        prefetch: TensorMapPrefetch::B256,
        oob_fill: OobFill::Zero,
        elem_ty: ElemType::Float(FloatKind::BF16),
    };
    let handle = array.0.handle.clone().offset_start(2 * first as u64);
    TensorMapBinding { binding: handle.binding(), map: meta }
}
