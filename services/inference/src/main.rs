//! `firn-inference`: the service as a process.

use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser as _;
use firn_inference::{Config, Inference};

#[tokio::main]
async fn main() -> ExitCode {
    match serve(Config::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("firn-inference: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn serve(config: Config) -> anyhow::Result<()> {
    let _telemetry = firn_kit::telemetry::init("inference", &config.telemetry)?;
    let shutdown = firn_kit::shutdown_token().context("failed to listen for signals")?;
    let service = Inference::bind(config).await?;
    tracing::info!(address = %service.local_addr(), "listening");
    service.run(shutdown).await?;
    Ok(())
}
