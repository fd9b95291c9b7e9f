//! Training jobs: queue, state machine, loop, checkpoints, evaluation.
//!
//! A job is a folder on the stage. Its specification is written once; each state it enters is a numbered file before
//! anybody is told of it; checkpoints and step metrics follow at fixed steps. So a service that is killed and started again
//! knows all jobs, and an unfinished one goes on from its last checkpoint to the same bytes.
//!
//! ```text
//! jobs/<job>/spec.json
//! jobs/<job>/state/000001.json …            the last one wins
//! jobs/<job>/steps/000050.jsonl …           metrics of the steps up to that one
//! jobs/<job>/checkpoints/000050/…           optimiser state; the last two are kept
//! jobs/<job>/artifact/…                     what the registry copies
//!
//! rpc ─► queue ─► runner: prepare (data-prep) ─► evaluate ─► train ─► evaluate ─► artifact ─► register (registry)
//! ```
//!
//! One worker runs jobs in the order they came: a second job on the same device would only slow the first. The service
//! alone writes below `jobs/`, and one process of it runs at a time.

mod artifact;
mod base;
mod card;
mod checkpoint;
mod config;
mod dataset;
mod error;
mod evaluate;
mod events;
mod forecast;
pub mod hub;
mod job;
mod merge;
mod plan;
mod prepare;
mod queue;
mod record;
mod register;
mod report;
mod room;
mod rows;
mod rpc;
mod runner;
mod server;
mod spec;
mod train;

pub use config::{Config, Options};
pub use error::StartError;
pub use server::Trainer;
