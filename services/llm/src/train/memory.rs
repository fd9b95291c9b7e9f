//! What training takes in memory, from shapes alone: for a plan before a step runs, and to fit blocks into a machine.

use crate::config::{ModelConfig, Module, NormPlacement};
use crate::model::LoraConfig;
use crate::quant::Quantization;

/// Bytes of a value that is computed with.
const FLOAT: u64 = 4;
/// Rows of logits that the head's loss holds at once, and copies of them.
const HEAD_ROWS: u64 = 256 * 3;
/// Gradients that are held for each block that computes, as [`super::Tuner`] sums them.
const GRADIENTS: u64 = 4;

/// Bytes, estimated: buffers that live for a moment and the allocator's waste come on top, about a tenth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryEstimate {
    /// The model's weights.
    pub weights: u64,
    /// Trained parameters with their moments and the sum of their gradients.
    pub optimizer: u64,
    /// One block that computes: what its backward needs, the head's logits, and its gradients.
    pub block: u64,
}

impl MemoryEstimate {
    /// Of training `lora`, or all weights, on blocks of `block_tokens` whose documents have at most `longest` tokens.
    pub fn new(
        model: &ModelConfig,
        lora: Option<&LoraConfig>,
        quantization: Quantization,
        block_tokens: usize,
        longest: usize,
    ) -> Self {
        let layer: usize = Module::ALL.iter().map(|module| model.linear_shape(*module).iter().product::<usize>()).sum();
        let linears = (layer * model.layers()) as u64;
        let all = model.parameters() as u64;
        let packed = match quantization {
            Quantization::None => linears * FLOAT,
            Quantization::Int8 => linears,
            Quantization::Int4 => linears / 2 + linears / 64 * FLOAT,
            Quantization::Int4Double => linears / 2 + linears / 64,
        };
        let weights = (all - linears) * FLOAT + packed;
        let trained = lora.map_or(all, |lora| lora.parameters(model) as u64);
        let (hidden, inner) = (model.hidden as u64, model.intermediate as u64);
        let (queries, keys) = ((model.heads * model.head_dim) as u64, (model.kv_heads * model.head_dim) as u64);
        let normed = if model.norms == NormPlacement::BeforeAndAfter { 4 * hidden } else { 2 * hidden };
        let head_norms = if model.qk_norm { queries + keys } else { 0 };
        let ranks = lora.map_or(0, |lora| lora.r * lora.targets.len()) as u64;
        let probabilities = (model.heads * longest.min(block_tokens)) as u64;
        let layer = normed + head_norms + 2 * hidden + 2 * queries + 2 * keys + 3 * inner + ranks + probabilities;
        // The backward of one layer at a time holds about as much as its forward kept.
        let kept = block_tokens as u64 * layer * (model.layers() as u64 + 1);
        let block = (kept + HEAD_ROWS * model.vocab as u64 + GRADIENTS * trained) * FLOAT;
        // A full fine-tune holds its parameters as one flat buffer besides the decoder's own tensors.
        Self { weights, optimizer: 4 * trained * FLOAT, block }
    }

    /// With so many blocks side by side.
    pub fn total(&self, parallel_blocks: usize) -> u64 {
        self.weights + self.optimizer + self.block * parallel_blocks as u64
    }

    /// The most blocks side by side, halved from `workers` till they fit into `free` bytes; `None` if one does not.
    pub fn fit(&self, workers: usize, free: u64) -> Option<usize> {
        let halves = std::iter::successors(Some(workers.max(1)), |blocks| (*blocks > 1).then_some(blocks / 2));
        halves.into_iter().find(|blocks| self.total(*blocks) <= free)
    }
}

#[cfg(test)]
mod tests {
    use super::MemoryEstimate;
    use crate::config::{ModelConfig, Widths};
    use crate::model::LoraConfig;
    use crate::quant::Quantization;

    fn llama31_8b() -> ModelConfig {
        let widths = Widths {
            vocab: 128_256,
            hidden: 4_096,
            intermediate: 14_336,
            layers: 32,
            heads: 32,
            kv_heads: 8,
            context: 8_192,
        };
        ModelConfig { tied: false, ..ModelConfig::llama(widths) }
    }

    #[test]
    fn eight_billion_weights_take_what_their_types_take() {
        let of = |how| MemoryEstimate::new(&llama31_8b(), Some(&LoraConfig::all_linear(16)), how, 1_024, 512);
        let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
        assert!((gib(of(Quantization::None).weights) - 29.9).abs() < 0.1);
        // 6.98 billion weights in linear layers at 4.5 bits, 1.05 billion in embedding and head at 32.
        assert!((gib(of(Quantization::Int4).weights) - 7.57).abs() < 0.1);
        assert!(of(Quantization::Int4Double).weights < of(Quantization::Int4).weights);
        // 41.9 million parameters of the adapter: values, two moments, a gradient.
        assert!((gib(of(Quantization::Int4).optimizer) - 0.625).abs() < 0.01);
    }

    #[test]
    fn blocks_are_halved_until_they_fit() {
        let estimate = MemoryEstimate { weights: 100, optimizer: 10, block: 20 };
        assert_eq!(estimate.total(4), 190);
        assert_eq!(estimate.fit(8, 1_000), Some(8));
        assert_eq!(estimate.fit(8, 200), Some(4));
        assert_eq!(estimate.fit(8, 149), Some(1));
        assert_eq!(estimate.fit(8, 129), None);
        assert_eq!(estimate.fit(6, 160), Some(1), "6, 3, 1");
    }
}
