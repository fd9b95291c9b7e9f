//! `config.json` of a checkpoint, as the decoder needs it.

mod family;
mod module;
mod raw;
mod refusal;
mod rope;

use std::path::PathBuf;

pub use module::{Module, Norm};

use crate::tokenizer::Tokenizer;

/// Files of a checkpoint that describe its weights.
pub const FILES: [&str; 2] = ["config.json", "generation_config.json"];

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
        supported: String,
    },
    /// The tokenizer gives ids that have no embedding.
    #[error(
        "tokenizer.json has ids up to {largest}, but vocab_size in config.json is {vocab}: they are of different \
         checkpoints"
    )]
    Tokenizer {
        /// Largest id.
        largest: u32,
        /// Ids of the model.
        vocab: usize,
    },
    /// An id that ends an answer has no embedding, so that none would end.
    #[error(
        "eos_token_id {id} is outside the {vocab} ids of vocab_size: config.json or generation_config.json is of another \
         checkpoint"
    )]
    EndOfText {
        /// The id.
        id: u32,
        /// Ids of the model.
        vocab: usize,
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
    /// YaRN (Peng et al. 2023): frequencies that turn rarely are divided, those that turn often kept, those between
    /// blended by a ramp, and the attention is sharpened.
    Yarn {
        /// Divides low frequencies.
        factor: f64,
        /// Turns within the original context over which a frequency is kept.
        beta_fast: f64,
        /// Turns under which it is divided.
        beta_slow: f64,
        /// Context of the first training, tokens.
        original: f64,
        /// Factor on both the rotated queries and keys.
        attention_factor: f64,
        /// The ramp's ends are rounded outwards to whole dimensions.
        truncate: bool,
    },
}

/// Rotary embedding of a layer.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Base of the frequencies.
    pub theta: f64,
    /// Their scaling.
    pub scaling: RopeScaling,
}

/// What a layer's attention sees.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerAttention {
    /// A token sees itself and so many minus one before it; `None`: all.
    pub window: Option<usize>,
    /// Rotary embedding.
    pub rope: Rope,
}

/// Activation of the gated MLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x · sigmoid(x)`.
    Silu,
    /// GELU in its tanh approximation (Hendrycks & Gimpel 2016).
    GeluTanh,
}

/// Where a block normalises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormPlacement {
    /// Before attention and before the MLP.
    Before,
    /// Before and after both, as Gemma 3 does.
    BeforeAndAfter,
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
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// One a block: their number is the model's depth.
    pub attention: Vec<LayerAttention>,
    /// Factor of the scores before the softmax.
    pub score_scale: f32,
    /// Queries, keys and values have biases.
    pub qkv_bias: bool,
    /// Queries and keys are normed, head by head.
    pub qk_norm: bool,
    /// Activation of the MLP.
    pub activation: Activation,
    /// Where a block normalises.
    pub norms: NormPlacement,
    /// Added to a norm's stored weight: Gemma stores its distance from 1.
    pub norm_offset: f32,
    /// Epsilon of RMSNorm.
    pub rms_eps: f32,
    /// Factor of the embeddings.
    pub embedding_scale: f32,
    /// The head is the embedding.
    pub tied: bool,
    /// Longest context, tokens.
    pub context: usize,
}

/// Widths and counts of a model without a family's peculiarities: see [`ModelConfig::llama`].
#[derive(Clone, Copy, Debug)]
pub struct Widths {
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
    /// Key and value heads.
    pub kv_heads: usize,
    /// Longest context, tokens.
    pub context: usize,
}

impl ModelConfig {
    /// A Llama: theta 10,000, a tied head.
    pub fn llama(widths: Widths) -> Self {
        let Widths { vocab, hidden, intermediate, layers, heads, kv_heads, context } = widths;
        let head_dim = hidden / heads;
        let attention = LayerAttention { window: None, rope: Rope { theta: 1e4, scaling: RopeScaling::None } };
        Self {
            vocab,
            hidden,
            intermediate,
            heads,
            kv_heads,
            head_dim,
            attention: vec![attention; layers],
            score_scale: (head_dim as f32).sqrt().recip(),
            qkv_bias: false,
            qk_norm: false,
            activation: Activation::Silu,
            norms: NormPlacement::Before,
            norm_offset: 0.0,
            rms_eps: 1e-5,
            embedding_scale: 1.0,
            tied: true,
            context,
        }
    }

    /// Checks that every id of a tokenizer has an embedding. More embeddings than ids are common: tables are padded.
    ///
    /// # Errors
    /// The tokenizer's largest id, or one that ends an answer, is outside the vocabulary.
    pub fn check_tokenizer(&self, tokenizer: &Tokenizer) -> Result<(), ConfigError> {
        let (vocab, outside) = (self.vocab, |id: &u32| *id as usize >= self.vocab);
        if let Some(largest) = tokenizer.largest_id().filter(outside) {
            return Err(ConfigError::Tokenizer { largest, vocab });
        }
        match tokenizer.eos_ids().iter().copied().find(outside) {
            Some(id) => Err(ConfigError::EndOfText { id, vocab }),
            None => Ok(()),
        }
    }

    /// Blocks.
    pub fn layers(&self) -> usize {
        self.attention.len()
    }

    /// A linear layer has a bias.
    pub fn has_bias(&self, module: Module) -> bool {
        self.qkv_bias && matches!(module, Module::Q | Module::K | Module::V)
    }

    /// Width of a norm, if the model has it.
    pub fn norm_width(&self, norm: Norm) -> Option<usize> {
        match norm {
            Norm::Attention | Norm::Mlp => Some(self.hidden),
            Norm::Query | Norm::Key => self.qk_norm.then_some(self.head_dim),
            Norm::AfterAttention | Norm::AfterMlp => {
                (self.norms == NormPlacement::BeforeAndAfter).then_some(self.hidden)
            }
        }
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
        let linear = |module: Module| {
            let [output, input] = self.linear_shape(module);
            output * (input + usize::from(self.has_bias(module)))
        };
        let linears: usize = Module::ALL.into_iter().map(linear).sum();
        let norms: usize = Norm::ALL.into_iter().filter_map(|norm| self.norm_width(norm)).sum();
        let heads = if self.tied { 1 } else { 2 };
        self.layers() * (linears + norms) + self.hidden + heads * self.vocab * self.hidden
    }
}
