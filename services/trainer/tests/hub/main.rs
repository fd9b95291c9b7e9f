//! Bases from a small hub and a storage host beside it, both on loopback.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on must fail")]

mod fake;
mod house;
mod pulls;
mod refusals;
mod resume;
mod secrets;
