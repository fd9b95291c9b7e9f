//! Hand-written kernels for NVIDIA GPUs: CUDA C++ that NVRTC compiles when it is first needed, launched on the stream of
//! Burn's tensors. They take over where tensors are bf16; f32 goes through the plain definitions.
//!
//! Text rather than CubeCL's own language, because that has no way to Hopper's tensor cores (wgmma) with NVRTC.

pub(crate) mod adamw;
pub(crate) mod adapters;
mod array;
pub(crate) mod attention;
mod attention_wgmma;
pub(crate) mod decode;
pub(crate) mod few;
pub(crate) mod glu;
pub(crate) mod graph;
mod launch;
pub(crate) mod linear;
pub(crate) mod loss;
pub(crate) mod matrix;
pub(crate) mod norm;
pub(crate) mod paged;
pub(crate) mod quant;
pub(crate) mod rope;

pub(crate) use array::Array;
