//! Quantised weights, made dense for each product.

use burn::tensor::{DType, Tensor};

use super::Array;
use super::launch::{Kernel, Source, real};
use crate::device::BurnDevice;
use crate::ops::tensor;
use crate::quant::{Quantized, Scaling};

const QUANT: Source =
    Source { name: "quant.cu", text: concat!(include_str!("kernels/vector.cuh"), include_str!("kernels/quant.cu")) };

/// A quantised matrix on the device.
#[derive(Clone, Debug)]
pub(crate) struct Codes {
    shape: [usize; 2],
    codes: Array,
    /// Of blocks or of rows.
    scales: Array,
    by_row: bool,
}

impl Codes {
    /// Uploads a matrix; its width must be a multiple of 8.
    pub(crate) fn new(packed: &Quantized, device: &BurnDevice) -> Option<Self> {
        let shape = packed.shape();
        let codes = Array::bytes(packed.codes().to_vec(), device)?;
        let (by_row, scales) = match packed.scaling() {
            Scaling::Rows(rows) => (true, rows.to_vec()),
            Scaling::Blocks(absmax) => (false, absmax.into_owned()),
        };
        let count = scales.len();
        let scales = Array::of(&tensor(scales, [count], device))?;
        shape[1].is_multiple_of(8).then_some(Self { shape, codes, scales, by_row })
    }

    /// The matrix that the codes stand for, bf16.
    pub(crate) fn dequantize(&self) -> Tensor<2> {
        let [rows, width] = self.shape;
        let out = self.scales.empty(self.shape, DType::BF16);
        let arrays = [&self.codes, &self.scales, &out];
        if self.by_row {
            let kernel = Kernel::new(&QUANT, "int8_dequantise", &[], 256, 0);
            kernel.launch([rows, 1, 1], &arrays, &[rows as u64, width as u64]);
        } else {
            let count = rows * width;
            let kernel = Kernel::new(&QUANT, "nf4_dequantise", &[], 256, 0);
            kernel.launch([count.div_ceil(8_192).max(1), 1, 1], &arrays, &[count as u64, real(0.0)]);
        }
        out.tensor()
    }
}
