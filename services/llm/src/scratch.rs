//! A checkpoint from nothing: a byte-level BPE tokenizer trained on texts, a chat template, and the files around them.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use serde_json::json;
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainerBuilder};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::{AddedToken, ModelWrapper, Tokenizer};

use crate::config::ModelConfig;
use crate::template::KnownTemplate;

/// Ends a document; padding too.
pub const END_OF_TEXT: &str = "<|endoftext|>";
const START_OF_TURN: &str = "<|im_start|>";
const END_OF_TURN: &str = "<|im_end|>";

/// Why a checkpoint could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ScratchError {
    /// A file can't be written.
    #[error("failed to write {}: {reason}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The tokenizer's training failed.
    #[error("failed to train the tokenizer: {0}")]
    Tokenizer(String),
}

/// Trains a byte-level BPE with `vocab` ids on texts and writes `tokenizer.json`, `tokenizer_config.json` and
/// `chat_template.jinja` to `dir`. Digits are tokens of their own, so that amounts are copied digit by digit.
///
/// # Errors
/// Training fails or a file can't be written.
pub fn train_tokenizer<S: AsRef<str> + Send>(
    dir: &Path,
    texts: impl Iterator<Item = S> + Send,
    vocab: usize,
) -> Result<(), ScratchError> {
    let fail = |error: tokenizers::Error| ScratchError::Tokenizer(error.to_string());
    let special = [END_OF_TEXT, START_OF_TURN, END_OF_TURN].map(|token| AddedToken::from(token, true));
    let alphabet: HashSet<char> = ByteLevel::alphabet().into_iter().collect();
    let mut trainer: TrainerWrapper = BpeTrainerBuilder::new()
        .vocab_size(vocab)
        .show_progress(false)
        .special_tokens(special.to_vec())
        .initial_alphabet(alphabet)
        .build()
        .into();
    let mut tokenizer = Tokenizer::new(ModelWrapper::BPE(BPE::default()));
    let parts: Vec<PreTokenizerWrapper> = vec![Digits::new(true).into(), ByteLevel::new(false, true, true).into()];
    tokenizer.with_pre_tokenizer(Some(Sequence::new(parts)));
    tokenizer.with_decoder(Some(ByteLevel::default()));
    tokenizer.train(&mut trainer, texts).map_err(fail)?;
    tokenizer.save(dir.join("tokenizer.json"), false).map_err(fail)?;
    write(dir, "chat_template.jinja", KnownTemplate::Chatml.source())?;
    let config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END_OF_TURN, "pad_token": END_OF_TEXT,
        "bos_token": null, "unk_token": null, "clean_up_tokenization_spaces": false, "model_max_length": 1024,
    });
    write(dir, "tokenizer_config.json", &format!("{config:#}\n"))
}

/// Writes `config.json` and `generation_config.json` of a Llama of this shape.
///
/// # Errors
/// A file can't be written.
pub fn write_config(dir: &Path, config: &ModelConfig, eos: &[u32]) -> Result<(), ScratchError> {
    let rope = config.attention.first().map_or(1e4, |layer| layer.rope.theta);
    let value = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": config.vocab,
        "hidden_size": config.hidden, "intermediate_size": config.intermediate,
        "num_hidden_layers": config.layers(), "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads, "head_dim": config.head_dim, "hidden_act": "silu",
        "rms_norm_eps": f64::from(config.rms_eps), "rope_theta": rope,
        "max_position_embeddings": config.context, "tie_word_embeddings": config.tied, "attention_bias": false,
        "mlp_bias": false, "initializer_range": 0.02, "bos_token_id": null, "eos_token_id": eos,
        "torch_dtype": "bfloat16",
    });
    write(dir, "config.json", &format!("{value:#}\n"))?;
    write(dir, "generation_config.json", &format!("{:#}\n", json!({ "eos_token_id": eos })))
}

fn write(dir: &Path, name: &str, text: &str) -> Result<(), ScratchError> {
    let path = dir.join(name);
    std::fs::write(&path, text).map_err(|error| ScratchError::Write { path, reason: error.to_string() })
}
