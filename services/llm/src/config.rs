//! `config.json` of a checkpoint, as the decoder needs it.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Why a checkpoint's configuration can't be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file is missing or can't be parsed.
    #[error("failed to read {}: {reason}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The file names something that this version can't compute.
    #[error("{} has {field} = {value}, which is not supported: {supported}", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// The field.
        field: &'static str,
        /// Its value.
        value: String,
        /// What is.
        supported: &'static str,
    },
}

/// How the rotary frequencies are stretched for contexts longer than those of the first training.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// Every frequency divided by the factor.
    Linear {
        /// The factor.
        factor: f64,
    },
    /// Llama 3: low frequencies divided, high ones kept, those between blended.
    Llama3 {
        /// Divides low frequencies.
        factor: f64,
        /// Wavelengths over `original / low` are low frequencies.
        low: f64,
        /// Wavelengths under `original / high` are high frequencies.
        high: f64,
        /// Context of the first training, tokens.
        original: f64,
    },
}

/// A decoder's shape. Families differ in this data, not in code.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// Ids.
    pub vocab: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width inside the MLP.
    pub intermediate: usize,
    /// Blocks.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Epsilon of RMSNorm.
    pub rms_eps: f32,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Their scaling.
    pub rope_scaling: RopeScaling,
    /// The head is the embedding.
    pub tied: bool,
    /// Longest context, tokens.
    pub context: usize,
}

#[derive(Debug, Serialize, Deserialize)]
struct Raw {
    #[serde(default)]
    architectures: Vec<String>,
    model_type: String,
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    #[serde(default)]
    num_key_value_heads: Option<usize>,
    #[serde(default)]
    head_dim: Option<usize>,
    rms_norm_eps: f64,
    #[serde(default = "default_context")]
    max_position_embeddings: usize,
    #[serde(default)]
    tie_word_embeddings: bool,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    #[serde(default = "default_activation")]
    hidden_act: String,
    /// transformers 5; older files have `rope_theta` and `rope_scaling`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rope_parameters: Option<RawRope>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rope_theta: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rope_scaling: Option<RawRope>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    bos_token_id: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    eos_token_id: Option<serde_json::Value>,
    #[serde(default, alias = "torch_dtype", skip_serializing_if = "Option::is_none")]
    dtype: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
struct RawRope {
    #[serde(default, alias = "type", skip_serializing_if = "Option::is_none")]
    rope_type: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rope_theta: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    factor: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    low_freq_factor: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    high_freq_factor: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    original_max_position_embeddings: Option<f64>,
}

fn default_context() -> usize {
    2048
}

fn default_activation() -> String {
    "silu".to_owned()
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
        let unsupported = |field, value: String, supported| {
            Err(ConfigError::Unsupported { path: path.clone(), field, value, supported })
        };
        if raw.model_type != "llama" {
            return unsupported("model_type", raw.model_type, "use a model of the Llama family");
        }
        if raw.attention_bias || raw.mlp_bias {
            return unsupported("attention_bias or mlp_bias", "true".to_owned(), "only false is");
        }
        if raw.hidden_act != "silu" {
            return unsupported("hidden_act", raw.hidden_act, "only silu is");
        }
        let kv_heads = raw.num_key_value_heads.unwrap_or(raw.num_attention_heads);
        if raw.num_attention_heads == 0 || kv_heads == 0 || !raw.num_attention_heads.is_multiple_of(kv_heads) {
            return unsupported("num_key_value_heads", kv_heads.to_string(), "it must divide num_attention_heads");
        }
        let rope = raw.rope_parameters.as_ref().or(raw.rope_scaling.as_ref());
        let theta = raw.rope_parameters.as_ref().and_then(|rope| rope.rope_theta).or(raw.rope_theta);
        let scaling = match rope.and_then(|rope| Some((rope, rope.rope_type.as_deref()?))) {
            None | Some((_, "default")) => RopeScaling::None,
            Some((rope, "linear")) => RopeScaling::Linear { factor: rope.factor.unwrap_or(1.0) },
            Some((rope, "llama3")) => RopeScaling::Llama3 {
                factor: rope.factor.unwrap_or(8.0),
                low: rope.low_freq_factor.unwrap_or(1.0),
                high: rope.high_freq_factor.unwrap_or(4.0),
                original: rope.original_max_position_embeddings.unwrap_or(8192.0),
            },
            Some((_, other)) => {
                return unsupported("rope_type", other.to_owned(), "default, linear and llama3 are");
            }
        };
        Ok(Self {
            vocab: raw.vocab_size,
            hidden: raw.hidden_size,
            intermediate: raw.intermediate_size,
            layers: raw.num_hidden_layers,
            heads: raw.num_attention_heads,
            kv_heads,
            head_dim: raw.head_dim.unwrap_or(raw.hidden_size / raw.num_attention_heads),
            rms_eps: raw.rms_norm_eps as f32,
            rope_theta: theta.unwrap_or(10_000.0),
            rope_scaling: scaling,
            tied: raw.tie_word_embeddings,
            context: raw.max_position_embeddings,
        })
    }

    /// Output and input width of a linear layer: `[out, in]`, as its weight is stored.
    pub fn linear_shape(&self, module: Module) -> [usize; 2] {
        let (q, kv) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        match module {
            Module::Q => [q, self.hidden],
            Module::K | Module::V => [kv, self.hidden],
            Module::O => [self.hidden, q],
            Module::Gate | Module::Up => [self.intermediate, self.hidden],
            Module::Down => [self.hidden, self.intermediate],
        }
    }

    /// Number of parameters.
    pub fn parameters(&self) -> usize {
        let linears: usize = Module::ALL.iter().map(|&m| self.linear_shape(m).iter().product::<usize>()).sum();
        let heads = if self.tied { 1 } else { 2 };
        self.layers * (linears + 2 * self.hidden) + self.hidden + heads * self.vocab * self.hidden
    }
}

/// A block's linear layers, in the order of a forward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Module {
    /// Queries.
    Q,
    /// Keys.
    K,
    /// Values.
    V,
    /// Attention's output.
    O,
    /// MLP's gate.
    Gate,
    /// MLP's input.
    Up,
    /// MLP's output.
    Down,
}

impl Module {
    /// All of them.
    pub const ALL: [Self; 7] = [Self::Q, Self::K, Self::V, Self::O, Self::Gate, Self::Up, Self::Down];

    /// Position in [`Module::ALL`].
    pub fn index(self) -> usize {
        self as usize
    }

    /// Last part of its name in a checkpoint, such as `q_proj`.
    pub fn name(self) -> &'static str {
        ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"][self.index()]
    }

    /// Path within its layer, such as `self_attn.q_proj`.
    pub fn path(self) -> String {
        let parent = if self.index() < 4 { "self_attn" } else { "mlp" };
        format!("{parent}.{}", self.name())
    }
}
