//! `firn up`: the services on this machine.

use std::net::SocketAddr;

use anyhow::Result;
use firn_kit::{TelemetryArgs, telemetry};
use firn_llm::device::DeviceSpec;
use firn_trainer::hub::HubOptions;

use crate::base;
use crate::stack::{Addresses, Stack, Wanted};

/// Runs all services in this process, for the page and for clients, until Ctrl-C or SIGTERM.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  firn up\n  firn up --stage stage --http 127.0.0.1:8080\n  firn chat --model base")]
pub(crate) struct UpArgs {
    /// Folder for everything that is made.
    #[arg(long, env = "FIRN_STAGE", default_value = "stage", value_name = "FOLDER")]
    stage: String,
    /// Base checkpoint to serve: a folder, or a path on the stage.
    #[arg(long, env = "FIRN_BASE", default_value = base::BUNDLED, value_name = "FOLDER")]
    base: String,
    /// auto, cpu, cuda:N, cuda:N:f32 or vulkan. A GPU's compiled kernels are kept in the folder
    /// FIRN_KERNEL_CACHE, by default ~/.cache/firn/kernels.
    #[arg(long, default_value = "auto", value_parser = str::parse::<DeviceSpec>)]
    device: DeviceSpec,
    /// Address of the page and the HTTP API.
    #[arg(long, default_value = "127.0.0.1:8080", value_name = "ADDRESS")]
    http: SocketAddr,
    #[command(flatten)]
    hub: HubOptions,
    #[command(flatten)]
    telemetry: TelemetryArgs,
}

/// Runs the command.
pub(crate) async fn run(args: &UpArgs) -> Result<()> {
    let _guard = telemetry::init("firn", &args.telemetry)?;
    firn_kit::raise_file_limit();
    let shutdown = firn_kit::shutdown_token()?;
    let addresses = Addresses::fixed(args.http);
    let wanted = Wanted { addresses, hub: args.hub.clone(), ..Wanted::new(&args.stage, args.device, &args.base) };
    let stack = Stack::start(wanted, &shutdown).await?;
    println!("{stack}");
    let outcome = tokio::select! {
        biased;
        () = shutdown.cancelled() => Ok(()),
        error = stack.failed() => Err(error),
    };
    // The first failure is the one to tell.
    outcome.and(stack.stop().await)
}
