//! `firn-gateway`: the service as a process.

use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser as _;
use firn_gateway::{Config, Gateway};
use firn_kit::status::chain;

#[tokio::main]
async fn main() -> ExitCode {
    match serve(Config::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("firn-gateway: {}", chain(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

async fn serve(config: Config) -> anyhow::Result<()> {
    let _telemetry = firn_kit::telemetry::init("gateway", &config.telemetry)?;
    firn_kit::raise_file_limit();
    let shutdown = firn_kit::shutdown_token().context("failed to listen for signals")?;
    let service = Gateway::bind(config).await?;
    tracing::info!(address = %service.local_addr(), "listening");
    service.run(shutdown).await;
    Ok(())
}
