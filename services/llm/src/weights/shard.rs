//! One safetensors file: its header, checked once, and its tensors, read where they lie.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use rayon::prelude::*;
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};

use super::WeightsError;
use super::unique::ByTensor;
use crate::files::{self, MOST_TEXT};

/// Values that are read at once: 1 MiB of them as f32.
const PIECE: usize = 1 << 18;
/// The header's length, which comes before it.
const PREFIX: u64 = 8;

/// An open file. Nothing of it is mapped: a file that shrinks while it is read is an error rather than a signal, and
/// what is held beside a tensor's values is a piece of it a core.
#[derive(Debug)]
pub(super) struct Shard {
    pub(super) path: PathBuf,
    file: File,
    /// Where the tensors begin.
    data: u64,
    metadata: Metadata,
}

impl Shard {
    pub(super) fn open(path: &Path) -> Result<Self, WeightsError> {
        let fail = |reason: String| WeightsError::File { path: path.to_path_buf(), reason };
        let (file, length) = files::open(path).map_err(fail)?;
        let (data, metadata) = read_header(&file, length).map_err(fail)?;
        Ok(Self { path: path.to_path_buf(), file, data, metadata })
    }

    pub(super) fn names(&self) -> Vec<String> {
        self.metadata.offset_keys()
    }

    pub(super) fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.metadata.info(name)
    }

    /// A tensor's values as f32; `None` if it is not of a float type.
    pub(super) fn values(&self, info: &TensorInfo) -> Option<Result<Vec<f32>, WeightsError>> {
        let convert: fn(&[u8], &mut [f32]) = match info.dtype {
            Dtype::F32 => |bytes, values| fill(values, bytes.as_chunks::<4>().0, f32::from_le_bytes),
            Dtype::BF16 => |bytes, values| fill(values, bytes.as_chunks::<2>().0, |b| bf16::from_le_bytes(b).to_f32()),
            Dtype::F16 => |bytes, values| fill(values, bytes.as_chunks::<2>().0, |b| f16::from_le_bytes(b).to_f32()),
            _ => return None,
        };
        Some(self.read(info, convert))
    }

    /// A tensor's values as they are stored; `None` if that is not as bf16.
    pub(super) fn halves(&self, info: &TensorInfo) -> Option<Result<Vec<bf16>, WeightsError>> {
        let convert = |bytes: &[u8], values: &mut [bf16]| fill(values, bytes.as_chunks::<2>().0, bf16::from_le_bytes);
        (info.dtype == Dtype::BF16).then(|| self.read(info, convert))
    }

    /// Reads and converts a tensor in pieces, in parallel.
    fn read<T: Copy + Default + Send>(
        &self,
        info: &TensorInfo,
        convert: impl Fn(&[u8], &mut [T]) + Sync,
    ) -> Result<Vec<T>, WeightsError> {
        let (start, end) = info.data_offsets;
        let width = info.dtype.bitsize() / 8;
        let mut values = vec![T::default(); (end - start) / width];
        values.par_chunks_mut(PIECE).enumerate().try_for_each(|(index, piece)| {
            let mut bytes = vec![0; piece.len() * width];
            self.read_at(&mut bytes, start + index * PIECE * width)?;
            convert(&bytes, piece);
            Ok(())
        })?;
        Ok(values)
    }

    /// A tensor's bytes, whatever their type.
    #[cfg(test)]
    pub(super) fn bytes(&self, info: &TensorInfo) -> Result<Vec<u8>, WeightsError> {
        let (start, end) = info.data_offsets;
        let mut bytes = vec![0; end - start];
        self.read_at(&mut bytes, start).map(|()| bytes)
    }

    fn read_at(&self, bytes: &mut [u8], offset: usize) -> Result<(), WeightsError> {
        self.file
            .read_exact_at(bytes, self.data + offset as u64)
            .map_err(|error| WeightsError::File { path: self.path.clone(), reason: error.to_string() })
    }
}

fn fill<T, const N: usize>(values: &mut [T], bytes: &[[u8; N]], convert: impl Fn([u8; N]) -> T) {
    for (value, bytes) in values.iter_mut().zip(bytes) {
        *value = convert(*bytes);
    }
}

/// Where the tensors begin, and what they are: each as long as its shape and type say, one after the other, to the
/// file's end.
fn read_header(file: &File, length: u64) -> Result<(u64, Metadata), String> {
    let mut start = [0; 64];
    let known = start.len().min(usize::try_from(length).unwrap_or(usize::MAX));
    let (start, _) = start.split_at_mut(known);
    file.read_exact_at(start, 0).map_err(|error| error.to_string())?;
    let Some((size, _)) = start.split_first_chunk() else {
        return Err(format!("it has {length} bytes, too few for a safetensors file: fetch it again"));
    };
    let size = u64::from_le_bytes(*size);
    if size > length - PREFIX || size > MOST_TEXT {
        return Err(bad_size(start, size, length));
    }
    let mut header = vec![0; usize::try_from(size).unwrap_or_default()];
    file.read_exact_at(&mut header, PREFIX).map_err(|error| error.to_string())?;
    let ByTensor::<TensorInfo>(tensors) = serde_json::from_slice(&header)
        .map_err(|error| format!("its header is not that of a safetensors file: {error}"))?;
    let mut tensors: Vec<_> = tensors.into_iter().collect();
    tensors.sort_unstable_by(|(a, left), (b, right)| left.data_offsets.cmp(&right.data_offsets).then(a.cmp(b)));
    tensors.iter().try_for_each(|(name, info)| check_length(name, info))?;
    let metadata = Metadata::new(None, tensors).map_err(|error| format!("its header lies: {error}"))?;
    let (expected, found) = (metadata.data_len() as u64, length - PREFIX - size);
    if expected != found {
        let why = if found < expected { "the file is cut short" } else { "something is appended to the file" };
        return Err(format!(
            "its header says that the tensors take {expected} bytes, but {found} follow it: {why}, fetch it again"
        ));
    }
    Ok((PREFIX + size, metadata))
}

fn check_length(name: &str, info: &TensorInfo) -> Result<(), String> {
    let (start, end) = info.data_offsets;
    let bits = info.shape.iter().try_fold(info.dtype.bitsize(), |bits, width| bits.checked_mul(*width));
    if bits.is_some_and(|bits| bits % 8 == 0 && end.checked_sub(start) == Some(bits / 8)) {
        return Ok(());
    }
    let TensorInfo { dtype, shape, .. } = info;
    Err(format!("its header lies: tensor {name} of type {dtype} and shape {shape:?} can't take bytes {start} to {end}"))
}

/// Why the header's size can't be right: mostly because the file is something else.
fn bad_size(start: &[u8], size: u64, length: u64) -> String {
    if start.starts_with(b"version https://git-lfs") {
        return "it is a Git LFS pointer, not the weights themselves: run `git lfs pull` where it came from".to_owned();
    }
    // A zip archive, as torch.save writes, or a bare pickle of protocol 2 to 5.
    if start.starts_with(b"PK\x03\x04") || matches!(start, [0x80, 2..=5, ..]) {
        return format!("it is no safetensors file but {}", files::foreign("x.bin").unwrap_or_default());
    }
    if size > MOST_TEXT {
        return format!(
            "it says that its header takes {size} bytes, where {MOST_TEXT} are read: it is no safetensors file"
        );
    }
    let rest = length - PREFIX;
    format!("it says that its header takes {size} bytes, but {rest} follow: the file is cut short, fetch it again")
}
