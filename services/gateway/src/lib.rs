//! The HTTP door: OpenAI routes in front of the gRPC services.
//!
//! It translates and holds no state: a request becomes one call of a service, and what the service says becomes JSON or
//! server-sent events. What a service does not do is refused by name, never ignored. A caller that leaves cancels its
//! call. It listens on this machine alone unless it has a token or is told that something in front checks callers.
//!
//! ```text
//! connections ─► auth ─► routes ─┬─► ask ─► inference ─► reply: JSON, or events
//!                                ├─► files, votes, datasets ─► data-prep
//!                                ├─► tuning (OpenAI's shapes), jobs (Firn's own) ─► trainer
//!                                ├─► versions ─► registry
//!                                └─► lists: jobs, models, datasets
//! ```

mod ask;
mod auth;
mod config;
mod connections;
mod datasets;
mod error;
mod fields;
mod files;
mod jobs;
mod lists;
mod newest;
mod reply;
mod routes;
mod server;
mod times;
mod tuning;
mod versions;
mod votes;

pub use auth::Token;
pub use config::{Config, Options};
pub use error::StartError;
pub use server::Gateway;
