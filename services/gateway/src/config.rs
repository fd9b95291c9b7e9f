//! Configuration: flags, or environment variables of the same meaning.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use clap::builder::{OsStringValueParser, TypedValueParser};
use firn_kit::TelemetryArgs;

use crate::auth::Token;

/// Firn's HTTP door: OpenAI's and vLLM's routes, Snowflake's service functions, and a page to chat, compare and train on.
#[derive(clap::Parser, Clone, Debug)]
#[command(
    name = "firn-gateway",
    version = firn_kit::build_info::VERSION,
    mut_arg("health_listen", |arg| arg.default_value("127.0.0.1:7105"))
)]
pub struct Config {
    /// What to log.
    #[command(flatten)]
    pub telemetry: TelemetryArgs,
    /// Where to listen, whom to ask and whom to answer.
    #[command(flatten)]
    pub options: Options,
}

/// Where to listen, whom to ask and whom to answer.
#[derive(clap::Args, Clone, Debug)]
pub struct Options {
    /// Address for HTTP.
    #[arg(long, env = "FIRN_HTTP", default_value = "127.0.0.1:8080", value_name = "ADDRESS")]
    pub http: SocketAddr,
    /// Address for GET /livez and /readyz; none if not given.
    #[arg(long, env = "FIRN_HEALTH_LISTEN", value_name = "ADDRESS")]
    pub health_listen: Option<SocketAddr>,
    /// Inference.
    #[arg(long, env = "FIRN_INFERENCE_ENDPOINT", default_value = "http://127.0.0.1:7004", value_name = "URL")]
    pub inference_endpoint: String,
    /// Trainer.
    #[arg(long, env = "FIRN_TRAINER_ENDPOINT", default_value = "http://127.0.0.1:7002", value_name = "URL")]
    pub trainer_endpoint: String,
    /// Model registry.
    #[arg(long, env = "FIRN_REGISTRY_ENDPOINT", default_value = "http://127.0.0.1:7003", value_name = "URL")]
    pub registry_endpoint: String,
    /// Data-prep.
    #[arg(long, env = "FIRN_DATA_PREP_ENDPOINT", default_value = "http://127.0.0.1:7001", value_name = "URL")]
    pub data_prep_endpoint: String,
    /// Largest body of a request in bytes; it is kept in memory.
    #[arg(long, env = "FIRN_MAX_BODY_BYTES", default_value_t = 1 << 20)]
    pub max_body_bytes: usize,
    /// Largest file that is uploaded in bytes; it passes through and is not kept in memory.
    #[arg(long, env = "FIRN_MAX_UPLOAD_BYTES", default_value_t = 1 << 30)]
    pub max_upload_bytes: usize,
    /// What `base` means where a job is asked for: a path on the stage.
    #[arg(long, env = "FIRN_BASE", default_value = "bases/firn/tiny", value_name = "PATH")]
    pub base: String,
    /// Most connections at once; others are answered with 429 and closed.
    #[arg(long, env = "FIRN_MAX_CONNECTIONS", default_value_t = 512)]
    pub max_connections: usize,
    /// Seconds after which an answer ends, however far it is.
    #[arg(long = "answer-timeout-seconds", env = "FIRN_ANSWER_TIMEOUT_SECONDS", default_value = "600", value_parser = seconds)]
    pub answer_timeout: Duration,
    /// Seconds after which a silent stream shows that it is alive: proxies cut one after a minute or less.
    #[arg(long = "heartbeat-seconds", env = "FIRN_HEARTBEAT_SECONDS", default_value = "10", value_parser = some_seconds)]
    pub heartbeat: Duration,
    /// Seconds after which a batch of a service function is answered with 202, to be polled; Snowflake sends it again
    /// after 30.
    #[arg(long = "function-patience-seconds", env = "FIRN_FUNCTION_PATIENCE_SECONDS", default_value = "20", value_parser = seconds)]
    pub function_patience: Duration,
    /// Seconds that open requests get to finish at shutdown; then they are cut.
    #[arg(long = "grace-seconds", env = "FIRN_GRACE_SECONDS", default_value = "20", value_parser = seconds)]
    pub grace: Duration,
    /// Callers of all but the page, health and metrics must send this as `Authorization: Bearer …`.
    #[arg(long, env = "FIRN_GATEWAY_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    pub token: Option<Token>,
    /// File with that token, such as a mounted secret; up to four lines are a token each, so that one can be renewed while
    /// callers still have the one before. It is read again when it changes.
    #[arg(long, env = "FIRN_GATEWAY_TOKEN_FILE", value_name = "FILE", value_parser = path())]
    pub token_file: Option<PathBuf>,
    /// Listen beyond this machine without a token: something in front checks callers.
    #[arg(long, env = "FIRN_NO_AUTH", value_parser = clap::builder::BoolishValueParser::new())]
    pub no_auth: bool,
    /// Take the user whom Snowflake's ingress names (`Sf-Context-Current-User`) as the caller, and ask for no token. Only
    /// where that ingress is the single way in: anyone who gets here otherwise can write any name.
    #[arg(long, env = "FIRN_TRUST_INGRESS_USER", value_parser = clap::builder::BoolishValueParser::new())]
    pub trust_ingress_user: bool,
    /// Most requests of a caller (a user whom the ingress names, or all that share the token) a minute; 0: no limit.
    /// Reading with GET is not counted.
    #[arg(long, env = "FIRN_REQUESTS_PER_MINUTE", default_value_t = 0)]
    pub requests_per_minute: u32,
}

impl Default for Options {
    /// As the flags' defaults say, without a health port.
    fn default() -> Self {
        Self {
            http: SocketAddr::from((Ipv4Addr::LOCALHOST, 8080)),
            health_listen: None,
            inference_endpoint: "http://127.0.0.1:7004".to_owned(),
            trainer_endpoint: "http://127.0.0.1:7002".to_owned(),
            registry_endpoint: "http://127.0.0.1:7003".to_owned(),
            data_prep_endpoint: "http://127.0.0.1:7001".to_owned(),
            max_body_bytes: 1 << 20,
            max_upload_bytes: 1 << 30,
            base: "bases/firn/tiny".to_owned(),
            max_connections: 512,
            answer_timeout: Duration::from_secs(600),
            heartbeat: Duration::from_secs(10),
            function_patience: Duration::from_secs(20),
            grace: Duration::from_secs(20),
            token: None,
            token_file: None,
            no_auth: false,
            trust_ingress_user: false,
            requests_per_minute: 0,
        }
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| format!("`{text}` is not a number of seconds"))?;
    Duration::try_from_secs_f64(seconds).map_err(|_| format!("`{text}` is not a length of time"))
}

/// An empty path is like none, as an empty token is: so are variables that a composition passes on.
fn path() -> impl TypedValueParser<Value = PathBuf> {
    OsStringValueParser::new().map(PathBuf::from)
}

/// More than none: a pause of no length would be a busy loop.
fn some_seconds(text: &str) -> Result<Duration, String> {
    match seconds(text)? {
        Duration::ZERO => Err(format!("`{text}` must be more than 0")),
        time => Ok(time),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[test]
    fn nothing_must_be_given() {
        let config = Config::try_parse_from(["firn-gateway"]).unwrap();
        assert_eq!(config.options.health_listen.unwrap().to_string(), "127.0.0.1:7105");
        let options = Options { health_listen: None, ..config.options };
        assert_eq!(format!("{options:?}"), format!("{:?}", Options::default()));
    }

    #[test]
    fn a_heart_beats() {
        let beats = |text: &str| Config::try_parse_from(["firn-gateway", "--heartbeat-seconds", text]);
        assert_eq!(beats("0.5").unwrap().options.heartbeat, Duration::from_millis(500));
        assert!(beats("0").is_err() && beats("often").is_err());
    }

    #[test]
    fn a_token_is_not_shown() {
        let config = Config::try_parse_from(["firn-gateway", "--token=hush-hush"]).unwrap();
        assert!(config.options.token.is_some());
        assert!(!format!("{config:?}").contains("hush"));
    }

    #[test]
    fn an_empty_path_is_one_that_is_not_given() {
        let config = Config::try_parse_from(["firn-gateway", "--token-file="]).unwrap();
        assert_eq!(config.options.token_file, Some(PathBuf::new()));
    }
}
