//! Weights as Hugging Face lays them out: safetensors, in one file or in shards with an index.

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use memmap2::Mmap;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

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
    #[error("{} has no tensor {name}", path.display())]
    Missing {
        /// The folder or file.
        path: PathBuf,
        /// The tensor.
        name: String,
    },
    /// A tensor has another shape or type than the configuration says.
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
}

/// Tensors by name, read from mapped files one at a time.
#[derive(Debug)]
pub struct Weights {
    path: PathBuf,
    shards: Vec<(PathBuf, Mmap)>,
    index: HashMap<String, usize>,
}

impl Weights {
    /// Opens `model.safetensors`, or the shards that `model.safetensors.index.json` names, in `dir`.
    ///
    /// # Errors
    /// A file is missing or is no safetensors file.
    pub fn open_dir(dir: &Path) -> Result<Self, WeightsError> {
        let index = dir.join("model.safetensors.index.json");
        if !index.is_file() {
            return Self::open_file(&dir.join("model.safetensors"));
        }
        let fail = |reason: String| WeightsError::File { path: index.clone(), reason };
        let text = std::fs::read_to_string(&index).map_err(|error| fail(error.to_string()))?;
        let value: Value = serde_json::from_str(&text).map_err(|error| fail(error.to_string()))?;
        let map = value["weight_map"].as_object().ok_or_else(|| fail("it has no weight_map".to_owned()))?;
        let mut files: Vec<&str> = map.values().filter_map(Value::as_str).collect();
        files.sort_unstable();
        files.dedup();
        if let Some(name) = files.iter().find(|name| name.contains(['/', '\\'])) {
            return Err(fail(format!("shard name {name:?} leaves the folder")));
        }
        Self::open(dir, &files.iter().map(|name| dir.join(name)).collect::<Vec<_>>())
    }

    /// Opens one file.
    ///
    /// # Errors
    /// The file is missing or is no safetensors file.
    pub fn open_file(path: &Path) -> Result<Self, WeightsError> {
        Self::open(path, &[path.to_path_buf()])
    }

    fn open(path: &Path, files: &[PathBuf]) -> Result<Self, WeightsError> {
        let mut weights = Self { path: path.to_path_buf(), shards: Vec::new(), index: HashMap::new() };
        for file in files {
            let map = map_file(file)?;
            let names = parse(file, &map)?.names().into_iter().map(str::to_owned).collect::<Vec<_>>();
            let shard = weights.shards.len();
            weights.index.extend(names.into_iter().map(|name| (name, shard)));
            weights.shards.push((file.clone(), map));
        }
        Ok(weights)
    }

    /// Names of all tensors, sorted.
    pub fn names(&self) -> Vec<&str> {
        let mut names: Vec<_> = self.index.keys().map(String::as_str).collect();
        names.sort_unstable();
        names
    }

    /// A tensor's values as f32, with its shape.
    ///
    /// # Errors
    /// It is not there, or is not of a float type.
    pub fn read(&self, name: &str) -> Result<(Vec<f32>, Vec<usize>), WeightsError> {
        self.with(name, |view| {
            let values = to_f32(view).ok_or_else(|| WeightsError::Mismatch {
                path: self.path.clone(),
                name: name.to_owned(),
                found: format!("{:?}", view.dtype()),
                expected: "f32, f16 or bf16".to_owned(),
            })?;
            Ok((values, view.shape().to_vec()))
        })
    }

    /// How a tensor is stored: bf16 or, for every other type, f32.
    pub fn stored_type(&self, name: &str) -> StoredType {
        let dtype = self.with(name, |view| Ok(view.dtype()));
        if matches!(dtype, Ok(Dtype::BF16)) { StoredType::Bf16 } else { StoredType::F32 }
    }

    /// A tensor's bytes, whatever their type.
    #[cfg(all(test, feature = "engine"))]
    pub(crate) fn bytes(&self, name: &str) -> Result<Vec<u8>, WeightsError> {
        self.with(name, |view| Ok(view.data().to_vec()))
    }

    fn with<T>(
        &self,
        name: &str,
        read: impl FnOnce(&TensorView<'_>) -> Result<T, WeightsError>,
    ) -> Result<T, WeightsError> {
        let missing = || WeightsError::Missing { path: self.path.clone(), name: name.to_owned() };
        let (file, map) = &self.shards[*self.index.get(name).ok_or_else(missing)?];
        read(&parse(file, map)?.tensor(name).map_err(|_| missing())?)
    }

    /// A tensor's values as f32, checked against its shape.
    ///
    /// # Errors
    /// As [`Weights::read`], or the shape is another.
    pub fn read_shaped(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, WeightsError> {
        let (values, found) = self.read(name)?;
        if found == shape {
            return Ok(values);
        }
        Err(WeightsError::Mismatch {
            path: self.path.clone(),
            name: name.to_owned(),
            found: format!("of shape {found:?}"),
            expected: format!("{shape:?}"),
        })
    }

    /// A tensor's values as f32, checked against its shape, all of them numbers.
    ///
    /// # Errors
    /// As [`Weights::read_shaped`], or a value is not finite.
    pub fn read_finite(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, WeightsError> {
        let values = self.read_shaped(name, shape)?;
        match values.iter().position(|value| !value.is_finite()) {
            None => Ok(values),
            Some(at) => Err(WeightsError::Mismatch {
                path: self.path.clone(),
                name: name.to_owned(),
                found: format!("{} at value {at}", values[at]),
                expected: "finite values".to_owned(),
            }),
        }
    }
}

/// Type of written tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoredType {
    /// 4 bytes.
    F32,
    /// 2 bytes, rounded to nearest even.
    Bf16,
}

/// A tensor to write.
#[derive(Clone, Debug)]
pub struct NamedTensor {
    /// Name in the file.
    pub name: String,
    /// Shape.
    pub shape: Vec<usize>,
    /// Values, row-major.
    pub values: Vec<f32>,
}

/// Writes tensors to one safetensors file, whole, with the metadata that transformers and PEFT expect.
///
/// # Errors
/// The file can't be written.
pub fn write(path: &Path, tensors: &[NamedTensor], stored: StoredType) -> Result<(), WeightsError> {
    let fail = |reason: String| WeightsError::File { path: path.to_path_buf(), reason };
    let bytes: Vec<Vec<u8>> = tensors
        .iter()
        .map(|tensor| match stored {
            StoredType::F32 => tensor.values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            StoredType::Bf16 => tensor.values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect(),
        })
        .collect();
    let dtype = if stored == StoredType::F32 { Dtype::F32 } else { Dtype::BF16 };
    let views = tensors.iter().zip(&bytes).map(|(tensor, bytes)| {
        TensorView::new(dtype, tensor.shape.clone(), bytes).map(|view| (tensor.name.as_str(), view))
    });
    let views = views.collect::<Result<Vec<_>, _>>().map_err(|error| fail(error.to_string()))?;
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    safetensors::serialize_to_file(views, Some(metadata), path).map_err(|error| fail(error.to_string()))
}

#[expect(unsafe_code, reason = "mapping a file: it is a local copy that nothing changes while it is open")]
fn map_file(path: &Path) -> Result<Mmap, WeightsError> {
    let fail = |error: std::io::Error| WeightsError::File { path: path.to_path_buf(), reason: error.to_string() };
    let file = File::open(path).map_err(fail)?;
    // SAFETY: weights are write-once files; Firn never truncates or rewrites one.
    unsafe { Mmap::map(&file) }.map_err(fail)
}

fn parse<'a>(path: &Path, bytes: &'a [u8]) -> Result<SafeTensors<'a>, WeightsError> {
    SafeTensors::deserialize(bytes)
        .map_err(|error| WeightsError::File { path: path.to_path_buf(), reason: error.to_string() })
}

fn to_f32(view: &TensorView<'_>) -> Option<Vec<f32>> {
    let data = view.data();
    let pairs = || data.as_chunks::<2>().0.iter().copied();
    match view.dtype() {
        Dtype::F32 => Some(data.as_chunks::<4>().0.iter().copied().map(f32::from_le_bytes).collect()),
        Dtype::BF16 => Some(pairs().map(|b| bf16::from_le_bytes(b).to_f32()).collect()),
        Dtype::F16 => Some(pairs().map(|b| f16::from_le_bytes(b).to_f32()).collect()),
        _ => None,
    }
}
