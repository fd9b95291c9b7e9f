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

/// Documents one after another; each attends to itself alone and starts at position 0.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Block {
    pub(crate) ids: Vec<u32>,
    pub(crate) documents: Vec<Range<usize>>,
    pub(crate) positions: Vec<usize>,
    /// Rows that predict a token with loss, and that token.
    pub(crate) rows: Vec<usize>,
    pub(crate) targets: Vec<u32>,
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

    /// Adds a document.
    pub fn push(&mut self, document: &Document) {
        let start = self.ids.len();
        self.ids.extend_from_slice(&document.ids);
        self.documents.push(start..self.ids.len());
        self.positions.extend(0..document.ids.len());
        for at in 1..document.ids.len() {
            if document.loss_mask[at] == 1 {
                self.rows.push(start + at - 1);
                self.targets.push(document.ids[at]);
            }
        }
    }
}

/// Blocks that may still take a document, so that packing stays linear in the number of documents.
const OPEN_BLOCKS: usize = 32;

/// Packs documents, in the order given, each into the first open block with room (first fit). A document longer than a
/// block gets one of its own; empty documents and documents without loss are left out.
pub fn pack<'a>(documents: impl IntoIterator<Item = &'a Document>, block_size: usize) -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    for document in documents {
        if !document.loss_mask.iter().skip(1).any(|bit| *bit == 1) {
            continue;
        }
        let open = blocks.len().saturating_sub(OPEN_BLOCKS);
        let fits = |block: &Block| block.tokens() + document.ids.len() <= block_size;
        match blocks[open..].iter().position(fits) {
            Some(at) => blocks[open + at].push(document),
            None => {
                let mut block = Block::default();
                block.push(document);
                blocks.push(block);
            }
        }
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
