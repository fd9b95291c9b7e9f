//! Weights written as transformers and PEFT expect them.

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::Path;

use half::bf16;
use safetensors::{Dtype, View};

use super::WeightsError;

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

/// A tensor whose bytes are made when they are written: one at a time is held twice.
struct Stored<'a>(&'a NamedTensor, StoredType);

impl View for Stored<'_> {
    fn dtype(&self) -> Dtype {
        match self.1 {
            StoredType::F32 => Dtype::F32,
            StoredType::Bf16 => Dtype::BF16,
        }
    }

    fn shape(&self) -> &[usize] {
        &self.0.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let values = self.0.values.iter();
        match self.1 {
            StoredType::F32 => values.flat_map(|v| v.to_le_bytes()).collect(),
            StoredType::Bf16 => values.flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect(),
        }
    }

    fn data_len(&self) -> usize {
        self.0.values.len() * self.dtype().bitsize() / 8
    }
}

/// Writes tensors to one safetensors file, whole, with the metadata that transformers and PEFT expect.
///
/// # Errors
/// The file can't be written, or a tensor's values are not as many as its shape says.
pub fn write(path: &Path, tensors: &[NamedTensor], stored: StoredType) -> Result<(), WeightsError> {
    let fail = |reason: String| WeightsError::File { path: path.to_path_buf(), reason };
    let views = tensors.iter().map(|tensor| (tensor.name.as_str(), Stored(tensor, stored)));
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    safetensors::serialize_to_file(views, Some(metadata), path).map_err(|error| fail(error.to_string()))
}
