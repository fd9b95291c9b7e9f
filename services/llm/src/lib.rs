//! Language models for Firn: families, weights, tokenizer, LoRA, losses, decoding.
//!
//! This is the only crate of Firn that knows Burn. Without the feature `engine` it is the tokenizer and the chat
//! template alone, which is what data-prep needs.

#[cfg(feature = "engine")]
pub mod cache;
#[cfg(feature = "engine")]
pub mod check;
#[cfg(feature = "engine")]
pub mod config;
#[cfg(feature = "engine")]
pub mod device;
#[cfg(feature = "engine")]
mod files;
#[cfg(feature = "engine")]
pub mod generate;
#[cfg(any(feature = "cuda", test))]
mod kernels;
#[cfg(feature = "engine")]
pub mod model;
#[cfg(feature = "engine")]
mod ops;
#[cfg(feature = "engine")]
pub mod quant;
#[cfg(feature = "engine")]
mod random;
#[cfg(feature = "engine")]
pub mod scratch;
pub mod template;
mod token_bytes;
pub mod tokenizer;
#[cfg(feature = "engine")]
pub mod train;
#[cfg(feature = "engine")]
pub mod weights;
#[cfg(feature = "engine")]
mod workers;
