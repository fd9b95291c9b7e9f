//! Tokenizer and chat template of a checkpoint folder, as Hugging Face lays them out.

mod added;
mod cache;
mod mask;
mod spaces;
mod split;
mod stream;
mod words;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use self::mask::{characters, mask};
pub use self::stream::StreamDecoder;
use self::words::Words;
use crate::template::{ChatTemplate, KnownTemplate, TemplateError};
use crate::token_bytes::Notation;

/// File of a checkpoint with its chat template.
pub const TEMPLATE_FILE: &str = "chat_template.jinja";
/// File with a checkpoint's special tokens, and its chat template where that has no file.
const CONFIG_FILE: &str = "tokenizer_config.json";
/// Files of a checkpoint that make text of tokens.
pub const FILES: [&str; 8] = [
    "tokenizer.json",
    CONFIG_FILE,
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    TEMPLATE_FILE,
];

/// Why a tokenizer could not be opened or used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenizerError {
    /// The folder has no `tokenizer.json`.
    #[error("{} has no tokenizer.json: name a folder that holds a checkpoint with its tokenizer", dir.display())]
    Missing {
        /// The folder.
        dir: PathBuf,
    },
    /// A file is there but can't be read or parsed.
    #[error("failed to read {}: {reason}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The folder has no chat template, and one is needed.
    #[error("{} has no chat template: add chat_template.jinja, or train on ready-made text", dir.display())]
    NoTemplate {
        /// The folder.
        dir: PathBuf,
    },
    /// The base lacks the token with which a template ends a turn, so an answer would never end.
    #[error("{} has no token{} with which the chat template {template} ends a turn: {way_out}", dir.display(), token.iter().map(|token| format!(" {token}")).collect::<String>())]
    NoEnd {
        /// The folder.
        dir: PathBuf,
        /// The template's name.
        template: &'static str,
        /// The token; none if it is the base's `eos_token`, which is not named.
        token: Option<&'static str>,
        /// What else can be done.
        way_out: &'static str,
    },
    /// The chat template failed.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// The tokenizer failed on a text or an id.
    #[error("failed to tokenise: {0}")]
    Encoding(String),
}

/// One turn of a chat.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// Text.
    pub content: String,
}

impl Message {
    /// Makes a turn.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into() }
    }
}

/// A chat as the model sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Rendered {
    /// The templated text.
    pub text: String,
    /// Its tokens.
    pub ids: Vec<u32>,
    /// 1 for each token of an assistant's turn, as the template's `{% generation %}` blocks mark them.
    pub assistant_mask: Vec<u8>,
}

/// A tokenizer with its special tokens and chat template. Clones share the vocabulary.
#[derive(Clone)]
pub struct Tokenizer {
    dir: PathBuf,
    pub(crate) inner: Arc<tokenizers::Tokenizer>,
    pub(crate) notation: Notation,
    /// Tokens beside the vocabulary, and whether they mark something rather than being text.
    pub(crate) added: Arc<HashMap<u32, bool>>,
    /// The quick way to the same tokens, where the tokenizer is of a kind that has one.
    words: Option<Arc<Words>>,
    template: Option<ChatTemplate>,
    template_sha256: Option<String>,
    template_marks_answers: bool,
    bos_token: Option<String>,
    eos_token: Option<String>,
    bos: Option<u32>,
    eos: Vec<u32>,
    vocab_size: usize,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer").field("dir", &self.dir).finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// Opens `tokenizer.json` in `dir`, with `tokenizer_config.json`, `chat_template.jinja`, `generation_config.json`
    /// and `config.json` beside it where they are.
    ///
    /// # Errors
    /// The file is missing, or one of them can't be parsed.
    pub fn from_dir(dir: &Path) -> Result<Self, TokenizerError> {
        let path = dir.join("tokenizer.json");
        if !path.is_file() {
            return Err(TokenizerError::Missing { dir: dir.to_path_buf() });
        }
        let inner = tokenizers::Tokenizer::from_file(&path)
            .map_err(|error| TokenizerError::Unreadable { path: path.clone(), reason: error.to_string() })?;
        let config = read_json(&dir.join(CONFIG_FILE))?;
        let token = |key: &str| special_token(&config, key);
        let (bos_token, eos_token) = (token("bos_token"), token("eos_token"));
        let mut eos = Vec::new();
        for file in ["generation_config.json", "config.json"] {
            push_ids(&mut eos, read_json(&dir.join(file))?.get("eos_token_id"));
        }
        if let Some(id) = eos_token.as_deref().and_then(|token| inner.token_to_id(token)) {
            push_ids(&mut eos, Some(&Value::from(id)));
        }
        let bos = bos_token.as_deref().and_then(|token| inner.token_to_id(token));
        let words = Words::new(&inner);
        // The library counts them anew each time.
        let vocab_size = inner.get_vocab_size(true);
        let notation = Notation::of(&inner);
        let added = inner.get_added_tokens_decoder().into_iter().map(|(id, token)| (id, token.special)).collect();
        let mut this = Self {
            dir: dir.to_path_buf(),
            inner: Arc::new(inner),
            notation,
            added: Arc::new(added),
            words: words.map(Arc::new),
            template: None,
            template_sha256: None,
            template_marks_answers: false,
            bos_token,
            eos_token,
            bos,
            eos,
            vocab_size,
        };
        if let Some(source) = template_of(dir, &config)? {
            this.set_template(&source)?;
        }
        Ok(this)
    }

    /// The same tokenizer with the template that lies in `dir`, an adapter's folder; its own where none does.
    ///
    /// # Errors
    /// A file can't be read, or the checkpoint lacks the token that ends a turn.
    pub fn with_template_of(&self, dir: &Path) -> Result<Self, TokenizerError> {
        let Some(source) = template_of(dir, &read_json(&dir.join(CONFIG_FILE))?)? else { return Ok(self.clone()) };
        if let Some(known) = KnownTemplate::of_sha256(&hex(&Sha256::digest(&source))) {
            return self.with_template(known);
        }
        let mut this = self.clone();
        this.set_template(&source)?;
        Ok(this)
    }

    /// The same tokenizer with a template that comes along in place of the checkpoint's own.
    ///
    /// # Errors
    /// The checkpoint lacks the token that ends a turn.
    pub fn with_template(&self, known: KnownTemplate) -> Result<Self, TokenizerError> {
        let end = known.end_of_turn().or(self.eos_token.as_deref()).and_then(|token| self.inner.token_to_id(token));
        let end = end.ok_or_else(|| TokenizerError::NoEnd {
            dir: self.dir.clone(),
            template: known.name(),
            token: known.end_of_turn(),
            way_out: match known {
                KnownTemplate::Chatml => "take zephyr, which ends a turn with the base's own token",
                KnownTemplate::Zephyr => "name its eos_token in tokenizer_config.json",
            },
        })?;
        let mut this = self.clone();
        push_ids(&mut this.eos, Some(&Value::from(end)));
        this.set_template(known.source())?;
        Ok(this)
    }

    fn set_template(&mut self, source: &str) -> Result<(), TokenizerError> {
        let token = |token: &Option<String>| token.clone().unwrap_or_default();
        self.template = Some(ChatTemplate::new(source, token(&self.bos_token), token(&self.eos_token))?);
        self.template_sha256 = Some(hex(&Sha256::digest(source)));
        self.template_marks_answers = source.contains("generation %}");
        Ok(())
    }

    /// Tokenises a text; `add_special_tokens` adds what the tokenizer's own post-processor adds.
    ///
    /// # Errors
    /// The tokenizer refuses the text.
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, TokenizerError> {
        if let Some(tokens) =
            self.words.as_ref().filter(|_| !add_special_tokens).and_then(|words| words.encode(&self.inner, text))
        {
            return Ok(tokens.iter().map(|token| token.id).collect());
        }
        let encoding = self.inner.encode_fast(text, add_special_tokens).map_err(encoding_error)?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Turns ids back into text.
    ///
    /// # Errors
    /// The tokenizer refuses an id.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, TokenizerError> {
        self.inner.decode(ids, skip_special).map_err(encoding_error)
    }

    /// A decoder that takes one id at a time and never gives half a character.
    pub fn decoder(&self) -> StreamDecoder<'_> {
        StreamDecoder::new(self)
    }

    /// Renders a chat with the checkpoint's own template and tokenises it.
    ///
    /// # Errors
    /// There is no template, it fails, or the tokenizer refuses its text.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<Rendered, TokenizerError> {
        let template = self.template.as_ref().ok_or_else(|| TokenizerError::NoTemplate { dir: self.dir.clone() })?;
        let (text, spans) = template.render(messages, add_generation_prompt)?;
        if let Some(tokens) = self.words.as_ref().and_then(|words| words.encode(&self.inner, &text)) {
            let ids = tokens.iter().map(|token| token.id).collect();
            let assistant_mask = mask(tokens.iter().map(|token| (token.start as usize, token.end as usize)), &spans);
            return Ok(Rendered { text, ids, assistant_mask });
        }
        let encoding = self.inner.encode_char_offsets(text.as_str(), false).map_err(encoding_error)?;
        let spans: Vec<_> =
            spans.into_iter().map(|span| characters(&text, span.start)..characters(&text, span.end)).collect();
        let assistant_mask = mask(encoding.get_offsets().iter().copied(), &spans);
        Ok(Rendered { ids: encoding.get_ids().to_vec(), assistant_mask, text })
    }

    /// True if the template marks what the assistant says with `{% generation %}`.
    pub fn template_marks_answers(&self) -> bool {
        self.template_marks_answers
    }

    /// sha256 of the chat template's text, hex.
    pub fn template_sha256(&self) -> Option<&str> {
        self.template_sha256.as_deref()
    }

    /// Ids that end an answer.
    pub fn eos_ids(&self) -> &[u32] {
        &self.eos
    }

    /// Id that begins a text, if the checkpoint names one.
    pub fn bos_id(&self) -> Option<u32> {
        self.bos
    }

    /// Number of ids, added tokens included.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// Largest id, which is more than their number where ids are left out.
    pub fn largest_id(&self) -> Option<u32> {
        self.inner.get_vocab(true).into_values().max()
    }
}

fn read_text(path: &Path) -> Result<Option<String>, TokenizerError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(TokenizerError::Unreadable { path: path.to_path_buf(), reason: error.to_string() }),
    }
}

fn read_json(path: &Path) -> Result<Value, TokenizerError> {
    let Some(text) = read_text(path)? else { return Ok(Value::Null) };
    serde_json::from_str(&text)
        .map_err(|error| TokenizerError::Unreadable { path: path.to_path_buf(), reason: error.to_string() })
}

/// The chat template of a folder whose tokenizer is configured by `config`.
fn template_of(dir: &Path, config: &Value) -> Result<Option<String>, TokenizerError> {
    Ok(match read_text(&dir.join(TEMPLATE_FILE))? {
        Some(text) => Some(text),
        None => config.get("chat_template").and_then(Value::as_str).map(str::to_owned),
    })
}

/// A special token is a string, or an object with the string as `content`.
fn special_token(config: &Value, key: &str) -> Option<String> {
    let value = config.get(key)?;
    value.as_str().or_else(|| value.get("content")?.as_str()).map(str::to_owned)
}

fn push_ids(ids: &mut Vec<u32>, value: Option<&Value>) {
    let values = match value {
        Some(Value::Array(values)) => values.as_slice(),
        Some(one) => std::slice::from_ref(one),
        None => return,
    };
    for id in values.iter().filter_map(Value::as_u64).filter_map(|id| u32::try_from(id).ok()) {
        if !ids.contains(&id) {
            ids.push(id);
        }
    }
}

fn encoding_error(error: tokenizers::Error) -> TokenizerError {
    TokenizerError::Encoding(error.to_string())
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(folder: &str) -> Tokenizer {
        Tokenizer::from_dir(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(folder)).unwrap()
    }

    #[test]
    fn a_template_that_comes_along_marks_answers_and_ends_them() {
        let turns = [Message::new("user", "Hi"), Message::new("assistant", "Hello!")];
        for (folder, known, expected) in [
            ("services/cli/base", KnownTemplate::Zephyr, "<|user|>\nHi<|im_end|>\n<|assistant|>\nHello!<|im_end|>\n"),
            (
                "services/cli/base",
                KnownTemplate::Chatml,
                "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello!<|im_end|>\n",
            ),
            ("tests/fixtures/mistral", KnownTemplate::Zephyr, "<|user|>\nHi</s>\n<|assistant|>\nHello!</s>\n"),
        ] {
            let own = open(folder);
            let tokenizer = own.with_template(known).unwrap();
            let rendered = tokenizer.render(&turns, false).unwrap();
            assert_eq!(rendered.text, expected, "{folder}");
            let marked = rendered.ids.iter().zip(&rendered.assistant_mask).filter(|(_, bit)| **bit == 1);
            let learnt: Vec<u32> = marked.map(|(id, _)| *id).collect();
            let end = *learnt.last().unwrap();
            assert!(tokenizer.eos_ids().contains(&end), "{folder}: {learnt:?}");
            assert_eq!(learnt, [tokenizer.encode("Hello!", false).unwrap(), vec![end]].concat(), "{folder}");
            assert!(tokenizer.template_marks_answers());
            assert_eq!(tokenizer.template_sha256(), Some(known.sha256().as_str()));
            let asked = tokenizer.render(&turns[..1], true).unwrap();
            assert!(rendered.text.starts_with(&asked.text) && rendered.ids.starts_with(&asked.ids), "{folder}");
        }
    }

    #[test]
    fn an_adapters_folder_brings_its_template() {
        let (own, dir) = (open("services/cli/base"), tempfile::tempdir().unwrap());
        let same = own.with_template_of(dir.path()).unwrap();
        assert_eq!(same.template_sha256(), own.template_sha256());
        std::fs::write(dir.path().join(CONFIG_FILE), r#"{"chat_template": "{{ messages[0]['content'] }}?"}"#).unwrap();
        let asks = own.with_template_of(dir.path()).unwrap();
        assert_eq!(asks.render(&[Message::new("user", "Hi")], true).unwrap().text, "Hi?");
        // A file comes first, and a template that comes along knows its end.
        std::fs::write(dir.path().join(TEMPLATE_FILE), KnownTemplate::Zephyr.source()).unwrap();
        let zephyr = own.with_template_of(dir.path()).unwrap();
        assert_eq!(zephyr.template_sha256(), Some(KnownTemplate::Zephyr.sha256().as_str()));
        assert_eq!(zephyr.eos_ids(), own.with_template(KnownTemplate::Zephyr).unwrap().eos_ids());
    }

    #[test]
    fn a_template_whose_end_is_no_token_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/mistral/tokenizer.json");
        let json = std::fs::read_to_string(fixture).unwrap().replace("<|im_end|>", "<|ended|>");
        std::fs::write(dir.path().join("tokenizer.json"), json).unwrap();
        let error =
            Tokenizer::from_dir(dir.path()).unwrap().with_template(KnownTemplate::Chatml).unwrap_err().to_string();
        assert!(error.contains("has no token <|im_end|> with which the chat template chatml ends a turn"), "{error}");
        let mut nameless = open("tests/fixtures/mistral");
        nameless.eos_token = None;
        let error = nameless.with_template(KnownTemplate::Zephyr).unwrap_err().to_string();
        assert!(error.ends_with("ends a turn: name its eos_token in tokenizer_config.json"), "{error}");
    }
}
