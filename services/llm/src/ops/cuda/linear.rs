//! Linear layers with adapters.

use std::ops::Range;

use burn::tensor::{DType, Tensor};

use super::Array;
use super::few;
use super::launch::{Kernel, Source, real};
use super::matrix::{self, Columns, Extra, Layout, Pair};

const ELEMENTWISE: Source = Source {
    name: "elementwise.cu",
    text: concat!(include_str!("kernels/vector.cuh"), include_str!("kernels/elementwise.cu")),
};

/// True if the kernels for many rows read and write matrices of these widths, beside `x` of bf16.
pub(crate) fn fits(x: &Tensor<2>, widths: &[usize]) -> bool {
    Array::half(x).is_some_and(|x| matrix::fits(&x, widths))
}

/// Matrices of one width below each other, in bf16. Of several each but the last has a multiple of 8 numbers.
pub(crate) fn stacked(matrices: &[&Tensor<2>]) -> Option<Array> {
    let arrays = matrices.iter().map(|matrix| Array::of(matrix)).collect::<Option<Vec<_>>>()?;
    let [_, width] = arrays.first()?.matrix();
    let rows = arrays.iter().map(|array| array.matrix()[0]).sum();
    let out = arrays[0].empty([rows, width], DType::BF16);
    let kernel = Kernel::new(&ELEMENTWISE, "cast_scale", &[], 256, 0);
    let mut first = 0;
    for array in &arrays {
        let [rows, count] = [array.matrix()[0], array.len()];
        kernel.launch(
            [count.div_ceil(2_048), 1, 1],
            &[array, &out.rows(first..first + rows)],
            &[count as u64, real(1.0)],
        );
        first += rows;
    }
    Some(out)
}

/// `s·x·Aᵀ` `[n, r]`.
pub(crate) fn inner(x: &Tensor<2>, a: &Array, scale: f32) -> Option<Tensor<2>> {
    let x = Array::half(x)?;
    let [rank, input] = a.matrix();
    let scaled = Extra { scale: Some(scale), ..Extra::default() };
    matrix::fits(&x, &[rank, input])
        .then(|| matrix::product(&[pair(&x, a)], Layout::Inner, Layout::Inner, &scaled).tensor())
}

/// `x·Wᵀ + bias + delta + residual` `[n, out]`, where delta is the product of columns of [`inner`] and `Bᵀ`.
pub(crate) fn output(
    x: &Tensor<2>,
    weight: &Tensor<2>,
    bias: Option<&Tensor<1>>,
    delta: Option<(&Tensor<2>, Range<usize>, &Array)>,
    residual: Option<&Tensor<2>>,
) -> Option<Tensor<2>> {
    let (x, weight) = (Array::half(x)?, Array::half(weight)?);
    let [output, input] = weight.matrix();
    if delta.is_none()
        && residual.is_none()
        && let Some(y) = few::product(&x, &weight)
    {
        return Some(biased(y, bias)?.tensor());
    }
    let ends = delta.as_ref().map_or(0..0, |(_, range, _)| range.clone());
    if !matrix::fits(&x, &[input, output, ends.start, ends.end]) {
        return None;
    }
    let (bias, residual) = (bias.map(Array::of), residual.map(Array::half));
    let extra = Extra { bias: flat(&bias)?, residual: flat(&residual)?, scale: None };
    let inner = match &delta {
        Some((inner, ..)) => Some(Array::half(inner)?),
        None => None,
    };
    let mut pairs = vec![pair(&x, &weight)];
    if let (Some(inner), Some((_, range, b))) = (&inner, &delta) {
        pairs.push((Columns::new(inner, range), (*b).into()));
    }
    Some(matrix::product(&pairs, Layout::Inner, Layout::Inner, &extra).tensor())
}

/// `s·(x·Aᵀ)·Bᵀ` `[n, out]`: what an adapter adds.
pub(crate) fn delta(x: &Tensor<2>, [a, b]: [&Array; 2], scale: f32) -> Option<Tensor<2>> {
    let x = Array::half(x)?;
    let of = |x: &Array, weight: &Array| {
        few::product(x, weight).or_else(|| {
            let [output, input] = weight.matrix();
            matrix::fits(x, &[input, output])
                .then(|| matrix::product(&[pair(x, weight)], Layout::Inner, Layout::Inner, &Extra::default()))
        })
    };
    Some(of(&of(&x, a)?, b)?.tensor() * scale)
}

fn pair<'a>(left: &'a Array, right: &'a Array) -> Pair<'a> {
    (left.into(), right.into())
}

fn biased(y: Array, bias: Option<&Tensor<1>>) -> Option<Array> {
    let Some(bias) = bias.map(Array::of) else { return Some(y) };
    let [rows, width] = y.matrix();
    if !width.is_multiple_of(8) {
        return None;
    }
    let kernel = Kernel::new(&ELEMENTWISE, "bias_add", &[], 256, 0);
    kernel.launch([(rows * width).div_ceil(8_192), 1, 1], &[&y, &bias?, &y], &[rows as u64, width as u64]);
    Some(y)
}

/// A layer's gradient of the output `[n, out]`, its `b` `[out, r]`, and which columns of [`inner`] are its own.
pub(crate) type Adapted<'a> = (&'a Tensor<2>, &'a Array, Range<usize>);

/// Gradients of factors of adapters that read `x`: of [`inner`] `[n, Σ r]`, and in f32 of each `a` and `b`.
pub(crate) fn factor_gradients(
    layers: &[Adapted<'_>],
    x: &Tensor<2>,
    inner: &Tensor<2>,
    scale: f32,
) -> Option<(Array, Vec<[Tensor<2>; 2]>)> {
    let (x, inner) = (Array::half(x)?, Array::half(inner)?);
    let [rows, width] = x.matrix();
    let scaled = Extra { scale: Some(scale), ..Extra::default() };
    let ranks = inner.matrix()[1];
    let fits = |(_, b, range): &Adapted<'_>| matrix::fits(&x, &[width, b.matrix()[0], range.start, range.end]);
    if !layers.iter().all(fits) {
        return None;
    }
    let dinner = x.empty([rows, ranks], DType::BF16);
    let mut dbs = Vec::with_capacity(layers.len());
    for (dy, b, range) in layers {
        let dy = Array::half(dy)?;
        let [output, rank] = b.matrix();
        let own = Columns::new(&dinner, range);
        matrix::product_into(&[pair(&dy, b)], Layout::Inner, Layout::Outer, &scaled, own);
        let db = matrix::parts(((&dy).into(), Columns::new(&inner, range)), Layout::Outer, Layout::Outer);
        dbs.push(total(&db, [output, rank]).tensor());
    }
    let da = total(&matrix::parts(pair(&dinner, &x), Layout::Outer, Layout::Outer), [ranks, width]);
    let das = layers.iter().map(|(.., range)| da.rows(range.clone()).tensor());
    let gradients = das.zip(dbs).map(|(a, b)| [a, b]).collect();
    Some((dinner, gradients))
}

/// Gradient of the input of layers, from those of their outputs and their weights `[out, in]`, and of what their adapters
/// made of it with their `a` `[Σ r, in]`; and `sum` is added. At most five layers.
pub(crate) fn input_gradient(
    layers: &[(&Tensor<2>, &Tensor<2>)],
    inner: Option<(Array, &Array)>,
    sum: Option<&Tensor<2>>,
) -> Option<Tensor<2>> {
    let arrays = layers.iter().map(|(dy, weight)| Some((Array::half(dy)?, Array::half(weight)?)));
    let arrays = arrays.collect::<Option<Vec<_>>>()?;
    let sum = sum.map(Array::half);
    let extra = Extra { residual: flat(&sum)?, ..Extra::default() };
    let mut pairs: Vec<_> = arrays.iter().map(|(dy, weight)| pair(dy, weight)).collect();
    if let Some((dinner, a)) = &inner {
        pairs.push(pair(dinner, a));
    }
    let fits = arrays.iter().all(|(dy, weight)| matrix::fits(dy, &weight.matrix()));
    fits.then(|| matrix::product(&pairs, Layout::Inner, Layout::Outer, &extra).tensor())
}

/// An optional array, or `None` if it is there and can't be used.
fn flat(array: &Option<Option<Array>>) -> Option<Option<&Array>> {
    match array {
        Some(array) => array.as_ref().map(Some),
        None => Some(None),
    }
}

/// Sum of parts `[parts, m, n]` in their order, f32 `[m, n]`.
fn total(parts: &Array, shape: [usize; 2]) -> Array {
    let count = shape[0] * shape[1];
    let splits = parts.len() / count;
    let out = parts.empty(shape, DType::F32);
    let kernel = Kernel::new(&ELEMENTWISE, "sum_partials", &[], 256, 0);
    kernel.launch([count.div_ceil(256), 1, 1], &[parts, &out], &[splits as u64, count as u64, real(1.0)]);
    out
}
