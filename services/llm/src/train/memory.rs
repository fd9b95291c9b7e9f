//! What training takes in memory, from shapes alone: for a plan before a step runs, and to fit blocks into a machine.

use crate::config::{ModelConfig, Module, NormPlacement};
use crate::device::Device;
use crate::model::LoraConfig;
use crate::ops::cross_entropy::{CHUNK, KERNEL_CHUNK};
use crate::quant::Quantization;

/// Bytes of what is trained, of its moments and gradients: f32 on every device.
const TRAINED: u64 = 4;
/// Copies of logits that the plain definition of the head's loss holds at once.
const LOGITS: usize = 3;
/// Gradients that are held for each block that computes, as [`super::Tuner`] sums them.
const GRADIENTS: u64 = 4;
/// Tokens that an accelerator computes at once: more would be no faster, and take more memory.
pub(crate) const JOINED_TOKENS: usize = 16_384;

/// How a device computes, as far as memory goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Bytes of a frozen weight and of an activation.
    pub value: u64,
    /// Attention and loss have kernels of their own, which keep neither scores nor a second copy of the logits.
    pub kernels: bool,
}

impl Layout {
    /// Of training on a device: an adapter, or all weights, which are f32 then.
    pub fn new(device: &Device, model: &ModelConfig, adapter: bool) -> Self {
        match adapter {
            true => Self { value: device.bytes() as u64, kernels: device.attends_by_kernel(model.head_dim) },
            false => Self { value: TRAINED, kernels: false },
        }
    }

    /// The most blocks of `tokens` whose activations exist at once in an update of `batch` blocks. Blocks of pairs are not
    /// joined.
    pub fn side_by_side(self, device: &Device, tokens: usize, batch: usize, pairs: bool) -> usize {
        let most = match self.kernels && !pairs {
            true => JOINED_TOKENS / tokens.max(1),
            false => device.workers(),
        };
        most.clamp(1, batch.max(1))
    }
}

/// Bytes, estimated: buffers that live for a moment and the allocator's waste come on top, a tenth, on a GPU up to a
/// fifth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryEstimate {
    /// The model's weights.
    pub weights: u64,
    /// Trained parameters with their moments and the sum of their gradients.
    pub optimizer: u64,
    /// What the backward of a block needs of its forward.
    pub activations: u64,
    /// The same where of each layer its input alone is kept, and the rest computed again.
    pub recomputed: u64,
    /// What each that computes holds besides: the head's logits, gradients, a weight made dense.
    pub besides: u64,
    /// Blocks are joined and computed as one, rather than each by a worker.
    pub joined: bool,
}

/// How a step goes into a device's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fit {
    /// Blocks whose activations exist at once.
    pub blocks: usize,
    /// Each layer's forward is computed again in the backward.
    pub recompute: bool,
}

impl MemoryEstimate {
    /// Of training `lora`, or all weights, on blocks of `block_tokens` whose documents have at most `longest` tokens.
    pub fn new(
        model: &ModelConfig,
        lora: Option<&LoraConfig>,
        quantization: Quantization,
        layout: Layout,
        block_tokens: usize,
        longest: usize,
    ) -> Self {
        let shapes = Module::ALL.map(|module| model.linear_shape(module).iter().product::<usize>() as u64);
        let linears = shapes.iter().sum::<u64>() * model.layers() as u64;
        let all = model.parameters() as u64;
        let packed = match quantization {
            Quantization::None => linears * layout.value,
            Quantization::Int8 => linears,
            Quantization::Int4 => linears / 2 + linears / 64 * 4,
            Quantization::Int4Double => linears / 2 + linears / 64,
        };
        let weights = (all - linears) * layout.value + packed;
        // A quantised weight is made dense for each of its products.
        let dense = match quantization {
            Quantization::None => 0,
            _ => shapes.into_iter().max().unwrap_or(0) * layout.value,
        };
        let trained = lora.map_or(all, |lora| lora.parameters(model) as u64);
        let (hidden, inner) = (model.hidden as u64, model.intermediate as u64);
        let (queries, keys) = ((model.heads * model.head_dim) as u64, (model.kv_heads * model.head_dim) as u64);
        let normed = if model.norms == NormPlacement::BeforeAndAfter { 4 * hidden } else { 2 * hidden };
        let head_norms = if model.qk_norm { queries + keys } else { 0 };
        let ranks = lora.map_or(0, |lora| lora.r * lora.targets.len()) as u64;
        let scores = if layout.kernels { 0 } else { (model.heads * longest.min(block_tokens)) as u64 };
        let layer = normed + head_norms + 2 * hidden + 2 * queries + 2 * keys + 3 * inner + ranks + scores;
        let logits = match layout.kernels {
            true => (model.vocab * KERNEL_CHUNK) as u64 * layout.value,
            false => (model.vocab * CHUNK * LOGITS) as u64 * 4,
        };
        let (tokens, layers) = (block_tokens as u64, model.layers() as u64);
        let besides = logits + GRADIENTS * trained * TRAINED + dense;
        // The backward of one layer at a time holds about as much as its forward kept.
        let kept = |values: u64| tokens * values * layout.value;
        // A full fine-tune holds its parameters as one flat buffer besides the decoder's own tensors.
        Self {
            weights,
            optimizer: 4 * trained * TRAINED,
            activations: kept(layer * (layers + 1)),
            recomputed: kept(hidden * layers + 2 * layer),
            besides,
            joined: layout.kernels,
        }
    }

    /// With the blocks of `fit`.
    pub fn total(&self, fit: Fit) -> u64 {
        let (blocks, block) = (fit.blocks as u64, if fit.recompute { self.recomputed } else { self.activations });
        let computing = if self.joined { 1 } else { blocks };
        self.weights + self.optimizer + block * blocks + self.besides * computing
    }

    /// The most blocks side by side, halved from `most` till they fit into `free` bytes, and computed again only if not
    /// even one fits otherwise; `None` if nothing does.
    pub fn fit(&self, most: usize, free: u64, may_recompute: bool) -> Option<Fit> {
        let halves = || std::iter::successors(Some(most.max(1)), |blocks| (*blocks > 1).then_some(blocks / 2));
        let ways = [false, true].into_iter().filter(|recompute| may_recompute || !recompute);
        let mut fits = ways.flat_map(|recompute| halves().map(move |blocks| Fit { blocks, recompute }));
        fits.find(|fit| self.total(*fit) <= free)
    }
}

#[cfg(test)]
mod tests {
    use super::{Fit, Layout, MemoryEstimate};
    use crate::config::{ModelConfig, Widths};
    use crate::model::LoraConfig;
    use crate::quant::Quantization;

    const PLAIN: Layout = Layout { value: 4, kernels: false };
    const GPU: Layout = Layout { value: 2, kernels: true };

    fn llama(vocab: usize, hidden: usize, intermediate: usize, layers: usize, heads: [usize; 2]) -> ModelConfig {
        let [heads, kv_heads] = heads;
        ModelConfig::llama(Widths { vocab, hidden, intermediate, layers, heads, kv_heads, context: 8_192 })
    }

    fn llama31_8b() -> ModelConfig {
        ModelConfig { tied: false, ..llama(128_256, 4_096, 14_336, 32, [32, 8]) }
    }

    fn gib(bytes: u64) -> f64 {
        bytes as f64 / f64::from(1 << 30)
    }

    #[test]
    fn eight_billion_weights_take_what_their_types_take() {
        let of = |how| MemoryEstimate::new(&llama31_8b(), Some(&LoraConfig::all_linear(16)), how, PLAIN, 1_024, 512);
        assert!((gib(of(Quantization::None).weights) - 29.9).abs() < 0.1);
        // 6.98 billion weights in linear layers at 4.5 bits, 1.05 billion in embedding and head at 32.
        assert!((gib(of(Quantization::Int4).weights) - 7.57).abs() < 0.1);
        assert!(of(Quantization::Int4Double).weights < of(Quantization::Int4).weights);
        // 41.9 million parameters of the adapter: values, two moments, a gradient.
        assert!((gib(of(Quantization::Int4).optimizer) - 0.625).abs() < 0.01);
    }

    /// What an H100's allocator had reserved after eleven steps of `firn bench train`: GPU.md.
    #[test]
    fn what_a_gpu_took_was_foreseen_to_a_fifth() {
        let one = llama(128_256, 2_048, 8_192, 16, [32, 8]);
        let half = llama(151_936, 896, 4_864, 24, [14, 2]);
        let eight = llama31_8b();
        for (model, how, blocks, tokens, recompute, took) in [
            (&one, Quantization::None, 8, 2_048, false, 28.0),
            (&one, Quantization::Int4, 8, 2_048, false, 26.5),
            (&half, Quantization::None, 8, 2_048, false, 18.0),
            (&eight, Quantization::None, 2, 4_096, false, 51.9),
            (&eight, Quantization::Int4Double, 1, 1_024, false, 11.8),
            (&eight, Quantization::Int4Double, 1, 2_048, true, 8.8),
        ] {
            let lora = LoraConfig::all_linear(16);
            let estimate = MemoryEstimate::new(model, Some(&lora), how, GPU, tokens, tokens);
            let share = gib(estimate.total(Fit { blocks, recompute })) / took;
            assert!((0.8..1.05).contains(&share), "{how:?} {blocks} x {tokens}: {share:.2} of {took} GiB");
        }
    }

    #[test]
    fn blocks_are_halved_until_they_fit_and_then_computed_again() {
        let estimate =
            MemoryEstimate { weights: 100, optimizer: 10, activations: 15, recomputed: 1, besides: 5, joined: false };
        let kept = |blocks| Some(Fit { blocks, recompute: false });
        assert_eq!(estimate.total(Fit { blocks: 4, recompute: false }), 190);
        assert_eq!(estimate.fit(8, 1_000, true), kept(8));
        assert_eq!(estimate.fit(8, 200, true), kept(4));
        assert_eq!(estimate.fit(8, 149, true), kept(1));
        assert_eq!(estimate.fit(6, 160, true), kept(1), "6, 3, 1");
        assert_eq!(estimate.fit(8, 129, false), None);
        assert_eq!(estimate.fit(8, 129, true), Some(Fit { blocks: 2, recompute: true }));
        assert_eq!(estimate.fit(8, 115, true), None);
        let joined = MemoryEstimate { joined: true, ..estimate };
        assert_eq!(joined.total(Fit { blocks: 4, recompute: false }), 175);
    }
}
