//! Weights written as transformers and PEFT expect them.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::Path;

use half::bf16;
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};

use super::WeightsError;

/// Bytes that are written at once.
const BUFFER: usize = 8 << 20;

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

impl StoredType {
    fn dtype(self) -> Dtype {
        match self {
            Self::F32 => Dtype::F32,
            Self::Bf16 => Dtype::BF16,
        }
    }

    fn encode(self, values: &[f32]) -> Vec<u8> {
        match self {
            Self::F32 => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
            Self::Bf16 => values.iter().flat_map(|value| bf16::from_f32(*value).to_le_bytes()).collect(),
        }
    }
}

/// Writes tensors to one safetensors file, whole, with the metadata that transformers and PEFT expect.
///
/// From the first byte to the last, under its own name: a stage mount takes no rename and no place beyond the end, which
/// the format's own library needs. The bytes of one tensor at a time are held.
///
/// # Errors
/// The file can't be written, or a tensor's values are not as many as its shape says.
pub fn write(path: &Path, tensors: &[NamedTensor], stored: StoredType) -> Result<(), WeightsError> {
    let fail = |reason: String| WeightsError::File { path: path.to_path_buf(), reason };
    // As the library orders tensors of one type.
    let mut tensors: Vec<&NamedTensor> = tensors.iter().collect();
    tensors.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    let header = header(&tensors, stored).map_err(fail)?;
    let write = || -> std::io::Result<()> {
        let mut file = BufWriter::with_capacity(BUFFER, File::create(path)?);
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(&header)?;
        for tensor in &tensors {
            file.write_all(&stored.encode(&tensor.values))?;
        }
        // What closing a file says is lost, so it is said before.
        file.into_inner()?.sync_all()
    };
    write().map_err(|error| fail(error.to_string()))
}

/// The description of the tensors, padded so that their bytes begin at a multiple of 8.
fn header(tensors: &[&NamedTensor], stored: StoredType) -> Result<Vec<u8>, String> {
    let mut end = 0;
    let infos = tensors.iter().map(|tensor| {
        let begin = end;
        end += tensor.values.len() * stored.dtype().bitsize() / 8;
        let info = TensorInfo { dtype: stored.dtype(), shape: tensor.shape.clone(), data_offsets: (begin, end) };
        (tensor.name.clone(), info)
    });
    let about = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let metadata = Metadata::new(Some(about), infos.collect()).map_err(|error| error.to_string())?;
    let mut header = serde_json::to_vec(&metadata).map_err(|error| error.to_string())?;
    header.resize(header.len().next_multiple_of(8), b' ');
    Ok(header)
}

#[cfg(test)]
mod tests {
    use safetensors::tensor::TensorView;

    use super::*;
    use crate::weights::{Values, Weights};

    fn tensor(name: &str, shape: &[usize]) -> NamedTensor {
        let values = (0..shape.iter().product::<usize>()).map(|value| value as f32 / 3.0).collect();
        NamedTensor { name: name.to_owned(), shape: shape.to_vec(), values }
    }

    #[test]
    fn the_bytes_are_those_of_the_formats_own_library() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("w.safetensors");
        let tensors = [tensor("model.b", &[3, 5]), tensor("model.a", &[7]), tensor("lm_head", &[2, 2])];
        for stored in [StoredType::F32, StoredType::Bf16] {
            write(&path, &tensors, stored).unwrap();
            let bytes: Vec<Vec<u8>> = tensors.iter().map(|tensor| stored.encode(&tensor.values)).collect();
            let views = tensors.iter().zip(&bytes).map(|(tensor, bytes)| {
                (&tensor.name, TensorView::new(stored.dtype(), tensor.shape.clone(), bytes).unwrap())
            });
            let about = HashMap::from([("format".to_owned(), "pt".to_owned())]);
            assert!(std::fs::read(&path).unwrap() == safetensors::serialize(views, Some(about)).unwrap(), "{stored:?}");
        }
    }

    #[test]
    fn bf16_may_stay_what_it_is_and_numbers_must_be_there_in_either_case() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("w.safetensors");
        let mut tensors = [tensor("a", &[3, 5])];
        write(&path, &tensors, StoredType::Bf16).unwrap();
        let file = Weights::open_file(&path).unwrap();
        let stored = file.read_stored("a", &[3, 5]).unwrap();
        assert!(matches!(&stored, Values::Bf16(values) if values.len() == 15));
        assert_eq!(stored.into_f32(), file.read_finite("a", &[3, 5]).unwrap());
        assert!(file.read_stored("a", &[5, 3]).is_err());
        tensors[0].values[7] = f32::NAN;
        write(&path, &tensors, StoredType::Bf16).unwrap();
        let error = Weights::open_file(&path).unwrap().read_stored("a", &[3, 5]).unwrap_err().to_string();
        assert!(error.contains("NaN at value 7"), "{error}");
    }

    #[test]
    fn a_tensor_of_another_size_than_its_shape_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let odd = NamedTensor { shape: vec![4], ..tensor("a", &[3]) };
        let path = dir.path().join("w.safetensors");
        assert!(write(&path, &[odd], StoredType::F32).is_err());
        assert!(!path.exists());
    }
}
