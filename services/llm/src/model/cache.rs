//! Keys and values of the tokens that a sequence has seen.

use std::ops::Range;

use burn::tensor::Tensor;

use crate::config::ModelConfig;
use crate::device::Device;

/// Rows by which a cache grows: each growth copies, so it is not one row.
const GROWTH: usize = 128;

/// One sequence's cache: for each layer, keys and values `[capacity, kv_heads · head_dim]`.
#[derive(Debug)]
pub struct KvCache {
    layers: Vec<[Option<Tensor<2>>; 2]>,
    length: usize,
    width: usize,
    device: Device,
}

impl KvCache {
    /// An empty cache.
    pub fn new(config: &ModelConfig, device: &Device) -> Self {
        let layers = (0..config.layers()).map(|_| [None, None]).collect();
        Self { layers, length: 0, width: config.kv_heads * config.head_dim, device: device.clone() }
    }

    /// Tokens seen.
    pub fn len(&self) -> usize {
        self.length
    }

    /// True before the first token.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Adds a layer's rows after those of the tokens seen, and gives all keys and values `[length + rows, width]`.
    pub(crate) fn extend(&mut self, layer: usize, rows: [Tensor<2>; 2]) -> [Tensor<2>; 2] {
        let start = self.length;
        let mut index = 0;
        rows.map(|rows| {
            let added = rows.dims()[0];
            let slot = &mut self.layers[layer][index];
            index += 1;
            let whole = Self::grown(slot.take(), start, start + added, self.width, &self.device);
            let whole = whole.slice_assign([start..start + added, 0..self.width], rows);
            let seen = whole.clone().slice([0..start + added]);
            *slot = Some(whole);
            seen
        })
    }

    /// Counts the rows that every layer was extended by.
    pub(crate) fn advance(&mut self, rows: usize) {
        self.length += rows;
    }

    fn grown(old: Option<Tensor<2>>, length: usize, needed: usize, width: usize, device: &Device) -> Tensor<2> {
        match old {
            Some(tensor) if tensor.dims()[0] >= needed => tensor,
            old => {
                let new = Tensor::zeros([needed.div_ceil(GROWTH) * GROWTH, width], &device.burn);
                let seen: Range<usize> = 0..length;
                match old {
                    Some(tensor) if length > 0 => new.slice_assign([seen.clone(), 0..width], tensor.slice([seen])),
                    _ => new,
                }
            }
        }
    }
}
