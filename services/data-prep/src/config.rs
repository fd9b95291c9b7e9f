//! Configuration: flags, or environment variables of the same meaning.

use firn_kit::{ServerArgs, TelemetryArgs};

/// Prepares dataset snapshots for Firn's trainer.
#[derive(clap::Parser, Clone, Debug)]
#[command(
    name = "firn-data-prep",
    version = firn_kit::build_info::VERSION,
    mut_arg("listen", |arg| arg.required(false).default_value("127.0.0.1:7001")),
    mut_arg("health_listen", |arg| arg.default_value("127.0.0.1:7101"))
)]
pub struct Config {
    /// Where and how to listen.
    #[command(flatten)]
    pub server: ServerArgs,
    /// What to log.
    #[command(flatten)]
    pub telemetry: TelemetryArgs,
    /// The stage: a folder, or memory: for a try.
    #[arg(long, env = "FIRN_STAGE", value_name = "FOLDER")]
    pub stage: String,
    /// Bounds on one snapshot or one stored file.
    #[command(flatten)]
    pub limits: Limits,
}

/// Bounds on what one snapshot or one stored file may take, so that one file cannot take the machine.
#[derive(clap::Args, Clone, Debug, Eq, PartialEq)]
pub struct Limits {
    /// Most rows of a file.
    #[arg(long, env = "FIRN_MAX_ROWS", default_value_t = Limits::default().max_rows)]
    pub max_rows: usize,
    /// Most bytes of a row.
    #[arg(long, env = "FIRN_MAX_ROW_BYTES", default_value_t = Limits::default().max_row_bytes)]
    pub max_row_bytes: usize,
    /// Most bytes of a file.
    #[arg(long, env = "FIRN_MAX_SOURCE_BYTES", default_value_t = Limits::default().max_source_bytes)]
    pub max_source_bytes: u64,
    /// Most tokens of a snapshot; each takes 5 bytes on the disk.
    #[arg(long, env = "FIRN_MAX_SNAPSHOT_TOKENS", default_value_t = Limits::default().max_snapshot_tokens)]
    pub max_snapshot_tokens: u64,
    /// Most bytes of a file that a caller stores.
    #[arg(long, env = "FIRN_MAX_FILE_BYTES", default_value_t = Limits::default().max_file_bytes)]
    pub max_file_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_rows: 100_000_000,
            max_row_bytes: 8 << 20,
            max_source_bytes: 64 << 30,
            max_snapshot_tokens: 16_000_000_000,
            max_file_bytes: 8 << 30,
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[test]
    fn a_stage_is_all_that_must_be_given() {
        let config = Config::try_parse_from(["firn-data-prep", "--stage", "/tmp/stage"]).unwrap();
        assert_eq!(config.server.listen.to_string(), "127.0.0.1:7001");
        assert_eq!(config.server.health_listen.unwrap().to_string(), "127.0.0.1:7101");
        assert_eq!(config.limits, Limits::default());
        let config = Config::try_parse_from(["firn-data-prep", "--stage=x", "--max-rows=5"]).unwrap();
        assert_eq!(config.limits.max_rows, 5);
    }
}
