//! The decoder: one model for every family, described by its configuration.

#[cfg(any(feature = "cuda", test))]
mod ahead;
mod block;
mod build;
#[cfg(feature = "cuda")]
mod decode;
mod decoder;
mod linear;
mod lora;
mod merge;
#[cfg(feature = "cuda")]
mod step;
mod weight;

pub(crate) use block::{Layer, Linears, Saved};
#[cfg(feature = "cuda")]
pub(crate) use decode::{Speaking, Steps};
pub(crate) use decoder::Run;
pub use decoder::{Decoder, ModelError};
pub(crate) use linear::{Inner, Joint, Linear, LinearGradients};
pub(crate) use lora::LoraPair;
pub use lora::{ADAPTER_FILES, Adapter, AdapterError, LoraConfig};
pub use merge::{MERGE_AGREEMENT, MergeProof, probes, prove};
pub(crate) use weight::Weight;
