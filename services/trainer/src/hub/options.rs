//! How to reach the hub: flags, or environment variables of the same meaning.

use std::{
    env::var_os,
    ffi::OsString,
    fmt,
    path::{Path, PathBuf},
    time::Duration,
};

use super::HubError;

/// The public hub.
pub const ENDPOINT: &str = "https://huggingface.co";
/// Holds the token, unless a file does. No flag does: flags are shown by `ps`.
const TOKEN: &str = "HF_TOKEN";
/// The token that SPCS mounts for a service.
const SESSION: &str = "/snowflake/session/token";
/// Longest token in bytes; a longer file is something else.
const LONGEST_TOKEN: usize = 4096;

/// How to reach the hub.
///
/// It holds no token, but only where to find one; so it can be printed.
#[derive(clap::Args, Clone, Debug)]
pub struct HubOptions {
    /// Where the hub answers, for `org/name` as a model.
    #[arg(long, env = "HF_ENDPOINT", value_name = "URL", default_value = ENDPOINT)]
    pub hub_endpoint: String,
    /// File with a token for private and gated models, such as a mounted secret. Without it, HF_TOKEN counts.
    #[arg(long, env = "HF_TOKEN_FILE", value_name = "FILE")]
    pub hub_token_file: Option<PathBuf>,
    /// Fetch nothing from the hub. So it is inside SPCS, and where HF_HUB_OFFLINE is set.
    #[arg(long)]
    pub hub_offline: bool,
    /// Fetch from the hub, there too.
    #[arg(long, env = "FIRN_HUB_ONLINE", value_parser = clap::builder::BoolishValueParser::new())]
    pub hub_online: bool,
    /// Local folder for files on their way, which a later pull goes on with; one in the temporary folder if not given.
    #[arg(skip)]
    pub work_dir: Option<PathBuf>,
    /// What a pull may take.
    #[arg(skip)]
    pub limits: HubLimits,
}

impl Default for HubOptions {
    /// As the flags' defaults say.
    fn default() -> Self {
        Self {
            hub_endpoint: ENDPOINT.to_owned(),
            hub_token_file: None,
            hub_offline: false,
            hub_online: false,
            work_dir: None,
            limits: HubLimits::default(),
        }
    }
}

impl HubOptions {
    /// Is nothing to be fetched? `--hub-offline` wins over `--hub-online`, and a flag over [`default_offline`].
    #[must_use]
    pub fn offline(&self) -> bool {
        self.hub_offline || (!self.hub_online && default_offline())
    }

    pub(super) fn scratch(&self) -> PathBuf {
        self.work_dir.clone().unwrap_or_else(|| std::env::temp_dir().join("firn-hub"))
    }

    /// Reads the token, each time anew: a mounted secret is renewed. Blocks.
    pub(super) fn token(&self) -> Result<Option<Token>, HubError> {
        self.token_with(var_os(TOKEN))
    }

    fn token_with(&self, variable: Option<OsString>) -> Result<Option<Token>, HubError> {
        let (origin, text) = match &self.hub_token_file {
            Some(path) => {
                let origin = path.display().to_string();
                let refuse = |reason| HubError::Token { origin: origin.clone(), reason };
                let size = std::fs::metadata(path).map_err(|error| refuse(error.to_string()))?.len();
                if size > LONGEST_TOKEN as u64 {
                    return Err(refuse(format!("it has {size} bytes, more than {LONGEST_TOKEN}")));
                }
                let text = std::fs::read_to_string(path).map_err(|error| refuse(error.to_string()))?;
                if text.trim().is_empty() {
                    return Err(refuse("it is empty".to_owned()));
                }
                (origin, text)
            }
            None => match variable {
                None => return Ok(None),
                Some(text) => match text.into_string() {
                    Ok(text) if text.trim().is_empty() => return Ok(None),
                    Ok(text) => (TOKEN.to_owned(), text),
                    Err(_) => (TOKEN.to_owned(), "\0".to_owned()),
                },
            },
        };
        let text = text.trim();
        if text.len() > LONGEST_TOKEN || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            // Not what it holds: it may be a secret all the same.
            let reason = format!("it must hold one word of ASCII, at most {LONGEST_TOKEN} bytes");
            return Err(HubError::Token { origin, reason });
        }
        Ok(Some(Token { origin, secret: text.to_owned() }))
    }
}

/// What a pull may take.
#[derive(Clone, Debug)]
pub struct HubLimits {
    /// Bytes of a file.
    pub file: u64,
    /// Bytes of all files of a model.
    pub total: u64,
    /// Longest wait for a connection.
    pub connect: Duration,
    /// Longest wait for the next bytes.
    pub stall: Duration,
    /// Longest time for a pull, waiting for another one of the same model included.
    pub deadline: Duration,
    /// Tries in a row that may bring nothing.
    pub tries: u32,
    /// Pause after the first such try; it doubles up to 32 times that.
    pub pause: Duration,
    /// Files that are fetched at once.
    pub connections: usize,
}

impl Default for HubLimits {
    fn default() -> Self {
        Self {
            file: 128 << 30,
            total: 1 << 40,
            connect: Duration::from_secs(20),
            stall: Duration::from_secs(60),
            deadline: Duration::from_secs(12 * 60 * 60),
            tries: 6,
            pause: Duration::from_secs(1),
            connections: 4,
        }
    }
}

/// A secret, and where it came from. Only the request that needs it sees it.
pub(super) struct Token {
    pub(super) origin: String,
    secret: String,
}

impl Token {
    pub(super) fn secret(&self) -> &str {
        &self.secret
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token from {}", self.origin)
    }
}

/// Is nothing fetched unless asked for? So it is if `HF_HUB_OFFLINE` says so, and inside SPCS, where a service reaches
/// no host that was not allowed to it.
#[must_use]
pub fn default_offline() -> bool {
    offline_in(var_os, Path::new(SESSION))
}

fn offline_in(variable: impl Fn(&'static str) -> Option<OsString>, session: &Path) -> bool {
    let given = |name| variable(name).filter(|value| !value.is_empty());
    let asked = given("HF_HUB_OFFLINE").and_then(|value| value.into_string().ok());
    match asked.as_deref().map(str::to_ascii_lowercase).as_deref() {
        Some("1" | "on" | "yes" | "true") => true,
        _ => given("SNOWFLAKE_HOST").is_some() || given("SNOWFLAKE_SERVICE_NAME").is_some() || session.exists(),
    }
}

#[cfg(test)]
#[path = "options_tests.rs"]
mod tests;
