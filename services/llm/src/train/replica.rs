//! A model on one device with what is trained of it. Several train together: each takes its share of a step's blocks.

use std::panic::resume_unwind;
use std::thread;

use burn::tensor::distributed::ReduceOperation;
use burn::tensor::{StreamId, Tensor};

use super::adamw::{AdamW, AdamWConfig};
use super::gradients::BlockResult;
use super::preference::PairLogs;
use crate::device::Device;
use crate::model::{Adapter, Decoder};
use crate::ops::cross_entropy::LossSum;
use crate::ops::to_vec;

/// What blocks add up to, in their order.
#[derive(Default)]
pub(super) struct Sum {
    losses: Vec<LossSum>,
    gradient: Option<Tensor<1>>,
    pub(super) pairs: Vec<PairLogs>,
}

impl Sum {
    pub(super) fn add(&mut self, block: BlockResult) {
        self.losses.push(block.loss);
        self.pairs.extend(block.pairs);
        self.gradient = Some(match self.gradient.take() {
            Some(sum) => sum + block.gradient,
            None => block.gradient,
        });
    }

    /// Waits for the losses.
    pub(super) fn loss(&mut self) -> f64 {
        self.losses.drain(..).map(LossSum::value).sum()
    }
}

/// A decoder and what is trained: the adapter, or else all weights.
#[derive(Debug)]
pub(super) struct Replica {
    pub(super) decoder: Decoder,
    pub(super) adapter: Option<Adapter>,
    /// What is trained, flat.
    pub(super) parameters: Tensor<1>,
    pub(super) optimizer: AdamW,
}

impl Replica {
    pub(super) fn new(decoder: Decoder, adapter: Option<Adapter>, config: AdamWConfig) -> Self {
        let parameters = match &adapter {
            Some(adapter) => {
                Tensor::cat(adapter.tensors().map(|factor| factor.clone().flatten::<1>(0, 1)).collect(), 0)
            }
            None => decoder.flat(),
        };
        let optimizer = AdamW::new(config, &parameters);
        Self { decoder, adapter, parameters, optimizer }
    }

    /// The same before its first step, on another device.
    pub(super) fn on(&self, device: &Device, config: AdamWConfig) -> Self {
        Self::new(self.decoder.on(device), self.adapter.as_ref().map(|adapter| adapter.on(device)), config)
    }

    /// Applies a gradient; gives its norm before clipping.
    fn update(&mut self, gradient: Tensor<1>, learning_rate: f64) -> f64 {
        let parameters = std::mem::replace(&mut self.parameters, Tensor::empty([1], &self.decoder.device.burn));
        let (parameters, norm) = self.optimizer.step(parameters, gradient, learning_rate);
        self.set_parameters(parameters);
        norm
    }

    pub(super) fn set_parameters(&mut self, parameters: Tensor<1>) {
        match &mut self.adapter {
            Some(adapter) => {
                let mut at = 0;
                for factor in adapter.tensors_mut() {
                    let [rows, columns] = factor.dims();
                    *factor = parameters.clone().slice([at..at + rows * columns]).reshape([rows, columns]);
                    at += rows * columns;
                }
            }
            None => self.decoder.set_flat(&parameters),
        }
        self.parameters = parameters;
    }
}

/// Works on items of which each is another device's, by a thread each: a device that has enough to do takes no more, and a
/// thread that gave work to all of them would wait there. Work goes to the device's stream that is the caller's.
pub(super) fn side_by_side<T: Send, R: Send>(
    items: impl ExactSizeIterator<Item = T>,
    work: impl Fn(T) -> R + Sync,
) -> Vec<R> {
    if items.len() < 2 {
        return items.map(work).collect();
    }
    let (stream, work) = (StreamId::current(), &work);
    thread::scope(|scope| {
        let threads: Vec<_> = items.map(|item| scope.spawn(move || stream.executes(|| work(item)))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic))).collect()
    })
}

/// Applies the sum of all replicas' gradients to each, so that they stay alike; gives its norm before clipping.
pub(super) fn update(replicas: &mut [Replica], sums: &mut [Sum], learning_rate: f64) -> f64 {
    let gradient =
        |(replica, sum): (&Replica, &mut Sum)| sum.gradient.take().unwrap_or_else(|| replica.parameters.zeros_like());
    let mut gradients: Vec<_> = replicas.iter().zip(sums).map(gradient).collect();
    if gradients.len() > 1 {
        // One that failed takes no part in the sum, in which the others would wait for it for ever. Here it panics.
        side_by_side(gradients.iter(), |gradient| drop(to_vec(gradient.clone().slice([0..1]))));
        gradients = Tensor::all_reduce(gradients, ReduceOperation::Sum);
    }
    let each = replicas.iter_mut().zip(gradients);
    let norms = side_by_side(each, |(replica, gradient)| replica.update(gradient, learning_rate));
    // Each has the same.
    norms[0]
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::{Duration, Instant};

    use super::side_by_side;
    use crate::config::{ModelConfig, Widths};
    use crate::device::Device;
    use crate::model::{Adapter, Decoder, LoraConfig};
    use crate::ops::to_vec;
    use crate::train::{Document, Pair, Preference, StepReport, Tuner, TunerConfig, pack, pack_pairs};

    fn document(at: u32) -> Document {
        Document { ids: (0..9).map(|i| (i * i * 7 + at) % 31).collect(), loss_mask: vec![1; 9] }
    }

    /// A tuner of an adapter on so many devices.
    fn tuner(devices: usize) -> Tuner {
        let widths = Widths { vocab: 31, hidden: 16, intermediate: 24, layers: 2, heads: 4, kv_heads: 2, context: 64 };
        let (config, device) = (ModelConfig::llama(widths), Device::cpus(devices));
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

    #[test]
    fn items_are_worked_on_at_once_and_keep_their_order() {
        // Each waits for all.
        let (arrived, end) = (AtomicUsize::new(0), Instant::now() + Duration::from_secs(60));
        let doubled = side_by_side([1, 2, 3].into_iter(), |n| {
            arrived.fetch_add(1, Ordering::Relaxed);
            while arrived.load(Ordering::Relaxed) < 3 {
                assert!(Instant::now() < end, "one waits for another to end");
                std::thread::yield_now();
            }
            2 * n
        });
        assert_eq!(doubled, [2, 4, 6]);
    }

    #[test]
    #[should_panic(expected = "the second")]
    fn a_panic_is_the_callers() {
        side_by_side(["the first", "the second"].into_iter(), |name| assert!(name == "the first", "{name}"));
    }
}
