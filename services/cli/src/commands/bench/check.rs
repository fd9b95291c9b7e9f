//! `firn bench check`: a device's kernels against the CPU's definitions.

use anyhow::{Result, bail};
use firn_llm::check::{Checked, check, check_decoding};
use firn_llm::device::{Device, DeviceSpec};

#[derive(Debug, clap::Args)]
pub(super) struct CheckArgs {
    /// auto, cpu, cuda:N, cuda:N:f32 or vulkan.
    #[arg(long, default_value = "auto", value_parser = str::parse::<DeviceSpec>)]
    device: DeviceSpec,
    /// Only batches that decode; single operations are left out.
    #[arg(long)]
    decoding: bool,
}

/// Runs the command.
pub(super) fn run(args: &CheckArgs) -> Result<()> {
    let device = Device::open_one(args.device)?;
    let results = if args.decoding { check_decoding(&device) } else { check(&device) };
    for Checked { name, error, bound } in &results {
        println!("{} {name}: {error:.1e} (at most {bound:.0e})", if error <= bound { "ok  " } else { "FAIL" });
    }
    let wrong = results.iter().filter(|checked| !checked.holds()).count();
    if wrong > 0 {
        bail!("{wrong} of {} results of {} are not what the CPU computes", results.len(), args.device);
    }
    println!("{} results of {} are what the CPU computes", results.len(), args.device);
    Ok(())
}
