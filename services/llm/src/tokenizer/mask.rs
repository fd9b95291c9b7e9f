//! Which tokens the assistant says.

use std::ops::Range;

/// 1 for each token that lies in one of the spans, be it with a part.
pub(super) fn mask(tokens: impl Iterator<Item = (usize, usize)>, all: &[Range<usize>]) -> Vec<u8> {
    let (mut spans, mut before) = (all, 0);
    let bit = |(start, end): (usize, usize)| {
        // A span that ends before a token begins ends before the later ones begin, as long as they are in order.
        if start < before {
            spans = all;
        }
        before = start;
        while let Some((_, later)) = spans.split_first().filter(|(span, _)| span.end <= start) {
            spans = later;
        }
        u8::from(spans.iter().any(|span| start < span.end && end > span.start))
    };
    tokens.map(bit).collect()
}

/// Characters before this byte.
pub(super) fn characters(text: &str, byte: usize) -> usize {
    text.get(..byte).map_or(0, |before| before.chars().count())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_a_token_in_a_span_is_enough() {
        let spans = [2..4, 4..4, 6..9];
        let tokens = [(0, 2), (0, 3), (3, 4), (4, 6), (5, 7), (7, 7), (8, 12), (9, 10)];
        assert_eq!(mask(tokens.into_iter(), &spans), [0, 1, 1, 0, 1, 1, 1, 0]);
        assert_eq!(mask([(6, 7), (2, 3), (0, 1)].into_iter(), &spans), [1, 1, 0], "in any order");
        assert_eq!(mask(tokens.into_iter(), &[]), [0; 8]);
        assert_eq!(characters("é.x", 3), 2);
    }
}
