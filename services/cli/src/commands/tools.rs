//! `firn tools`: work on checkpoints on disk.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use firn_llm::config;
use firn_llm::device::{Device, DeviceSpec};
use firn_llm::model::{Adapter, Decoder, MERGE_AGREEMENT, MergeProof, probes, prove};
use firn_llm::tokenizer::{self, Tokenizer};
use firn_llm::weights::Weights;
use serde_json::json;

use super::score::{self, Row, ids_of};
use super::template::each_line;

/// Work on checkpoints on disk.
#[derive(Debug, clap::Args)]
pub(crate) struct ToolsArgs {
    #[command(subcommand)]
    tool: Tool,
}

#[derive(Debug, clap::Subcommand)]
enum Tool {
    MergeLlmAdapter(MergeArgs),
}

/// Folds an adapter into its base, and proves that the result computes what both did.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  firn tools merge-llm-adapter --base-model-path base --adapter-path out --output-folder merged"
)]
struct MergeArgs {
    /// Checkpoint folder.
    #[arg(long, value_name = "DIR")]
    base_model_path: PathBuf,
    /// PEFT folder.
    #[arg(long, value_name = "DIR")]
    adapter_path: PathBuf,
    /// Folder for the merged checkpoint.
    #[arg(long, value_name = "DIR")]
    output_folder: PathBuf,
    /// JSON lines with "ids", "text" or "messages" to compare on. Default: tokens at random.
    #[arg(long, value_name = "FILE")]
    input: Option<PathBuf>,
    /// auto, cpu, cuda:N, cuda:N:f32 or vulkan.
    #[arg(long, default_value = "auto", value_parser = str::parse::<DeviceSpec>)]
    device: DeviceSpec,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub(crate) fn run(args: &ToolsArgs) -> Result<()> {
    match &args.tool {
        Tool::MergeLlmAdapter(args) => merge(args),
    }
}

fn merge(args: &MergeArgs) -> Result<()> {
    let into = &args.output_folder;
    // The merged weights are what others will load: they are made in f32.
    let device = Device::open_one(args.device)?.in_full_precision();
    let proof = merge_folders(&args.base_model_path, &args.adapter_path, into, &device, args.input.as_ref())?;
    if args.json {
        println!("{}", json!({ "output_folder": into, "proof": proof }));
    } else {
        println!("{}: {proof}", into.display());
    }
    Ok(())
}

/// Writes base and adapter as one checkpoint, compares it on the rows of `input` (or on tokens at random), and keeps it
/// only if it computes the same.
pub(super) fn merge_folders(
    from: &Path,
    adapter: &Path,
    into: &Path,
    device: &Device,
    input: Option<&PathBuf>,
) -> Result<MergeProof> {
    ensure_free(into)?;
    let base = Decoder::load(from, device)?;
    let trained = Adapter::load(adapter, base.config(), device)?;
    ensure!(!trained.is_reward(), "{} gives rewards: its score has no place in a merged decoder", adapter.display());
    let rows = rows((from, adapter), input, base.config().vocab, base.config().context)?;
    let stored = Weights::open_dir(from)?.stored_type("model.embed_tokens.weight");
    rows.iter().try_for_each(|ids| base.check_row(ids))?;
    std::fs::create_dir_all(into).with_context(|| format!("failed to make {}", into.display()))?;
    let written = || -> Result<MergeProof> {
        base.merge(&trained).save(into, stored)?;
        for name in companions() {
            // What training changed, the chat template above all, lies beside the adapter.
            let source = [adapter, from].into_iter().map(|dir| dir.join(name)).find(|file| file.is_file());
            if let Some(source) = source {
                copy(&source, &into.join(name)).with_context(|| format!("failed to copy {}", source.display()))?;
            }
        }
        // What was written is what is proved, rounding and all.
        let proof = prove(&base, &trained, &Decoder::load(into, device)?, &rows)?;
        let limit = MergeProof::limit(stored);
        ensure!(
            proof.holds(stored),
            "the merge is refused: {proof}; allowed are {limit} and at least {:.0} %; serve base and adapter instead",
            MERGE_AGREEMENT * 100.0,
        );
        write_proof(into, &proof)?;
        Ok(proof)
    };
    let proof = written();
    if proof.is_err() {
        // The folder was empty before: all of it was written here.
        std::fs::remove_dir_all(into).with_context(|| format!("failed to remove {}", into.display()))?;
    }
    proof
}

/// Copies a file's bytes alone: a stage mount takes no permissions, which the standard library's copy sets.
fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    let mut target = std::fs::File::create(to)?;
    std::io::copy(&mut std::fs::File::open(from)?, &mut target)?;
    target.sync_all()
}

/// Refuses a folder that holds anything: nothing of the user's is overwritten.
pub(super) fn ensure_free(into: &Path) -> Result<()> {
    let empty = match std::fs::read_dir(into) {
        Ok(mut entries) => entries.next().is_none(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => true,
        Err(error) => return Err(error).with_context(|| format!("failed to open {}", into.display())),
    };
    ensure!(empty, "{} is not empty: name another folder, or remove it", into.display());
    Ok(())
}

fn rows(
    (model, adapter): (&Path, &Path),
    input: Option<&PathBuf>,
    vocab: usize,
    context: usize,
) -> Result<Vec<Vec<u32>>> {
    let Some(input) = input else { return Ok(probes(vocab, context)) };
    let mut tokenizer: Option<Tokenizer> = None;
    let mut rows = Vec::new();
    each_line(input, |row: Row| {
        rows.push(ids_of(row, &mut tokenizer, || score::tokenizer(model, Some(adapter)))?);
        Ok(())
    })?;
    ensure!(!rows.is_empty(), "{} has no rows", input.display());
    Ok(rows)
}

fn write_proof(into: &Path, proof: &MergeProof) -> Result<()> {
    let path = into.join("merge_proof.json");
    std::fs::write(&path, format!("{:#}\n", json!(proof)))
        .with_context(|| format!("failed to write {}", path.display()))
}

/// Files beside the weights that make the result a whole checkpoint.
fn companions() -> impl Iterator<Item = &'static str> {
    config::FILES.into_iter().chain(tokenizer::FILES)
}
