//! Cached decoding of many sequences in one batch.

mod sampling;
mod sequence;

pub use sampling::Sampling;
pub use sequence::{Sequence, Token, answer_greedily, step};
