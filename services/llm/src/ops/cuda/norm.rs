//! RMSNorm.

use burn::tensor::{DType, Tensor};

use super::Array;
use super::launch::{Kernel, Source, real};

const NORM: Source =
    Source { name: "norm.cu", text: concat!(include_str!("kernels/vector.cuh"), include_str!("kernels/norm.cu")) };

/// As [`crate::ops::norm::forward`].
pub(crate) fn forward(x: &Tensor<2>, weight: &Tensor<1>, eps: f32) -> Option<(Tensor<2>, Tensor<2>)> {
    let (x, weight) = (Array::half(x)?, Array::of(weight)?);
    let [rows, width] = x.matrix();
    let y = x.empty([rows, width], DType::BF16);
    let rstd = x.empty([rows, 1], DType::F32);
    let (kernel, grid) = kernel("rms_norm_forward", rows, width, false)?;
    kernel.launch([grid, 1, 1], &[&x, &weight, &y, &rstd], &[rows as u64, real(f64::from(eps))]);
    Some((y.tensor(), rstd.tensor()))
}

/// As [`crate::ops::norm::backward`], with `residual` added.
pub(crate) fn backward(
    dy: &Tensor<2>,
    x: &Tensor<2>,
    weight: &Tensor<1>,
    rstd: &Tensor<2>,
    residual: Option<&Tensor<2>>,
) -> Option<Tensor<2>> {
    let (dy, x) = (Array::half(dy)?, Array::half(x)?);
    let (weight, rstd) = (Array::of(weight)?, Array::of(rstd)?);
    let residual = residual.map(Array::half);
    let [rows, width] = x.matrix();
    let dx = x.empty([rows, width], DType::BF16);
    let (kernel, grid) = kernel("rms_norm_backward", rows, width, residual.is_some())?;
    let mut arrays = vec![&dy, &x, &weight, &rstd];
    if let Some(residual) = &residual {
        arrays.push(residual.as_ref()?);
    }
    arrays.push(&dx);
    kernel.launch([grid, 1, 1], &arrays, &[rows as u64]);
    Some(dx.tensor())
}

/// The kernel for rows of this width, and its grid; `None` for a width that it has no registers for.
fn kernel(entry: &'static str, rows: usize, width: usize, residual: bool) -> Option<(Kernel, usize)> {
    if !width.is_multiple_of(8) || width > 16_384 {
        return None;
    }
    let vectors = width / 8;
    let lanes = match vectors {
        0..=2 => 1,
        3..=4 => 2,
        5..=8 => 4,
        9..=16 => 8,
        17..=32 => 16,
        33..=128 => 32,
        129..=512 => 32 * vectors.div_ceil(64),
        _ => 32 * vectors.div_ceil(128),
    };
    let block = if vectors <= 128 { 256 } else { lanes };
    let kernel = Kernel::new(&NORM, entry, &[("D", width), ("RESIDUAL", residual.into())], block as u32, 0);
    Some((kernel, rows.div_ceil(block / lanes)))
}
