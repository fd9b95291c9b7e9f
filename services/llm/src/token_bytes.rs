//! What each token stands for, in bytes: a token may be a part of a character.

use std::collections::HashMap;

use crate::tokenizer::Tokenizer;

/// Notation of a tokenizer's tokens.
#[derive(Clone, Debug)]
pub(crate) enum Notation {
    /// Each byte is written as a printable character (Radford et al. 2019).
    ByteLevel(HashMap<char, u8>),
    /// Text with `▁` for a space, and `<0xNN>` for a byte that has no token of its own.
    Pieces,
}

impl Notation {
    /// The notation that a tokenizer's decoder undoes.
    pub(crate) fn of(inner: &tokenizers::Tokenizer) -> Self {
        let decoder = inner.get_decoder().and_then(|decoder| serde_json::to_string(decoder).ok());
        match decoder {
            Some(decoder) if decoder.contains("\"ByteLevel\"") => Self::ByteLevel(byte_level()),
            _ => Self::Pieces,
        }
    }

    fn bytes(&self, token: &str) -> Vec<u8> {
        match self {
            Self::ByteLevel(bytes) => token
                .chars()
                .flat_map(|c| match bytes.get(&c) {
                    Some(byte) => vec![*byte],
                    None => c.to_string().into_bytes(),
                })
                .collect(),
            Self::Pieces => {
                let byte = token.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
                match byte.filter(|hex| hex.len() == 2).and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
                    Some(byte) => vec![byte],
                    None => token.replace('\u{2581}', " ").into_bytes(),
                }
            }
        }
    }
}

impl Tokenizer {
    /// Bytes of a token; none for an unknown id.
    pub fn token_bytes(&self, id: u32) -> Vec<u8> {
        let Some(token) = self.inner.id_to_token(id) else { return Vec::new() };
        if self.added.contains_key(&id) { token.into_bytes() } else { self.notation.bytes(&token) }
    }

    /// True for a token that marks something and is no text.
    pub fn is_special(&self, id: u32) -> bool {
        self.added.get(&id).copied().unwrap_or(false)
    }
}

/// GPT-2's names of bytes: printable ones are themselves, the others are characters from U+0100 on.
pub(crate) fn byte_names() -> [char; 256] {
    let mut others = (0x100..).filter_map(char::from_u32);
    std::array::from_fn(|index| match u8::try_from(index) {
        Ok(byte @ (b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF)) => char::from(byte),
        _ => others.next().unwrap_or_default(),
    })
}

fn byte_level() -> HashMap<char, u8> {
    byte_names().into_iter().zip(0..=u8::MAX).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn bytes_of_tokens_make_up_the_text() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let text = "Zürich, 42 % für 東京 and 🦀!";
        for dir in ["../cli/base", "../../tests/fixtures/llama", "../../tests/fixtures/gemma3"] {
            let tokenizer = Tokenizer::from_dir(&root.join(dir)).unwrap();
            let ids = tokenizer.encode(text, false).unwrap();
            let bytes: Vec<u8> = ids.iter().flat_map(|id| tokenizer.token_bytes(*id)).collect();
            let decoded = tokenizer.decode(&ids, false).unwrap();
            assert_eq!(String::from_utf8_lossy(&bytes).trim_start(), decoded.trim_start(), "{dir}");
        }
    }

    #[test]
    fn pieces_are_text_or_bytes() {
        let bytes = |token: &str| Notation::Pieces.bytes(token);
        assert_eq!(bytes("\u{2581}the"), b" the");
        assert_eq!(bytes("<0x0A>"), b"\n");
        assert_eq!(bytes("<0xQQ>"), b"<0xQQ>");
        assert_eq!(byte_level().len(), 256);
    }
}
