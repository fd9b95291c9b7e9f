//! Rows to checked, templated, tokenised dataset snapshots.
//!
//! A row of CSV, JSON Lines or Parquet files becomes text by a template, and tokens by the base model's own tokenizer and
//! chat template, with a mask that says which tokens are learnt. Some rows are held out by their hashes. All of it is a
//! folder on the stage that counts once its manifest is there, and never changes.
//!
//! ```text
//! file_rpc ─┬─► upload ─► files: inputs/files/<id>/ ─► stage
//!           └─► collections: inputs/collections/<name>/ ─► stage
//! rpc ─► catalog ─► plan: files found, id ─► walk: rows ─► split, then rows ─► template ─► encode ─► snapshot: shards ─► output ─► stage
//!                                             └ pipeline: one thread reads (raw), all work, in order
//! ```
//!
//! A snapshot's id is a hash over everything it depends on, so the same request finds the same snapshot, also after a
//! restart. What fails leaves no manifest, and is forgotten at a restart. Training order and packing are the trainer's.
//!
//! Callers that can't reach the stage store files here, or add rows a few at a time to a collection. Both are sources of
//! snapshots like any other path.

mod catalog;
mod chats;
mod collections;
mod columnar;
mod config;
mod contains;
mod debris;
mod encode;
mod error;
mod fields;
mod file_error;
mod file_rpc;
mod files;
mod lint;
mod output;
mod pipeline;
mod plan;
mod preference;
#[cfg(test)]
mod properties;
mod raw;
mod report;
mod rows;
mod rpc;
mod runs;
mod server;
mod shard;
mod snapshot;
mod source;
mod split;
mod template;
mod upload;
mod walk;

pub use config::{Config, Limits};
pub use contains::{HashedRow, hash_rows};
pub use error::StartError;
pub use lint::{Example, Finding, LintError, LintReport, Severity, Spread, lint};
pub use rows::columns;
pub use server::DataPrep;
