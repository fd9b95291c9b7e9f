//! The explicit backward against plain autodiff.

use burn::tensor::Tensor;

use super::block_gradients;
use crate::config::{ModelConfig, RopeScaling};
use crate::device::Device;
use crate::model::{Adapter, Decoder, LoraConfig};
use crate::ops::to_vec;
use crate::train::plain::autodiff;
use crate::train::{Block, Document, pack};

fn config(tied: bool) -> ModelConfig {
    ModelConfig {
        vocab: 31,
        hidden: 16,
        intermediate: 24,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        head_dim: 4,
        rms_eps: 1e-5,
        rope_theta: 1e4,
        rope_scaling: RopeScaling::None,
        tied,
        context: 64,
    }
}

fn block() -> Block {
    let documents = [11, 7, 5].map(|length: u32| Document {
        ids: (0..length).map(|i| (i * i * 7 + length) % 31).collect(),
        loss_mask: (0..length).map(|i| u8::from(i % 3 != 1)).collect(),
    });
    pack(&documents, 64).remove(0)
}

fn assert_close(found: Tensor<1>, expected: Vec<f32>) {
    let found = to_vec(found);
    assert_eq!(found.len(), expected.len());
    let scale = expected.iter().fold(0.0f32, |top, v| top.max(v.abs()));
    assert!(scale > 1e-4, "the gradient vanishes: the test would prove nothing");
    for (at, (a, b)) in found.iter().zip(&expected).enumerate() {
        assert!((a - b).abs() <= 1e-4 * scale, "parameter {at}: {a} for {b}");
    }
}

#[test]
fn all_weights() {
    for tied in [true, false] {
        let (device, block, weight) = (Device::cpu(), block(), 0.05);
        let decoder = Decoder::random(config(tied), 5, &device);
        let explicit = block_gradients(&decoder, None, &block, weight);
        let (loss, expected) = autodiff(&decoder, None, &block, weight);
        assert!((explicit.loss * f64::from(weight) - loss).abs() < 1e-4);
        assert_close(explicit.gradient, expected);
    }
}

#[test]
fn adapter_factors() {
    let (device, block, weight) = (Device::cpu(), block(), 0.05);
    let decoder = Decoder::random(config(true), 5, &device);
    let mut adapter = Adapter::new(&config(true), LoraConfig::all_linear(3), 6, &device);
    // A factor of zeros would hide errors in the other factor's gradient.
    for factor in adapter.tensors_mut() {
        *factor = factor.clone() + 0.03;
    }
    let explicit = block_gradients(&decoder, Some(&adapter), &block, weight);
    let (_, expected) = autodiff(&decoder, Some(&adapter), &block, weight);
    assert_close(explicit.gradient, expected);
}
