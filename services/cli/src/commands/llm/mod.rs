//! `firn llm --train`: AutoTrain's command on a file of one's own.

pub(crate) mod args;
mod dry_run;
pub(crate) mod rows;
mod spec;

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use firn_llm::device::Device;
use firn_llm::model::MergeProof;
use firn_proto::registry::v1::{GetVersionRequest, ReadFileRequest};
use firn_proto::trainer::v1::{CreateJobRequest, Job, JobState, ListJobsRequest, PlanJobRequest, ResumeJobRequest};
use serde_json::json;
use tokio::io::AsyncWriteExt;

use super::jobs::to_json;
use super::tools::{ensure_free, merge_folders};
use crate::clients::{Endpoints, pages, request, request_within};
use crate::progress::{follow, succeeded};
use crate::stack::{Stack, Wanted};

pub(crate) use args::LlmArgs;
use args::Trainer;
use spec::{model_name, spec};

/// Longest wait for a plan: the rows are prepared for it.
const PLANNING: Duration = Duration::from_secs(2 * 60 * 60);
/// Folder of merged weights in a project.
const MERGED: &str = "merged";

/// Runs the command.
pub(crate) async fn run(args: LlmArgs) -> Result<()> {
    ensure!(args.train, "--train is missing: `firn llm --train …` is all that this command does");
    let source = if args.resume { None } else { Some(rows::source(&args.rows)?) };
    let source = source.as_deref();
    if args.remote {
        return train(&args, &args.endpoints, args.model.clone(), source).await;
    }
    let shutdown = firn_kit::shutdown_token()?;
    let wanted = Wanted::new(&args.stage, args.device, &args.model);
    let stack =
        Stack::start(Wanted { checkpoint_steps: args.checkpoint_steps, hub: args.hub.clone(), ..wanted }, &shutdown)
            .await?;
    let outcome = tokio::select! {
        biased;
        outcome = train(&args, stack.endpoints(), stack.base().to_owned(), source) => outcome,
        () = shutdown.cancelled() => Err(anyhow::anyhow!("interrupted; the same command with --resume goes on with the job")),
        error = stack.failed() => Err(error),
    };
    // The first failure is the one to tell.
    outcome.and(stack.stop().await)
}

async fn train(args: &LlmArgs, endpoints: &Endpoints, base: String, source: Option<&Path>) -> Result<()> {
    if args.merge_adapter {
        ensure!(
            args.trainer != Trainer::Default || args.peft,
            "--merge-adapter needs an adapter: give --peft, or leave it out"
        );
        ensure_free(&args.project_name.join(MERGED))?;
    }
    let mut trainer = endpoints.trainer()?;
    let job = match source.map(|source| spec(args, base.clone(), source)).transpose()? {
        None => unfinished(endpoints, &model_name(&args.project_name)?).await?,
        Some(spec) if args.dry_run => {
            let message = request_within(PlanJobRequest { spec: Some(spec) }, PLANNING);
            let plan = trainer.plan_job(message).await?.into_inner();
            dry_run::print(&plan, &dry_run::report(endpoints, &plan.snapshot).await?, args.json);
            return Ok(());
        }
        Some(spec) => {
            let message = CreateJobRequest { spec: Some(spec), request_id: String::new() };
            trainer.create_job(request(message)).await?.into_inner()
        }
    };
    let job = succeeded(follow(&mut trainer, &job.name, args.json).await?)?;
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

/// The last job of a model that has not ended; a paused one goes on.
async fn unfinished(endpoints: &Endpoints, model: &str) -> Result<Job> {
    let mut client = endpoints.trainer()?;
    let (mut lister, mut found) = (client.clone(), None);
    let page = async |page_token| {
        let page = lister.list_jobs(request(ListJobsRequest { page_size: 0, page_token })).await?.into_inner();
        Ok((page.jobs, page.next_page_token))
    };
    pages(page, |job| {
        let ended = matches!(job.state(), JobState::Succeeded | JobState::Failed | JobState::Cancelled);
        if !ended && job.spec.as_ref().is_some_and(|spec| spec.model == model) {
            found = Some(job);
        }
    })
    .await?;
    let job = found.with_context(|| format!("no job of {model} is unfinished: leave out --resume to start one"))?;
    if job.state() == JobState::Paused {
        return Ok(client.resume_job(request(ResumeJobRequest { name: job.name })).await?.into_inner());
    }
    Ok(job)
}

/// Folds the adapter into the base, beside it.
async fn merge(args: &LlmArgs, base: &str) -> Result<MergeProof> {
    // A relative path is one on the stage; an absolute one stands for itself.
    let base = Path::new(&args.stage).join(base);
    let (project, device) = (args.project_name.clone(), Device::open(args.device)?);
    tokio::task::spawn_blocking(move || merge_folders(&base, &project, &project.join(MERGED), &device, None)).await?
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
