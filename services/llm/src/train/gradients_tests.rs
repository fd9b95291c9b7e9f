//! The explicit backward against plain autodiff.

use burn::tensor::{Tensor, activation};

use super::{block_gradients, hidden_rows, pair_gradients};
use crate::config::{Activation, ModelConfig, NormPlacement};
use crate::device::Device;
use crate::model::{Adapter, Decoder, LoraConfig, Weight};
use crate::ops::to_vec;
use crate::quant::Quantization;
use crate::train::block::Model;
use crate::train::dropout::Dropout;
use crate::train::plain::{autodiff, gradients, likelihood};
use crate::train::preference::StepSizes;
use crate::train::{Block, Document, Pair, Preference, pack, pack_pairs, tiny};
use crate::weights::Values;

fn llama(tied: bool) -> ModelConfig {
    ModelConfig { tied, ..tiny() }
}

/// Everything that a family may have, at once.
fn everything() -> ModelConfig {
    let mut config = ModelConfig {
        head_dim: 6,
        score_scale: 0.3,
        qkv_bias: true,
        qk_norm: true,
        activation: Activation::GeluTanh,
        norms: NormPlacement::BeforeAndAfter,
        embedding_scale: 4.0,
        ..llama(true)
    };
    config.attention[0].window = Some(3);
    config
}

fn block() -> Block {
    let documents = [11, 7, 5].map(|length: u32| Document {
        ids: (0..length).map(|i| (i * i * 7 + length) % 31).collect(),
        loss_mask: (0..length).map(|i| u8::from(i % 3 != 1)).collect(),
    });
    pack(&documents, 64).remove(0)
}

/// A factor of zeros would hide errors in the other factor's gradient.
fn filled(mut adapter: Adapter) -> Adapter {
    for factor in adapter.tensors_mut() {
        *factor = factor.clone() + 0.03;
    }
    adapter
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
    for config in [llama(true), llama(false), everything()] {
        let (device, block, weight) = (Device::cpu(), block(), 0.05);
        let decoder = Decoder::random(config, 5, &device);
        let explicit = block_gradients(Model::new(&decoder, None), &block, weight);
        let (loss, expected) = autodiff(&decoder, None, &block, weight);
        assert!((explicit.loss.value() * f64::from(weight) - loss).abs() < 1e-4);
        assert_close(explicit.gradient, expected);
    }
}

#[test]
fn adapter_factors() {
    for config in [llama(true), everything()] {
        let (device, block, weight) = (Device::cpu(), block(), 0.05);
        let adapter = filled(Adapter::new(&config, LoraConfig::all_linear(3), 6, &device));
        let decoder = Decoder::random(config, 5, &device);
        let explicit = block_gradients(Model::new(&decoder, Some(&adapter)), &block, weight);
        let (_, expected) = autodiff(&decoder, Some(&adapter), &block, weight);
        assert_close(explicit.gradient, expected);
    }
}

#[test]
fn adapter_factors_with_dropout() {
    let (device, block, weight) = (Device::cpu(), block(), 0.05);
    let adapter = filled(Adapter::new(&everything(), LoraConfig::all_linear(3), 6, &device));
    let decoder = Decoder::random(everything(), 5, &device);
    let model = Model { dropout: Dropout::new(0.3, 7, 1, 0), ..Model::new(&decoder, Some(&adapter)) };
    let explicit = block_gradients(model, &block, weight);
    let again = block_gradients(Model { recompute: true, ..model }, &block, weight);
    assert_eq!(to_vec(again.gradient), to_vec(explicit.gradient.clone()), "what is computed again is the same");
    let (loss, expected) = gradients(model, |model| likelihood(model, &block) * -weight);
    let found = explicit.loss.value();
    assert!((found * f64::from(weight) - loss).abs() < 1e-4);
    assert_close(explicit.gradient, expected);
    let plain = block_gradients(Model::new(&decoder, Some(&adapter)), &block, weight);
    assert!((plain.loss.value() - found).abs() > 1e-3, "dropout leaves nothing out");
}

#[test]
fn rewards() {
    let device = Device::cpu();
    let document = |length: u32, step: u32| Document {
        ids: (0..length).map(|i| (i * i * step + length) % 31).collect(),
        loss_mask: (0..length).map(|i| u8::from(i > 2)).collect(),
    };
    let pairs = [(9, 5), (6, 11)]
        .map(|(chosen, rejected)| Pair { chosen: document(chosen, 7), rejected: document(rejected, 5) });
    let block = pack_pairs(&pairs, 64).remove(0);
    for config in [llama(true), everything()] {
        let adapter = filled(Adapter::new_reward(&config, LoraConfig::all_linear(3), 6, &device));
        let decoder = Decoder::random(config, 5, &device);
        let model = Model { dropout: Dropout::new(0.3, 7, 1, 0), ..Model::new(&decoder, Some(&adapter)) };
        let step = StepSizes { pairs: 2, chosen_tokens: 1 };
        let explicit = pair_gradients(model, &block, Preference::Reward, &[], step);
        // −½ Σ ln σ(chosen − rejected), from the hidden rows on.
        let (loss, expected) = gradients(model, |model| {
            let hidden = hidden_rows(model, &block, &block.last_rows());
            let score = model.adapter.and_then(|adapter| adapter.score()).unwrap().clone();
            let rewards = hidden.matmul(score.transpose()).reshape([2, 2]);
            let margins = rewards.clone().slice([0..2, 0..1]) - rewards.slice([0..2, 1..2]);
            activation::log_sigmoid(margins).sum() * -0.5
        });
        let found = explicit.loss.value();
        assert!((found - loss).abs() < 1e-5, "{found} for {loss}");
        assert_close(explicit.gradient, expected);
        assert_eq!(explicit.pairs.len(), 2);
    }
}

#[test]
fn adapter_on_a_quantised_base() {
    let (device, block, weight) = (Device::cpu(), block(), 0.05);
    let adapter = Adapter::new(&llama(true), LoraConfig::all_linear(3), 6, &device);
    let dense = Decoder::random(llama(true), 5, &device);
    for how in [Quantization::Int8, Quantization::Int4, Quantization::Int4Double] {
        // The same weights twice: as codes, and as the values that the codes stand for.
        let (mut packed, mut plain) = (dense.clone(), dense.clone());
        for (layer, layers) in packed.layers.iter_mut().zip(&mut plain.layers) {
            for (linear, plain) in layer.linears.iter_mut().zip(&mut layers.linears) {
                let values = linear.weight.tensor();
                linear.weight = Weight::new(Values::F32(to_vec(values.clone())), values.dims(), how, &device);
                plain.weight = Weight::dense(linear.weight.tensor());
            }
        }
        assert!(packed.linear_bytes() < dense.linear_bytes() / 3, "{how:?}");
        let found = block_gradients(Model::new(&packed, Some(&adapter)), &block, weight);
        let expected = block_gradients(Model::new(&plain, Some(&adapter)), &block, weight);
        assert_eq!(to_vec(found.gradient), to_vec(expected.gradient), "{how:?}");
        let exact = block_gradients(Model::new(&dense, Some(&adapter)), &block, weight);
        assert!((found.loss.value() - exact.loss.value()).abs() > 0.0);
    }
}
