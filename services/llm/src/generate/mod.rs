//! Cached decoding of many sequences in one batch.

mod constraint;
mod greedy;
mod sampling;
mod scorer;
mod sequence;
#[cfg(feature = "cuda")]
mod speaking;

pub use constraint::{Constraint, ConstraintError, Grammars};
pub use greedy::answer_greedily;
pub use sampling::Sampling;
pub use scorer::Scorer;
#[cfg(feature = "cuda")]
pub(crate) use sequence::Next;
pub use sequence::{Part, Sequence, Stepped, Token, step};
