//! The patterns by which byte-level tokenizers cut a text into words, by hand: a look at each character, and no
//! backtracking. Tests hold them against the regular expressions themselves.

use std::sync::LazyLock;

use regex_syntax::hir::{Class, HirKind};

/// What GPT-2 and its many heirs use.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
/// What Llama 3 uses.
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// What Qwen 2 and 3 use.
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// A pattern that is known.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Pattern {
    /// Words and numbers take a space before them along.
    Gpt2,
    /// Words take any one character before them along, and numbers have at most so many digits.
    Llama3 { digits: usize },
}

impl Pattern {
    /// The pattern that this regular expression means.
    pub(super) fn of(source: &str) -> Option<Self> {
        match source {
            GPT2 => Some(Self::Gpt2),
            LLAMA3 => Some(Self::Llama3 { digits: 3 }),
            QWEN2 => Some(Self::Llama3 { digits: 1 }),
            _ => None,
        }
    }

    /// Where the word that begins at byte `at` ends. `at` is the start of a character of the text.
    pub(super) fn end(self, text: &str, at: usize) -> usize {
        let scan = Scan { text, classes: &CLASSES };
        match self {
            Self::Gpt2 => scan.gpt2(at),
            Self::Llama3 { digits } => scan.llama3(at, digits),
        }
    }
}

/// What the patterns tell characters apart by.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Kind {
    Other,
    Letter,
    Number,
    /// White space but for the two below.
    Space,
    /// Carriage return and line feed.
    Newline,
}

/// The kind of each character, by the tables that regular expressions use.
static CLASSES: LazyLock<Vec<Kind>> = LazyLock::new(|| {
    let mut kinds = vec![Kind::Other; 1 + char::MAX as usize];
    for (class, kind) in [(r"\p{L}", Kind::Letter), (r"\p{N}", Kind::Number), (r"\s", Kind::Space)] {
        let parsed = regex_syntax::parse(class).map(regex_syntax::hir::Hir::into_kind);
        if let Ok(HirKind::Class(Class::Unicode(class))) = parsed {
            for range in class.ranges() {
                kinds[range.start() as usize..=range.end() as usize].fill(kind);
            }
        }
    }
    kinds[usize::from(b'\r')] = Kind::Newline;
    kinds[usize::from(b'\n')] = Kind::Newline;
    kinds
});

struct Scan<'a> {
    text: &'a str,
    classes: &'static [Kind],
}

impl Scan<'_> {
    /// The kind of the character at this byte, and its length.
    #[inline]
    fn kind(&self, at: usize) -> Option<(Kind, usize)> {
        let first = *self.text.as_bytes().get(at)?;
        if first < 0x80 {
            return Some((self.classes[usize::from(first)], 1));
        }
        let character = self.text[at..].chars().next()?;
        Some((self.classes[character as usize], character.len_utf8()))
    }

    fn is(&self, at: usize, kind: Kind) -> bool {
        self.kind(at).is_some_and(|(found, _)| found == kind)
    }

    /// The end of a run of such characters, which may be empty, of at most so many.
    fn run(&self, mut at: usize, kind: Kind, most: usize) -> usize {
        for _ in 0..most {
            match self.kind(at) {
                Some((found, length)) if found == kind => at += length,
                _ => break,
            }
        }
        at
    }

    fn gpt2(&self, at: usize) -> usize {
        let bytes = self.text.as_bytes();
        if bytes[at] == b'\'' {
            match bytes[at + 1..] {
                [b's' | b't' | b'm' | b'd', ..] => return at + 2,
                [b'r' | b'v', b'e', ..] | [b'l', b'l', ..] => return at + 3,
                _ => {}
            }
        }
        let start = at + usize::from(bytes[at] == b' ');
        match self.kind(start) {
            Some((kind @ (Kind::Letter | Kind::Number | Kind::Other), length)) => {
                self.run(start + length, kind, usize::MAX)
            }
            _ => self.spaces(at).0,
        }
    }

    fn llama3(&self, at: usize, digits: usize) -> usize {
        if let Some(end) = self.any_case_contraction(at) {
            return end;
        }
        let Some((kind, length)) = self.kind(at) else { return at };
        let letters = |start| self.run(start, Kind::Letter, usize::MAX);
        match kind {
            Kind::Letter => return letters(at + length),
            Kind::Number => return self.run(at, Kind::Number, digits),
            Kind::Space | Kind::Other if self.is(at + length, Kind::Letter) => return letters(at + length),
            _ => {}
        }
        let start = at + usize::from(self.text.as_bytes()[at] == b' ');
        if self.is(start, Kind::Other) {
            return self.run(self.run(start, Kind::Other, usize::MAX), Kind::Newline, usize::MAX);
        }
        let (end, after_newline) = self.spaces(at);
        after_newline.unwrap_or(end)
    }

    /// `(?i:'s|'t|'re|'ve|'m|'ll|'d)`; the long s is an s without its case.
    fn any_case_contraction(&self, at: usize) -> Option<usize> {
        let rest = self.text.as_bytes()[at..].strip_prefix(b"'")?;
        match *rest {
            [b's' | b'S' | b't' | b'T' | b'm' | b'M' | b'd' | b'D', ..] => Some(at + 2),
            [b'r' | b'R' | b'v' | b'V', b'e' | b'E', ..] | [b'l' | b'L', b'l' | b'L', ..] => Some(at + 3),
            // U+017F.
            [0xC5, 0xBF, ..] => Some(at + 3),
            _ => None,
        }
    }

    /// White space from here: where `\s+(?!\S)|\s+` ends, which leaves the last character to the word that follows; and
    /// where `\s*[\r\n]+` does, if there is a newline.
    fn spaces(&self, at: usize) -> (usize, Option<usize>) {
        let (mut end, mut last, mut after_newline) = (at, at, None);
        while let Some((kind @ (Kind::Space | Kind::Newline), length)) = self.kind(end) {
            last = end;
            end += length;
            if kind == Kind::Newline {
                after_newline = Some(end);
            }
        }
        let all = end == self.text.len() || last == at;
        (if all { end } else { last }, after_newline)
    }
}
