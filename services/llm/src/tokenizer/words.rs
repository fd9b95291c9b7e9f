//! Byte-level BPE by words that were seen before.
//!
//! Such tokenizers cut a text at added tokens, then by patterns into words, and turn each word into tokens by itself. So a
//! word's tokens can be remembered, and only new words go through the merges, which stay the library's. A tokenizer or a
//! text of another kind goes the library's way as a whole.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, TryLockError};

use tokenizers::normalizers::NormalizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::split::SplitPattern;
use tokenizers::{Model as _, ModelWrapper, PostProcessorWrapper, PreTokenizerWrapper, SplitDelimiterBehavior};
use unicode_normalization_alignments::{IsNormalized, is_nfc_quick};

use super::added::Added;
use super::cache::{Cache, Part};
use super::split::Pattern;
use crate::token_bytes::byte_names;

/// Bytes of the longest word that is taken. The library's regular expressions give up on runs of a million characters.
const LONGEST_WORD: usize = 1 << 15;
/// What a new tokenizer must get right before it is trusted with more.
const PROBE: &str = "A test of  it:\n\n don't\u{a0}say 12,345 — “ja”,\t ö\u{1F600}   x \r\n";

/// A token and the bytes of the text that it stands for, widened to whole characters.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Piece {
    pub(super) id: u32,
    pub(super) start: u32,
    pub(super) end: u32,
}

/// Turns texts into tokens by words.
pub(super) struct Words {
    added: Added,
    steps: Vec<Step>,
    /// Texts must be in Unicode's normal form C, which the tokenizer would put them in.
    composed: bool,
    /// One for each thread that may be at work: a call takes a free one, with one lock a text and none a word.
    caches: Vec<Mutex<Cache>>,
    /// How the vocabulary spells each byte.
    names: [char; 256],
}

/// How a text between added tokens is cut.
enum Step {
    /// Apart from all else, each by itself or as they follow one another.
    Digits {
        each: bool,
    },
    Pattern(Pattern),
}

/// The text must go the library's way.
struct Unfit;

impl Words {
    /// None for a tokenizer that is not known to work by words.
    pub(super) fn new(tokenizer: &tokenizers::Tokenizer) -> Option<Self> {
        let ModelWrapper::BPE(model) = tokenizer.get_model() else { return None };
        let composed = match tokenizer.get_normalizer() {
            None => false,
            Some(NormalizerWrapper::NFC(_)) => true,
            Some(_) => return None,
        };
        let absent = |affix: &Option<String>| affix.as_deref().is_none_or(str::is_empty);
        let names = byte_names();
        let plain = model.dropout.is_none_or(|dropout| dropout == 0.0)
            && !model.byte_fallback
            && absent(&model.continuing_subword_prefix)
            && absent(&model.end_of_word_suffix)
            // No byte is unknown, so each has its place in a token.
            && names.iter().all(|name| model.token_to_id(name.encode_utf8(&mut [0; 4])).is_some())
            && tokenizer.get_truncation().is_none()
            && tokenizer.get_padding().is_none()
            && tokenizer.get_post_processor().is_none_or(leaves_tokens);
        if !plain {
            return None;
        }
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let this = Self {
            added: Added::new(tokenizer)?,
            steps: steps(tokenizer.get_pre_tokenizer()?)?,
            composed,
            caches: (0..=threads).map(|_| Mutex::default()).collect(),
            names,
        };
        let expected = tokenizer.encode(PROBE, false).ok()?;
        let found = this.encode(tokenizer, PROBE)?;
        let found = found.iter().map(|piece| (piece.id, (piece.start as usize, piece.end as usize)));
        let expected = expected.get_ids().iter().copied().zip(expected.get_offsets().iter().copied());
        found.eq(expected).then_some(this)
    }

    /// A text's tokens; none if it must go the library's way.
    pub(super) fn encode(&self, tokenizer: &tokenizers::Tokenizer, text: &str) -> Option<Vec<Piece>> {
        let ModelWrapper::BPE(model) = tokenizer.get_model() else { return None };
        if u32::try_from(text.len()).is_err() {
            return None;
        }
        if self.composed && !text.is_ascii() && !matches!(is_nfc_quick(text.chars()), IsNormalized::Yes) {
            return None;
        }
        let merge = |word: &str| model.tokenize(word).map_err(|_| Unfit);
        let mut own = Cache::default();
        let mut shared = self.free_cache();
        let cache = shared.as_deref_mut().unwrap_or(&mut own);
        let mut run = Run { words: self, text, merge: &merge, cache, pieces: Vec::with_capacity(text.len() / 3 + 1) };
        self.added
            .parts(text, &mut |range, id| match id {
                Some(id) => {
                    run.pieces.push(piece(id, range.start, range.end));
                    Ok(())
                }
                None => run.cut(&self.steps, range),
            })
            .ok()?;
        Some(run.pieces)
    }

    /// A cache that no other thread uses now. Each thread begins to look at a place of its own.
    fn free_cache(&self) -> Option<MutexGuard<'_, Cache>> {
        static THREADS: AtomicUsize = AtomicUsize::new(0);
        thread_local!(static PLACE: usize = THREADS.fetch_add(1, Ordering::Relaxed));
        let first = PLACE.with(|place| place % self.caches.len());
        let (later, sooner) = self.caches.split_at(first);
        sooner.iter().chain(later).find_map(|cache| match cache.try_lock() {
            Ok(guard) => Some(guard),
            // A word is entered last, so what is there is whole.
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        })
    }
}

/// One text on its way.
struct Run<'a> {
    words: &'a Words,
    text: &'a str,
    merge: &'a dyn Fn(&str) -> Result<Vec<tokenizers::Token>, Unfit>,
    cache: &'a mut Cache,
    pieces: Vec<Piece>,
}

impl Run<'_> {
    fn cut(&mut self, steps: &[Step], range: Range<usize>) -> Result<(), Unfit> {
        match steps.split_first() {
            None => self.word(range),
            Some((Step::Digits { each }, steps)) => self.digits(*each, steps, range),
            Some((Step::Pattern(pattern), steps)) => {
                let part = &self.text[range.clone()];
                let mut at = 0;
                while at < part.len() {
                    let end = pattern.end(part, at);
                    self.cut(steps, range.start + at..range.start + end)?;
                    at = end;
                }
                Ok(())
            }
        }
    }

    fn digits(&mut self, each: bool, steps: &[Step], range: Range<usize>) -> Result<(), Unfit> {
        let (mut start, mut before) = (range.start, None);
        for (index, character) in self.text[range.clone()].char_indices() {
            let numeric = character.is_numeric();
            if before.is_some_and(|before: bool| before != numeric || (each && numeric)) {
                self.cut(steps, start..range.start + index)?;
                start = range.start + index;
            }
            before = Some(numeric);
        }
        if start < range.end { self.cut(steps, start..range.end) } else { Ok(()) }
    }

    fn word(&mut self, range: Range<usize>) -> Result<(), Unfit> {
        let (word, base) = (&self.text[range.clone()], range.start as u32);
        if let Some(known) = self.cache.get(word) {
            let moved = |part: &Part| Piece {
                id: part.id,
                start: base + u32::from(part.start),
                end: base + u32::from(part.end),
            };
            self.pieces.extend(known.iter().map(moved));
            return Ok(());
        }
        if word.len() > LONGEST_WORD {
            return Err(Unfit);
        }
        let first = self.pieces.len();
        self.new_word(word, range.start)?;
        let part =
            |piece: &Piece| Part { id: piece.id, start: (piece.start - base) as u16, end: (piece.end - base) as u16 };
        self.cache.add(word, self.pieces[first..].iter().map(part));
        Ok(())
    }

    /// Merges a word's bytes.
    fn new_word(&mut self, word: &str, base: usize) -> Result<(), Unfit> {
        let named: String = word.bytes().map(|byte| self.words.names[usize::from(byte)]).collect();
        let (mut bytes, mut seen) = (0, 0);
        for token in (self.merge)(&named)? {
            // A character of the named word is a byte of the word, and tokens follow one another.
            let mut byte_at = |offset: usize| -> Result<usize, Unfit> {
                bytes += named.get(seen..offset).ok_or(Unfit)?.chars().count();
                seen = offset;
                Ok(bytes)
            };
            let (mut start, mut end) = (byte_at(token.offsets.0)?, byte_at(token.offsets.1)?);
            while !word.is_char_boundary(start) {
                start -= 1;
            }
            while !word.is_char_boundary(end) {
                end += 1;
            }
            self.pieces.push(piece(token.id, base + start, base + end));
        }
        Ok(())
    }
}

/// The text's length fits in 32 bits, and so does each place in it.
fn piece(id: u32, start: usize, end: usize) -> Piece {
    Piece { id, start: start as u32, end: end as u32 }
}

/// Without special tokens, a template adds nothing if it names the text once. What trims offsets moves the masks.
fn leaves_tokens(processor: &PostProcessorWrapper) -> bool {
    match processor {
        PostProcessorWrapper::ByteLevel(level) => !level.trim_offsets,
        PostProcessorWrapper::Sequence(list) => list.as_ref().iter().all(leaves_tokens),
        PostProcessorWrapper::Template(template) => {
            let value = serde_json::to_value(template).unwrap_or_default();
            let texts = value["single"].as_array().map(|pieces| {
                let named = pieces.iter().filter_map(|piece| piece["Sequence"]["id"].as_str());
                named.collect::<Vec<_>>()
            });
            texts.is_some_and(|texts| texts == ["A"])
        }
        _ => false,
    }
}

fn steps(pre_tokenizer: &PreTokenizerWrapper) -> Option<Vec<Step>> {
    let (last, others) = match pre_tokenizer {
        PreTokenizerWrapper::Sequence(list) => list.as_ref().split_last()?,
        one => (one, [].as_slice()),
    };
    let PreTokenizerWrapper::ByteLevel(ByteLevel { add_prefix_space: false, use_regex, .. }) = last else {
        return None;
    };
    let step = |step: &PreTokenizerWrapper| match step {
        PreTokenizerWrapper::Digits(digits) => Some(Step::Digits { each: digits.individual_digits }),
        PreTokenizerWrapper::Split(split) if split.behavior == SplitDelimiterBehavior::Isolated && !split.invert => {
            match &split.pattern {
                SplitPattern::Regex(source) => Pattern::of(source).map(Step::Pattern),
                SplitPattern::String(_) => None,
            }
        }
        _ => None,
    };
    others.iter().map(step).chain(use_regex.then_some(Some(Step::Pattern(Pattern::Gpt2)))).collect()
}

#[cfg(test)]
#[path = "words_tests.rs"]
mod tests;
