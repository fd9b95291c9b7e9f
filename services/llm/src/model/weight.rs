//! A linear layer's weight, dense or quantised.

use std::sync::Arc;

use burn::tensor::Tensor;

use crate::device::Device;
#[cfg(feature = "cuda")]
use crate::ops::cuda::quant::Codes;
use crate::quant::{Quantization, Quantized};
use crate::weights::Values;

/// A matrix `[out, in]`.
#[derive(Clone, Debug)]
pub(crate) enum Weight {
    /// In a box: with CUDA a tensor's handle is ten times as large as the other variant.
    Dense(Box<Tensor<2>>),
    /// Frozen; dequantised for each product and dropped after it.
    Packed(Arc<Packed>),
}

/// A quantised matrix, and where it is computed with.
#[derive(Debug)]
pub(crate) struct Packed {
    values: Arc<Quantized>,
    device: Device,
    /// The same on a GPU, once it was asked for.
    #[cfg(feature = "cuda")]
    codes: std::sync::OnceLock<Option<Codes>>,
}

impl Packed {
    fn dense(&self) -> Tensor<2> {
        #[cfg(feature = "cuda")]
        if self.device.halves()
            && let Some(codes) = self.codes.get_or_init(|| Codes::new(&self.values, &self.device.burn))
        {
            return codes.dequantize();
        }
        self.device.weight(self.values.dequantize(), self.values.shape())
    }
}

impl Weight {
    pub(crate) fn new(values: Values, shape: [usize; 2], how: Quantization, device: &Device) -> Self {
        if how == Quantization::None {
            return Self::dense(device.stored(values, shape));
        }
        let values = values.into_f32();
        match Quantized::new(&values, shape, how) {
            Some(values) => Self::packed(Arc::new(values), device),
            None => Self::dense(device.weight(values, shape)),
        }
    }

    fn packed(values: Arc<Quantized>, device: &Device) -> Self {
        Self::Packed(Arc::new(Packed {
            values,
            device: device.clone(),
            #[cfg(feature = "cuda")]
            codes: std::sync::OnceLock::new(),
        }))
    }

    /// A copy on another device.
    pub(crate) fn on(&self, device: &Device) -> Self {
        match self {
            Self::Dense(tensor) => Self::dense(tensor.as_ref().clone().to_device(&device.burn)),
            Self::Packed(packed) => Self::packed(Arc::clone(&packed.values), device),
        }
    }

    pub(crate) fn dense(tensor: Tensor<2>) -> Self {
        Self::Dense(Box::new(tensor))
    }

    /// The matrix to compute with.
    pub(crate) fn tensor(&self) -> Tensor<2> {
        match self {
            Self::Dense(tensor) => tensor.as_ref().clone(),
            Self::Packed(packed) => packed.dense(),
        }
    }

    /// Bytes that it takes on the device or the host.
    #[cfg(test)]
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Dense(tensor) => 4 * tensor.shape().num_elements(),
            Self::Packed(packed) => packed.values.bytes(),
        }
    }
}
