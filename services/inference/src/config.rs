//! Configuration: flags, or environment variables of the same meaning.

use std::path::PathBuf;

use firn_kit::{ServerArgs, TelemetryArgs};
use firn_llm::{
    cache::{KvCache, PAGE_TOKENS},
    config::ModelConfig,
    device::{Device, DeviceSpec},
};

/// Bytes of the cache on an accelerator, and where nobody says what is free.
const OTHER_MEMORY: u64 = 4 << 30;

/// Serves Firn's base model and its adapters.
#[derive(clap::Parser, Clone, Debug)]
#[command(
    name = "firn-inference",
    version = firn_kit::build_info::VERSION,
    mut_arg("listen", |arg| arg.required(false).default_value("127.0.0.1:7004")),
    mut_arg("health_listen", |arg| arg.default_value("127.0.0.1:7104"))
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
    /// What to serve, and how much at once.
    #[command(flatten)]
    pub options: Options,
}

/// What to serve, and how much at once.
#[derive(clap::Args, Clone, Debug)]
pub struct Options {
    /// Folder of the base checkpoint with its tokenizer and chat template: an absolute path, or a path on the stage.
    #[arg(long, env = "FIRN_BASE", value_name = "FOLDER")]
    pub base: String,
    /// The registry whose aliases are served.
    #[arg(long, env = "FIRN_REGISTRY_ENDPOINT", default_value = "http://127.0.0.1:7003", value_name = "URL")]
    pub registry_endpoint: String,
    /// Where to compute: auto, cpu, cuda:N, cuda:N:f32 or vulkan. A GPU's compiled kernels are kept in the folder
    /// FIRN_KERNEL_CACHE, by default ~/.cache/firn/kernels.
    #[arg(long, env = "FIRN_DEVICE", default_value = "auto")]
    pub device: DeviceSpec,
    /// Most answers in one batch.
    #[arg(long, env = "FIRN_MAX_SEQUENCES", default_value = "32", value_parser = at_least_one)]
    pub max_sequences: usize,
    /// Most requests that wait for a place in the batch; one more is RESOURCE_EXHAUSTED.
    #[arg(long, env = "FIRN_MAX_QUEUE", default_value = "256", value_parser = at_least_one)]
    pub max_queue: usize,
    /// Tokens of prompts that one step reads: more is faster in all, fewer lets open answers wait less for a long prompt.
    #[arg(long, env = "FIRN_MAX_STEP_TOKENS", default_value = "512", value_parser = at_least_one)]
    pub max_step_tokens: usize,
    /// Tokens whose keys and values are kept, those of open answers and those kept for prompts that begin alike; at least
    /// one context. Without it: the contexts of all answers of a batch, if a quarter of the free memory holds them; on an
    /// accelerator, if 4 GiB do.
    #[arg(long, env = "FIRN_MAX_CACHE_TOKENS", value_parser = at_least_one)]
    pub max_cache_tokens: Option<usize>,
    /// Most names that adapters are served under; those beyond are logged and left out until there is room. Each adapter
    /// takes memory on the device.
    #[arg(long, env = "FIRN_MAX_ADAPTERS", default_value = "64", value_parser = at_least_one)]
    pub max_adapters: usize,
    /// Local folder for copies of what is on the stage: of the base, which is checked and used again, and of adapters until
    /// they are in memory.
    #[arg(long, env = "FIRN_WORK_DIR", default_value_os_t = default_work_dir(), value_name = "FOLDER")]
    pub work_dir: PathBuf,
}

impl Options {
    /// Serves `base` as the flags' defaults say.
    #[must_use]
    pub fn new(base: impl Into<String>) -> Self {
        Self {
            base: base.into(),
            registry_endpoint: "http://127.0.0.1:7003".to_owned(),
            device: DeviceSpec::Auto,
            max_sequences: 32,
            max_queue: 256,
            max_step_tokens: 512,
            max_cache_tokens: None,
            max_adapters: 64,
            work_dir: default_work_dir(),
        }
    }

    /// What the key-value cache is to hold.
    pub(crate) fn cache(&self) -> CacheWish {
        CacheWish { tokens: self.max_cache_tokens, sequences: self.max_sequences }
    }
}

/// What the key-value cache is to hold.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CacheWish {
    tokens: Option<usize>,
    sequences: usize,
}

impl CacheWish {
    /// Tokens of the cache of a base whose weights are loaded.
    pub(crate) fn tokens(self, base: &ModelConfig, device: &Device) -> usize {
        let wished = self.tokens.unwrap_or_else(|| {
            let all = base.context.saturating_mul(self.sequences);
            // An accelerator may be a trainer's, too, whatever it has free now.
            let free = if device.is_host() { device.free_memory() } else { None };
            let share = free.map_or(OTHER_MEMORY, |free| free / 4);
            let fits = share / KvCache::bytes_per_token(base, device) as u64;
            all.min(usize::try_from(fits).unwrap_or(usize::MAX))
        });
        wished.max(base.context + PAGE_TOKENS)
    }
}

fn default_work_dir() -> PathBuf {
    std::env::temp_dir().join("firn-inference")
}

fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(count) if count > 0 => Ok(count),
        _ => Err("it must be a number from 1 on".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[test]
    fn a_stage_and_a_base_are_all_that_must_be_given() {
        let config = Config::try_parse_from(["firn-inference", "--stage=/s", "--base=bases/a/b"]).unwrap();
        assert_eq!(config.server.listen.to_string(), "127.0.0.1:7004");
        assert_eq!(config.server.health_listen.unwrap().to_string(), "127.0.0.1:7104");
        assert_eq!(format!("{:?}", config.options), format!("{:?}", Options::new("bases/a/b")));
        for bad in ["--max-sequences=0", "--device=tpu"] {
            let error = Config::try_parse_from(["firn-inference", "--stage=/s", "--base=b", bad]).unwrap_err();
            assert!(error.to_string().contains(bad.split('=').next().unwrap()), "{error}");
        }
    }
}
