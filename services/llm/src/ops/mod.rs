//! The operations of a decoder, each with a plain definition that runs on every backend and under autodiff, and where
//! it pays a fused one that works on the CPU's own memory, or kernels for a GPU (`cuda`). Forward and backward are
//! explicit pairs.

pub(crate) mod attention;
pub(crate) mod cross_entropy;
#[cfg(feature = "cuda")]
pub(crate) mod cuda;
pub(crate) mod glu;
mod host;
pub(crate) mod norm;
pub(crate) mod paged;
pub(crate) mod product;
pub(crate) mod rope;
#[cfg(any(feature = "cuda", test))]
pub(crate) mod step_words;

pub(crate) use host::{tensor, to_vec, update, view};
