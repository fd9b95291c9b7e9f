//! What every service of Firn needs, so that each behaves the same: configuration, telemetry, lifecycle, deadlines,
//! health, channels, statuses, names, pages and clocks.
//!
//! A service parses [`ServerArgs`] and [`TelemetryArgs`], calls [`telemetry::init`], binds a [`GrpcServer`], adds its
//! generated service, says when it is ready through [`Readiness`], and runs until [`shutdown_token`] fires. Its
//! clients go through [`channel()`]. Nothing here knows what any service does.

pub mod build_info;
pub mod clock;
pub mod memory;
pub mod metrics;
pub mod names;
pub mod page;
pub mod status;
pub mod telemetry;
pub mod trace;

mod channel;
mod collector;
mod config;
mod connection;
mod deadline;
mod files;
mod handshake;
mod health;
mod lines;
mod mesh;
mod methods;
mod renewed;
mod retry;
mod rpc;
mod secret;
mod server;
mod shutdown;
mod tls;
mod trace_ids;

pub use channel::{Channel, ChannelError, channel, channel_with};
pub use clock::Clock;
pub use config::{LogFormat, ServerArgs, TelemetryArgs, TraceIds};
pub use files::raise_file_limit;
pub use health::Readiness;
pub use mesh::MeshToken;
pub use names::NameError;
pub use page::PageError;
pub use retry::retry_unavailable;
pub use secret::{Make, Secret, SecretError};
pub use server::{BindError, GrpcServer, ServeError};
pub use shutdown::shutdown_token;
pub use telemetry::{TelemetryError, TelemetryGuard};
pub use tls::{Tls, TlsError, scheme};
