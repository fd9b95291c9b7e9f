//! Tensors as kernels see them: contiguous memory of an accelerator.

use std::ops::Range;

use burn::backend::{BackendTensor, DispatchAutodiffContext, DispatchTensor, DispatchTensorKind};
use burn::tensor::{Bytes, DType, Int, Shape, Tensor, TensorData};
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;

use crate::device::BurnDevice;

/// A contiguous tensor on a GPU.
#[derive(Clone, Debug)]
pub(crate) struct Array(pub(super) CubeTensor);

impl Array {
    /// The tensor's memory, copied only where it is not contiguous; `None` for a tensor that lies elsewhere.
    pub(crate) fn of<const D: usize>(tensor: &Tensor<D>) -> Option<Self> {
        match tensor.clone().into_dispatch().kind {
            DispatchTensorKind::Cube(BackendTensor::Float(inner)) => Self::on_cuda(inner),
            _ => None,
        }
    }

    fn on_cuda(inner: CubeTensor) -> Option<Self> {
        matches!(inner.device, cubecl::Device::Cuda(_)).then(|| Self(into_contiguous(inner)))
    }

    /// The same for a tensor of bf16, which is what the kernels compute with.
    pub(crate) fn half<const D: usize>(tensor: &Tensor<D>) -> Option<Self> {
        if tensor.dtype() == DType::BF16 { Self::of(tensor) } else { None }
    }

    /// Whole numbers on the device.
    pub(crate) fn whole(values: Vec<i32>, device: &BurnDevice) -> Option<Self> {
        let count = values.len();
        Self::of_whole(&Tensor::<1, Int>::from_data(TensorData::new(values, [count]), (device, DType::I32)))
    }

    /// Bytes on the device.
    pub(crate) fn bytes(values: Vec<u8>, device: &BurnDevice) -> Option<Self> {
        let count = values.len();
        Self::of_whole(&Tensor::<1, Int>::from_data(TensorData::new(values, [count]), (device, DType::U8)))
    }

    /// The memory of a tensor of whole numbers.
    pub(crate) fn of_whole(tensor: &Tensor<1, Int>) -> Option<Self> {
        match tensor.clone().into_dispatch().kind {
            DispatchTensorKind::Cube(BackendTensor::Int(inner)) => Self::on_cuda(inner),
            _ => None,
        }
    }

    /// Memory beside this array's, not yet written.
    pub(crate) fn empty<const D: usize>(&self, shape: [usize; D], dtype: DType) -> Self {
        let Self(CubeTensor { client, device, .. }) = self;
        Self(empty_device_contiguous_dtype(client.clone(), device.clone(), Shape::new(shape), dtype))
    }

    /// Both lie on one device.
    pub(crate) fn beside(&self, other: &Self) -> bool {
        self.0.device == other.0.device
    }

    /// Where it lies.
    pub(crate) fn device(&self) -> BurnDevice {
        self.clone().tensor::<1>().device()
    }

    /// The same values as a tensor.
    pub(crate) fn tensor<const D: usize>(self) -> Tensor<D> {
        let kind = DispatchTensorKind::Cube(BackendTensor::Float(self.0));
        Tensor::from_dispatch(DispatchTensor { kind, autodiff: DispatchAutodiffContext::Disabled })
    }

    /// Some rows of a matrix, in its memory.
    pub(super) fn rows(&self, range: Range<usize>) -> Self {
        let Self(matrix) = self;
        let [height, width] = self.matrix();
        let row = (width * matrix.dtype.size()) as u64;
        let (before, after) = (range.start as u64 * row, (height - range.end) as u64 * row);
        let handle = matrix.handle.clone().offset_start(before).offset_end(after);
        let (client, device) = (matrix.client.clone(), matrix.device.clone());
        Self(CubeTensor::new_contiguous(client, device, Shape::new([range.len(), width]), handle, matrix.dtype))
    }

    /// Rows and columns of a matrix.
    pub(crate) fn matrix(&self) -> [usize; 2] {
        let shape = self.0.meta.shape();
        [shape[0], shape[1]]
    }

    /// Overwrites an array of whole numbers with as many others.
    pub(crate) fn write(&self, values: Vec<i32>) {
        debug_assert_eq!(values.len(), self.len());
        self.0.client.write(&self.0.handle, Bytes::from_elems(values));
    }

    /// The values of an array of i32, once they are computed. They are those of now: `meanwhile` may launch what overwrites them.
    /// The device's error if it fails.
    pub(crate) fn whole_numbers(&self, meanwhile: impl FnOnce()) -> Result<Vec<i32>, String> {
        let reading = self.0.client.read_async(vec![self.0.handle.clone()]);
        meanwhile();
        let read = cubecl::future::block_on(reading).map_err(|error| error.to_string())?;
        Ok(read.iter().flat_map(|bytes| bytes.as_chunks().0).map(|bytes| i32::from_ne_bytes(*bytes)).collect())
    }

    /// Number of values.
    pub(crate) fn len(&self) -> usize {
        self.0.meta.shape().iter().product()
    }
}
