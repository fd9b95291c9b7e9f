//! Models, versions, aliases, lineage and artifact transfer.
//!
//! A version is a folder on the stage: the files of a finished artifact, copied and checked against their hashes, with
//! `version.json` (where it came from, its metrics) and, last, `manifest.json`. It never changes. An alias such as
//! `production` moves: each move is a record of the model's alias log, and the last one wins. Where a record is damaged, the
//! alias that it moved, or each that it may have moved, is DATA_LOSS until it is set again, and all else goes on.
//!
//! ```text
//! models/<name>/versions/<n>/…, version.json, manifest.json
//! models/<name>/aliases/000001.json, 000002.json, …
//! ```
//!
//! What is in memory is a cache: it is read from the stage at every start. The registry alone writes below `models/`, and
//! one process of it writes at a time. It deletes no version. Where another one writes, a registry can follow it: it reads
//! what is new every few seconds, and refuses writes.

mod catalog;
mod config;
mod error;
mod follow;
mod index;
mod moves;
mod record;
mod rpc;
mod server;

pub use config::Config;
pub use error::Error;
pub use server::Registry;
