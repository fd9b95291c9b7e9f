//! The HTTP door: OpenAI's and vLLM's routes, service functions and the page, in front of the gRPC services.
//!
//! It translates and keeps nothing that lasts: a request becomes calls of services, and what they say becomes JSON or
//! server-sent events; what it remembers of batches, tenants and times is bounded and may be lost. What a service does not do is refused by name. Left unread is bookkeeping of OpenAI's platform alone,
//! which changes no answer: `user` and `metadata`, say. A caller that leaves cancels its call. It listens on this machine
//! alone unless it has a token or is told that something in front checks callers: then Snowflake's ingress may also say
//! whose request it is.
//!
//! ```text
//! connections ─► auth, limits ─► routes ─┬─► completions: ask ─► calls of inference ─► reply: JSON, or events
//!                                        ├─► models, adapters: what can be asked for, and more of it
//!                                        ├─► tokens: text as the model reads it
//!                                        ├─► functions: rows of SQL, in batches
//!                                        ├─► files, votes, datasets ─► data-prep
//!                                        ├─► tuning (OpenAI's shapes), jobs (Firn's own) ─► trainer
//!                                        ├─► versions ─► registry
//!                                        ├─► metrics: the engine's numbers, and its own
//!                                        └─► lists: jobs, models, datasets
//! ```

mod adapters;
mod app;
mod auth;
mod body;
mod completions;
mod config;
mod connections;
mod datasets;
mod error;
mod fields;
mod files;
mod functions;
mod health;
mod jobs;
mod limits;
mod lists;
mod metrics;
mod models;
mod names;
mod newest;
mod page;
mod routes;
mod server;
mod tenant;
mod times;
mod tokens;
mod tuning;
mod versions;
mod votes;

pub use auth::Token;
pub use config::{Config, Options};
pub use error::StartError;
pub use server::Gateway;
