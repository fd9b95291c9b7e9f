//! Linear layers with an adapter.

use burn::tensor::{DType, Tensor};

use super::Array;
use super::few;
use super::launch::{Kernel, Source, real};
use super::matrix::{self, Extra, Layout};

const ELEMENTWISE: Source = Source {
    name: "elementwise.cu",
    text: concat!(include_str!("kernels/vector.cuh"), include_str!("kernels/elementwise.cu")),
};

/// An adapter's factors in bf16: `a` `[r, in]`, `b` `[out, r]`, and the factor of their product.
#[derive(Clone, Debug)]
pub(crate) struct Factors {
    pub(crate) a: Array,
    pub(crate) b: Array,
    pub(crate) scale: f32,
}

impl Factors {
    /// Halves of f32 factors.
    pub(crate) fn new(a: &Tensor<2>, b: &Tensor<2>, scale: f32) -> Option<Self> {
        Some(Self { a: halved(&Array::of(a)?), b: halved(&Array::of(b)?), scale })
    }
}

fn halved(array: &Array) -> Array {
    let out = array.empty(array.matrix(), DType::BF16);
    let kernel = Kernel::new(&ELEMENTWISE, "cast_scale", &[], 256, 0);
    let count = array.len();
    kernel.launch([count.div_ceil(2_048), 1, 1], &[array, &out], &[count as u64, real(1.0)]);
    out
}

/// What a linear layer's backward gives.
pub(crate) struct Gradients {
    pub(crate) dx: Tensor<2>,
    /// Of the factors, f32.
    pub(crate) factors: Option<[Tensor<2>; 2]>,
}

/// `x·Wᵀ + bias + s·(x·Aᵀ)·Bᵀ + residual` `[n, out]`, and `s·x·Aᵀ` `[n, r]` for the backward. The adapter sees `masked` in
/// place of `x` where it is given.
pub(crate) fn forward(
    x: &Tensor<2>,
    weight: &Tensor<2>,
    bias: Option<&Tensor<1>>,
    factors: Option<&Factors>,
    masked: Option<&Tensor<2>>,
    residual: Option<&Tensor<2>>,
) -> Option<(Tensor<2>, Option<Tensor<2>>)> {
    let (x, weight) = (Array::half(x)?, Array::half(weight)?);
    let ([_, input], [output, _]) = (x.matrix(), weight.matrix());
    if factors.is_none()
        && residual.is_none()
        && let Some(y) = few::product(&x, &weight)
    {
        return Some((biased(y, bias)?.tensor(), None));
    }
    if !matrix::fits(&x, &[input, output, factors.map_or(8, |factors| factors.a.matrix()[0])]) {
        return None;
    }
    let (bias, residual) = (bias.map(Array::of), residual.map(Array::half));
    let extra = Extra { bias: flat(&bias)?, residual: flat(&residual)?, scale: None };
    let Some(Factors { a, b, scale }) = factors else {
        let y = matrix::product(&[(&x, &weight)], Layout::Inner, Layout::Inner, &extra);
        return Some((y.tensor(), None));
    };
    let masked = masked.map(Array::half);
    let seen = flat(&masked)?.unwrap_or(&x);
    let scaled = Extra { scale: Some(*scale), ..Extra::default() };
    let inner = matrix::product(&[(seen, a)], Layout::Inner, Layout::Inner, &scaled);
    let y = matrix::product(&[(&x, &weight), (&inner, b)], Layout::Inner, Layout::Inner, &extra);
    Some((y.tensor(), Some(inner.tensor())))
}

/// `s·(x·Aᵀ)·Bᵀ` `[n, out]`: what an adapter adds.
pub(crate) fn delta(x: &Tensor<2>, Factors { a, b, scale }: &Factors) -> Option<Tensor<2>> {
    let x = Array::half(x)?;
    let of = |x: &Array, weight: &Array| {
        few::product(x, weight).or_else(|| {
            let [output, input] = weight.matrix();
            matrix::fits(x, &[input, output])
                .then(|| matrix::product(&[(x, weight)], Layout::Inner, Layout::Inner, &Extra::default()))
        })
    };
    Some(of(&of(&x, a)?, b)?.tensor() * *scale)
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

/// Gradient of the input, to which `sum` is added, and of the factors. `inner` is what the forward kept. Under dropout the
/// caller has its own way: the adapter's part of the input's gradient is masked before it is added.
pub(crate) fn backward(
    dy: &Tensor<2>,
    x: &Tensor<2>,
    weight: &Tensor<2>,
    factors: Option<(&Factors, &Tensor<2>)>,
    sum: Option<&Tensor<2>>,
) -> Option<Gradients> {
    let (dy, x, weight) = (Array::half(dy)?, Array::half(x)?, Array::half(weight)?);
    let ([_, input], [output, _]) = (x.matrix(), weight.matrix());
    if !matrix::fits(&x, &[input, output, factors.map_or(8, |(factors, _)| factors.a.matrix()[0])]) {
        return None;
    }
    let sum = sum.map(Array::half);
    let extra = Extra { residual: flat(&sum)?, ..Extra::default() };
    let Some((Factors { a, b, scale }, inner)) = factors else {
        let dx = matrix::product(&[(&dy, &weight)], Layout::Inner, Layout::Outer, &extra);
        return Some(Gradients { dx: dx.tensor(), factors: None });
    };
    let inner = Array::half(inner)?;
    let scaled = Extra { scale: Some(*scale), ..Extra::default() };
    let dinner = matrix::product(&[(&dy, b)], Layout::Inner, Layout::Outer, &scaled);
    let dx = matrix::product(&[(&dy, &weight), (&dinner, a)], Layout::Inner, Layout::Outer, &extra);
    let da = total(&matrix::parts(&dinner, &x, Layout::Outer, Layout::Outer), a.matrix());
    let db = total(&matrix::parts(&dy, &inner, Layout::Outer, Layout::Outer), b.matrix());
    Some(Gradients { dx: dx.tensor(), factors: Some([da, db]) })
}

/// An optional array, or `None` if it is there and can't be used.
fn flat(array: &Option<Option<Array>>) -> Option<Option<&Array>> {
    match array {
        Some(array) => array.as_ref().map(Some),
        None => Some(None),
    }
}

/// Sum of parts `[parts, m, n]` in their order.
fn total(parts: &Array, shape: [usize; 2]) -> Tensor<2> {
    let count = shape[0] * shape[1];
    let splits = parts.len() / count;
    if splits == 1 {
        return parts.clone().tensor::<3>().reshape(shape);
    }
    let out = parts.empty(shape, DType::F32);
    let kernel = Kernel::new(&ELEMENTWISE, "sum_partials", &[], 256, 0);
    kernel.launch([count.div_ceil(256), 1, 1], &[parts, &out], &[splits as u64, count as u64, real(1.0)]);
    out.tensor()
}
