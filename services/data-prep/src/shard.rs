//! Rows in tokens, as tensors.

use std::path::Path;

use safetensors::{Dtype, SafeTensorError, tensor::TensorView};

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
            self.ids.extend(ids.iter().flat_map(|id| id.to_le_bytes()));
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

    /// Writes a safetensors file: `input_ids` u32, `loss_mask` u8, `row_offsets` u64.
    pub(crate) fn write(&self, path: &Path) -> Result<(), ShardError> {
        let offsets: Vec<u8> = self.offsets.iter().flat_map(|offset| offset.to_le_bytes()).collect();
        let tensors = [
            ("input_ids", TensorView::new(Dtype::U32, vec![self.mask.len()], &self.ids)?),
            ("loss_mask", TensorView::new(Dtype::U8, vec![self.mask.len()], &self.mask)?),
            ("row_offsets", TensorView::new(Dtype::U64, vec![self.offsets.len()], &offsets)?),
        ];
        Ok(safetensors::serialize_to_file(tensors, None, path)?)
    }
}

#[cfg(test)]
mod tests {
    use safetensors::SafeTensors;

    use super::*;

    fn written(shard: &Shard) -> Vec<u8> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("shard");
        shard.write(&path).unwrap();
        std::fs::read(path).unwrap()
    }

    #[test]
    fn rows_come_back() {
        let mut shard = Shard::default();
        let first = Tokens { ids: vec![1, 2, 70_000], mask: vec![0, 1, 1] };
        shard.push(&Encoded { tokens: first, ..Encoded::default() });
        shard.push(&Encoded { tokens: Tokens { ids: vec![9], mask: vec![0] }, ..Encoded::default() });
        assert_eq!((shard.rows(), shard.tokens(), shard.learnt()), (2, 4, 2));
        let bytes = written(&shard);
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
        let bytes = written(&Shard::default());
        let file = SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(file.tensor("input_ids").unwrap().shape(), [0]);
        assert_eq!(file.tensor("row_offsets").unwrap().data(), [0; 8]);
    }
}
