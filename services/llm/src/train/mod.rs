//! Training: packed blocks in, gradients by an explicit backward, AdamW on one flat buffer.

mod adamw;
mod block;
mod gradients;
mod pack;
pub mod plain;
mod schedule;
mod tuner;

pub use adamw::AdamWConfig;
pub use pack::{Block, Document, pack};
pub use schedule::{Schedule, SchedulerKind};
pub use tuner::{HeldOutLoss, StepReport, Tuner, TunerConfig, held_out_loss};
