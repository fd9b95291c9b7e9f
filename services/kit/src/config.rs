//! Command-line sections that every service flattens into its own configuration. Each container has its own env file, so
//! the variables carry no service name.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use clap::{Args as _, FromArgMatches as _};

/// Where and how a service listens. Callers must know the stack's secret where `FIRN_MESH_TOKEN` holds one or
/// `FIRN_MESH_TOKEN_FILE` names its file, and come over TLS with a certificate where `FIRN_TLS_CA`, `FIRN_TLS_CERT` and
/// `FIRN_TLS_KEY` name the service's own.
#[derive(clap::Args, Clone, Debug)]
pub struct ServerArgs {
    /// Address for gRPC.
    #[arg(long, env = "FIRN_LISTEN", value_name = "ADDRESS")]
    pub listen: SocketAddr,
    /// Address for GET /livez and /readyz over HTTP/1.1; none if not given.
    #[arg(long, env = "FIRN_HEALTH_LISTEN", value_name = "ADDRESS")]
    pub health_listen: Option<SocketAddr>,
    /// Seconds that open calls get to finish at shutdown; then they are cut.
    #[arg(long = "grace-seconds", env = "FIRN_GRACE_SECONDS", default_value = "20", value_parser = seconds)]
    pub grace: Duration,
    /// Most calls at once; one more is RESOURCE_EXHAUSTED. Keeps a burst from taking all memory.
    #[arg(long, env = "FIRN_MAX_IN_FLIGHT", default_value_t = 256)]
    pub max_in_flight: usize,
    /// Seconds after which a unary call without a deadline of its own ends.
    #[arg(long = "unary-timeout-seconds", env = "FIRN_UNARY_TIMEOUT_SECONDS", default_value = "30", value_parser = seconds)]
    pub unary_timeout: Duration,
}

impl ServerArgs {
    /// Any free port of 127.0.0.1, no health port, defaults for the rest: for services inside one process and tests.
    #[must_use]
    pub fn loopback() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            health_listen: None,
            grace: Duration::from_secs(20),
            max_in_flight: 256,
            unary_timeout: Duration::from_secs(30),
        }
    }
}

/// What is logged, and how. Traces and metrics are exported where `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`,
/// `OTEL_EXPORTER_OTLP_METRICS_ENDPOINT` or, for both, `OTEL_EXPORTER_OTLP_ENDPOINT` names a collector.
#[derive(clap::Args, Clone, Debug)]
pub struct TelemetryArgs {
    /// Format of log lines.
    #[arg(long, env = "FIRN_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
    /// What to log: a level, or `target=level` pairs separated by commas.
    #[arg(long, env = "FIRN_LOG", default_value = "info", value_name = "FILTER")]
    pub log: String,
    /// How the ids of new traces are made.
    #[arg(long, env = "FIRN_TRACE_IDS", value_enum, default_value_t = TraceIds::Random)]
    pub trace_ids: TraceIds,
}

impl TelemetryArgs {
    /// What the environment says, with another default of what is logged: for a command that has no such flags.
    ///
    /// # Errors
    /// A variable has a value that its flag would not take; the message names both.
    pub fn from_environment(log: &'static str) -> Result<Self, clap::Error> {
        let command = Self::augment_args(clap::Command::new("firn").no_binary_name(true));
        let command = command.mut_arg("log", |arg| arg.default_value(log));
        Self::from_arg_matches(&command.try_get_matches_from(Vec::<String>::new())?)
    }
}

impl Default for TelemetryArgs {
    fn default() -> Self {
        Self { log_format: LogFormat::Text, log: "info".to_owned(), trace_ids: TraceIds::Random }
    }
}

/// Format of log lines on stderr.
#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line of at most 16 KiB, with OpenTelemetry's names, as Snowflake's event table reads it.
    Json,
}

/// How ids of traces are made.
#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum TraceIds {
    /// At random.
    Random,
    /// Beginning with the minute: Snowflake shows no other traces.
    Snowflake,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| format!("`{text}` is not a number of seconds"))?;
    Duration::try_from_secs_f64(seconds).map_err(|_| format!("`{text}` is not a length of time"))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Program {
        #[command(flatten)]
        server: ServerArgs,
        #[command(flatten)]
        telemetry: TelemetryArgs,
    }

    #[test]
    fn defaults_are_those_of_loopback() {
        let program = Program::try_parse_from(["firn", "--listen", "127.0.0.1:0"]).unwrap();
        assert_eq!(format!("{:?}", program.server), format!("{:?}", ServerArgs::loopback()));
        assert_eq!(format!("{:?}", program.telemetry), format!("{:?}", TelemetryArgs::default()));
    }

    #[test]
    fn a_command_without_flags_is_as_quiet_as_it_says() {
        let args = TelemetryArgs::from_environment("error").unwrap();
        assert_eq!((args.log.as_str(), args.log_format, args.trace_ids), ("error", LogFormat::Text, TraceIds::Random));
    }

    #[test]
    fn fractions_of_a_second_parse_and_nonsense_names_itself() {
        let parse = |grace| Program::try_parse_from(["firn", "--listen", "127.0.0.1:0", "--grace-seconds", grace]);
        assert_eq!(parse("0.5").unwrap().server.grace, Duration::from_millis(500));
        for bad in ["soon", "-1", "NaN", "inf"] {
            // `=` keeps clap from taking -1 for a flag.
            let error = Program::try_parse_from(["firn", "--listen=127.0.0.1:0", &format!("--grace-seconds={bad}")]);
            assert!(error.err().unwrap().to_string().contains(bad));
        }
    }
}
