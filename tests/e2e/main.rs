//! What a user does, against real processes.
#![expect(clippy::unwrap_used, reason = "a test stops at the first thing that is not as it should be")]

mod defects;
mod errors;
mod journey;
mod kills;
mod reference;
mod stages;
