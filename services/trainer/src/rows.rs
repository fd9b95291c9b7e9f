//! A snapshot's rows in tokens, read from their files when a step needs them: the rows may be larger than the memory.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use firn_llm::{
    config::ModelConfig,
    train::{Block, Document, assign},
};
use safetensors::{Dtype, SafeTensors, tensor::Metadata};

use crate::dataset::DatasetError;

/// Rows in tokens: one by one, or as preferences, which are two documents each, the chosen answer's first.
#[derive(Debug)]
pub(crate) struct Rows {
    shards: Vec<Shard>,
    documents: Vec<Place>,
    pairs: bool,
}

/// A file, and where in it the tokens and their masks begin.
#[derive(Debug)]
struct Shard {
    path: PathBuf,
    file: File,
    ids: u64,
    mask: u64,
}

/// Where a document is: 16 bytes, for there may be many millions.
#[derive(Clone, Copy, Debug)]
struct Place {
    first: u64,
    tokens: u32,
    shard: u16,
    learns: bool,
}

impl Rows {
    /// Opens the shards of a part, `train` or `held_out`, and checks every row against the model. One shard at a time is
    /// in memory.
    pub(crate) fn open(dir: &Path, part: &'static str, model: &ModelConfig, pairs: bool) -> Result<Self, DatasetError> {
        let unreadable = |error: io::Error| DatasetError::File { path: dir.to_owned(), reason: error.to_string() };
        let mut paths = Vec::new();
        for entry in std::fs::read_dir(dir).map_err(unreadable)? {
            let path = entry.map_err(unreadable)?.path();
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            if name.starts_with(&format!("{part}-")) && name.ends_with(".safetensors") {
                paths.push(path);
            }
        }
        if paths.is_empty() {
            return Err(DatasetError::NoShard { part });
        }
        paths.sort_unstable();
        let mut rows = Self { shards: Vec::new(), documents: Vec::new(), pairs };
        paths.into_iter().try_for_each(|path| rows.add(path, model))?;
        Ok(rows)
    }

    fn add(&mut self, path: PathBuf, model: &ModelConfig) -> Result<(), DatasetError> {
        let file = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let unreadable = |error: io::Error| DatasetError::File { path: path.clone(), reason: error.to_string() };
        let damaged = |reason: String| DatasetError::Damaged { file: file.clone(), reason };
        let bytes = std::fs::read(&path).map_err(unreadable)?;
        let (header, metadata) = SafeTensors::read_metadata(&bytes).map_err(|error| damaged(error.to_string()))?;
        let data = |name: &str, dtype: Dtype| tensor(&bytes, 8 + header, &metadata, name, dtype).map_err(damaged);
        let ((ids_at, ids), (mask_at, mask)) = (data("input_ids", Dtype::U32)?, data("loss_mask", Dtype::U8)?);
        let (_, offsets) = data("row_offsets", Dtype::U64)?;
        let offsets = offsets.as_chunks::<8>().0.iter().map(|bytes| u64::from_le_bytes(*bytes));
        let offsets: Vec<usize> = offsets.map(|offset| usize::try_from(offset).unwrap_or(usize::MAX)).collect();
        let ids = ids.as_chunks::<4>().0;
        let ordered = offsets.is_sorted() && offsets.first() == Some(&0) && offsets.last() == Some(&ids.len());
        if !ordered || mask.len() != ids.len() {
            return Err(damaged("its row_offsets and loss_mask do not fit its input_ids".to_owned()));
        }
        let count = offsets.len() - 1;
        if self.pairs && !count.is_multiple_of(2) {
            return Err(damaged(format!("it has {count} rows, but preferences come in twos")));
        }
        let shard = u16::try_from(self.shards.len()).map_err(|_| damaged("it is one shard too many".to_owned()))?;
        for (row, pair) in offsets.windows(2).enumerate() {
            let (first, tokens, row) = (pair[0], pair[1] - pair[0], row + 1);
            if tokens > model.context {
                return Err(DatasetError::TooLong { file, row, tokens, context: model.context });
            }
            let all = ids[first..pair[1]].iter().map(|bytes| u32::from_le_bytes(*bytes));
            if let Some(id) = all.clone().find(|id| *id as usize >= model.vocab) {
                return Err(DatasetError::UnknownId { file, row, id, vocab: model.vocab });
            }
            let learns = mask[first..pair[1]].iter().skip(1).any(|bit| *bit == 1);
            self.documents.push(Place { first: first as u64, tokens: tokens as u32, shard, learns });
        }
        let opened = File::open(&path).map_err(unreadable)?;
        self.shards.push(Shard { path, file: opened, ids: ids_at as u64, mask: mask_at as u64 });
        Ok(())
    }

    /// Number of rows; a pair is one.
    pub(crate) fn len(&self) -> usize {
        if self.pairs { self.documents.len() / 2 } else { self.documents.len() }
    }

    /// They are preferences.
    pub(crate) fn are_pairs(&self) -> bool {
        self.pairs
    }

    /// Tokens of a row; of a pair, of both answers with their prompts.
    pub(crate) fn tokens(&self, row: usize) -> usize {
        self.places(row).iter().map(|place| place.tokens as usize).sum()
    }

    /// Tokens of the longest row.
    pub(crate) fn longest(&self) -> usize {
        (0..self.len()).map(|row| self.tokens(row)).max().unwrap_or(0)
    }

    /// Tokens of the longest document: attention spans no more.
    pub(crate) fn longest_document(&self) -> usize {
        self.documents.iter().map(|place| place.tokens as usize).max().unwrap_or(0)
    }

    fn places(&self, row: usize) -> &[Place] {
        let each = if self.pairs { 2 } else { 1 };
        self.documents.get(row * each..(row + 1) * each).unwrap_or_default()
    }

    /// Packs rows, in the order given, into blocks of that size; rows without anything to learn are left out.
    pub(crate) fn pack(&self, order: &[u32], block_size: usize) -> Vec<Vec<u32>> {
        let size = |row: &u32| {
            let row = *row as usize;
            self.places(row).iter().all(|place| place.learns).then(|| self.tokens(row))
        };
        let blocks = assign(order.iter().map(size), block_size);
        blocks.into_iter().map(|places| places.into_iter().map(|place| order[place]).collect()).collect()
    }

    /// Reads rows into one block.
    pub(crate) fn block(&self, rows: &[u32]) -> Result<Block, DatasetError> {
        let mut block = Block::default();
        for row in rows {
            for place in self.places(*row as usize) {
                block.push(&self.read(*place)?);
            }
        }
        Ok(block)
    }

    /// Reads the first document of each row into one block: of pairs, the chosen answers.
    pub(crate) fn chosen_block(&self, rows: &[u32]) -> Result<Block, DatasetError> {
        let mut block = Block::default();
        for place in rows.iter().filter_map(|row| self.places(*row as usize).first()) {
            block.push(&self.read(*place)?);
        }
        Ok(block)
    }

    /// Reads a row that is one document.
    pub(crate) fn document(&self, row: u32) -> Result<Document, DatasetError> {
        match self.places(row as usize).first() {
            Some(place) => self.read(*place),
            None => Ok(Document { ids: Vec::new(), loss_mask: Vec::new() }),
        }
    }

    fn read(&self, place: Place) -> Result<Document, DatasetError> {
        let Shard { path, file, ids, mask } = &self.shards[place.shard as usize];
        let failed = |error: io::Error| DatasetError::File { path: path.clone(), reason: error.to_string() };
        let mut bytes = vec![0; 4 * place.tokens as usize];
        file.read_exact_at(&mut bytes, ids + 4 * place.first).map_err(failed)?;
        let mut loss_mask = vec![0; place.tokens as usize];
        file.read_exact_at(&mut loss_mask, mask + place.first).map_err(failed)?;
        Ok(Document { ids: bytes.as_chunks::<4>().0.iter().map(|id| u32::from_le_bytes(*id)).collect(), loss_mask })
    }
}

/// Where a tensor's bytes begin in its file, and the bytes.
fn tensor<'a>(
    bytes: &'a [u8],
    begin: usize,
    metadata: &Metadata,
    name: &str,
    dtype: Dtype,
) -> Result<(usize, &'a [u8]), String> {
    let info = metadata.info(name).ok_or_else(|| format!("it has no tensor {name}"))?;
    if info.dtype != dtype {
        return Err(format!("{name} is {:?}, expected {dtype:?}", info.dtype));
    }
    let (from, to) = (begin + info.data_offsets.0, begin + info.data_offsets.1);
    Ok((from, bytes.get(from..to).ok_or_else(|| format!("{name} ends behind the file's end"))?))
}
