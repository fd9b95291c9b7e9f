//! Shapes of known models, for random weights.

use anyhow::{Result, bail};
use firn_llm::config::{LayerAttention, ModelConfig, Module, Rope, RopeScaling, Widths};

/// What a family adds to a Llama.
#[derive(Clone, Copy)]
enum Kind {
    Llama,
    Qwen2,
    Qwen3,
}

/// Name, family, vocabulary, hidden, intermediate, layers, heads, key heads, head width, tied, theta, context.
type Shape = (&'static str, Kind, [usize; 7], usize, bool, f64, usize);

const SHAPES: [Shape; 16] = [
    ("plain-6x256", Kind::Llama, [4_096, 256, 704, 6, 8, 4, 0], 32, true, 1e4, 4_096),
    ("firn-tiny", Kind::Llama, [2_048, 192, 576, 6, 6, 6, 0], 32, true, 1e4, 4_096),
    ("llama32_1b", Kind::Llama, [128_256, 2_048, 8_192, 16, 32, 8, 32], 64, true, 5e5, 131_072),
    ("llama31_8b", Kind::Llama, [128_256, 4_096, 14_336, 32, 32, 8, 8], 128, false, 5e5, 131_072),
    ("llama2_7b", Kind::Llama, [32_000, 4_096, 11_008, 32, 32, 32, 0], 128, false, 1e4, 4_096),
    ("tinyllama_1_1b", Kind::Llama, [32_000, 2_048, 5_632, 22, 32, 4, 0], 64, false, 1e4, 2_048),
    ("mistral_7b", Kind::Llama, [32_768, 4_096, 14_336, 32, 32, 8, 0], 128, false, 1e6, 32_768),
    ("qwen25_0_5b", Kind::Qwen2, [151_936, 896, 4_864, 24, 14, 2, 0], 64, true, 1e6, 32_768),
    ("qwen25_1_5b", Kind::Qwen2, [151_936, 1_536, 8_960, 28, 12, 2, 0], 128, true, 1e6, 131_072),
    ("qwen25_7b", Kind::Qwen2, [152_064, 3_584, 18_944, 28, 28, 4, 0], 128, false, 1e6, 131_072),
    ("qwen3_0_6b", Kind::Qwen3, [151_936, 1_024, 3_072, 28, 16, 8, 0], 128, true, 1e6, 40_960),
    ("qwen3_1_7b", Kind::Qwen3, [151_936, 2_048, 6_144, 28, 16, 8, 0], 128, true, 1e6, 40_960),
    ("qwen3_8b", Kind::Qwen3, [151_936, 4_096, 12_288, 36, 32, 8, 0], 128, false, 1e6, 40_960),
    ("smollm2_135m", Kind::Llama, [49_152, 576, 1_536, 30, 9, 3, 0], 64, true, 1e5, 8_192),
    ("smollm2_360m", Kind::Llama, [49_152, 960, 2_560, 32, 15, 5, 0], 64, true, 1e5, 8_192),
    ("smollm2_1_7b", Kind::Llama, [49_152, 2_048, 8_192, 24, 32, 32, 0], 64, true, 1.3e5, 8_192),
];

/// The names, for help and errors.
pub(super) fn names() -> String {
    SHAPES.map(|shape| shape.0).join(", ")
}

/// A model's shape by name. Tables of rotations are made for `tokens`, not for the whole context.
pub(super) fn architecture(name: &str, tokens: usize) -> Result<ModelConfig> {
    let Some(&(_, kind, widths, head_dim, tied, theta, context)) = SHAPES.iter().find(|shape| shape.0 == name) else {
        bail!("unknown architecture {name:?}: use one of {}", names());
    };
    let [vocab, hidden, intermediate, layers, heads, kv_heads, factor] = widths;
    let context = context.min(tokens.max(1));
    let scaling = match factor {
        0 => RopeScaling::None,
        factor => RopeScaling::Llama3 { factor: factor as f64, low: 1.0, high: 4.0, original: 8_192.0 },
    };
    let rope = Rope { theta, scaling };
    Ok(ModelConfig {
        head_dim,
        score_scale: (head_dim as f32).sqrt().recip(),
        attention: vec![LayerAttention { window: None, rope }; layers],
        qkv_bias: matches!(kind, Kind::Qwen2),
        qk_norm: matches!(kind, Kind::Qwen3),
        tied,
        ..ModelConfig::llama(Widths { vocab, hidden, intermediate, layers, heads, kv_heads, context })
    })
}

/// Floating-point operations that a LoRA step needs for a token: forward and backward through frozen weights (4 each),
/// adapters (6), and causal attention over sequences of `seq` tokens.
pub(super) fn lora_flops_per_token(config: &ModelConfig, seq: usize, rank: usize) -> f64 {
    let shapes = Module::ALL.map(|module| config.linear_shape(module));
    let linears: usize = config.layers() * shapes.iter().map(|[output, input]| output * input).sum::<usize>();
    let adapters: usize = config.layers() * rank * shapes.iter().map(|[output, input]| output + input).sum::<usize>();
    let attention = 2 * config.layers() * seq * config.heads * config.head_dim;
    (4 * (linears + config.vocab * config.hidden) + 6 * adapters + 3 * attention) as f64
}

#[cfg(test)]
mod tests {
    use super::{architecture, lora_flops_per_token, names};

    #[test]
    fn shapes_have_the_parameters_that_their_names_say() {
        for (name, millions) in
            [("llama32_1b", 1_235.8), ("qwen25_0_5b", 494.0), ("qwen3_0_6b", 596.0), ("smollm2_135m", 134.5)]
        {
            let parameters = architecture(name, 64).unwrap().parameters() as f64 / 1e6;
            assert!((parameters / millions - 1.0).abs() < 0.001, "{name}: {parameters}");
        }
        assert!(architecture("gpt2", 64).unwrap_err().to_string().contains("plain-6x256"));
        assert!(names().contains("llama31_8b"));
    }

    #[test]
    fn a_step_takes_about_four_operations_a_weight() {
        let config = architecture("llama32_1b", 64).unwrap();
        let flops = lora_flops_per_token(&config, 2_048, 16);
        assert!((flops / (4.0 * config.parameters() as f64) - 1.0).abs() < 0.15, "{flops}");
    }
}
