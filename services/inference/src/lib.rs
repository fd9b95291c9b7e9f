//! Serves the base and every adapter from one copy of the weights.
//!
//! One thread, the engine, owns the model. Requests wait in a bounded queue, tenants in turn; at each step the engine admits
//! what fits, and gives each answer that speaks one token and each prompt a piece of its reading, in one batch, whatever
//! adapters they use. Which adapters there are follows the registry's aliases, and what calls have loaded by name: answers
//! that have begun keep what they began with.
//!
//! ```text
//! rpc, oip ─► serving: name, tokens ─► engine: waiting ─► batch ─► reading: text, stop strings ─► stream
//!                      ▲ models
//! registry ─► aliases ─┴─ loader: fetch, check, load ◄─ LoadModel
//! ```
//!
//! A reader that is slow pauses its own answer alone, which gives its place up if somebody waits; one that leaves frees it at
//! the next step. A prompt is never
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
