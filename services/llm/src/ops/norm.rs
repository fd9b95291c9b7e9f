//! RMSNorm (Zhang & Sennrich 2019): `y = x / rms(x) * w`.

use burn::tensor::{DType, Tensor};

use super::{tensor, view};

/// Normalises rows of `x` `[n, d]`; also gives `1 / rms` `[n, 1]`, which the backward needs.
pub(crate) fn forward(x: &Tensor<2>, weight: &Tensor<1>, eps: f32) -> (Tensor<2>, Tensor<2>) {
    #[cfg(feature = "cuda")]
    if let Some(out) = super::cuda::norm::forward(x, weight, eps) {
        return out;
    }
    let [n, d] = x.dims();
    let (Some(rows), Some(w)) = (view(x), view(weight)) else {
        let (dtype, x) = (x.dtype(), x.clone().cast(DType::F32));
        let rstd = (x.clone().square().mean_dim(1) + eps).sqrt().recip();
        return ((x * rstd.clone() * weight.clone().unsqueeze::<2>()).cast(dtype), rstd);
    };
    let (mut y, mut rstd) = (Vec::with_capacity(n * d), Vec::with_capacity(n));
    for row in rows.slice().chunks_exact(d) {
        let r = (row.iter().map(|v| v * v).sum::<f32>() / d as f32 + eps).sqrt().recip();
        y.extend(row.iter().zip(w.slice()).map(|(v, w)| v * r * w));
        rstd.push(r);
    }
    (tensor(y, [n, d], &x.device()), tensor(rstd, [n, 1], &x.device()))
}

/// Gradient of `x`: `rstd · (w·dy − x̂ · mean(w·dy·x̂))`, added to `residual`.
pub(crate) fn backward(
    dy: &Tensor<2>,
    x: &Tensor<2>,
    weight: &Tensor<1>,
    rstd: &Tensor<2>,
    residual: Option<Tensor<2>>,
) -> Tensor<2> {
    #[cfg(feature = "cuda")]
    if let Some(dx) = super::cuda::norm::backward(dy, x, weight, rstd, residual.as_ref()) {
        return dx;
    }
    let dx = gradient(dy, x, weight, rstd);
    match residual {
        Some(residual) => residual + dx,
        None => dx,
    }
}

fn gradient(dy: &Tensor<2>, x: &Tensor<2>, weight: &Tensor<1>, rstd: &Tensor<2>) -> Tensor<2> {
    let [n, d] = x.dims();
    let (Some(dys), Some(xs), Some(w), Some(rs)) = (view(dy), view(x), view(weight), view(rstd)) else {
        let unit = x.clone().cast(DType::F32) * rstd.clone();
        let weighted = dy.clone().cast(DType::F32) * weight.clone().unsqueeze::<2>();
        let mean = (weighted.clone() * unit.clone()).mean_dim(1);
        return ((weighted - unit * mean) * rstd.clone()).cast(x.dtype());
    };
    let w = w.slice();
    let mut dx = Vec::with_capacity(n * d);
    for ((dy, x), &r) in dys.slice().chunks_exact(d).zip(xs.slice().chunks_exact(d)).zip(rs.slice()) {
        let dot: f32 = dy.iter().zip(x).zip(w).map(|((dy, x), w)| dy * x * w).sum();
        let mean = dot * r * r / d as f32;
        dx.extend(dy.iter().zip(x).zip(w).map(|((dy, x), w)| (dy * w - x * mean) * r));
    }
    tensor(dx, [n, d], &x.device())
}

/// Gradient of the weight: the sum over rows of `dy · x̂`.
pub(crate) fn weight_gradient(dy: &Tensor<2>, x: &Tensor<2>, rstd: &Tensor<2>) -> Tensor<1> {
    (dy.clone().cast(DType::F32) * x.clone().cast(DType::F32) * rstd.clone()).sum_dim(0).flatten::<1>(0, 1)
}
