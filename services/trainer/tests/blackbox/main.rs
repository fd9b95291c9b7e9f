//! The service from outside: over gRPC, with data-prep and the registry beside it, on a stage in a temporary folder.

#![expect(clippy::panic, clippy::unwrap_used, reason = "a test that cannot go on must fail")]

mod house;
mod jobs;
mod measures;
mod pauses;
mod refusals;
mod restarts;
