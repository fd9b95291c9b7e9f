//! The process's configuration.

use clap::Parser;
use firn_kit::{ServerArgs, TelemetryArgs};

/// Most writes (registrations and alias moves) at once, those whose caller has gone away included. One more is refused:
/// retries of slow writes must not pile up.
pub(crate) const MAX_WRITES: usize = 64;
/// Alias moves that a watcher may lag behind. One that lags more gets all aliases anew, instead of taking memory.
pub(crate) const WATCH_QUEUE: usize = 256;
/// The largest request in bytes: names and metrics, no artifacts.
pub(crate) const MAX_REQUEST: usize = 1 << 20;
/// The longest `request_id` in bytes: it is kept with the version.
pub(crate) const MAX_REQUEST_ID: usize = 128;

/// Keeps models, versions and aliases on the stage.
#[derive(Parser, Clone, Debug)]
#[command(name = "firn-model-registry", version)]
#[command(mut_arg("listen", |arg| arg.required(false).default_value("127.0.0.1:7003")))]
#[command(mut_arg("health_listen", |arg| arg.default_value("127.0.0.1:7103")))]
pub struct Config {
    /// The stage: a folder, the same for all services.
    #[arg(long, env = "FIRN_STAGE", value_name = "FOLDER")]
    pub stage: String,
    /// Where and how to listen.
    #[command(flatten)]
    pub server: ServerArgs,
    /// What is logged.
    #[command(flatten)]
    pub telemetry: TelemetryArgs,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_stage_must_be_given() {
        let config = Config::try_parse_from(["firn-model-registry", "--stage", "/stage"]).unwrap();
        assert_eq!(config.server.listen.to_string(), "127.0.0.1:7003");
        assert_eq!(config.server.health_listen.unwrap().to_string(), "127.0.0.1:7103");
        let config =
            Config::try_parse_from(["firn-model-registry", "--stage", "/stage", "--listen", "0.0.0.0:1"]).unwrap();
        assert_eq!(config.server.listen.to_string(), "0.0.0.0:1");
        assert!(Config::try_parse_from(["firn-model-registry"]).unwrap_err().to_string().contains("--stage"));
    }
}
