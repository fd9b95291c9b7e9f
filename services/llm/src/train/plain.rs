//! The oracle: loss and gradients of a block by Burn's autodiff over the plain definitions.
//!
//! Training does not use it. Tests hold the explicit backward against it, and the benchmark compares their speeds.

use burn::tensor::{Int, Tensor, TensorData, activation};

use super::block::Model;
use super::gradients::hidden_rows;
use super::pack::Block;
use crate::model::{Adapter, Decoder};
use crate::ops::to_vec;

/// Loss times `weight` of a block, and its gradient in the order of the tuner's parameters: those of the adapter if
/// there is one, else of all weights.
pub fn autodiff(decoder: &Decoder, adapter: Option<&Adapter>, block: &Block, weight: f32) -> (f64, Vec<f32>) {
    gradients(Model::new(decoder, adapter), |model| likelihood(model, block) * -weight)
}

/// What `loss` gives, and its gradient.
pub(crate) fn gradients(model: Model<'_>, loss: impl FnOnce(Model<'_>) -> Tensor<1>) -> (f64, Vec<f32>) {
    let Model { decoder, adapter, .. } = model;
    let device = decoder.device.burn.clone().autodiff();
    let mut tracked = decoder.clone();
    tracked.device.burn = device.clone();
    let flat = Tensor::<1>::from_data(decoder.flat().into_data(), &device);
    let flat = if adapter.is_none() { flat.require_grad() } else { flat };
    tracked.set_flat(&flat);
    let mut factors = adapter.cloned();
    for factor in factors.iter_mut().flat_map(Adapter::tensors_mut) {
        *factor = Tensor::<2>::from_data(factor.clone().into_data(), &device).require_grad();
    }
    let loss = loss(Model { decoder: &tracked, adapter: factors.as_ref(), ..model });
    let gradients = loss.clone().backward();
    let gradient = match &factors {
        Some(factors) => factors.tensors().filter_map(|factor| factor.grad(&gradients)).flat_map(to_vec).collect(),
        None => flat.grad(&gradients).map(to_vec).unwrap_or_default(),
    };
    (f64::from(to_vec(loss.inner())[0]), gradient)
}

/// Sum of the loss tokens' log-probabilities.
pub(crate) fn likelihood(model: Model<'_>, block: &Block) -> Tensor<1> {
    let hidden = hidden_rows(model, block, &block.rows);
    let logs = activation::log_softmax(hidden.matmul(model.decoder.head_weight().clone().transpose()), 1);
    let targets: Vec<i64> = block.targets.iter().map(|id| i64::from(*id)).collect();
    let count = targets.len();
    let targets = Tensor::<2, Int>::from_data(TensorData::new(targets, [count, 1]), &logs.device());
    logs.gather(1, targets).sum()
}
