//! BPE by words that were seen before.
//!
//! Byte-level tokenizers cut a text at added tokens, then by patterns into words, and turn each word into tokens by itself.
//! Those that write a space as `▁` cut it at added tokens alone, but as a rule no token goes on over the end of a word
//! ([`Spaces`]). So a word's tokens can be remembered, and only new words go through the merges, which stay the library's.
//! A tokenizer or a text of another kind goes the library's way as a whole.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, TryLockError};

use tokenizers::models::bpe::BPE;
use tokenizers::normalizers::NormalizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::split::SplitPattern;
use tokenizers::{Model as _, ModelWrapper, PostProcessorWrapper, PreTokenizerWrapper, SplitDelimiterBehavior};
use unicode_normalization_alignments::{IsNormalized, is_nfc_quick};

use super::added::Added;
use super::cache::{Cache, Part};
use super::spaces::Spaces;
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
    spelling: Spelling,
    /// Texts must be in Unicode's normal form C, which the tokenizer would put them in.
    composed: bool,
    /// One for each thread that may be at work: a call takes a free one, with one lock a text and none a word.
    caches: Vec<Mutex<Cache>>,
}

/// How the vocabulary spells words, and what a word is.
enum Spelling {
    /// A character a byte.
    Bytes {
        names: Box<[char; 256]>,
        steps: Vec<Step>,
    },
    Spaces(Spaces),
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
        let absent = |affix: &Option<String>| affix.as_deref().is_none_or(str::is_empty);
        let plain = model.dropout.is_none_or(|dropout| dropout == 0.0)
            && absent(&model.continuing_subword_prefix)
            && absent(&model.end_of_word_suffix)
            && tokenizer.get_truncation().is_none()
            && tokenizer.get_padding().is_none()
            && tokenizer.get_post_processor().is_none_or(leaves_tokens);
        if !plain {
            return None;
        }
        let (spelling, composed) = match Spaces::of(tokenizer, model) {
            Some(spaces) => (Spelling::Spaces(spaces), false),
            None => bytes(tokenizer, model)?,
        };
        let added = Added::new(tokenizer)?;
        if matches!(spelling, Spelling::Spaces(_)) && added.looks_in_normalised() {
            return None;
        }
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let this = Self { added, spelling, composed, caches: (0..=threads).map(|_| Mutex::default()).collect() };
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
        if matches!(self.spelling, Spelling::Spaces(_)) && text.contains(Spaces::MARK) {
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
                None => match &self.spelling {
                    Spelling::Bytes { steps, .. } => run.cut(steps, range),
                    Spelling::Spaces(spaces) => run.at_spaces(*spaces, range),
                },
            })
            .ok()?;
        Some(run.pieces)
    }

    /// A word as the vocabulary spells it, and for each byte of that the byte of the word, with one for the end.
    fn spelled(&self, word: &str) -> (String, Vec<usize>) {
        let (mut spelled, mut places) = (String::with_capacity(2 * word.len()), Vec::with_capacity(2 * word.len() + 1));
        match &self.spelling {
            Spelling::Bytes { names, .. } => {
                for (place, byte) in word.bytes().enumerate() {
                    spelled.push(names[usize::from(byte)]);
                    places.resize(spelled.len(), place);
                }
            }
            Spelling::Spaces(_) => {
                for (place, character) in word.char_indices() {
                    if character == ' ' {
                        spelled.push(Spaces::MARK);
                        places.resize(spelled.len(), place);
                    } else {
                        spelled.push(character);
                        places.extend(place..place + character.len_utf8());
                    }
                }
            }
        }
        places.push(word.len());
        (spelled, places)
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
            self.pieces.extend(known.iter().map(|part| part.at(base)));
            return Ok(());
        }
        if word.len() > LONGEST_WORD {
            return Err(Unfit);
        }
        let parts = self.merged(word)?;
        self.pieces.extend(parts.iter().map(|part| part.at(base)));
        self.cache.add(word, parts.into_iter());
        Ok(())
    }

    fn at_spaces(&mut self, spaces: Spaces, range: Range<usize>) -> Result<(), Unfit> {
        let part = &self.text[range.clone()];
        let mut at = 0;
        if spaces.puts_one_before(part, range.start) {
            at = spaces.end(part, 0);
            self.word_after_space(range.start..range.start + at)?;
        }
        while at < part.len() {
            let end = spaces.end(part, at);
            self.word(range.start + at..range.start + end)?;
            at = end;
        }
        Ok(())
    }

    /// A word before which there is a space that the text does not have.
    fn word_after_space(&mut self, range: Range<usize>) -> Result<(), Unfit> {
        let word = format!(" {}", &self.text[range.clone()]);
        if word.len() > LONGEST_WORD {
            return Err(Unfit);
        }
        let known = self.cache.get(&word).map(<[Part]>::to_vec);
        let parts = known.map_or_else(|| self.merged(&word), Ok)?;
        // The space counts as a part of the first character.
        let first = word.chars().nth(1).map_or(0, char::len_utf8);
        self.pieces.extend(parts.iter().map(|part| {
            let (start, end) = (usize::from(part.start).max(1) - 1, usize::from(part.end).saturating_sub(1).max(first));
            piece(part.id, range.start + start, range.start + end)
        }));
        self.cache.add(&word, parts.into_iter());
        Ok(())
    }

    /// Merges a new word.
    fn merged(&self, word: &str) -> Result<Vec<Part>, Unfit> {
        let (spelled, places) = self.words.spelled(word);
        let place = |offset: usize| places.get(offset).copied().ok_or(Unfit);
        let part = |token: tokenizers::Token| {
            let (mut start, mut end) = (place(token.offsets.0)?, place(token.offsets.1)?);
            while !word.is_char_boundary(start) {
                start -= 1;
            }
            while !word.is_char_boundary(end) {
                end += 1;
            }
            // A word's length fits in 16 bits.
            Ok(Part { id: token.id, start: start as u16, end: end as u16 })
        };
        (self.merge)(&spelled)?.into_iter().map(part).collect()
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

impl Part {
    /// The token of a word that begins at this byte of the text.
    fn at(&self, base: u32) -> Piece {
        Piece { id: self.id, start: base + u32::from(self.start), end: base + u32::from(self.end) }
    }
}

/// What a byte-level tokenizer does, and whether texts must be composed for it.
fn bytes(tokenizer: &tokenizers::Tokenizer, model: &BPE) -> Option<(Spelling, bool)> {
    let composed = match tokenizer.get_normalizer() {
        None => false,
        Some(NormalizerWrapper::NFC(_)) => true,
        Some(_) => return None,
    };
    let names = Box::new(byte_names());
    // No byte is unknown, so each has its place in a token.
    let all_known = names.iter().all(|name| model.token_to_id(name.encode_utf8(&mut [0; 4])).is_some());
    if model.byte_fallback || !all_known {
        return None;
    }
    Some((Spelling::Bytes { names, steps: steps(tokenizer.get_pre_tokenizer()?)? }, composed))
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
