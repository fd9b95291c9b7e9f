//! Frozen weights in 4 or 8 bits, as bitsandbytes stores them.
//!
//! Only the linear layers of the blocks are quantised: embeddings, norms, biases and the head stay as they are. The
//! arithmetic is always that of the dequantised weights; activations are never quantised.

mod dynamic;
mod nf4;

use std::str::FromStr;

use nf4::Scales;
use rayon::prelude::*;

/// How a base's frozen weights are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Quantization {
    /// As f32.
    #[default]
    None,
    /// A byte a weight, a scale a row (the weights of LLM.int8(), Dettmers et al. 2022).
    Int8,
    /// NF4: four bits a weight, a scale for 64 (QLoRA, Dettmers et al. 2023).
    Int4,
    /// NF4 whose scales are quantised to 8 bits in turn.
    Int4Double,
}

impl FromStr for Quantization {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "none" => Ok(Self::None),
            "int8" => Ok(Self::Int8),
            "int4" => Ok(Self::Int4),
            "int4-double" => Ok(Self::Int4Double),
            other => Err(format!("unknown quantization {other:?}: use none, int8, int4 or int4-double")),
        }
    }
}

/// A quantised matrix.
#[derive(Clone, Debug)]
pub struct Quantized {
    shape: [usize; 2],
    codes: Vec<u8>,
    scales: Kind,
}

#[derive(Clone, Debug)]
enum Kind {
    /// Largest absolute value of each row.
    Rows(Vec<f32>),
    Blocks(Scales),
}

/// Largest absolute values, in f32.
#[cfg(feature = "cuda")]
pub(crate) enum Scaling<'a> {
    /// Of each row, whose codes are bytes with a sign.
    Rows(&'a [f32]),
    /// Of each 64 values, whose codes are NF4.
    Blocks(std::borrow::Cow<'a, [f32]>),
}

impl Quantized {
    /// Quantises a matrix `[out, in]`, row-major; `None` for [`Quantization::None`].
    pub fn new(values: &[f32], shape: [usize; 2], how: Quantization) -> Option<Self> {
        let (codes, scales) = match how {
            Quantization::None => return None,
            Quantization::Int8 => {
                let (codes, rows) = rows_to_bytes(values, shape[1]);
                (codes, Kind::Rows(rows))
            }
            Quantization::Int4 | Quantization::Int4Double => {
                let (codes, absmax) = nf4::quantize(values);
                (codes, Kind::Blocks(Scales::new(absmax, how == Quantization::Int4Double)))
            }
        };
        Some(Self { shape, codes, scales })
    }

    /// Shape `[out, in]`.
    pub fn shape(&self) -> [usize; 2] {
        self.shape
    }

    /// The codes: a byte each, or two to a byte.
    #[cfg(feature = "cuda")]
    pub(crate) fn codes(&self) -> &[u8] {
        &self.codes
    }

    /// What the codes are multiplied by.
    #[cfg(feature = "cuda")]
    pub(crate) fn scaling(&self) -> Scaling<'_> {
        match &self.scales {
            Kind::Rows(rows) => Scaling::Rows(rows),
            Kind::Blocks(scales) => Scaling::Blocks(scales.absmax()),
        }
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.codes.len()
            + match &self.scales {
                Kind::Rows(rows) => 4 * rows.len(),
                Kind::Blocks(scales) => scales.bytes(),
            }
    }

    /// The matrix that the codes stand for.
    pub fn dequantize(&self) -> Vec<f32> {
        match &self.scales {
            Kind::Rows(rows) => {
                let row = |(codes, absmax): (&[u8], &f32)| {
                    let scale = absmax / 127.0;
                    codes.iter().map(|code| f32::from(code.cast_signed()) * scale).collect::<Vec<_>>()
                };
                self.codes.chunks(self.shape[1].max(1)).zip(rows).flat_map(row).collect()
            }
            Kind::Blocks(scales) => nf4::dequantize(&self.codes, &scales.absmax(), self.shape[0] * self.shape[1]),
        }
    }
}

fn rows_to_bytes(values: &[f32], width: usize) -> (Vec<u8>, Vec<f32>) {
    let width = width.max(1);
    let mut codes = vec![0; values.len()];
    let mut scales = vec![0.0; values.len().div_ceil(width)];
    let rows = values.par_chunks(width).zip(codes.par_chunks_mut(width)).zip(&mut scales);
    rows.for_each(|((row, codes), absmax)| {
        *absmax = row.iter().fold(0.0f32, |top, v| top.max(v.abs()));
        let scale = if *absmax > 0.0 { 127.0 / *absmax } else { 0.0 };
        for (code, v) in codes.iter_mut().zip(row) {
            *code = ((v * scale).round_ties_even() as i8).cast_unsigned();
        }
    });
    (codes, scales)
}

#[cfg(test)]
mod tests {
    use super::{Quantization, Quantized, nf4};
    use crate::weights::Weights;

    fn fixture() -> Weights {
        let path = std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/nf4.safetensors"));
        Weights::open_file(path).unwrap()
    }

    #[test]
    fn nf4_is_that_of_bitsandbytes() {
        let fixture = fixture();
        for index in 0..3 {
            let (values, shape) = fixture.read(&format!("w{index}")).unwrap();
            let (codes, absmax) = nf4::quantize(&values);
            assert_eq!(codes, fixture.bytes(&format!("codes{index}")).unwrap(), "codes of w{index}");
            assert_eq!(absmax, fixture.read(&format!("absmax{index}")).unwrap().0, "absmax of w{index}");
            let shape = [shape[0], shape[1]];
            for (how, name) in [(Quantization::Int4, "dequant"), (Quantization::Int4Double, "dequant_double")] {
                let found = Quantized::new(&values, shape, how).unwrap().dequantize();
                let expected = fixture.read(&format!("{name}{index}")).unwrap().0;
                assert_eq!(found.len(), expected.len());
                let worst = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(worst <= 1e-6, "{name}{index}: {worst}");
            }
        }
    }

    #[test]
    fn a_byte_a_weight_is_off_by_half_a_step_at_most() {
        let values: Vec<f32> = (0..96u8).map(|i| (f32::from(i) * 0.7).sin() * f32::from(i / 32 + 1)).collect();
        let packed = Quantized::new(&values, [3, 32], Quantization::Int8).unwrap();
        assert_eq!(packed.bytes(), 96 + 12);
        for (row, (found, expected)) in packed.dequantize().chunks(32).zip(values.chunks(32)).enumerate() {
            let step = expected.iter().fold(0.0f32, |top, v| top.max(v.abs())) / 127.0;
            for (a, b) in found.iter().zip(expected) {
                assert!((a - b).abs() <= step * 0.501, "row {row}: {a} for {b}");
            }
        }
    }

    #[test]
    fn many_tasks_give_what_each_block_alone_does() {
        // More blocks than a task takes, and an odd rest.
        let values: Vec<f32> = (0..100_003u32).map(|i| (i as f32 * 0.37).sin() * (i % 97) as f32).collect();
        let (codes, absmax) = nf4::quantize(&values);
        let blocks: Vec<_> = values.chunks(64).map(nf4::quantize).collect();
        assert_eq!(codes, blocks.iter().flat_map(|(codes, _)| codes.clone()).collect::<Vec<_>>());
        assert_eq!(absmax, blocks.iter().flat_map(|(_, absmax)| absmax.clone()).collect::<Vec<_>>());
        let found = nf4::dequantize(&codes, &absmax, values.len());
        let alone = blocks.iter().zip(values.chunks(64));
        let alone = alone.flat_map(|((codes, absmax), block)| nf4::dequantize(codes, absmax, block.len()));
        assert_eq!(found, alone.collect::<Vec<_>>());
    }

    #[test]
    fn zeros_stay_zeros() {
        for how in [Quantization::Int8, Quantization::Int4, Quantization::Int4Double] {
            let found = Quantized::new(&[0.0; 70], [7, 10], how).unwrap().dequantize();
            assert!(found.iter().all(|v| v.abs() < 1e-12), "{how:?}: {found:?}");
        }
    }
}
