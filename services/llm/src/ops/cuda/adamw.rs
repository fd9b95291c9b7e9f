//! Clipping and AdamW over one flat buffer.

use burn::tensor::{DType, Tensor};
use burn_cubecl::kernel::copy_contiguous;

use super::Array;
use super::launch::{Kernel, Source, real};

const ADAMW: Source = Source { name: "adamw.cu", text: include_str!("kernels/adamw.cu") };

/// Constants of one update, as [`crate::train`] computes them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Update {
    /// Largest global norm of the gradient; 0: no clipping.
    pub(crate) max_norm: f64,
    /// Decay of both moments.
    pub(crate) betas: [f64; 2],
    /// Added to the root of the second moment.
    pub(crate) eps: f64,
    /// What is kept of a parameter: one minus rate times decay.
    pub(crate) keep: f64,
    /// Rate over the first moment's correction.
    pub(crate) size: f64,
    /// One over the root of the second moment's correction.
    pub(crate) root: f64,
}

/// Parameters and both moments after the update, and the gradient's norm before clipping `[1]`.
pub(crate) fn step(
    [parameters, first, second]: [&Tensor<1>; 3],
    gradient: &Tensor<1>,
    update: Update,
) -> Option<([Tensor<1>; 3], Tensor<1>)> {
    let gradient = Array::of(gradient)?;
    let count = gradient.len();
    // Others may still read what is there: views of the parameters are the adapter's factors.
    let copy = |tensor: &Tensor<1>| Some(Array(copy_contiguous(Array::of(tensor)?.0)));
    let state = [copy(parameters)?, copy(first)?, copy(second)?];
    let blocks = count.div_ceil(4_096).clamp(1, 1_024);
    let (partials, norm) = (gradient.empty([blocks], DType::F32), gradient.empty([1], DType::F32));
    let kernel = |entry| Kernel::new(&ADAMW, entry, &[], 256, 0);
    kernel("square_sums").launch([blocks, 1, 1], &[&gradient, &partials], &[count as u64]);
    let Update { max_norm, betas: [beta1, beta2], eps, keep, size, root } = update;
    let mut words = vec![count as u64, blocks as u64];
    words.extend([max_norm, beta1, beta2, eps, keep, size, root].map(real));
    let [p, m, v] = &state;
    let grid = count.div_ceil(1_024).clamp(1, 2_048);
    kernel("adamw").launch([grid, 1, 1], &[&gradient, &partials, p, m, v, &norm], &words);
    Some((state.map(Array::tensor), norm.tensor()))
}
