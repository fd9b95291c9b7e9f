//! Rows in tokens, as tensors.

use std::borrow::Cow;

use bytes::Bytes;
use firn_stage::WRITE_CHUNK;
use safetensors::{Dtype, SafeTensorError, View};

use crate::encode::{Encoded, Tokens};

/// The tensors could not be written down.
#[derive(Debug, thiserror::Error)]
#[error("failed to write the tensors: {0}")]
pub(crate) struct ShardError(#[from] SafeTensorError);

/// Rows one after the other: row `i` is `input_ids[row_offsets[i]..row_offsets[i + 1]]`, `loss_mask` likewise. A
/// preference is two such rows, the chosen answer's first.
#[derive(Debug)]
pub(crate) struct Shard {
    /// As they lie in the file, four bytes each: a shard is large, and must not be in memory twice.
    ids: Vec<u8>,
    mask: Vec<u8>,
    offsets: Vec<u64>,
    rows: u64,
}

impl Default for Shard {
    fn default() -> Self {
        Self { ids: Vec::new(), mask: Vec::new(), offsets: vec![0], rows: 0 }
    }
}

impl Shard {
    pub(crate) fn push(&mut self, row: &Encoded) {
        for Tokens { ids, mask } in [&row.tokens].into_iter().chain(&row.rejected) {
            self.ids.reserve(4 * ids.len());
            ids.iter().for_each(|id| self.ids.extend_from_slice(&id.to_le_bytes()));
            self.mask.extend_from_slice(mask);
            self.offsets.push(self.mask.len() as u64);
        }
        self.rows += 1;
    }

    pub(crate) fn rows(&self) -> u64 {
        self.rows
    }

    pub(crate) fn tokens(&self) -> u64 {
        self.mask.len() as u64
    }

    /// Tokens that carry loss.
    pub(crate) fn learnt(&self) -> u64 {
        self.mask.iter().map(|&bit| u64::from(bit)).sum()
    }

    /// The bytes of a safetensors file, in order: `input_ids` u32, `loss_mask` u8, `row_offsets` u64.
    pub(crate) fn into_pieces(self) -> Result<Vec<Bytes>, ShardError> {
        let Self { ids, mask, offsets, .. } = self;
        let (tokens, ends) = (mask.len(), offsets.len());
        let offsets: Vec<u8> = offsets.iter().flat_map(|offset| offset.to_le_bytes()).collect();
        // The format wants the widest type first.
        let tensors = [
            ("row_offsets", Dtype::U64, ends, offsets),
            ("input_ids", Dtype::U32, tokens, ids),
            ("loss_mask", Dtype::U8, tokens, mask),
        ];
        let announced =
            tensors.each_ref().map(|(name, dtype, len, bytes)| (*name, Announced(*dtype, [*len], bytes.len())));
        let mut pieces = vec![Bytes::from(safetensors::serialize(announced, None)?.into_boxed_slice())];
        for (.., bytes) in tensors {
            let mut rest = Bytes::from(bytes);
            while !rest.is_empty() {
                pieces.push(rest.split_to(rest.len().min(WRITE_CHUNK)));
            }
        }
        Ok(pieces)
    }
}

/// Type, shape and size of a tensor whose bytes come later: the library writes its header alone.
struct Announced(Dtype, [usize; 1], usize);

impl View for Announced {
    fn dtype(&self) -> Dtype {
        self.0
    }

    fn shape(&self) -> &[usize] {
        &self.1
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&[])
    }

    fn data_len(&self) -> usize {
        self.2
    }
}

#[cfg(test)]
mod tests {
    use safetensors::{SafeTensors, tensor::TensorView};

    use super::*;

    fn written(shard: Shard) -> Vec<u8> {
        shard.into_pieces().unwrap().concat()
    }

    #[test]
    fn the_bytes_are_the_librarys() {
        let mut shard = Shard::default();
        for row in 1..40 {
            let tokens = Tokens { ids: vec![70_000 + row; row as usize], mask: vec![1; row as usize] };
            shard.push(&Encoded { tokens, ..Encoded::default() });
        }
        let offsets: Vec<u8> = shard.offsets.iter().flat_map(|offset| offset.to_le_bytes()).collect();
        let tensors = [
            ("input_ids", TensorView::new(Dtype::U32, vec![shard.mask.len()], &shard.ids).unwrap()),
            ("loss_mask", TensorView::new(Dtype::U8, vec![shard.mask.len()], &shard.mask).unwrap()),
            ("row_offsets", TensorView::new(Dtype::U64, vec![shard.offsets.len()], &offsets).unwrap()),
        ];
        let expected = safetensors::serialize(tensors, None).unwrap();
        assert!(written(shard) == expected);
    }

    #[test]
    fn rows_come_back() {
        let mut shard = Shard::default();
        let first = Tokens { ids: vec![1, 2, 70_000], mask: vec![0, 1, 1] };
        shard.push(&Encoded { tokens: first, ..Encoded::default() });
        shard.push(&Encoded { tokens: Tokens { ids: vec![9], mask: vec![0] }, ..Encoded::default() });
        assert_eq!((shard.rows(), shard.tokens(), shard.learnt()), (2, 4, 2));
        let bytes = written(shard);
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let ids = file.tensor("input_ids").unwrap();
        assert_eq!((ids.dtype(), ids.shape()), (Dtype::U32, [4].as_slice()));
        assert_eq!(ids.data()[8..12], 70_000u32.to_le_bytes());
        assert_eq!(file.tensor("loss_mask").unwrap().data(), [0, 1, 1, 0]);
        let offsets = file.tensor("row_offsets").unwrap();
        assert_eq!(offsets.shape(), [3]);
        assert_eq!(offsets.data()[8..16], 3u64.to_le_bytes());
    }

    #[test]
    fn no_rows_are_a_file_too() {
        let bytes = written(Shard::default());
        let file = SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(file.tensor("input_ids").unwrap().shape(), [0]);
        assert_eq!(file.tensor("row_offsets").unwrap().data(), [0; 8]);
    }
}
