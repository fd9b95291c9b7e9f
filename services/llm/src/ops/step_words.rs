//! Where the inputs of a decoding step on a GPU lie.

use std::ops::Range;

use crate::cache::PAGE_TOKENS;

/// How a step's inputs lie in one array of i32, so that one copy brings them: ids of tokens; how many tokens a row sees, itself
/// included, 0 for a row that only fills the batch up; which of the step's adapters is a row's, or −1; the bits of its scale: each
/// `[rows]`; pages of each row's sequence `[rows, pages]`; slots of the step's adapters in their pool and their ranks, each
/// `[adapters]`, of which not all need be there; how many are; the step's number; whether the step leaves them as the next one has
/// them if all rows go on, with the tokens that it chose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct StepWords {
    pub(crate) rows: usize,
    pub(crate) pages: usize,
    pub(crate) adapters: usize,
}

impl StepWords {
    /// Where the sequences' pages begin.
    pub(crate) fn tables_at(&self) -> usize {
        4 * self.rows
    }

    /// Where the adapters begin.
    pub(crate) fn adapters_at(&self) -> usize {
        self.tables_at() + self.rows * self.pages
    }

    /// Which words behind those of rows a step reads whose rows see so many tokens: pages up to a row's last token, and adapters.
    pub(crate) fn read(&self, lengths: &[i32]) -> impl Iterator<Item = Range<usize>> {
        let table = |(row, length): (usize, &i32)| {
            let begin = self.tables_at() + row * self.pages;
            begin..begin + (*length as usize).div_ceil(PAGE_TOKENS)
        };
        let adapters = self.adapters_at()..self.number_at();
        lengths.iter().enumerate().map(table).chain(std::iter::once(adapters))
    }

    /// Where it is said how many adapters there are.
    pub(crate) fn count_at(&self) -> usize {
        self.adapters_at() + 2 * self.adapters
    }

    /// Where the step's number is.
    pub(crate) fn number_at(&self) -> usize {
        self.count_at() + 1
    }

    /// Where it is said whether the step leaves its inputs as the next one has them.
    pub(crate) fn ahead_at(&self) -> usize {
        self.number_at() + 1
    }

    /// How many words there are.
    pub(crate) fn words(&self) -> usize {
        self.ahead_at() + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WORDS: StepWords = StepWords { rows: 4, pages: 3, adapters: 2 };

    #[test]
    fn parts_follow_each_other_to_the_last_word() {
        let begins = [0, WORDS.tables_at(), WORDS.adapters_at(), WORDS.count_at(), WORDS.number_at(), WORDS.ahead_at()];
        assert_eq!(begins, [0, 16, 28, 32, 33, 34]);
        assert_eq!(WORDS.words(), 35);
    }

    #[test]
    fn a_step_reads_pages_up_to_each_rows_last_token_and_what_adapters_there_are() {
        let page = PAGE_TOKENS as i32;
        let read: Vec<_> = WORDS.read(&[1, page, page + 1, 0]).collect();
        assert_eq!(read, [16..17, 19..20, 22..24, 25..25, 28..33]);
    }
}
