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
