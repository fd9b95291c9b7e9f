//! A linear layer's weight, dense or quantised.

use std::sync::Arc;

use burn::tensor::Tensor;

use crate::device::Device;
use crate::quant::{Quantization, Quantized};

/// A matrix `[out, in]`.
#[derive(Clone, Debug)]
pub(crate) enum Weight {
    /// In a box: with CUDA a tensor's handle is ten times as large as the other variant.
    Dense(Box<Tensor<2>>),
    /// Frozen; dequantised for each product and dropped after it.
    Packed(Arc<Quantized>, Device),
}

impl Weight {
    pub(crate) fn new(values: Vec<f32>, shape: [usize; 2], how: Quantization, device: &Device) -> Self {
        match Quantized::new(&values, shape, how) {
            Some(packed) => Self::Packed(Arc::new(packed), device.clone()),
            None => Self::dense(device.weight(values, shape)),
        }
    }

    pub(crate) fn dense(tensor: Tensor<2>) -> Self {
        Self::Dense(Box::new(tensor))
    }

    /// The matrix to compute with.
    pub(crate) fn tensor(&self) -> Tensor<2> {
        match self {
            Self::Dense(tensor) => tensor.as_ref().clone(),
            Self::Packed(packed, device) => device.weight(packed.dequantize(), packed.shape()),
        }
    }

    /// Bytes that it takes on the device or the host.
    #[cfg(test)]
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Dense(tensor) => 4 * tensor.shape().num_elements(),
            Self::Packed(packed, _) => packed.bytes(),
        }
    }
}
