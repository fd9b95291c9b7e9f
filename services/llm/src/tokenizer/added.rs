//! Added tokens inside a text, as the library finds them.

use std::ops::Range;

use aho_corasick::{AhoCorasick, MatchKind};

/// Finds added tokens: first those that are looked for in the text as it is, then, between them, those that are looked for
/// in the normalised text.
pub(super) struct Added {
    levels: Vec<(AhoCorasick, Vec<u32>)>,
    /// Some are looked for in the normalised text.
    in_normalised: bool,
}

impl Added {
    /// None if one of them is found by other rules than its spelling alone.
    pub(super) fn new(tokenizer: &tokenizers::Tokenizer) -> Option<Self> {
        let vocabulary = tokenizer.get_added_vocabulary();
        if vocabulary.get_encode_special_tokens() {
            return None;
        }
        let (mut first, mut second) = ((Vec::new(), Vec::new()), (Vec::new(), Vec::new()));
        for (id, token) in vocabulary.get_added_tokens_decoder() {
            // A normaliser leaves ASCII alone.
            let normalised_apart = token.normalized && !token.content.is_ascii();
            if token.lstrip || token.rstrip || token.single_word || normalised_apart || token.content.is_empty() {
                return None;
            }
            let (texts, ids) = if token.normalized { &mut second } else { &mut first };
            texts.push(token.content.clone());
            ids.push(*id);
        }
        let in_normalised = !second.0.is_empty();
        let finder = |(texts, ids): (Vec<String>, Vec<u32>)| {
            Some((AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(texts).ok()?, ids))
        };
        let levels = [first, second].into_iter().filter(|(texts, _)| !texts.is_empty()).map(finder);
        Some(Self { levels: levels.collect::<Option<_>>()?, in_normalised })
    }

    /// Some tokens are looked for in the normalised text: where that differs from the text, they are not found here.
    pub(super) fn looks_in_normalised(&self) -> bool {
        self.in_normalised
    }

    /// Hands on the parts of a text in order: with its id what is an added token, and what lies between them.
    pub(super) fn parts<E>(
        &self,
        text: &str,
        each: &mut dyn FnMut(Range<usize>, Option<u32>) -> Result<(), E>,
    ) -> Result<(), E> {
        self.level(0, text, 0..text.len(), each)
    }

    fn level<E>(
        &self,
        level: usize,
        text: &str,
        range: Range<usize>,
        each: &mut dyn FnMut(Range<usize>, Option<u32>) -> Result<(), E>,
    ) -> Result<(), E> {
        if range.is_empty() {
            return Ok(());
        }
        let Some((finder, ids)) = self.levels.get(level) else { return each(range, None) };
        let mut at = range.start;
        for found in finder.find_iter(&text[range.clone()]) {
            let (start, end) = (range.start + found.start(), range.start + found.end());
            self.level(level + 1, text, at..start, each)?;
            each(start..end, Some(ids[found.pattern().as_usize()]))?;
            at = end;
        }
        self.level(level + 1, text, at..range.end, each)
    }
}
