//! Training: packed blocks in, gradients by an explicit backward, AdamW on one flat buffer.

pub(crate) mod adamw;
mod block;
mod dropout;
mod gradients;
mod memory;
mod pack;
pub mod plain;
mod preference;
mod replica;
mod schedule;
mod speed;
mod tuner;

pub use adamw::AdamWConfig;
pub use memory::{Fit, Layout, MemoryEstimate};
pub use pack::{Block, Document, Pair, assign, pack, pack_pairs};
pub use preference::{PairLogs, Preference};
pub use schedule::{Schedule, SchedulerKind};
pub use speed::seconds_per_token;
pub use tuner::{HeldOutLoss, HeldOutPairs, PairReport, StepReport, Tuner, TunerConfig, compare, held_out_loss};

/// What tests train: two layers that a CPU computes in no time.
#[cfg(test)]
fn tiny() -> crate::config::ModelConfig {
    let widths = crate::config::Widths {
        vocab: 31,
        hidden: 16,
        intermediate: 24,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        context: 64,
    };
    crate::config::ModelConfig::llama(widths)
}
