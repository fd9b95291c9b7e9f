//! `firn llm --train`: AutoTrain's command on a file of one's own.

mod rows;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use firn_llm::device::{Device, DeviceSpec};
use firn_llm::model::MergeProof;
use firn_proto::dataprep::v1::{CreateSnapshotRequest, RowFormat};
use firn_proto::registry::v1::{GetVersionRequest, ReadFileRequest};
use firn_proto::trainer::v1::{CreateJobRequest, Hyperparameters, Job, JobSpec, LoraSpec, Objective};
use serde_json::json;
use tokio::io::AsyncWriteExt;

use super::jobs::to_json;
use super::tools::{ensure_free, merge_folders};
use crate::base;
use crate::clients::{Endpoints, request};
use crate::progress::{follow, succeeded};
use crate::stack::{Addresses, Stack};

/// Folder of merged weights in a project.
const MERGED: &str = "merged";

/// Fine-tunes a model on a table of your own, with AutoTrain's flags (hyphens or underscores).
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  firn llm --train --project-name out --data-path rows.csv --text-column text --epochs 3\n  \
    firn llm --train --project-name out --data-path offers.csv \\\n    \
    --prompt-template 'Describe this offer.\\n{{ row | tojson }}' --completion-template '{{ DESCRIPTION }}'\n  \
    firn llm --train --trainer dpo --project-name out --data-path votes.jsonl --quantization int4\n\n\
    Rows are told by their columns: text; prompt, completion; messages; prompt, chosen, rejected; input_ids, labels;\n\
    prompt_ids, chosen_ids, rejected_ids.\n\n\
    The result, a PEFT folder, lies in the folder --project-name, and in the registry of --stage."
)]
pub(crate) struct LlmArgs {
    /// Train; the one thing that this command does.
    #[arg(long)]
    train: bool,
    /// Folder for the result; its last part names the model in the registry.
    #[arg(long, value_name = "FOLDER")]
    project_name: PathBuf,
    /// Base checkpoint: a folder, or a path on the stage. Default: the bundled base.
    #[arg(long, default_value = base::BUNDLED, value_name = "FOLDER")]
    model: String,
    /// CSV, JSONL or Parquet, or a folder that holds train.csv, train.jsonl or train.parquet.
    #[arg(long, value_name = "PATH")]
    data_path: PathBuf,
    /// Name of the file in a folder, without its ending.
    #[arg(long, default_value = "train", value_name = "NAME")]
    train_split: String,
    /// Column with ready-made text, trained on whole; for dpo and orpo, with the chosen answer. Default: as the columns'
    /// names say.
    #[arg(long, value_name = "COLUMN", conflicts_with = "prompt_template")]
    text_column: Option<String>,
    /// Column with the prompt, for dpo and orpo.
    #[arg(long, default_value = "prompt", value_name = "COLUMN")]
    prompt_text_column: String,
    /// Column with the rejected answer, for dpo and orpo.
    #[arg(long, default_value = "rejected", value_name = "COLUMN")]
    rejected_text_column: String,
    /// Jinja over the row: `row` is all of it, each column has its name. `\n` is a new line.
    #[arg(long, value_name = "JINJA", requires = "completion_template")]
    prompt_template: Option<String>,
    /// Jinja for the answer.
    #[arg(long, value_name = "JINJA", requires = "prompt_template")]
    completion_template: Option<String>,
    /// System message before the prompt.
    #[arg(long, default_value = "", value_name = "TEXT")]
    system: String,
    /// What is learnt from.
    #[arg(long, value_enum, default_value_t)]
    trainer: Trainer,
    /// Train an adapter. All trainers but default always do.
    #[arg(long, alias = "use-peft")]
    peft: bool,
    /// Rank of the adapter.
    #[arg(long, default_value_t = 16)]
    lora_r: u32,
    /// The adapter's output is scaled by alpha / r.
    #[arg(long, default_value_t = 32.0)]
    lora_alpha: f32,
    /// all-linear, or names such as q_proj,v_proj.
    #[arg(long, default_value = "all-linear", value_delimiter = ',', value_name = "NAMES")]
    target_modules: Vec<String>,
    /// Go on from the adapter in this PEFT folder; its rank, scale and targets count.
    #[arg(long, value_name = "DIR")]
    adapter: Option<PathBuf>,
    /// Keep the frozen base as none, int8, int4 (NF4) or int4-double.
    #[arg(long, default_value = "none")]
    quantization: String,
    /// Write the adapter folded into the base too, to the folder merged in --project-name, with a proof.
    #[arg(long, conflicts_with = "remote")]
    merge_adapter: bool,
    /// Strength of the pull to the reference (dpo), or weight of the odds (orpo).
    #[arg(long, default_value_t = 0.1)]
    dpo_beta: f64,
    /// Highest learning rate.
    #[arg(long)]
    lr: Option<f64>,
    /// Passes over the rows.
    #[arg(long, alias = "num-train-epochs", default_value_t = 3.0)]
    epochs: f64,
    /// Packed blocks of a batch.
    #[arg(long, alias = "train-batch-size", default_value_t = 4)]
    batch_size: u32,
    /// Batches whose gradients are added before an update.
    #[arg(long, default_value_t = 1)]
    gradient_accumulation: u32,
    /// Tokens of a packed block.
    #[arg(long, default_value_t = 512)]
    block_size: u32,
    /// bfd packs whole rows, none gives each row a block, wrapped joins all rows and cuts them.
    #[arg(long, default_value = "bfd")]
    packing: String,
    /// Tokens of a row; longer ones are cut.
    #[arg(long, default_value_t = 1024)]
    model_max_length: u32,
    /// Share of the steps with rising learning rate.
    #[arg(long, default_value_t = 0.1)]
    warmup_ratio: f64,
    /// linear, cosine or constant.
    #[arg(long, default_value = "linear")]
    scheduler: String,
    /// Decoupled weight decay.
    #[arg(long, default_value_t = 0.0)]
    weight_decay: f64,
    /// Largest global gradient norm; 0 switches clipping off.
    #[arg(long, default_value_t = 1.0)]
    max_grad_norm: f64,
    /// Seed of initialisation, order and split.
    #[arg(long, default_value_t = 42)]
    seed: u64,
    /// Keep the rows in file order.
    #[arg(long)]
    no_shuffle: bool,
    /// Stop after so many seconds of steps.
    #[arg(long, default_value_t = 0.0)]
    budget_seconds: f64,
    /// Rows that are measured, not trained on.
    #[arg(long, default_value_t = 0)]
    held_out_rows: u32,
    /// Held-out rows that are answered, for field_recall.
    #[arg(long, default_value_t = 0)]
    answered_rows: u32,
    /// Folder for everything that is made.
    #[arg(long, default_value = "stage", value_name = "FOLDER")]
    stage: String,
    /// auto, cpu, cuda:N or vulkan.
    #[arg(long, default_value = "auto", value_parser = str::parse::<DeviceSpec>)]
    device: DeviceSpec,
    /// Use the running stack at --trainer-endpoint and --registry-endpoint instead of one in this process.
    #[arg(long)]
    remote: bool,
    #[command(flatten)]
    endpoints: Endpoints,
    /// Print a JSON line a step, and a last one with the result.
    #[arg(long)]
    json: bool,
}

/// AutoTrain's trainers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
enum Trainer {
    /// Likelihood, an adapter.
    #[default]
    Sft,
    /// Likelihood, all weights of the base unless --peft is given.
    Default,
    /// Direct preference optimisation, on chosen and rejected answers.
    Dpo,
    /// Odds-ratio preference optimisation, on the same.
    Orpo,
}

impl Trainer {
    fn is_preference(self) -> bool {
        matches!(self, Self::Dpo | Self::Orpo)
    }

    fn objective(self) -> Objective {
        match self {
            Self::Sft | Self::Default => Objective::Likelihood,
            Self::Dpo => Objective::Dpo,
            Self::Orpo => Objective::Orpo,
        }
    }
}

/// Runs the command.
pub(crate) async fn run(args: LlmArgs) -> Result<()> {
    ensure!(args.train, "--train is missing: `firn llm --train …` is all that this command does");
    let source = rows::data_file(&args.data_path, &args.train_split)?;
    if args.remote {
        return train(&args, &args.endpoints, args.model.clone(), &source).await;
    }
    let shutdown = firn_kit::shutdown_token()?;
    let stack = Stack::start(&args.stage, args.device, &args.model, &Addresses::any(), &shutdown).await?;
    let outcome = tokio::select! {
        biased;
        outcome = train(&args, stack.endpoints(), stack.base().to_owned(), &source) => outcome,
        () = shutdown.cancelled() => Err(anyhow::anyhow!("interrupted; `firn up --stage {}` goes on with the job", args.stage)),
        error = stack.failed() => Err(error),
    };
    // The first failure is the one to tell.
    outcome.and(stack.stop().await)
}

async fn train(args: &LlmArgs, endpoints: &Endpoints, base: String, source: &Path) -> Result<()> {
    if args.merge_adapter {
        ensure!(
            args.trainer != Trainer::Default || args.peft,
            "--merge-adapter needs an adapter: give --peft, or leave it out"
        );
        ensure_free(&args.project_name.join(MERGED))?;
    }
    let spec = spec(args, base.clone(), source)?;
    let mut trainer = endpoints.trainer()?;
    let job = trainer.create_job(request(CreateJobRequest { spec: Some(spec), request_id: String::new() })).await?;
    let job = succeeded(follow(&mut trainer, &job.into_inner().name, args.json).await?)?;
    let files = download(endpoints, &job, &args.project_name).await?;
    let proof = if args.merge_adapter { Some(merge(args, &base).await?) } else { None };
    if args.json {
        let mut result = to_json(&job);
        result["project"] = json!(args.project_name);
        result["merge_proof"] = json!(proof);
        println!("{result}");
    } else {
        for (what, evaluation) in [("base", &job.base_evaluation), ("tuned", &job.tuned_evaluation)] {
            if let Some(e) = evaluation {
                let recall = e.field_recall.map(|r| format!(", field_recall {r:.3}")).unwrap_or_default();
                let preferred = e
                    .preference_accuracy
                    .map(|a| format!(", chosen preferred in {:.1} %", a * 100.0))
                    .unwrap_or_default();
                println!("{what}: loss {:.4} on {} held-out rows{recall}{preferred}", e.loss, e.rows);
            }
        }
        println!("{} files of {} are in {}", files, job.version, args.project_name.display());
        if let Some(proof) = proof {
            println!("merged weights are in {}: {proof}", args.project_name.join(MERGED).display());
        }
    }
    Ok(())
}

fn spec(args: &LlmArgs, base: String, source: &Path) -> Result<JobSpec> {
    let model = model_name(&args.project_name)?;
    let lora = (args.trainer != Trainer::Default || args.peft).then(|| LoraSpec {
        r: args.lora_r,
        alpha: args.lora_alpha,
        target_modules: args.target_modules.iter().filter(|name| *name != "all-linear").cloned().collect(),
    });
    Ok(JobSpec {
        base: base.clone(),
        model: model.clone(),
        alias: "latest".to_owned(),
        data: Some(CreateSnapshotRequest {
            dataset: model,
            source: source.to_str().context("the path of the data is no UTF-8")?.to_owned(),
            base,
            format: Some(RowFormat { format: Some(rows::format(args, source)?) }),
            held_out_rows: args.held_out_rows,
            seed: args.seed,
            max_tokens: args.model_max_length,
        }),
        lora,
        hyperparameters: Some(Hyperparameters {
            learning_rate: args.lr,
            epochs: Some(args.epochs),
            batch_size: Some(args.batch_size),
            block_size: Some(args.block_size),
            warmup_ratio: Some(args.warmup_ratio),
            scheduler: Some(args.scheduler.clone()),
            weight_decay: Some(args.weight_decay),
            max_grad_norm: Some(args.max_grad_norm),
            seed: Some(args.seed),
            no_shuffle: args.no_shuffle,
            budget_seconds: args.budget_seconds,
            packing: args.packing.clone(),
            gradient_accumulation: args.gradient_accumulation,
            beta: Some(args.dpo_beta),
        }),
        max_answer_tokens: 0,
        answered_rows: args.answered_rows.min(args.held_out_rows),
        objective: args.trainer.objective().into(),
        quantization: args.quantization.clone(),
        adapter: args.adapter.as_deref().map(absolute).transpose()?.unwrap_or_default(),
    })
}

/// Folds the adapter into the base, beside it.
async fn merge(args: &LlmArgs, base: &str) -> Result<MergeProof> {
    // A relative path is one on the stage; an absolute one stands for itself.
    let base = Path::new(&args.stage).join(base);
    let (project, device) = (args.project_name.clone(), Device::open(args.device)?);
    tokio::task::spawn_blocking(move || merge_folders(&base, &project, &project.join(MERGED), &device, None)).await?
}

fn absolute(path: &Path) -> Result<String> {
    let path = path.canonicalize().with_context(|| format!("failed to open {}", path.display()))?;
    path.to_str().map(str::to_owned).with_context(|| format!("{} is no UTF-8", path.display()))
}

/// The registry's name for a project: its folder's name in lower case, with hyphens for what a name may not hold.
fn model_name(project: &Path) -> Result<String> {
    let last = project.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_lowercase();
    let name: String = last.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    let name = name.trim_matches('-').to_owned();
    firn_kit::names::check_id(&name)
        .with_context(|| format!("--project-name {}: its last part can't name a model", project.display()))?;
    Ok(name)
}

/// Copies a version's files out of the registry.
async fn download(endpoints: &Endpoints, job: &Job, into: &Path) -> Result<usize> {
    let mut registry = endpoints.registry()?;
    let version = registry.get_version(request(GetVersionRequest { name: job.version.clone() })).await?.into_inner();
    for file in &version.files {
        let target = into.join(&file.path);
        let context = || format!("failed to write {}", target.display());
        if let Some(parent) = target.parent() {
            tokio::fs::create_dir_all(parent).await.with_context(context)?;
        }
        let mut out = tokio::fs::File::create(&target).await.with_context(context)?;
        let message = ReadFileRequest { name: version.name.clone(), path: file.path.clone(), offset: 0 };
        let mut chunks = registry.read_file(message).await?.into_inner();
        while let Some(chunk) = chunks.message().await? {
            out.write_all(&chunk.data).await.with_context(context)?;
        }
        out.sync_all().await.with_context(context)?;
    }
    Ok(version.files.len())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::model_name;

    #[test]
    fn a_project_names_its_model() {
        assert_eq!(model_name(Path::new("stage/Llama_2-ft")).unwrap(), "llama-2-ft");
        assert!(model_name(Path::new("stage/123")).is_err());
    }
}
