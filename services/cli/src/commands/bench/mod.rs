//! `firn bench`: throughput of training and of decoding on random weights, and of a running stack under load.

mod architectures;
mod check;
mod infer;
mod serve;
mod train;

use anyhow::Result;

/// Measures throughput: of training or decoding on random weights of a named architecture, or of a running stack.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  firn bench train --arch plain-6x256 --seq 256 --batch 8 --rank 8 --steps 10 --json\n  \
                        firn bench infer --arch smollm2_135m --batch 8 --adapters 4\n  \
                        firn bench check --device cuda:0\n  \
                        firn up &  firn bench serve --streams 256 --seconds 60"
)]
pub(crate) struct BenchArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// LoRA training steps, all linear layers, loss on every token.
    Train(train::TrainArgs),
    /// Whether a device computes what the CPU's definitions say, operation by operation.
    Check(check::CheckArgs),
    /// Decoding with a cache: prompts, then a token of each sequence a step.
    Infer(infer::InferArgs),
    /// Concurrent streams against a running stack, with every token counted.
    Serve(serve::ServeArgs),
}

/// Runs the command.
pub(crate) async fn run(args: &BenchArgs) -> Result<()> {
    match &args.what {
        What::Train(args) => train::run(args),
        What::Check(args) => check::run(args),
        What::Infer(args) => infer::run(args),
        What::Serve(args) => serve::run(args).await,
    }
}

/// The value in the middle; 0 of none.
fn median(values: &mut [f64]) -> f64 {
    quantile(values, 0.5)
}

/// The value below which so much of all lies, 0 to 1; 0 of none.
fn quantile(values: &mut [f64], share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let at = (share * values.len() as f64) as usize;
    values.get(at.min(values.len().saturating_sub(1))).copied().unwrap_or(0.0)
}
