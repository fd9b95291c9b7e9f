//! Steps that several devices share, against those of one.

use super::{StepReport, Tuner, TunerConfig};
use crate::device::Device;
use crate::model::{Adapter, Decoder, LoraConfig};
use crate::ops::to_vec;
use crate::train::{Document, Pair, Preference, pack, pack_pairs, tiny};

fn document(at: u32) -> Document {
    Document { ids: (0..9).map(|i| (i * i * 7 + at) % 31).collect(), loss_mask: vec![1; 9] }
}

/// A tuner of an adapter on so many devices.
fn tuner(devices: usize) -> Tuner {
    let (config, device) = (tiny(), Device::cpus(devices));
    let adapter = Adapter::new(&config, LoraConfig::all_linear(4), 2, &device);
    Tuner::new(Decoder::random(config, 5, &device), Some(adapter), &TunerConfig::default())
}

fn factors(tuner: &Tuner) -> Vec<f32> {
    tuner.adapter().into_iter().flat_map(Adapter::tensors).flat_map(|factor| to_vec(factor.clone())).collect()
}

fn assert_alike(one: &[f32], another: &[f32], bound: f32) {
    assert_eq!(one.len(), another.len());
    let apart = one.iter().zip(another).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(apart <= bound, "{apart}");
}

#[test]
fn devices_that_share_a_step_learn_what_one_does_and_stay_alike() {
    let documents: Vec<Document> = (0..7).map(document).collect();
    let blocks = pack(&documents, 9);
    assert_eq!(blocks.len(), 7, "the devices' shares must differ");
    let run = |devices| {
        let mut tuner = tuner(devices);
        let reports: Vec<StepReport> = (0..3).map(|_| tuner.step(&blocks, 1e-2)).collect();
        (tuner, reports)
    };
    let (alone, expected) = run(1);
    for devices in [2, 3] {
        let (together, found) = run(devices);
        for (a, b) in expected.iter().zip(&found) {
            assert!(
                (a.loss - b.loss).abs() < 1e-5 && (a.grad_norm / b.grad_norm - 1.0).abs() < 1e-4,
                "{a:?} for {b:?}"
            );
            assert_eq!(a.tokens, b.tokens);
        }
        assert_alike(&factors(&alone), &factors(&together), 1e-4);
        let others = together.replicas[1..].iter().map(|replica| to_vec(replica.parameters.clone()));
        others.for_each(|other| assert_alike(&to_vec(together.replicas[0].parameters.clone()), &other, 0.0));
    }
}

#[test]
fn pairs_keep_their_order_over_devices() {
    let pair = |at| Pair { chosen: document(at), rejected: document(at + 10) };
    let blocks = pack_pairs(&(0..5).map(pair).collect::<Vec<_>>(), 18);
    assert_eq!(blocks.len(), 5);
    let objective = Preference::Dpo { beta: 0.1 };
    let (alone, together) =
        (tuner(1).step_pairs(&blocks, objective, 1e-2), tuner(2).step_pairs(&blocks, objective, 1e-2));
    assert_eq!((&alone.pairs, &alone.reference), (&together.pairs, &together.reference));
    assert!(alone.pairs.windows(2).all(|pair| pair[0] != pair[1]), "pairs alike would prove nothing");
    assert!((alone.step.grad_norm / together.step.grad_norm - 1.0).abs() < 1e-4);
}
