//! Training: packed blocks in, gradients by an explicit backward, AdamW on one flat buffer.

mod adamw;
mod block;
mod gradients;
mod pack;
pub mod plain;
mod preference;
mod schedule;
mod tuner;

pub use adamw::AdamWConfig;
pub use pack::{Block, Document, Pair, pack, pack_pairs, wrap};
pub use preference::{PairLogs, Preference};
pub use schedule::{Schedule, SchedulerKind};
pub use tuner::{HeldOutLoss, PairReport, StepReport, Tuner, TunerConfig, held_out_loss, preferred};
