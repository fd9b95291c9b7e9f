//! The fields of `config.json` that are read. `auto_map`, which names code that comes with a checkpoint, is not.

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;

/// What is read of `config.json`.
#[derive(Debug, Deserialize)]
#[serde(expecting = "an object with the fields of a model")]
pub(super) struct Raw {
    pub(super) model_type: String,
    /// Classes of transformers, or of code beside the checkpoint.
    #[serde(default)]
    pub(super) architectures: Option<Vec<String>>,
    pub(super) quantization_config: Option<IgnoredAny>,
    pub(super) vocab_size: usize,
    pub(super) hidden_size: usize,
    pub(super) intermediate_size: usize,
    pub(super) num_hidden_layers: usize,
    pub(super) num_attention_heads: usize,
    pub(super) num_key_value_heads: Option<usize>,
    pub(super) head_dim: Option<usize>,
    #[serde(default = "default_eps")]
    pub(super) rms_norm_eps: f64,
    #[serde(default = "default_context")]
    pub(super) max_position_embeddings: usize,
    pub(super) tie_word_embeddings: Option<bool>,
    pub(super) attention_bias: Option<bool>,
    pub(super) mlp_bias: Option<bool>,
    #[serde(alias = "hidden_activation")]
    pub(super) hidden_act: Option<String>,
    pub(super) query_pre_attn_scalar: Option<f64>,
    pub(super) attn_logit_softcapping: Option<f64>,
    pub(super) final_logit_softcapping: Option<f64>,
    pub(super) sliding_window: Option<usize>,
    pub(super) use_sliding_window: Option<bool>,
    pub(super) max_window_layers: Option<usize>,
    pub(super) sliding_window_pattern: Option<usize>,
    /// As transformers 5 saves it, sometimes beside the other.
    #[serde(rename = "_sliding_window_pattern")]
    pub(super) saved_window_pattern: Option<usize>,
    pub(super) use_bidirectional_attention: Option<bool>,
    pub(super) layer_types: Option<Vec<String>>,
    /// transformers 5; older files have `rope_theta`, `rope_scaling` and, for Gemma 3, `rope_local_base_freq`.
    #[serde(default)]
    pub(super) rope_parameters: Value,
    pub(super) rope_theta: Option<f64>,
    #[serde(default)]
    pub(super) rope_scaling: Value,
    pub(super) rope_local_base_freq: Option<f64>,
    pub(super) partial_rotary_factor: Option<f64>,
}

fn default_eps() -> f64 {
    1e-6
}

fn default_context() -> usize {
    2048
}
