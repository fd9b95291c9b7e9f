//! `firn stage`: a stage that is as strict as a mounted one.

use std::num::NonZeroU64;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;

/// Work on stages.
#[derive(Debug, clap::Args)]
pub(crate) struct StageArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    Emulate(EmulateArgs),
}

/// Mounts a folder that refuses what a stage mount of Snowpark Container Services refuses: append, random writes, rename,
/// links, locks. A file is visible once it is closed. Needs /dev/fuse, and root or fusermount3. Ctrl-C unmounts.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  firn stage emulate backing mounted &\n  firn quickstart --stage mounted\n  \
                  firn stage emulate backing mounted --latency-ms 20 --fail-every 100")]
struct EmulateArgs {
    /// Folder that holds the bytes.
    dir: PathBuf,
    /// Empty folder to mount it at.
    mountpoint: PathBuf,
    /// Refuse all writes.
    #[arg(long)]
    read_only: bool,
    /// Allow files to be mapped into memory for reading.
    #[arg(long)]
    map_reads: bool,
    /// Milliseconds that each operation takes longer.
    #[arg(long, default_value_t = 0)]
    latency_ms: u64,
    /// Fail each so-many-th write with an I/O error.
    #[arg(long, value_name = "N")]
    fail_every: Option<NonZeroU64>,
    /// Seed of the faults' places.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Local folder for files that are not closed yet. Default: beside DIR.
    #[arg(long, value_name = "FOLDER")]
    spool: Option<PathBuf>,
}

/// Runs the command.
pub(crate) async fn run(args: StageArgs) -> Result<()> {
    let What::Emulate(args) = args.what;
    emulate(args).await
}

#[cfg(target_os = "linux")]
async fn emulate(args: EmulateArgs) -> Result<()> {
    use firn_stage::emulate::{self, Faults, Options};

    /// How often it is looked at whether somebody unmounted the folder.
    const LOOK: Duration = Duration::from_millis(200);

    let EmulateArgs { dir, mountpoint, read_only, map_reads, latency_ms, fail_every, seed, spool } = args;
    let faults = Faults { seed, fail_writes: fail_every, ..Faults::default() };
    let options = Options { read_only, map_reads, latency: Duration::from_millis(latency_ms), faults, spool };
    let shutdown = firn_kit::shutdown_token()?;
    let shown = dir.display().to_string();
    let mounted = tokio::task::spawn_blocking(move || emulate::mount(&dir, &mountpoint, &options)).await??;
    println!("{shown} is mounted at {}", mounted.mountpoint().display());
    while mounted.is_mounted() && !shutdown.is_cancelled() {
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = tokio::time::sleep(LOOK) => {}
        }
    }
    Ok(tokio::task::spawn_blocking(move || mounted.unmount()).await??)
}

#[cfg(not(target_os = "linux"))]
async fn emulate(args: EmulateArgs) -> Result<()> {
    anyhow::bail!("{} can't be mounted at {}: the emulator needs Linux", args.dir.display(), args.mountpoint.display())
}
