//! `config.json` of each family, read into one description.

use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use super::rope::{self, Unsupported};
use super::{Activation, ConfigError, LayerAttention, ModelConfig, NormPlacement, Rope};

/// What is read of `config.json`.
#[derive(Debug, Deserialize)]
struct Raw {
    model_type: String,
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    #[serde(default = "default_eps")]
    rms_norm_eps: f64,
    #[serde(default = "default_context")]
    max_position_embeddings: usize,
    tie_word_embeddings: Option<bool>,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
    #[serde(alias = "hidden_activation")]
    hidden_act: Option<String>,
    query_pre_attn_scalar: Option<f64>,
    attn_logit_softcapping: Option<f64>,
    final_logit_softcapping: Option<f64>,
    sliding_window: Option<usize>,
    use_sliding_window: Option<bool>,
    max_window_layers: Option<usize>,
    sliding_window_pattern: Option<usize>,
    /// As transformers 5 saves it, sometimes beside the other.
    #[serde(rename = "_sliding_window_pattern")]
    saved_window_pattern: Option<usize>,
    use_bidirectional_attention: Option<bool>,
    layer_types: Option<Vec<String>>,
    /// transformers 5; older files have `rope_theta`, `rope_scaling` and, for Gemma 3, `rope_local_base_freq`.
    #[serde(default)]
    rope_parameters: Value,
    rope_theta: Option<f64>,
    #[serde(default)]
    rope_scaling: Value,
    rope_local_base_freq: Option<f64>,
}

fn default_eps() -> f64 {
    1e-6
}

fn default_context() -> usize {
    2048
}

/// What the families do differently.
struct Family {
    bias: bool,
    qk_norm: bool,
    gemma: bool,
    /// Which layers slide where `layer_types` does not say.
    window: Windows,
}

#[derive(Clone, Copy)]
enum Windows {
    Never,
    Always,
    /// Layers from `max_window_layers` on, if `use_sliding_window`.
    Late,
    /// All but every `sliding_window_pattern`th.
    Pattern,
}

fn family(model_type: &str) -> Option<Family> {
    let plain = Family { bias: false, qk_norm: false, gemma: false, window: Windows::Never };
    Some(match model_type {
        "llama" => plain,
        "mistral" => Family { window: Windows::Always, ..plain },
        "qwen2" => Family { bias: true, window: Windows::Late, ..plain },
        "qwen3" => Family { qk_norm: true, window: Windows::Late, ..plain },
        "gemma3_text" => Family { qk_norm: true, gemma: true, window: Windows::Pattern, ..plain },
        _ => return None,
    })
}

impl ModelConfig {
    /// Reads `config.json` in `dir`.
    ///
    /// # Errors
    /// It is missing, can't be parsed, or names a family or an option that is not supported.
    pub fn from_dir(dir: &Path) -> Result<Self, ConfigError> {
        let path = dir.join("config.json");
        let unreadable = |reason: String| ConfigError::Unreadable { path: path.clone(), reason };
        let text = std::fs::read_to_string(&path).map_err(|error| unreadable(error.to_string()))?;
        let raw: Raw = serde_json::from_str(&text).map_err(|error| unreadable(error.to_string()))?;
        raw.describe().map_err(|(Unsupported(field, value), supported)| ConfigError::Unsupported {
            path,
            field,
            value,
            supported,
        })
    }
}

type Refusal = (Unsupported, &'static str);

fn refuse<T>(field: &'static str, value: impl ToString, supported: &'static str) -> Result<T, Refusal> {
    Err((Unsupported(field, value.to_string()), supported))
}

impl Raw {
    fn describe(&self) -> Result<ModelConfig, Refusal> {
        let Some(family) = family(&self.model_type) else {
            return refuse("model_type", &self.model_type, "llama, mistral, qwen2, qwen3 and gemma3_text are");
        };
        let kv_heads = self.num_key_value_heads.unwrap_or(self.num_attention_heads);
        let head_dim = self.head_dim.unwrap_or(self.hidden_size / self.num_attention_heads.max(1));
        self.check(&family, kv_heads, head_dim)?;
        let activation = match self.hidden_act.as_deref() {
            None if family.gemma => Activation::GeluTanh,
            None | Some("silu") => Activation::Silu,
            Some("gelu_pytorch_tanh") => Activation::GeluTanh,
            Some(other) => return refuse("hidden_act", other, "silu and gelu_pytorch_tanh are"),
        };
        let score = self.query_pre_attn_scalar.filter(|_| family.gemma).unwrap_or(head_dim as f64);
        let placement = if family.gemma { NormPlacement::BeforeAndAfter } else { NormPlacement::Before };
        Ok(ModelConfig {
            vocab: self.vocab_size,
            hidden: self.hidden_size,
            intermediate: self.intermediate_size,
            heads: self.num_attention_heads,
            kv_heads,
            head_dim,
            attention: self.attention(&family)?,
            score_scale: score.sqrt().recip() as f32,
            qkv_bias: family.bias,
            qk_norm: family.qk_norm,
            activation,
            norms: placement,
            norm_offset: if family.gemma { 1.0 } else { 0.0 },
            rms_eps: self.rms_norm_eps as f32,
            embedding_scale: if family.gemma { (self.hidden_size as f32).sqrt() } else { 1.0 },
            tied: self.tie_word_embeddings.unwrap_or(family.gemma),
            context: self.max_position_embeddings,
        })
    }

    fn check(&self, family: &Family, kv_heads: usize, head_dim: usize) -> Result<(), Refusal> {
        if self.attention_bias == Some(true) || self.mlp_bias == Some(true) {
            let field = if self.mlp_bias == Some(true) { "mlp_bias" } else { "attention_bias" };
            return refuse(field, true, "only false is");
        }
        if self.use_bidirectional_attention == Some(true) {
            return refuse("use_bidirectional_attention", true, "only causal attention is");
        }
        if family.gemma {
            for (field, value) in [
                ("attn_logit_softcapping", self.attn_logit_softcapping),
                ("final_logit_softcapping", self.final_logit_softcapping),
            ] {
                if let Some(value) = value {
                    return refuse(field, value, "only null is");
                }
            }
        }
        if kv_heads == 0 || !self.num_attention_heads.is_multiple_of(kv_heads) || self.num_attention_heads == 0 {
            return refuse("num_key_value_heads", kv_heads, "it must divide num_attention_heads");
        }
        if head_dim == 0 || !head_dim.is_multiple_of(2) {
            return refuse("head_dim", head_dim, "it must be even");
        }
        if self.num_hidden_layers == 0 || self.vocab_size == 0 || self.hidden_size == 0 {
            return refuse("num_hidden_layers, vocab_size or hidden_size", 0, "they must be positive");
        }
        Ok(())
    }

    fn attention(&self, family: &Family) -> Result<Vec<LayerAttention>, Refusal> {
        let known = |error: Unsupported| (error, "default, linear, llama3 and yarn are, with their numbers");
        let parse = |value: &Value, theta| rope::parse(value, theta, self.max_position_embeddings).map_err(known);
        let nested = |kind: &str| self.rope_parameters.get(kind).filter(|value| value.is_object());
        let theta = self.rope_theta.or(family.gemma.then_some(1e6));
        let full = match nested("full_attention") {
            Some(value) => parse(value, theta)?,
            None if self.rope_parameters.is_object() => parse(&self.rope_parameters, theta)?,
            None => parse(&self.rope_scaling, theta)?,
        };
        let sliding: Rope = match nested("sliding_attention") {
            Some(value) => parse(value, self.rope_local_base_freq)?,
            None if family.gemma => parse(&Value::Null, self.rope_local_base_freq)?,
            None => full.clone(),
        };
        let slides = (0..self.num_hidden_layers).map(|layer| self.slides(layer, family.window));
        slides
            .map(|slides| {
                Ok(match (slides?, self.sliding_window) {
                    (true, Some(0)) => return refuse("sliding_window", 0, "it must be positive"),
                    (true, None) if family.gemma => LayerAttention { window: Some(4096), rope: sliding.clone() },
                    (true, window) => LayerAttention { window, rope: sliding.clone() },
                    (false, _) => LayerAttention { window: None, rope: full.clone() },
                })
            })
            .collect()
    }

    fn slides(&self, layer: usize, windows: Windows) -> Result<bool, Refusal> {
        if let Some(types) = &self.layer_types {
            return match types.get(layer).map(String::as_str) {
                Some("full_attention") => Ok(false),
                Some("sliding_attention") => Ok(true),
                Some(other) => refuse("layer_types", other, "full_attention and sliding_attention are"),
                None => refuse("layer_types", format!("of {} layers", types.len()), "one a layer is needed"),
            };
        }
        Ok(match windows {
            Windows::Never => false,
            Windows::Always => self.sliding_window.is_some(),
            Windows::Late => {
                self.use_sliding_window == Some(true) && self.max_window_layers.is_none_or(|first| layer >= first)
            }
            Windows::Pattern => {
                let pattern = self.sliding_window_pattern.or(self.saved_window_pattern).unwrap_or(6);
                !(layer + 1).is_multiple_of(pattern.max(1))
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::config::{ConfigError, ModelConfig};

    type Change = fn(&mut Value);

    fn read(change: Change) -> Result<ModelConfig, ConfigError> {
        let mut config = json!({
            "model_type": "gemma3_text", "vocab_size": 64, "hidden_size": 16, "intermediate_size": 32,
            "num_hidden_layers": 6, "num_attention_heads": 2, "head_dim": 8, "sliding_window": 4,
        });
        change(&mut config);
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
        ModelConfig::from_dir(dir.path())
    }

    #[test]
    fn gemma_has_its_own_defaults_in_every_shape_of_the_file() {
        let shapes: [Change; 4] = [
            |_| {},
            |config| config["rope_parameters"] = json!({ "full_attention": {}, "sliding_attention": {} }),
            |config| config["rope_parameters"] = json!({ "rope_type": "default" }),
            |config| (config["sliding_window_pattern"], config["_sliding_window_pattern"]) = (json!(6), json!(6)),
        ];
        for shape in shapes {
            let config = read(shape).unwrap();
            let thetas: Vec<f64> = config.attention.iter().map(|layer| layer.rope.theta).collect();
            assert_eq!(thetas, [1e4, 1e4, 1e4, 1e4, 1e4, 1e6]);
            let windows: Vec<_> = config.attention.iter().map(|layer| layer.window).collect();
            assert_eq!((windows[0], windows[5]), (Some(4), None));
            assert!(config.tied);
        }
    }

    #[test]
    fn what_would_be_computed_wrongly_is_refused() {
        let cases: [(&str, Change); 5] = [
            ("use_bidirectional_attention", |config| config["use_bidirectional_attention"] = json!(true)),
            ("final_logit_softcapping", |config| config["final_logit_softcapping"] = json!(30.0)),
            ("rope_type", |config| config["rope_scaling"] = json!({ "rope_type": "longrope" })),
            ("num_key_value_heads", |config| config["num_key_value_heads"] = json!(3)),
            ("model_type", |config| config["model_type"] = json!("gpt2")),
        ];
        for (field, change) in cases {
            let error = read(change).unwrap_err().to_string();
            assert!(error.contains(field), "{field}: {error}");
        }
    }
}
