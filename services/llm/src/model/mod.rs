//! The decoder: one model for every family, described by its configuration.

mod cache;
mod decoder;
mod linear;
mod lora;

pub use cache::KvCache;
pub use decoder::{Decoder, ModelError};
pub(crate) use decoder::{Layer, Run};
pub(crate) use linear::{Linear, LinearGradients};
pub(crate) use lora::LoraPair;
pub use lora::{Adapter, AdapterError, LoraConfig};
