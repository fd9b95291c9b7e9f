//! Documents into blocks.

use std::ops::Range;

/// A tokenised row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// Tokens.
    pub ids: Vec<u32>,
    /// 1 for each token that carries loss when it is predicted.
    pub loss_mask: Vec<u8>,
}

impl Document {
    /// A token carries loss: the first one does not, for nothing predicts it.
    pub fn learns(&self) -> bool {
        self.loss_mask.iter().skip(1).any(|bit| *bit == 1)
    }
}

/// Documents one after another; each attends to itself alone and starts at position 0.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Block {
    pub(crate) ids: Vec<u32>,
    pub(crate) documents: Vec<Range<usize>>,
    pub(crate) positions: Vec<usize>,
    /// Rows that predict a token with loss, and that token.
    pub(crate) rows: Vec<usize>,
    pub(crate) targets: Vec<u32>,
    /// Which of `rows` belong to each document.
    pub(crate) loss_rows: Vec<Range<usize>>,
}

impl Block {
    /// Tokens.
    pub fn tokens(&self) -> usize {
        self.ids.len()
    }

    /// Tokens that carry loss.
    pub fn loss_tokens(&self) -> usize {
        self.targets.len()
    }

    /// The last token of each document.
    pub(crate) fn last_rows(&self) -> Vec<usize> {
        self.documents.iter().map(|document| document.end.saturating_sub(1)).collect()
    }

    /// Blocks one after another as larger ones: at most `most` of them, and with more than one at most `tokens` tokens.
    pub(crate) fn join(blocks: &[Self], most: usize, tokens: usize) -> Vec<Self> {
        let (mut joined, mut parts): (Vec<Self>, usize) = (Vec::new(), 0);
        for block in blocks {
            match joined.last_mut().filter(|last| parts < most && last.tokens() + block.tokens() <= tokens) {
                Some(last) => {
                    last.append(block);
                    parts += 1;
                }
                None => {
                    joined.push(block.clone());
                    parts = 1;
                }
            }
        }
        joined
    }

    fn append(&mut self, other: &Self) {
        let (token, row) = (self.ids.len(), self.rows.len());
        let moved = |range: &Range<usize>, by: usize| range.start + by..range.end + by;
        self.ids.extend_from_slice(&other.ids);
        self.documents.extend(other.documents.iter().map(|range| moved(range, token)));
        self.positions.extend_from_slice(&other.positions);
        self.rows.extend(other.rows.iter().map(|row| row + token));
        self.targets.extend_from_slice(&other.targets);
        self.loss_rows.extend(other.loss_rows.iter().map(|range| moved(range, row)));
    }

    /// Adds a document.
    pub fn push(&mut self, document: &Document) {
        let start = self.ids.len();
        self.ids.extend_from_slice(&document.ids);
        self.documents.push(start..self.ids.len());
        self.positions.extend(0..document.ids.len());
        let first = self.rows.len();
        for at in 1..document.ids.len() {
            if document.loss_mask[at] == 1 {
                self.rows.push(start + at - 1);
                self.targets.push(document.ids[at]);
            }
        }
        self.loss_rows.push(first..self.rows.len());
    }
}

/// A chosen and a rejected answer to one prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    /// Prompt and chosen answer; loss on the answer.
    pub chosen: Document,
    /// Prompt and rejected answer.
    pub rejected: Document,
}

/// Blocks that may still take a document, so that packing stays linear in the number of documents.
const OPEN_BLOCKS: usize = 32;

/// Packs documents, in the order given, each into the first open block with room (first fit). A document longer than a
/// block gets one of its own; empty documents and documents without loss are left out.
pub fn pack<'a>(documents: impl IntoIterator<Item = &'a Document>, block_size: usize) -> Vec<Block> {
    first_fit(documents.into_iter().map(|document| [document]), block_size)
}

/// Packs pairs, as [`pack`] does, a pair's two documents one after the other.
pub fn pack_pairs<'a>(pairs: impl IntoIterator<Item = &'a Pair>, block_size: usize) -> Vec<Block> {
    first_fit(pairs.into_iter().map(|pair| [&pair.chosen, &pair.rejected]), block_size)
}

fn first_fit<'a, const N: usize>(units: impl Iterator<Item = [&'a Document; N]>, block_size: usize) -> Vec<Block> {
    let units: Vec<_> = units.collect();
    let size = |unit: &[&Document; N]| {
        let tokens = unit.iter().map(|document| document.ids.len()).sum();
        unit.iter().all(|document| document.learns()).then_some(tokens)
    };
    let block = |places: Vec<usize>| {
        let mut block = Block::default();
        places.into_iter().flat_map(|place| units[place]).for_each(|document| block.push(document));
        block
    };
    assign(units.iter().map(size), block_size).into_iter().map(block).collect()
}

/// Which block takes what, by sizes alone: the places, in the order given, of what each block holds. What has no size
/// is left out; what is larger than a block gets one of its own.
pub fn assign(sizes: impl IntoIterator<Item = Option<usize>>, block_size: usize) -> Vec<Vec<usize>> {
    let mut blocks: Vec<Vec<usize>> = Vec::new();
    let mut filled: Vec<usize> = Vec::new();
    for (place, size) in sizes.into_iter().enumerate() {
        let Some(size) = size else { continue };
        let open = blocks.len().saturating_sub(OPEN_BLOCKS);
        let at = match filled[open..].iter().position(|filled| filled + size <= block_size) {
            Some(at) => open + at,
            None => {
                blocks.push(Vec::new());
                filled.push(0);
                blocks.len() - 1
            }
        };
        blocks[at].push(place);
        filled[at] += size;
    }
    blocks
}

#[cfg(test)]
mod tests {
    use super::{Document, pack};

    fn document(length: usize) -> Document {
        Document { ids: (0..length as u32).collect(), loss_mask: vec![1; length] }
    }

    #[test]
    fn first_fit_keeps_documents_whole_and_within_blocks() {
        let documents = [6, 5, 4, 3, 12].map(document);
        let blocks = pack(&documents, 10);
        let lengths: Vec<Vec<usize>> = blocks.iter().map(|b| b.documents.iter().map(|d| d.len()).collect()).collect();
        assert_eq!(lengths, [vec![6, 4], vec![5, 3], vec![12]]);
        assert_eq!(blocks[0].positions, [0, 1, 2, 3, 4, 5, 0, 1, 2, 3]);
    }

    #[test]
    fn no_target_crosses_a_document() {
        let documents = [document(3), document(2)];
        let blocks = pack(&documents, 10);
        assert_eq!(blocks[0].rows, [0, 1, 3]);
        assert_eq!(blocks[0].targets, [1, 2, 1]);
    }

    #[test]
    fn a_document_without_loss_is_left_out() {
        let silent = Document { ids: vec![1, 2, 3], loss_mask: vec![1, 0, 0] };
        assert!(pack(&[silent], 10).is_empty());
    }
}
