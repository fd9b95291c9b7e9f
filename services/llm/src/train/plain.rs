//! The oracle: loss and gradients of a block by Burn's autodiff over the plain definitions.
//!
//! Training does not use it. Tests hold the explicit backward against it, and the benchmark compares their speeds.

use burn::tensor::{Int, Tensor, TensorData, activation};

use super::block::BlockOf;
use super::gradients::select;
use super::pack::Block;
use crate::model::{Adapter, Decoder};
use crate::ops::{norm, to_vec};

/// Loss times `weight` of a block, and its gradient in the order of the tuner's parameters: those of the adapter if
/// there is one, else of all weights.
pub fn autodiff(decoder: &Decoder, adapter: Option<&Adapter>, block: &Block, weight: f32) -> (f64, Vec<f32>) {
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
    let loss = loss(&tracked, factors.as_ref(), block, weight);
    let gradients = loss.clone().backward();
    let gradient = match &factors {
        Some(factors) => factors.tensors().filter_map(|factor| factor.grad(&gradients)).flat_map(to_vec).collect(),
        None => flat.grad(&gradients).map(to_vec).unwrap_or_default(),
    };
    (f64::from(to_vec(loss.inner())[0]), gradient)
}

fn loss(decoder: &Decoder, adapter: Option<&Adapter>, block: &Block, weight: f32) -> Tensor<1> {
    let mut x = decoder.embed(&block.ids);
    let documents = decoder.documents(&block.documents, &x);
    for index in 0..decoder.layers.len() {
        x = BlockOf { decoder, index, adapter }.forward(x, &documents, &block.positions).0;
    }
    let rows = x.select(0, select(&block.rows, decoder));
    let hidden = norm::forward(&rows, &decoder.norm, decoder.config.rms_eps).0;
    let logs = activation::log_softmax(hidden.matmul(decoder.head_weight().clone().transpose()), 1);
    let targets: Vec<i64> = block.targets.iter().map(|id| i64::from(*id)).collect();
    let count = targets.len();
    let targets = Tensor::<2, Int>::from_data(TensorData::new(targets, [count, 1]), &logs.device());
    logs.gather(1, targets).sum() * -weight
}
