//! SwiGLU (Shazeer 2020): `silu(gate) · up`.

use burn::tensor::{Tensor, activation};

use super::{tensor, view};

/// Combines gate and up, both `[n, f]`.
pub(crate) fn forward(gate: &Tensor<2>, up: &Tensor<2>) -> Tensor<2> {
    let (Some(g), Some(u)) = (view(gate), view(up)) else {
        return activation::silu(gate.clone()) * up.clone();
    };
    let values = g.slice().iter().zip(u.slice()).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
    tensor(values, gate.dims(), &gate.device())
}

/// Gradients of gate and up.
pub(crate) fn backward(dy: &Tensor<2>, gate: &Tensor<2>, up: &Tensor<2>) -> (Tensor<2>, Tensor<2>) {
    let (Some(dys), Some(g), Some(u)) = (view(dy), view(gate), view(up)) else {
        let s = activation::sigmoid(gate.clone());
        let silu = gate.clone() * s.clone();
        let slope = s.clone() + silu.clone() * (s.neg() + 1.0);
        return (dy.clone() * up.clone() * slope, dy.clone() * silu);
    };
    let (mut dgate, mut dup) = (Vec::with_capacity(dys.slice().len()), Vec::with_capacity(dys.slice().len()));
    for ((dy, g), u) in dys.slice().iter().zip(g.slice()).zip(u.slice()) {
        let s = 1.0 / (1.0 + (-g).exp());
        let silu = g * s;
        dgate.push(dy * u * (s + silu * (1.0 - s)));
        dup.push(dy * silu);
    }
    (tensor(dgate, gate.dims(), &gate.device()), tensor(dup, gate.dims(), &gate.device()))
}
