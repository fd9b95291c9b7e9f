//! Direct access to the memory of tensors that live on the CPU.

use burn::backend::{BackendTensor, DispatchTensorKind, Flex};
use burn::tensor::{DType, Tensor, TensorData};

use crate::device::BurnDevice;

type FlexTensor = <Flex as burn::backend::BackendTypes>::FloatTensorPrimitive;

/// A contiguous f32 tensor on the CPU, readable in place.
pub(crate) struct HostView(FlexTensor);

impl HostView {
    pub(crate) fn slice(&self) -> &[f32] {
        let start = self.0.layout().start_offset();
        &self.0.storage::<f32>()[start..start + self.0.layout().num_elements()]
    }
}

/// The tensor's memory, without a copy if it is contiguous; `None` on any other device and under autodiff.
pub(crate) fn view<const D: usize>(tensor: &Tensor<D>) -> Option<HostView> {
    match tensor.clone().into_dispatch().kind {
        DispatchTensorKind::Flex(BackendTensor::Float(inner)) if inner.dtype() == DType::F32 => {
            Some(HostView(if inner.is_contiguous() { inner } else { inner.to_contiguous() }))
        }
        _ => None,
    }
}

/// The tensor's values, without a copy if nothing else holds it.
pub(crate) fn to_vec<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    let data = tensor.into_data();
    let data = if data.dtype() == DType::F32 { data } else { data.convert::<f32>() };
    match data.try_into_vec::<f32>() {
        Ok(values) => values,
        Err(error) => unreachable!("f32 data converts to f32: {error}"),
    }
}

/// A tensor from values.
pub(crate) fn tensor<const D: usize>(values: Vec<f32>, shape: [usize; D], device: &BurnDevice) -> Tensor<D> {
    Tensor::from_data(TensorData::new(values, shape), device)
}

/// Changes the values in place where the tensor is on the CPU and nothing else holds it.
pub(crate) fn update<const D: usize>(tensor: Tensor<D>, change: impl FnOnce(&mut [f32])) -> Tensor<D> {
    let (shape, device) = (tensor.dims(), tensor.device());
    let mut values = to_vec(tensor);
    change(&mut values);
    self::tensor(values, shape, &device)
}
