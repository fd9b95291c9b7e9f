//! The process's configuration.

use std::time::Duration;

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
    /// Only read what another registry writes, and look for it as often: every 5 seconds if no number is given. At most
    /// one registry of a stage writes; it is the one without this.
    #[arg(
        long = "follow-seconds",
        env = "FIRN_REGISTRY_FOLLOW_SECONDS",
        value_name = "SECONDS",
        num_args = 0..=1,
        default_missing_value = "5",
        value_parser = some_seconds
    )]
    pub follow: Option<Duration>,
    /// Where and how to listen.
    #[command(flatten)]
    pub server: ServerArgs,
    /// What is logged.
    #[command(flatten)]
    pub telemetry: TelemetryArgs,
}

/// More than none: a pause of no length would be a busy loop.
fn some_seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    seconds.filter(|seconds| !seconds.is_zero()).ok_or_else(|| format!("`{text}` must be a number of seconds above 0"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_follower_looks_every_five_seconds_or_as_often_as_it_is_told() {
        let follow = |more: &[&str]| {
            let args = ["firn-model-registry", "--stage", "/stage"].iter().chain(more);
            Config::try_parse_from(args).map(|config| config.follow)
        };
        assert_eq!(follow(&[]).unwrap(), None);
        assert_eq!(follow(&["--follow-seconds"]).unwrap(), Some(Duration::from_secs(5)));
        assert_eq!(follow(&["--follow-seconds", "0.5"]).unwrap(), Some(Duration::from_millis(500)));
        for bad in ["0", "often", "-1", "NaN", "inf"] {
            let error = follow(&[&format!("--follow-seconds={bad}")]).unwrap_err().to_string();
            assert!(error.contains("above 0"), "{error}");
        }
    }

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
