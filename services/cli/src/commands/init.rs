//! `firn init`: a stage with the bundled base on it.

use anyhow::Result;
use firn_stage::Stage;

use crate::base;

/// Puts the bundled base on a stage, for services that are started one by one.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  firn init --stage stage")]
pub(crate) struct InitArgs {
    /// The stage's folder; it is made if it is not there.
    #[arg(long, env = "FIRN_STAGE", default_value = "stage", value_name = "FOLDER")]
    stage: String,
}

/// Runs the command.
pub(crate) async fn run(args: &InitArgs) -> Result<()> {
    let path = base::install(&Stage::open(&args.stage)?).await?;
    println!("{path}");
    Ok(())
}
