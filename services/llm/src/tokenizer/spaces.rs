//! Tokenizers that write a space as `▁`, as SentencePiece does: those of Llama 2, Mistral and Gemma.

use serde_json::{Value, json};
use tokenizers::Model as _;
use tokenizers::models::bpe::BPE;

/// What such a tokenizer does with spaces.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Spaces {
    before: Before,
    /// Each space begins a word; else several together do.
    each: bool,
}

/// When a text gets a space before it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Before {
    Never,
    Always,
    /// Unless it has one.
    Lacking,
    /// Unless it has one, or something comes before it.
    First,
}

impl Spaces {
    /// How a space is written.
    pub(super) const MARK: char = '\u{2581}';

    /// None for a tokenizer of another kind, or one whose tokens go on over the end of a word.
    pub(super) fn of(tokenizer: &tokenizers::Tokenizer, model: &BPE) -> Option<Self> {
        let normaliser = serde_json::to_value(tokenizer.get_normalizer()).ok()?;
        let pre_tokenizer = serde_json::to_value(tokenizer.get_pre_tokenizer()).ok()?;
        let this = Self::described(&normaliser, &pre_tokenizer)?;
        let mut bytes = (0..=u8::MAX).map(|byte| format!("<0x{byte:02X}>"));
        // So nothing is unknown, and a word that is a token as a whole comes of merges like any other.
        let plain = model.byte_fallback
            && !model.ignore_merges
            && bytes.all(|byte| model.token_to_id(&byte).is_some())
            && model.token_to_id(Self::MARK.encode_utf8(&mut [0; 4])).is_some();
        let joins_words = |token: &String| token.trim_start_matches(Self::MARK).contains(Self::MARK);
        (plain && (this.each || !model.get_vocab().keys().any(joins_words))).then_some(this)
    }

    fn described(normaliser: &Value, pre_tokenizer: &Value) -> Option<Self> {
        let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": Self::MARK});
        let prepend = json!({"type": "Prepend", "prepend": Self::MARK});
        if pre_tokenizer["type"] == "Metaspace" {
            if !normaliser.is_null() || pre_tokenizer["replacement"] != json!(Self::MARK) {
                return None;
            }
            let before = match pre_tokenizer["prepend_scheme"].as_str()? {
                "never" => Before::Never,
                "always" => Before::Lacking,
                "first" => Before::First,
                _ => return None,
            };
            return Some(Self { before, each: pre_tokenizer["split"].as_bool()? });
        }
        // There is no space any more where it would cut.
        let cuts_nothing = pre_tokenizer.is_null()
            || (pre_tokenizer["type"] == "Split"
                && pre_tokenizer["pattern"] == json!({"String": " "})
                && pre_tokenizer["invert"] == false);
        let before = if *normaliser == replace {
            Before::Never
        } else if *normaliser == json!({"type": "Sequence", "normalizers": [prepend, replace]}) {
            Before::Always
        } else {
            return None;
        };
        cuts_nothing.then_some(Self { before, each: false })
    }

    /// The text between added tokens that begins at this byte gets a space before it.
    pub(super) fn puts_one_before(self, text: &str, start: usize) -> bool {
        match self.before {
            Before::Never => false,
            Before::Always => true,
            Before::Lacking => !text.starts_with(' '),
            Before::First => start == 0 && !text.starts_with(' '),
        }
    }

    /// Where the word ends that begins at this byte.
    pub(super) fn end(self, text: &str, start: usize) -> usize {
        let word = &text.as_bytes()[start..];
        let spaces = word.iter().take_while(|byte| **byte == b' ').count();
        let begun = if self.each { spaces.min(1) } else { spaces };
        let rest = word[begun..].iter().position(|byte| *byte == b' ').unwrap_or(word.len() - begun);
        start + begun + rest
    }
}
