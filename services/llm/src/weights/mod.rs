//! Weights as Hugging Face lays them out: safetensors, in one file or in shards with an index.

mod index;
mod shard;
mod unique;
mod write;

use std::collections::HashMap;
use std::fmt::Display;
use std::path::{Path, PathBuf};

use half::bf16;
use rayon::prelude::*;
use safetensors::Dtype;
use safetensors::tensor::TensorInfo;

use crate::files::INDEX;
use shard::Shard;
pub use write::{NamedTensor, StoredType, write};

/// Name of a checkpoint's only weights file.
const FILE: &str = "model.safetensors";
/// Values that one core looks through at a time.
const LOOK: usize = 1 << 16;

/// Why weights could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WeightsError {
    /// The file is missing or can't be read, parsed or written.
    #[error("failed to use {}: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A tensor that the model needs is not there.
    #[error("{} has no tensor {name}, which the configuration asks for", path.display())]
    Missing {
        /// The folder or file.
        path: PathBuf,
        /// The tensor.
        name: String,
    },
    /// A tensor is there that the model would leave out: it would compute something else.
    #[error("{} has a tensor {name}, which the configuration has no place for", path.display())]
    Unexpected {
        /// The folder or file.
        path: PathBuf,
        /// The tensor.
        name: String,
    },
    /// A tensor has another shape or type than the configuration says, or values that are no numbers.
    #[error("tensor {name} in {} is {found}, expected {expected}", path.display())]
    Mismatch {
        /// The folder or file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// What it is.
        found: String,
        /// What it should be.
        expected: String,
    },
    /// There are more or fewer embeddings than ids.
    #[error(
        "tensor {name} in {} has {rows} rows, but vocab_size in config.json is {vocab}: they are of different checkpoints",
        path.display()
    )]
    Vocabulary {
        /// The folder or file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Its rows.
        rows: usize,
        /// Ids of the configuration.
        vocab: usize,
    },
}

/// Tensors by name, in open files whose headers are checked. Reading holds one tensor at a time.
#[derive(Debug)]
pub struct Weights {
    path: PathBuf,
    shards: Vec<Shard>,
    index: HashMap<String, usize>,
}

/// A tensor's values.
#[derive(Debug)]
pub(crate) enum Values {
    F32(Vec<f32>),
    /// As they are stored, for where they stay so.
    Bf16(Vec<bf16>),
}

impl Values {
    pub(crate) fn into_f32(self) -> Vec<f32> {
        match self {
            Self::F32(values) => values,
            Self::Bf16(values) => values.into_par_iter().map(bf16::to_f32).collect(),
        }
    }
}

impl Weights {
    /// Opens `model.safetensors` in `dir`, or else the shards that `model.safetensors.index.json` names.
    ///
    /// # Errors
    /// A file is missing, is no safetensors file, or does not hold what its header or the index says.
    pub fn open_dir(dir: &Path) -> Result<Self, WeightsError> {
        let file = dir.join(FILE);
        // transformers prefers the one file, too.
        if !file.exists() && dir.join(INDEX).exists() {
            return index::open(dir);
        }
        Self::open_file(&file)
    }

    /// Opens one file.
    ///
    /// # Errors
    /// The file is missing, is no safetensors file, or does not hold what its header says.
    pub fn open_file(path: &Path) -> Result<Self, WeightsError> {
        Self::open(path, &[path.to_path_buf()])
    }

    fn open(path: &Path, files: &[PathBuf]) -> Result<Self, WeightsError> {
        let mut weights =
            Self { path: path.to_path_buf(), shards: Vec::with_capacity(files.len()), index: HashMap::new() };
        for file in files {
            let shard = Shard::open(file)?;
            for name in shard.names() {
                if let Some(other) = weights.shard_of(&name) {
                    let reason = format!("tensor {name} is in {}, too: one of them is stale", other.display());
                    return Err(WeightsError::File { path: file.clone(), reason });
                }
                weights.index.insert(name, weights.shards.len());
            }
            weights.shards.push(shard);
        }
        Ok(weights)
    }

    /// Names of all tensors, sorted.
    pub fn names(&self) -> Vec<&str> {
        let mut names: Vec<_> = self.index.keys().map(String::as_str).collect();
        names.sort_unstable();
        names
    }

    /// A tensor's shape.
    pub(crate) fn shape(&self, name: &str) -> Option<&[usize]> {
        self.find(name).map(|(_, info)| info.shape.as_slice())
    }

    /// How a tensor is stored: bf16 or, for every other type, f32.
    pub fn stored_type(&self, name: &str) -> StoredType {
        let bf16 = self.find(name).is_some_and(|(_, info)| info.dtype == Dtype::BF16);
        if bf16 { StoredType::Bf16 } else { StoredType::F32 }
    }

    /// A tensor's values as f32, with its shape.
    ///
    /// # Errors
    /// It is not there, can't be read, or is not of a float type.
    pub fn read(&self, name: &str) -> Result<(Vec<f32>, Vec<usize>), WeightsError> {
        let (shard, info) = self.find(name).ok_or_else(|| self.missing(name))?;
        match shard.values(info) {
            Some(values) => Ok((values?, info.shape.clone())),
            None => Err(self.mismatch(name, format!("of type {}", info.dtype), "f32, f16 or bf16")),
        }
    }

    /// A tensor's values as f32, checked against its shape before they are read.
    ///
    /// # Errors
    /// As [`Weights::read`], or the shape is another.
    pub fn read_shaped(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, WeightsError> {
        self.check_shape(name, shape)?;
        Ok(self.read(name)?.0)
    }

    /// Checks that a tensor is there and of this shape.
    pub(crate) fn check_shape(&self, name: &str, shape: &[usize]) -> Result<(), WeightsError> {
        match self.shape(name) {
            None => Err(self.missing(name)),
            Some(found) if found == shape => Ok(()),
            Some(found) => Err(self.mismatch(name, format!("of shape {found:?}"), &format!("{shape:?}"))),
        }
    }

    /// A tensor's values as f32, checked against its shape, all of them numbers.
    ///
    /// # Errors
    /// As [`Weights::read_shaped`], or a value is not finite.
    pub fn read_finite(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, WeightsError> {
        let values = self.read_shaped(name, shape)?;
        self.check_finite(name, &values, |value| value.is_finite())?;
        Ok(values)
    }

    /// As [`Weights::read_finite`], but bf16 stays what it is.
    pub(crate) fn read_stored(&self, name: &str, shape: &[usize]) -> Result<Values, WeightsError> {
        self.check_shape(name, shape)?;
        let Some(values) = self.find(name).and_then(|(shard, info)| shard.halves(info)) else {
            return Ok(Values::F32(self.read_finite(name, shape)?));
        };
        let values = values?;
        self.check_finite(name, &values, |value| value.is_finite())?;
        Ok(Values::Bf16(values))
    }

    fn check_finite<T: Sync + Display>(
        &self,
        name: &str,
        values: &[T],
        is_finite: impl Fn(&T) -> bool + Sync,
    ) -> Result<(), WeightsError> {
        let strange = values.par_chunks(LOOK).enumerate().find_map_first(|(index, part)| {
            part.iter().position(|value| !is_finite(value)).map(|at| index * LOOK + at)
        });
        let Some(at) = strange else { return Ok(()) };
        let expected = "finite values: the file is damaged, or the training that wrote it diverged";
        Err(self.mismatch(name, format!("{} at value {at}", values[at]), expected))
    }

    /// Refuses a tensor that nothing reads, but would change what is computed, such as a layer too many.
    ///
    /// # Errors
    /// A name begins with `prefix` and is not `expected`.
    pub(crate) fn refuse_others(&self, prefix: &str, expected: impl Fn(&str) -> bool) -> Result<(), WeightsError> {
        match self.names().into_iter().find(|name| name.starts_with(prefix) && !expected(name)) {
            None => Ok(()),
            Some(name) => Err(WeightsError::Unexpected { path: self.path.clone(), name: name.to_owned() }),
        }
    }

    /// Refuses a table of embeddings, if it is there, whose rows are not as many as there are ids.
    pub(crate) fn check_rows(&self, name: &str, vocab: usize) -> Result<(), WeightsError> {
        match self.shape(name) {
            Some(&[rows, _]) if rows != vocab => {
                Err(WeightsError::Vocabulary { path: self.path.clone(), name: name.to_owned(), rows, vocab })
            }
            _ => Ok(()),
        }
    }

    /// A tensor's bytes, whatever their type.
    #[cfg(test)]
    pub(crate) fn bytes(&self, name: &str) -> Result<Vec<u8>, WeightsError> {
        let (shard, info) = self.find(name).ok_or_else(|| self.missing(name))?;
        shard.bytes(info)
    }

    fn find(&self, name: &str) -> Option<(&Shard, &TensorInfo)> {
        let shard = self.shards.get(*self.index.get(name)?)?;
        Some((shard, shard.info(name)?))
    }

    /// File that holds a tensor.
    fn shard_of(&self, name: &str) -> Option<&Path> {
        self.find(name).map(|(shard, _)| shard.path.as_path())
    }

    fn missing(&self, name: &str) -> WeightsError {
        WeightsError::Missing { path: self.path.clone(), name: name.to_owned() }
    }

    fn mismatch(&self, name: &str, found: String, expected: &str) -> WeightsError {
        WeightsError::Mismatch { path: self.path.clone(), name: name.to_owned(), found, expected: expected.to_owned() }
    }
}
