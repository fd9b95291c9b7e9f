//! Serves the base and every adapter from one copy of the weights.
//!
//! One thread, the engine, owns the model. Requests wait in a bounded queue; at each step the engine admits what fits and
//! advances all open answers by one token in one batch, whatever adapters they use. Which adapters there are follows the
//! registry's aliases: `model@alias` is loaded when the alias moves, and answers that have begun keep what they began
//! with.
//!
//! ```text
//! rpc ─► models: name ─► engine: queue ─► batch ─► tokens ─► answer: text, stop strings ─► stream
//!              ▲
//! registry ─► aliases: watch, fetch, check, load
//! ```
//!
//! A reader that is slow pauses its own answer alone; one that leaves frees its place at the next step. A prompt is never
//! rendered with another template than the adapter was trained with: such an adapter is not served.

mod aliases;
mod answer;
mod base;
mod batch;
mod config;
mod counters;
mod engine;
mod error;
mod job;
mod loader;
mod models;
mod oip;
mod open;
mod reading;
mod request;
mod rpc;
mod server;
mod serving;
mod waiting;

pub use base::BaseError;
pub use config::{Config, Options};
pub use error::{RunError, StartError};
pub use server::Inference;
