//! Gated activation.

use burn::tensor::{DType, Tensor};

use super::Array;
use super::launch::{Kernel, Source};
use crate::config::Activation;

const GLU: Source =
    Source { name: "glu.cu", text: concat!(include_str!("kernels/vector.cuh"), include_str!("kernels/glu.cu")) };

/// As [`crate::ops::glu::forward`].
pub(crate) fn forward(kind: Activation, gate: &Tensor<2>, up: &Tensor<2>) -> Option<Tensor<2>> {
    let (gate, up) = (Array::half(gate)?, Array::half(up)?);
    let out = gate.empty(gate.matrix(), DType::BF16);
    launch("glu_forward", kind, &[&gate, &up, &out])?;
    Some(out.tensor())
}

/// As [`crate::ops::glu::backward`].
pub(crate) fn backward(
    kind: Activation,
    dy: &Tensor<2>,
    gate: &Tensor<2>,
    up: &Tensor<2>,
) -> Option<(Tensor<2>, Tensor<2>)> {
    let (dy, gate, up) = (Array::half(dy)?, Array::half(gate)?, Array::half(up)?);
    let [dgate, dup] = [0; 2].map(|_| gate.empty(gate.matrix(), DType::BF16));
    launch("glu_backward", kind, &[&dy, &gate, &up, &dgate, &dup])?;
    Some((dgate.tensor(), dup.tensor()))
}

fn launch(entry: &'static str, kind: Activation, arrays: &[&Array]) -> Option<()> {
    let count = arrays[0].len();
    if !count.is_multiple_of(8) {
        return None;
    }
    let kernel = Kernel::new(&GLU, entry, &[("GELU", (kind == Activation::GeluTanh).into())], 256, 0);
    kernel.launch([count.div_ceil(2_048), 1, 1], arrays, &[count as u64]);
    Some(())
}
