//! Rotary positions.

use burn::tensor::{DType, Tensor};

use super::Array;
use super::launch::{Kernel, Source};

const ROPE: Source =
    Source { name: "rope.cu", text: concat!(include_str!("kernels/vector.cuh"), include_str!("kernels/rope.cu")) };

/// Rotates heads of `x` `[n, heads · head_dim]` by cosine and sine `[context, head_dim / 2]` of positions `[n]`.
pub(crate) fn apply(x: &Tensor<2>, [cos, sin]: [&Array; 2], positions: &Array, inverse: bool) -> Option<Tensor<2>> {
    let x = Array::half(x)?;
    let ([rows, width], [_, half]) = (x.matrix(), cos.matrix());
    let head = 2 * half;
    if !head.is_multiple_of(16) {
        return None;
    }
    let out = x.empty([rows, width], DType::BF16);
    let kernel = Kernel::new(&ROPE, "rope", &[("HEAD_DIM", head)], 256, 0);
    let words = [rows, width / head, 0, inverse.into()].map(|word| word as u64);
    // Without heads of keys the kernel touches neither of their arrays.
    kernel.launch([rows.div_ceil(4), 1, 1], &[&x, &x, cos, sin, positions, &out, &out], &words);
    Some(out.tensor())
}
