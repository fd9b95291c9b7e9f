//! Whether a device computes what the CPU's definitions say: each operation and its gradient on random numbers.

mod decoding;

use std::array::from_fn;
use std::ops::Range;

use burn::tensor::Tensor;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::config::{Activation, ModelConfig, Rope, RopeScaling, Widths};
use crate::device::Device;
use crate::model::{Decoder, Joint, Linear, LoraPair, Weight};
use crate::ops::attention::{self, Documents, Heads};
use crate::ops::rope::{Positions, RopeTable};
use crate::ops::{cross_entropy, glu, norm, tensor, to_vec};
use crate::quant::Quantization;
use crate::random::normal;
use crate::train::AdamWConfig;
use crate::train::adamw::AdamW;
use crate::weights::Values;

/// How far a device's result is from the CPU's.
#[derive(Clone, Debug)]
pub struct Checked {
    /// Operation, and which of its results.
    pub name: String,
    /// Largest difference over the largest value.
    pub error: f32,
    /// What rounding explains.
    pub bound: f32,
}

impl Checked {
    /// The difference is no more than rounding.
    pub fn holds(&self) -> bool {
        self.error <= self.bound
    }
}

/// Tokens of the documents that are tried: one, less than a tile, a tile, more, and an odd rest.
const LENGTHS: [usize; 6] = [1, 7, 64, 130, 300, 41];

/// Compares batches of sequences that `device` decodes with what the CPU says of the same texts, and each with itself alone.
pub fn check_decoding(device: &Device) -> Vec<Checked> {
    let mut run = Run::new(device);
    run.decoding();
    run.results
}

/// Compares every operation of a decoder's training step on `device` with the CPU, and decoding as [`check_decoding`].
pub fn check(device: &Device) -> Vec<Checked> {
    let mut run = Run::new(device);
    run.norms();
    run.ropes();
    run.activations();
    // The many heads are enough for a GPU to add up the gradients of a group in one block, and the last document is longer
    // than all of a block's tiles that are on their way at a time.
    for (dim, kv, group) in [(64, 2, 4), (64, 3, 1), (128, 2, 2), (128, 3, 1), (32, 1, 2), (64, 54, 2)] {
        for window in [None, Some(50)] {
            run.attention(Heads { kv, group, dim, scale: (dim as f32).sqrt().recip(), window }, &LENGTHS);
        }
    }
    for dim in [64, 128] {
        run.attention(Heads { kv: 1, group: 2, dim, scale: (dim as f32).sqrt().recip(), window: None }, &[90, 900]);
    }
    run.linears();
    run.losses();
    run.updates();
    run.serving();
    run.decoding();
    run.results
}

struct Run<'a> {
    device: &'a Device,
    host: Device,
    rng: ChaCha8Rng,
    results: Vec<Checked>,
}

/// A tensor on the device, and the same numbers on the CPU.
type Both<const D: usize> = [Tensor<D>; 2];

impl<'a> Run<'a> {
    fn new(device: &'a Device) -> Self {
        Self { device, host: Device::cpu(), rng: ChaCha8Rng::seed_from_u64(0), results: Vec::new() }
    }

    /// Normal numbers, rounded as the device keeps weights.
    fn random<const D: usize>(&mut self, shape: [usize; D], deviation: f32) -> Both<D> {
        let count = shape.iter().product();
        let values: Vec<f32> = (0..count).map(|_| normal(&mut self.rng) * deviation).collect();
        let there = self.device.weight(values, shape);
        let here = tensor(to_vec(there.clone()), shape, &self.host.burn);
        [there, here]
    }

    /// The same in f32 on both.
    fn exact<const D: usize>(&mut self, shape: [usize; D], deviation: f32) -> Both<D> {
        let count = shape.iter().product();
        let values: Vec<f32> = (0..count).map(|_| normal(&mut self.rng) * deviation).collect();
        [&self.device.burn, &self.host.burn].map(|burn| tensor(values.clone(), shape, burn))
    }

    fn compare<const D: usize>(&mut self, name: impl Into<String>, found: Tensor<D>, expected: Tensor<D>) {
        self.compare_within(name, found, expected, 2e-2);
    }

    fn compare_within<const D: usize>(
        &mut self,
        name: impl Into<String>,
        found: Tensor<D>,
        expected: Tensor<D>,
        bound: f32,
    ) {
        let (found, expected) = (to_vec(found), to_vec(expected));
        let largest = expected.iter().fold(f32::MIN_POSITIVE, |top, value| top.max(value.abs()));
        // A NaN must not be lost in a maximum.
        let worst = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, |worst: f32, difference| {
            if difference.is_nan() { f32::INFINITY } else { worst.max(difference) }
        });
        let error = if found.len() == expected.len() { worst / largest } else { f32::INFINITY };
        self.results.push(Checked { name: name.into(), error, bound });
    }

    /// What could not be computed at all.
    fn fail(&mut self, name: String) {
        self.results.push(Checked { name, error: f32::INFINITY, bound: 0.0 });
    }

    fn norms(&mut self) {
        for width in [64, 896, 2_048, 4_096] {
            let ([x, hx], [w, hw]) = (self.random([67, width], 1.0), self.exact([width], 1.0));
            let ([dy, hdy], [r, hr]) = (self.random([67, width], 1.0), self.random([67, width], 1.0));
            let ((y, rstd), (hy, hrstd)) = (norm::forward(&x, &w, 1e-5), norm::forward(&hx, &hw, 1e-5));
            self.compare(format!("norm {width}"), y, hy);
            let dx = norm::backward(&dy, &x, &w, &rstd, Some(r));
            self.compare(format!("norm {width} gradient"), dx, norm::backward(&hdy, &hx, &hw, &hrstd, Some(hr)));
        }
    }

    fn ropes(&mut self) {
        let rope = Rope { theta: 10_000.0, scaling: RopeScaling::None };
        for dim in [64, 128] {
            let table = RopeTable::new(&rope, dim, 512);
            let [x, hx] = self.random([99, 3 * dim], 1.0);
            let positions: Vec<usize> = (0..99).map(|row| row * 5).collect();
            let [there, here] = [&self.device.burn, &self.host.burn].map(|burn| Positions::new(&positions, burn));
            for inverse in [false, true] {
                let found = table.apply(x.clone(), &there, inverse);
                self.compare(format!("rope {dim}"), found, table.apply(hx.clone(), &here, inverse));
            }
        }
    }

    fn activations(&mut self) {
        for kind in [Activation::Silu, Activation::GeluTanh] {
            let ([g, hg], [u, hu]) = (self.random([50, 264], 2.0), self.random([50, 264], 1.0));
            let [dy, hdy] = self.random([50, 264], 1.0);
            self.compare(format!("{kind:?}"), glu::forward(kind, &g, &u), glu::forward(kind, &hg, &hu));
            let ((dg, du), (hdg, hdu)) = (glu::backward(kind, &dy, &g, &u), glu::backward(kind, &hdy, &hg, &hu));
            self.compare(format!("{kind:?} gradient of gate"), dg, hdg);
            self.compare(format!("{kind:?} gradient of up"), du, hdu);
        }
    }

    fn attention(&mut self, heads: Heads, lengths: &[usize]) {
        let n = lengths.iter().sum();
        let mut start = 0;
        let ranges: Vec<Range<usize>> = lengths
            .iter()
            .map(|length| {
                start += length;
                start - length..start
            })
            .collect();
        let (queries, keys) = (heads.kv * heads.group * heads.dim, heads.kv * heads.dim);
        let ([q, hq], [k, hk]) = (self.random([n, queries], 1.0), self.random([n, keys], 1.0));
        let ([v, hv], [d, hd]) = (self.random([n, keys], 1.0), self.random([n, queries], 1.0));
        let (documents, hdocuments) = (Documents::new(&ranges, &q, &[heads]), Documents::new(&ranges, &hq, &[heads]));
        let (o, kept) = attention::forward(&q, &k, &v, &documents, heads);
        let (ho, hkept) = attention::forward(&hq, &hk, &hv, &hdocuments, heads);
        let name = format!("attention {}×{}×{} of {n} window {:?}", heads.kv, heads.group, heads.dim, heads.window);
        self.compare(&name, o, ho);
        let found = attention::backward(&d, &q, &k, &v, kept, &documents, heads);
        let expected = attention::backward(&hd, &hq, &hk, &hv, hkept, &hdocuments, heads);
        for ((of, found), expected) in ["queries", "keys", "values"].into_iter().zip(found).zip(expected) {
            self.compare(format!("{name} gradient of {of}"), found, expected);
        }
    }

    /// Layers that read one input: one, as the outputs are, with a residual; two; three of which one has no adapter.
    fn linears(&mut self) {
        for (input, output, rank) in [(256, 384, 16), (896, 128, 8), (2_048, 512, 64)] {
            self.joint([output], input, [rank], true);
        }
        self.joint([384, 640], 256, [16, 16], false);
        self.joint([256, 128, 512], 896, [16, 0, 8], false);
        self.joint([320, 64, 72], 520, [24, 8, 40], false);
        // Few columns, and so many that a block goes on from tile to tile.
        self.joint([40], 256, [8], true);
        self.joint([17_032], 64, [8], true);
        // Quantised weights are made dense one after another.
        self.joint_of([256, 128, 384], 512, [16, 0, 8], false, Quantization::Int4);
    }

    fn joint<const N: usize>(&mut self, outputs: [usize; N], input: usize, ranks: [usize; N], residual: bool) {
        self.joint_of(outputs, input, ranks, residual, Quantization::None);
    }

    /// Layers of these widths and ranks; a rank of 0 is no adapter.
    fn joint_of<const N: usize>(
        &mut self,
        outputs: [usize; N],
        input: usize,
        ranks: [usize; N],
        residual: bool,
        how: Quantization,
    ) {
        let name = format!("linear {input}→{outputs:?} r {ranks:?} {how:?}");
        let both = outputs.map(|output| (self.random([output, input], 0.05), self.exact([output], 1.0)));
        let pairs = from_fn::<_, N, _>(|index| {
            let (rank, output) = (ranks[index], outputs[index]);
            (rank > 0).then(|| (self.exact([rank, input], 0.05), self.exact([output, rank], 0.05)))
        });
        let (x, dys) = (self.random([300, input], 1.0), outputs.map(|output| self.random([300, output], 1.0)));
        let added = residual.then(|| self.random([300, outputs[0]], 1.0));
        let [found, expected] = [0, 1].map(|on| {
            let device = [self.device, &self.host][on];
            let layers = both.each_ref().map(|(weight, bias)| {
                let weight = match how {
                    Quantization::None => Weight::dense(weight[on].clone()),
                    how => Weight::new(Values::F32(to_vec(weight[1].clone())), weight[1].dims(), how, device),
                };
                Linear { weight, bias: Some(bias[on].clone()) }
            });
            let pairs = pairs
                .each_ref()
                .map(|pair| pair.as_ref().map(|(a, b)| LoraPair::new(a[on].clone(), b[on].clone(), 2.0)));
            let (layers, loras) = (layers.each_ref(), pairs.each_ref().map(Option::as_ref));
            let joint = Joint { layers, loras, mask: None };
            let (ys, inner) = joint.forward(&x[on], added.as_ref().map(|added| &added[on]));
            let (dx, gradients) = joint.backward(dys.each_ref().map(|dy| &dy[on]), &x[on], inner.as_ref(), false);
            let factors = gradients.map(|gradients| [gradients.a, gradients.b]);
            (ys, dx, factors)
        });
        self.compare(format!("{name} gradient of x"), found.1, expected.1);
        for (index, (found, expected)) in found.0.into_iter().zip(expected.0).enumerate() {
            self.compare(format!("{name} {index}"), found, expected);
        }
        for (index, (found, expected)) in found.2.into_iter().zip(expected.2).enumerate() {
            for ((of, found), expected) in ["a", "b"].into_iter().zip(found).zip(expected) {
                match (found, expected) {
                    (Some(found), Some(expected)) => {
                        self.compare(format!("{name} {index} gradient of {of}"), found, expected)
                    }
                    (None, None) => {}
                    _ => self.fail(format!("{name} {index} gradient of {of}")),
                }
            }
        }
    }

    /// A whole model through the cache: prompts in pieces, several sequences in a batch.
    fn serving(&mut self) {
        let widths =
            Widths { vocab: 512, hidden: 256, intermediate: 512, layers: 3, heads: 4, kv_heads: 2, context: 1_024 };
        let config = ModelConfig::llama(widths);
        let models = [self.device, &self.host].map(|device| Decoder::random(config.clone(), 5, device));
        let adapters = [self.device, &self.host].map(|device| decoding::adapter(&config, (16, 6), device));
        for length in [1, 9, 40, 300] {
            let ids: Vec<u32> = (0..length).map(|at| at * 7 % 512).collect();
            for adapter in [false, true] {
                let [found, expected] = [0, 1].map(|at| {
                    let logits = models[at].logits(&ids, adapter.then_some(&adapters[at])).unwrap_or_default();
                    let count = logits.len();
                    tensor(logits, [count], &self.host.burn)
                });
                let name =
                    format!("{length} tokens through the cache{}", if adapter { " with an adapter" } else { "" });
                self.compare_within(name, found, expected, 5e-2);
            }
        }
    }

    fn losses(&mut self) {
        let vocab = 1_000;
        let ([x, hx], [w, hw]) = (self.random([300, 256], 1.0), self.random([vocab, 256], 0.1));
        let targets: Vec<u32> = (0..300).map(|row| row * 3 % vocab as u32).collect();
        let weights: Vec<f32> = (0..300).map(|row| 0.01 + row as f32 * 1e-3).collect();
        let found = cross_entropy::loss_and_gradients(&x, &w, &targets, &weights, false);
        let expected = cross_entropy::loss_and_gradients(&hx, &hw, &targets, &weights, false);
        self.compare("cross-entropy gradient", found.dhidden, expected.dhidden);
        let sums = [(found.sum, self.device), (expected.sum, &Device::cpu())]
            .map(|(sum, device)| tensor(vec![sum.value() as f32], [1], &device.burn));
        let [found, expected] = sums;
        self.compare_within("cross-entropy", found, expected, 2e-3);
    }

    fn updates(&mut self) {
        let ([p, hp], [g, hg]) = (self.exact([100_003], 1.0), self.exact([100_003], 1.0));
        let config = AdamWConfig { weight_decay: 0.1, ..AdamWConfig::default() };
        let of = |mut parameters: Tensor<1>, gradient: Tensor<1>| {
            let mut optimizer = AdamW::new(config, &parameters);
            let mut norm = 0.0;
            for _ in 0..3 {
                (parameters, norm) = optimizer.step(parameters, gradient.clone(), 1e-2);
            }
            (parameters, norm)
        };
        let ((found, norm), (expected, hnorm)) = (of(p, g), of(hp, hg));
        self.compare_within("AdamW", found, expected, 1e-5);
        let [norm, hnorm] = [(norm, &self.device.burn), (hnorm, &self.host.burn)]
            .map(|(norm, burn)| tensor(vec![norm as f32], [1], burn));
        self.compare_within("norm of the gradient", norm, hnorm, 1e-5);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_agrees_with_itself() {
        let results = check(&Device::cpu());
        assert!(results.len() > 50);
        for checked in results {
            assert!(checked.holds(), "{checked:?}");
        }
    }
}
