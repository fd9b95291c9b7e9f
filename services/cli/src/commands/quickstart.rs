//! `firn quickstart`: the whole way on invented offers.

use std::time::Duration;

use anyhow::{Context, Result};
use firn_llm::device::DeviceSpec;
use firn_proto::dataprep::v1::{CreateSnapshotRequest, PromptFormat, RowFormat, row_format::Format};
use firn_proto::inference::v1::{ChatMessage, Sampling};
use firn_proto::trainer::v1::{CreateJobRequest, Evaluation, Hyperparameters, Job, JobSpec, LoraSpec};
use serde_json::json;

use super::chat::answer;
use crate::clients::{Endpoints, request};
use crate::progress::{follow, succeeded};
use crate::stack::{Stack, Wanted};
use crate::{base, world};

/// What a held-out row is asked.
pub(crate) const PROMPT: &str = "Describe this offer to a customer.\n{{ row | tojson }}";
/// What the model learns to answer.
pub(crate) const COMPLETION: &str = "Company {{ ORGANIZATION_NAME | trim }} is offering a {{ REWARD | trim }} \
{{ REWARD_TYPE | trim }} reward on {{ PRODUCT_NAME | trim }} in {{ PRODUCT_CATEGORY | trim }}. \
{{ PRODUCT_DESCRIPTION | trim }} To qualify: {{ QUALIFICATION | trim | trim('.') }}. More at {{ HYPERLINK | trim }}";

const MODEL: &str = "offers";
const ALIAS: &str = "latest";

/// The whole way on 1,000 invented offers: prepares them, measures the base, fine-tunes it, registers and serves the
/// result, and lets both answer a row that neither has seen.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  firn quickstart\n  firn quickstart --rows 2000 --epochs 2 --json")]
pub(crate) struct QuickstartArgs {
    /// Folder for everything that is made.
    #[arg(long, default_value = "stage", value_name = "FOLDER")]
    stage: String,
    /// Invented offers.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(20..=100_000))]
    rows: u32,
    /// Of these, offers that are not trained on.
    #[arg(long, default_value_t = 100)]
    held_out_rows: u32,
    /// Passes over the rows.
    #[arg(long, default_value_t = 1.0)]
    epochs: f64,
    /// Seed of offers, order and initialisation.
    #[arg(long, default_value_t = 42)]
    seed: u64,
    /// auto, cpu, cuda:N, cuda:N:f32 or vulkan.
    #[arg(long, default_value = "auto", value_parser = str::parse::<DeviceSpec>)]
    device: DeviceSpec,
    /// Print one JSON object instead of tables.
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub(crate) async fn run(args: &QuickstartArgs) -> Result<()> {
    anyhow::ensure!(args.held_out_rows < args.rows, "--held-out-rows must be less than --rows");
    let shutdown = firn_kit::shutdown_token()?;
    let stack = Stack::start(Wanted::new(&args.stage, args.device, base::BUNDLED), &shutdown).await?;
    let outcome = tokio::select! {
        biased;
        outcome = tune(args, &stack) => outcome,
        () = shutdown.cancelled() => Err(anyhow::anyhow!("interrupted; `firn up --stage {}` goes on with the job", args.stage)),
        error = stack.failed() => Err(error),
    };
    // The first failure is the one to tell.
    outcome.and(stack.stop().await)
}

async fn tune(args: &QuickstartArgs, stack: &Stack) -> Result<()> {
    let source = write_offers(args, stack).await?;
    let mut trainer = stack.endpoints().trainer()?;
    let spec = JobSpec {
        base: stack.base().to_owned(),
        model: MODEL.to_owned(),
        alias: ALIAS.to_owned(),
        data: Some(CreateSnapshotRequest {
            dataset: MODEL.to_owned(),
            source,
            base: stack.base().to_owned(),
            format: Some(RowFormat {
                format: Some(Format::Prompt(PromptFormat {
                    prompt_template: PROMPT.to_owned(),
                    completion_template: COMPLETION.to_owned(),
                    system: String::new(),
                })),
            }),
            held_out_rows: args.held_out_rows,
            seed: args.seed,
            ..CreateSnapshotRequest::default()
        }),
        lora: Some(LoraSpec { r: 16, alpha: 32.0, ..LoraSpec::default() }),
        hyperparameters: Some(Hyperparameters {
            learning_rate: Some(3e-3),
            epochs: Some(args.epochs),
            batch_size: Some(4),
            block_size: Some(512),
            seed: Some(args.seed),
            ..Hyperparameters::default()
        }),
        max_answer_tokens: 0,
        answered_rows: args.held_out_rows,
        ..JobSpec::default()
    };
    let job = trainer.create_job(request(CreateJobRequest { spec: Some(spec), request_id: String::new() })).await?;
    let name = job.into_inner().name;
    let job = succeeded(follow(&mut trainer, &name, false).await?)?;
    let sample = Sample::ask(&job, stack.endpoints()).await?;
    if args.json {
        print_json(args, &job, &sample)
    } else {
        print_tables(args, &job, &sample)
    }
    Ok(())
}

/// Writes the offers to the stage, once, and gives their path.
async fn write_offers(args: &QuickstartArgs, stack: &Stack) -> Result<String> {
    let path = format!("inputs/offers-{}-{}.csv", args.rows, args.seed);
    let stage = stack.stage();
    if !stage.exists(&path).await? {
        let csv = world::to_csv(&world::offers(args.seed, args.rows as usize));
        stage.put(&path, csv.into()).await.with_context(|| format!("failed to write {path} to the stage"))?;
    }
    Ok(path)
}

/// One held-out row, answered by both through the inference service.
struct Sample {
    prompt: String,
    base: String,
    tuned: String,
}

impl Sample {
    async fn ask(job: &Job, endpoints: &Endpoints) -> Result<Self> {
        let prompt = job.base_evaluation.as_ref().map(|e| e.sample_prompt.clone()).unwrap_or_default();
        let mut client = endpoints.inference()?;
        let tuned_model = format!("{MODEL}@{ALIAS}");
        wait_for(endpoints, &tuned_model, &job.version).await?;
        let sampling = Sampling { temperature: Some(0.0), ..Sampling::default() };
        let mut ask = async |model: &str| {
            let messages = vec![ChatMessage { role: "user".to_owned(), content: prompt.clone() }];
            answer(&mut client, model, messages, &sampling, false).await.map(|(text, _)| text)
        };
        let (base, tuned) = (ask("base").await?, ask(&tuned_model).await?);
        Ok(Self { prompt, base, tuned })
    }
}

/// Waits until inference serves the version that was just registered.
pub(crate) async fn wait_for(endpoints: &Endpoints, model: &str, version: &str) -> Result<()> {
    let mut client = endpoints.inference()?;
    for _ in 0..120 {
        let served = client.list_models(request(firn_proto::inference::v1::ListModelsRequest {})).await?.into_inner();
        if served.models.iter().any(|served| served.id == model && served.version == version) {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    anyhow::bail!("inference did not take up {version} as {model} within 30 s")
}

fn evaluation(evaluation: &Option<Evaluation>) -> (f64, f64) {
    evaluation.as_ref().map_or((f64::NAN, f64::NAN), |e| (e.loss, e.field_recall.unwrap_or(f64::NAN)))
}

fn print_json(args: &QuickstartArgs, job: &Job, sample: &Sample) {
    let (base, tuned) = (evaluation(&job.base_evaluation), evaluation(&job.tuned_evaluation));
    println!(
        "{}",
        json!({
            "rows": args.rows, "train_tokens": job.train_tokens, "train_seconds": job.train_seconds,
            "base": { "loss": base.0, "field_recall": base.1 }, "tuned": { "loss": tuned.0, "field_recall": tuned.1 },
            "model": job.version, "prompt": sample.prompt, "base_answer": sample.base, "tuned_answer": sample.tuned,
        })
    );
}

fn print_tables(args: &QuickstartArgs, job: &Job, sample: &Sample) {
    let (base, tuned) = (evaluation(&job.base_evaluation), evaluation(&job.tuned_evaluation));
    println!("\nA row that neither model has seen:\n{}", indented(&sample.prompt));
    println!("\nbase answers:\n{}", indented(&sample.base));
    println!("\ntuned answers:\n{}", indented(&sample.tuned));
    println!("\n{:<42}{:>8}{:>8}", format!("on {} held-out rows", args.held_out_rows), "base", "tuned");
    println!("{:<42}{:>8.3}{:>8.3}", "loss of the expected answer, nats a token", base.0, tuned.0);
    println!("{:<42}{:>8.3}{:>8.3}", "field_recall: values found word for word", base.1, tuned.1);
    println!(
        "\n{} is registered: {} tokens in {:.0} s of training.\n\nNext:\n  firn up --stage {}\n  \
         firn chat --model {MODEL}@{ALIAS}\n  firn llm --train --help     your own rows",
        job.version, job.train_tokens, job.train_seconds, args.stage,
    );
}

fn indented(text: &str) -> String {
    text.lines().map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n")
}
