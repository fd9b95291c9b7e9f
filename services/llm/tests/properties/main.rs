//! Files that nobody wrote: whatever the bytes, a reader answers, and what it opens it reads consistently.
#![cfg(feature = "engine")]
#![expect(clippy::unwrap_used, reason = "a test stops at the first thing that is not as it should be")]

mod damage;
mod texts;
mod weights;
