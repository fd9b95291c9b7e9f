//! Gated activation (Shazeer 2020): `f(gate) · up`, with SiLU or GELU for `f`.

use std::f32::consts::FRAC_2_PI;

use burn::tensor::{Tensor, activation};

use super::{tensor, view};
use crate::config::Activation;

/// Of the cubic term in GELU's tanh approximation.
const CUBIC: f32 = 0.044_715;

/// Combines gate and up, both `[n, f]`.
pub(crate) fn forward(kind: Activation, gate: &Tensor<2>, up: &Tensor<2>) -> Tensor<2> {
    #[cfg(feature = "cuda")]
    if let Some(out) = super::cuda::glu::forward(kind, gate, up) {
        return out;
    }
    let (Some(g), Some(u)) = (view(gate), view(up)) else {
        return plain(kind, gate).0 * up.clone();
    };
    let pairs = g.slice().iter().zip(u.slice());
    let values = match kind {
        Activation::Silu => pairs.map(|(g, u)| silu(*g).0 * u).collect(),
        Activation::GeluTanh => pairs.map(|(g, u)| gelu(*g).0 * u).collect(),
    };
    tensor(values, gate.dims(), &gate.device())
}

/// Gradients of gate and up.
pub(crate) fn backward(kind: Activation, dy: &Tensor<2>, gate: &Tensor<2>, up: &Tensor<2>) -> (Tensor<2>, Tensor<2>) {
    #[cfg(feature = "cuda")]
    if let Some(out) = super::cuda::glu::backward(kind, dy, gate, up) {
        return out;
    }
    let (Some(dys), Some(g), Some(u)) = (view(dy), view(gate), view(up)) else {
        let (value, slope) = plain(kind, gate);
        return (dy.clone() * up.clone() * slope, dy.clone() * value);
    };
    let [dgate, dup] = match kind {
        Activation::Silu => gradients(dys.slice(), g.slice(), u.slice(), silu),
        Activation::GeluTanh => gradients(dys.slice(), g.slice(), u.slice(), gelu),
    };
    (tensor(dgate, gate.dims(), &gate.device()), tensor(dup, gate.dims(), &gate.device()))
}

fn gradients(dys: &[f32], gate: &[f32], up: &[f32], f: impl Fn(f32) -> (f32, f32)) -> [Vec<f32>; 2] {
    let (mut dgate, mut dup) = (Vec::with_capacity(dys.len()), Vec::with_capacity(dys.len()));
    for ((dy, g), u) in dys.iter().zip(gate).zip(up) {
        let (value, slope) = f(*g);
        dgate.push(dy * u * slope);
        dup.push(dy * value);
    }
    [dgate, dup]
}

/// Value and slope.
fn silu(x: f32) -> (f32, f32) {
    let s = 1.0 / (1.0 + (-x).exp());
    let value = x * s;
    (value, s + value * (1.0 - s))
}

fn gelu(x: f32) -> (f32, f32) {
    let root = FRAC_2_PI.sqrt();
    let t = (root * (x + CUBIC * x * x * x)).tanh();
    let slope = 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * root * (1.0 + 3.0 * CUBIC * x * x);
    (0.5 * x * (1.0 + t), slope)
}

/// Value and slope on any backend.
fn plain(kind: Activation, x: &Tensor<2>) -> (Tensor<2>, Tensor<2>) {
    match kind {
        Activation::Silu => {
            let s = activation::sigmoid(x.clone());
            let value = x.clone() * s.clone();
            (value.clone(), s.clone() + value * (s.neg() + 1.0))
        }
        Activation::GeluTanh => {
            let root = FRAC_2_PI.sqrt();
            let square = x.clone().square();
            let t = (x.clone() * (square.clone() * CUBIC + 1.0) * root).tanh();
            let half = (t.clone() + 1.0) * 0.5;
            let bend = (t.square().neg() + 1.0) * x.clone() * (square * (3.0 * CUBIC) + 1.0) * (0.5 * root);
            (x.clone() * half.clone(), half + bend)
        }
    }
}
