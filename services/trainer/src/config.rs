//! Configuration: flags, or environment variables of the same meaning.

use std::{num::NonZeroU64, path::PathBuf, time::Duration};

use firn_kit::{ServerArgs, TelemetryArgs};

use crate::hub::HubOptions;

/// Jobs that may wait, the running one included; one more is refused, so that a caller in a loop can't fill the stage.
pub(crate) const MOST_WAITING: usize = 64;
/// Longest time without an answer of data-prep or the registry: they may be restarted meanwhile.
pub(crate) const ABSENCE: Duration = Duration::from_secs(10 * 60);
/// Longest time for a snapshot: a lost one must not hold the queue for ever.
pub(crate) const SNAPSHOT_TIME: Duration = Duration::from_secs(2 * 60 * 60);
/// Deadline of one call that registers a version: the registry copies the artifact.
pub(crate) const REGISTER_TIME: Duration = Duration::from_secs(10 * 60);
/// Longest wait at shutdown for the running step and its checkpoint, and again for the writes: SPCS kills after 30 seconds.
pub(crate) const STOP_TIME: Duration = Duration::from_secs(10);
/// Checkpoints that are kept of a job: if the last one is damaged, the one before it is there.
pub(crate) const KEPT_CHECKPOINTS: usize = 2;

/// Runs training jobs for Firn.
#[derive(clap::Parser, Clone, Debug)]
#[command(
    name = "firn-trainer",
    version = firn_kit::build_info::VERSION,
    mut_arg("listen", |arg| arg.required(false).default_value("127.0.0.1:7002")),
    mut_arg("health_listen", |arg| arg.default_value("127.0.0.1:7102"))
)]
pub struct Config {
    /// Where and how to listen.
    #[command(flatten)]
    pub server: ServerArgs,
    /// What to log.
    #[command(flatten)]
    pub telemetry: TelemetryArgs,
    /// The stage: a folder that all services share.
    #[arg(long, env = "FIRN_STAGE", value_name = "FOLDER")]
    pub stage: String,
    /// How jobs run.
    #[command(flatten)]
    pub options: Options,
}

/// How jobs run, and whom they call.
#[derive(clap::Args, Clone, Debug)]
pub struct Options {
    /// Where data-prep answers.
    #[arg(long, env = "FIRN_DATA_PREP_ENDPOINT", value_name = "URL", default_value = "http://127.0.0.1:7001")]
    pub data_prep_endpoint: String,
    /// Where the model registry answers.
    #[arg(long, env = "FIRN_REGISTRY_ENDPOINT", value_name = "URL", default_value = "http://127.0.0.1:7003")]
    pub registry_endpoint: String,
    /// Where to compute: auto, cpu, cuda:N, cuda:N:f32, cuda:N-M (GPUs N to M together, for an adapter) or vulkan. A GPU's
    /// compiled kernels are kept in the folder FIRN_KERNEL_CACHE, by default ~/.cache/firn/kernels.
    #[arg(long, env = "FIRN_DEVICE", default_value = "auto")]
    pub device: String,
    /// Local folder for scratch files; one in the temporary folder if not given.
    #[arg(long, env = "FIRN_WORK_DIR", value_name = "FOLDER")]
    pub work_dir: Option<PathBuf>,
    /// Steps from one checkpoint to the next: what a crash costs at most.
    #[arg(long, env = "FIRN_CHECKPOINT_STEPS", default_value = "50")]
    pub checkpoint_steps: NonZeroU64,
    /// How to reach the hub of models.
    #[command(flatten)]
    pub hub: HubOptions,
}

impl Options {
    /// Defaults for everything but the endpoints, such as `http://127.0.0.1:7001`.
    #[must_use]
    pub fn new(data_prep_endpoint: impl Into<String>, registry_endpoint: impl Into<String>) -> Self {
        Self {
            data_prep_endpoint: data_prep_endpoint.into(),
            registry_endpoint: registry_endpoint.into(),
            device: "auto".to_owned(),
            work_dir: None,
            checkpoint_steps: NonZeroU64::MIN.saturating_add(49),
            hub: HubOptions::default(),
        }
    }

    /// The folder for scratch files.
    pub(crate) fn scratch(&self) -> PathBuf {
        self.work_dir.clone().unwrap_or_else(|| std::env::temp_dir().join("firn-trainer"))
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[test]
    fn a_stage_is_all_that_must_be_given() {
        let config = Config::try_parse_from(["firn-trainer", "--stage", "/tmp/stage"]).unwrap();
        assert_eq!(config.server.listen.to_string(), "127.0.0.1:7002");
        assert_eq!(config.server.health_listen.unwrap().to_string(), "127.0.0.1:7102");
        let defaults = Options::new("http://127.0.0.1:7001", "http://127.0.0.1:7003");
        assert_eq!(format!("{:?}", config.options), format!("{defaults:?}"));
        assert_eq!(defaults.checkpoint_steps.get(), 50);
        assert!(Config::try_parse_from(["firn-trainer", "--stage=x", "--checkpoint-steps=0"]).is_err());
    }
}
