//! The model registry's process.

use std::process::ExitCode;

use clap::Parser as _;
use firn_kit::status::chain;
use firn_model_registry::{Config, Registry};

#[tokio::main]
async fn main() -> ExitCode {
    let config = Config::parse();
    let _telemetry = match firn_kit::telemetry::init("model-registry", &config.telemetry) {
        Ok(guard) => guard,
        Err(error) => {
            eprintln!("firn-model-registry: {}", chain(&error));
            return ExitCode::FAILURE;
        }
    };
    match run(config).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = %chain(error.as_ref()), "failed");
            ExitCode::FAILURE
        }
    }
}

async fn run(config: Config) -> Result<(), Box<dyn std::error::Error>> {
    let shutdown = firn_kit::shutdown_token()?;
    Registry::bind(config).await?.run(shutdown).await?;
    Ok(())
}
