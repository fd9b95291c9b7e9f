//! Linear head and cross-entropy in one, in chunks: the full logits never exist.

use burn::tensor::{DType, Int, Tensor, TensorData, activation};

#[cfg(feature = "cuda")]
use super::cuda;
use super::{to_vec, update, view};

/// Rows of logits that exist at once.
pub(crate) const CHUNK: usize = 256;
/// The same where a kernel makes their gradient in place: enough to keep the products busy, 0.5 GB for a vocabulary of 128,000.
pub(crate) const KERNEL_CHUNK: usize = 2_048;

/// A sum of losses: on an accelerator it is read when the step's work is given, not before.
#[derive(Debug, Default)]
pub(crate) struct LossSum {
    known: f64,
    /// Losses that a device is computing.
    coming: Vec<Tensor<1>>,
}

impl LossSum {
    /// Waits for it.
    pub(crate) fn value(self) -> f64 {
        let coming = self.coming.into_iter().flat_map(to_vec).map(f64::from);
        self.known + coming.sum::<f64>()
    }
}

impl From<f64> for LossSum {
    fn from(known: f64) -> Self {
        Self { known, coming: Vec::new() }
    }
}

/// What the head gives for the rows that carry loss.
pub(crate) struct HeadLoss {
    /// Sum of the rows' negative log-likelihoods, nats.
    pub(crate) sum: LossSum,
    /// Gradient of the weighted sum for the hidden rows `[m, d]`.
    pub(crate) dhidden: Tensor<2>,
    /// The same for the head `[v, d]`, if asked for.
    pub(crate) dhead: Option<Tensor<2>>,
}

/// Loss of `hidden` `[m, d]` against `targets` under the head `[v, d]`; in the gradients each row has its weight.
pub(crate) fn loss_and_gradients(
    hidden: &Tensor<2>,
    head: &Tensor<2>,
    targets: &[u32],
    weights: &[f32],
    with_head: bool,
) -> HeadLoss {
    #[cfg(feature = "cuda")]
    if let Some(loss) = (!with_head).then(|| cuda::loss::loss_and_gradient(hidden, head, targets, weights)).flatten() {
        let sum = LossSum { known: 0.0, coming: loss.losses };
        return HeadLoss { sum, dhidden: loss.dhidden, dhead: None };
    }
    let mut out = HeadLoss { sum: LossSum::default(), dhidden: hidden.clone(), dhead: None };
    let mut pieces = Vec::new();
    for (index, (targets, weights)) in targets.chunks(CHUNK).zip(weights.chunks(CHUNK)).enumerate() {
        let rows = hidden.clone().slice([index * CHUNK..index * CHUNK + targets.len()]);
        let logits = rows.clone().matmul(head.clone().transpose()).cast(DType::F32);
        let (loss, dlogits) = softmax_loss(logits, targets, weights);
        let dlogits = dlogits.cast(rows.dtype());
        out.sum.known += loss;
        pieces.push(dlogits.clone().matmul(head.clone()));
        if with_head {
            let gradient = dlogits.transpose().matmul(rows);
            out.dhead = Some(out.dhead.take().map_or(gradient.clone(), |sum| sum + gradient));
        }
    }
    if !pieces.is_empty() {
        out.dhidden = Tensor::cat(pieces, 0);
    }
    out
}

/// How probable targets are.
#[derive(Debug, Default)]
pub(crate) struct Scored {
    /// Log-probability of each target `[m]`, nats.
    pub(crate) logs: Vec<f32>,
    /// Targets that no other id is more probable than.
    pub(crate) best: usize,
}

/// Log-probability of each target `[m]`, nats.
pub(crate) fn log_probabilities(hidden: &Tensor<2>, head: &Tensor<2>, targets: &[u32]) -> Vec<f32> {
    let mut out = Vec::with_capacity(targets.len());
    log_chunks(hidden, head, targets, |logs, targets| out.extend(to_vec(picked(logs, targets))));
    out
}

/// The same, and which of the targets a greedy answer would hold.
pub(crate) fn score(hidden: &Tensor<2>, head: &Tensor<2>, targets: &[u32]) -> Scored {
    let mut out = Scored::default();
    log_chunks(hidden, head, targets, |logs, targets| {
        let tops = to_vec(logs.clone().max_dim(1));
        let logs = to_vec(picked(logs, targets));
        out.best += logs.iter().zip(tops).filter(|(log, top)| *log >= top).count();
        out.logs.extend(logs);
    });
    out
}

fn log_chunks(hidden: &Tensor<2>, head: &Tensor<2>, targets: &[u32], mut take: impl FnMut(Tensor<2>, &[u32])) {
    for (index, targets) in targets.chunks(CHUNK).enumerate() {
        let rows = hidden.clone().slice([index * CHUNK..index * CHUNK + targets.len()]);
        take(activation::log_softmax(rows.matmul(head.clone().transpose()).cast(DType::F32), 1), targets);
    }
}

/// Sum of negative log-likelihoods, and `weight · (softmax − one-hot)` of each row.
fn softmax_loss(logits: Tensor<2>, targets: &[u32], weights: &[f32]) -> (f64, Tensor<2>) {
    let [rows, vocab] = logits.dims();
    if view(&logits).is_none() {
        let device = logits.device();
        let loss = -to_vec(picked(activation::log_softmax(logits.clone(), 1), targets)).iter().sum::<f32>();
        let columns = Tensor::<1, Int>::arange(0..vocab as i64, &device).reshape([1, vocab]).expand([rows, vocab]);
        let hits = columns.equal(indices(targets, &logits).expand([rows, vocab])).float();
        let weights = Tensor::<2>::from_data(TensorData::new(weights.to_vec(), [rows, 1]), &device);
        return (f64::from(loss), (activation::softmax(logits, 1) - hits) * weights);
    }
    let mut loss = 0.0;
    let dlogits = update(logits, |values| {
        for ((row, &target), &weight) in values.chunks_exact_mut(vocab).zip(targets).zip(weights) {
            let top = row.iter().fold(f32::NEG_INFINITY, |top, v| top.max(*v));
            let at_target = row[target as usize] - top;
            let mut sum = 0.0;
            for v in row.iter_mut() {
                *v = (*v - top).exp();
                sum += *v;
            }
            loss += f64::from(sum.ln() - at_target);
            let norm = weight / sum;
            row.iter_mut().for_each(|v| *v *= norm);
            row[target as usize] -= weight;
        }
    });
    (loss, dlogits)
}

fn picked(rows: Tensor<2>, targets: &[u32]) -> Tensor<2> {
    let at = indices(targets, &rows);
    rows.gather(1, at)
}

fn indices(targets: &[u32], like: &Tensor<2>) -> Tensor<2, Int> {
    let ids: Vec<i64> = targets.iter().map(|id| i64::from(*id)).collect();
    Tensor::from_data(TensorData::new(ids, [targets.len(), 1]), &like.device())
}
