//! What can't be used is refused in a sentence that names it, before anything is computed; what can be is read exactly.
#![cfg(feature = "engine")]
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test stops at the first thing that is not as it should be")]

mod adapter;
mod base;
mod config;
mod shards;
mod support;
