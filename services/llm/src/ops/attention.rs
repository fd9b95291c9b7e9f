//! Causal grouped-query attention within documents.
//!
//! Rows of several documents lie one after another in `[n, width]`; each document attends to itself alone, so the
//! score matrix of a packed block is block-diagonal and only its blocks are computed.

use std::ops::Range;

#[cfg(feature = "cuda")]
use burn::tensor::DType;
use burn::tensor::{Bool, Int, Tensor, TensorData, activation};

#[cfg(feature = "cuda")]
use super::cuda;
use super::{update, view};
use crate::device::BurnDevice;

/// Heads of a layer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Heads {
    pub(crate) kv: usize,
    /// Query heads that share a key head.
    pub(crate) group: usize,
    pub(crate) dim: usize,
    /// Factor of the scores before the softmax.
    pub(crate) scale: f32,
    /// A row sees itself and so many minus one before it; `None`: all.
    pub(crate) window: Option<usize>,
}

impl Heads {
    /// `[l, kv·group·dim]` → `[kv, group·l, dim]`.
    fn split_queries(self, x: Tensor<2>) -> Tensor<3> {
        let l = x.dims()[0];
        x.reshape([l, self.kv, self.group, self.dim]).permute([1, 2, 0, 3]).reshape([self.kv, self.group * l, self.dim])
    }

    /// `[kv, group·l, dim]` → `[l, kv·group·dim]`.
    fn join_queries(self, x: Tensor<3>) -> Tensor<2> {
        let l = x.dims()[1] / self.group;
        x.reshape([self.kv, self.group, l, self.dim])
            .permute([2, 0, 1, 3])
            .reshape([l, self.kv * self.group * self.dim])
    }

    /// `[l, kv·dim]` → `[kv, l, dim]`.
    fn split_keys(self, x: Tensor<2>) -> Tensor<3> {
        let l = x.dims()[0];
        x.reshape([l, self.kv, self.dim]).permute([1, 0, 2])
    }

    fn join_keys(self, x: Tensor<3>) -> Tensor<2> {
        let l = x.dims()[1];
        x.permute([1, 0, 2]).reshape([l, self.kv * self.dim])
    }
}

/// Documents of a block, in the shape that suits the device.
pub(crate) struct Documents<'a> {
    ranges: &'a [Range<usize>],
    /// On an accelerator one masked product over the whole block beats many small ones: true where a row must not
    /// look, for each window that a layer has. On the CPU each document is computed alone, and there is no mask.
    hidden: Vec<(Option<usize>, Tensor<2, Bool>)>,
    /// Where documents begin and end, for kernels that need no mask.
    #[cfg(feature = "cuda")]
    bounds: Option<cuda::attention::Bounds>,
}

/// What the backward needs of the forward.
pub(crate) enum Kept {
    /// Probabilities `[kv, group·l, l]` of each attended range.
    Probabilities(Vec<Tensor<3>>),
    /// What a kernel makes them from again.
    #[cfg(feature = "cuda")]
    Fused(Box<cuda::attention::Kept>),
}

impl<'a> Documents<'a> {
    /// Documents of the rows of `x`, for layers with these heads.
    pub(crate) fn new(ranges: &'a [Range<usize>], x: &Tensor<2>, heads: &[Heads]) -> Self {
        let mut out = Self {
            ranges,
            hidden: Vec::new(),
            #[cfg(feature = "cuda")]
            bounds: None,
        };
        if view(x).is_some() {
            return out;
        }
        #[cfg(feature = "cuda")]
        if x.dtype() == DType::BF16 && heads.iter().all(|heads| cuda::attention::fits(heads.dim)) {
            out.bounds = cuda::attention::Bounds::new(ranges, &x.device());
            if out.bounds.is_some() {
                return out;
            }
        }
        let mut windows: Vec<_> = heads.iter().map(|heads| heads.window).collect();
        windows.sort_unstable();
        windows.dedup();
        let (n, device) = (x.dims()[0], x.device());
        let owners: Vec<i64> =
            (0i64..).zip(ranges).flat_map(|(owner, range)| range.clone().map(move |_| owner)).collect();
        let owners = Tensor::<1, Int>::from_data(TensorData::new(owners, [n]), &device);
        let rows = owners.clone().reshape([n, 1]).expand([n, n]);
        let others = rows.not_equal(owners.reshape([1, n]).expand([n, n]));
        let hidden = windows.into_iter().map(|window| {
            let unseen = unseen(n, n, window, &device);
            (window, others.clone().bool_or(unseen))
        });
        out.hidden = hidden.collect();
        out
    }

    fn attended(&self, rows: usize) -> Vec<Range<usize>> {
        if self.hidden.is_empty() { self.ranges.to_vec() } else { vec![0..rows] }
    }

    fn hidden(&self, window: Option<usize>) -> Option<&Tensor<2, Bool>> {
        self.hidden.iter().find(|(of, _)| *of == window).map(|(_, mask)| mask)
    }
}

/// True where the last `rows` of `keys` tokens must not look: at later tokens, and at those before their window.
fn unseen(rows: usize, keys: usize, window: Option<usize>, device: &BurnDevice) -> Tensor<2, Bool> {
    let first = (keys - rows) as i64;
    let later = Tensor::tril_mask([rows, keys], first, device);
    match window {
        None => later,
        Some(window) => later.bool_or(Tensor::triu_mask([rows, keys], first - window as i64 + 1, device)),
    }
}

/// Attention of each document, and what the backward needs.
pub(crate) fn forward(
    q: &Tensor<2>,
    k: &Tensor<2>,
    v: &Tensor<2>,
    documents: &Documents<'_>,
    heads: Heads,
) -> (Tensor<2>, Kept) {
    #[cfg(feature = "cuda")]
    if let Some((o, kept)) =
        documents.bounds.as_ref().and_then(|bounds| cuda::attention::forward([q, k, v], bounds, heads))
    {
        return (o, Kept::Fused(Box::new(kept)));
    }
    let (mut outputs, mut probabilities) = (Vec::new(), Vec::new());
    for range in documents.attended(q.dims()[0]) {
        let rows = |x: &Tensor<2>| x.clone().slice([range.clone()]);
        let (o, p) = masked(rows(q), rows(k), rows(v), heads, documents.hidden(heads.window));
        outputs.push(o);
        probabilities.push(p);
    }
    (Tensor::cat(outputs, 0), Kept::Probabilities(probabilities))
}

/// Attention of the last `q` rows of a sequence to all of its `k` and `v` rows.
pub(crate) fn attend(q: Tensor<2>, k: Tensor<2>, v: Tensor<2>, heads: Heads) -> Tensor<2> {
    masked(q, k, v, heads, None).0
}

fn masked(
    q: Tensor<2>,
    k: Tensor<2>,
    v: Tensor<2>,
    heads: Heads,
    hidden: Option<&Tensor<2, Bool>>,
) -> (Tensor<2>, Tensor<3>) {
    let scores = heads.split_queries(q).matmul(heads.split_keys(k).transpose());
    let p = causal_softmax(scores, heads, hidden);
    (heads.join_queries(p.clone().matmul(heads.split_keys(v))), p)
}

/// Gradients of queries, keys and values.
pub(crate) fn backward(
    dout: &Tensor<2>,
    q: &Tensor<2>,
    k: &Tensor<2>,
    v: &Tensor<2>,
    kept: Kept,
    documents: &Documents<'_>,
    heads: Heads,
) -> [Tensor<2>; 3] {
    #[cfg_attr(
        not(feature = "cuda"),
        expect(clippy::infallible_destructuring_match, reason = "with CUDA there is a second variant")
    )]
    let probabilities = match kept {
        Kept::Probabilities(probabilities) => probabilities,
        #[cfg(feature = "cuda")]
        Kept::Fused(kept) => {
            let fused = |bounds| cuda::attention::backward(dout, [q, k, v], &kept, bounds, heads);
            match documents.bounds.as_ref().and_then(fused) {
                Some(gradients) => return gradients,
                None => unreachable!("the forward ran on the same tensors"),
            }
        }
    };
    let (mut dqs, mut dks, mut dvs) = (Vec::new(), Vec::new(), Vec::new());
    for (range, p) in documents.attended(q.dims()[0]).into_iter().zip(probabilities) {
        let rows = |x: &Tensor<2>| x.clone().slice([range.clone()]);
        let dout = heads.split_queries(rows(dout));
        dvs.push(heads.join_keys(p.clone().transpose().matmul(dout.clone())));
        let dp = dout.matmul(heads.split_keys(rows(v)).transpose());
        let ds = softmax_gradient(dp, &p, heads.scale);
        dks.push(heads.join_keys(ds.clone().transpose().matmul(heads.split_queries(rows(q)))));
        dqs.push(heads.join_queries(ds.matmul(heads.split_keys(rows(k)))));
    }
    [Tensor::cat(dqs, 0), Tensor::cat(dks, 0), Tensor::cat(dvs, 0)]
}

/// Softmax of scaled scores `[kv, group·rows, keys]`, where the last query row sees all keys of its window and each row
/// before it one less, or where `hidden` `[rows, keys]` says what is not seen.
fn causal_softmax(scores: Tensor<3>, heads: Heads, hidden: Option<&Tensor<2, Bool>>) -> Tensor<3> {
    let [kv, grouped, keys] = scores.dims();
    let rows = grouped / heads.group;
    let scale = heads.scale;
    if hidden.is_some() || view(&scores).is_none() {
        let hidden = hidden
            .map_or_else(|| unseen(rows, keys, heads.window, &scores.device()), Clone::clone)
            .reshape([1, 1, rows, keys])
            .expand([kv, heads.group, rows, keys])
            .reshape([kv, grouped, keys]);
        return activation::softmax((scores * scale).mask_fill(hidden, f32::NEG_INFINITY), 2);
    }
    update(scores, |values| {
        for (index, row) in values.chunks_exact_mut(keys).enumerate() {
            let visible = keys - rows + index % rows + 1;
            let (seen, later) = row.split_at_mut(visible);
            let (before, seen) = seen.split_at_mut(heads.window.map_or(0, |window| visible.saturating_sub(window)));
            let top = seen.iter().fold(f32::NEG_INFINITY, |top, v| top.max(*v));
            let mut sum = 0.0;
            for v in seen.iter_mut() {
                *v = ((*v - top) * scale).exp();
                sum += *v;
            }
            let norm = 1.0 / sum;
            seen.iter_mut().for_each(|v| *v *= norm);
            before.fill(0.0);
            later.fill(0.0);
        }
    })
}

/// `scale · p · (dp − Σ p·dp)`.
fn softmax_gradient(dp: Tensor<3>, p: &Tensor<3>, scale: f32) -> Tensor<3> {
    let keys = dp.dims()[2];
    let Some(probabilities) = view(p).filter(|_| view(&dp).is_some()) else {
        let mean = (dp.clone() * p.clone()).sum_dim(2);
        return (dp - mean) * p.clone() * scale;
    };
    update(dp, |values| {
        for (dp, p) in values.chunks_exact_mut(keys).zip(probabilities.slice().chunks_exact(keys)) {
            let mean: f32 = dp.iter().zip(p).map(|(dp, p)| dp * p).sum();
            dp.iter_mut().zip(p).for_each(|(dp, p)| *dp = (*dp - mean) * p * scale);
        }
    })
}
