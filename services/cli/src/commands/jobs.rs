//! `firn jobs`: training jobs of a running stack.

use anyhow::Result;
use firn_proto::trainer::v1::{
    CancelJobRequest, Evaluation, GetJobRequest, Job, ListJobsRequest, PauseJobRequest, ResumeJobRequest,
};
use serde_json::{Value, json};

use crate::clients::{Endpoints, pages, request};
use crate::progress::{follow, state_name, succeeded};

/// Lists, shows, follows, pauses and cancels training jobs.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  firn jobs list\n  firn jobs watch jobs/job-0123\n  firn jobs cancel jobs/job-0123"
)]
pub(crate) struct JobsArgs {
    #[command(subcommand)]
    what: What,
    #[command(flatten)]
    endpoints: Endpoints,
    /// Print JSON, an object a line.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// All jobs, oldest first.
    List,
    /// One job.
    Show {
        /// Name, `jobs/…`.
        name: String,
    },
    /// Follows a job to its end.
    Watch {
        /// Name, `jobs/…`.
        name: String,
    },
    /// Stops a job at its next step.
    Cancel {
        /// Name, `jobs/…`.
        name: String,
    },
    /// Lets a running job write a checkpoint and make room for the next one.
    Pause {
        /// Name, `jobs/…`.
        name: String,
    },
    /// Queues a paused job again.
    Resume {
        /// Name, `jobs/…`.
        name: String,
    },
}

/// Runs the command.
pub(crate) async fn run(args: &JobsArgs) -> Result<()> {
    let mut client = args.endpoints.trainer()?;
    match &args.what {
        What::List => {
            let page = async |page_token| {
                let page = client.list_jobs(request(ListJobsRequest { page_size: 0, page_token })).await?.into_inner();
                Ok((page.jobs, page.next_page_token))
            };
            pages(page, |job| print(&job, args.json)).await?;
        }
        What::Show { name } => {
            let job = client.get_job(request(GetJobRequest { name: full(name) })).await?.into_inner();
            print(&job, args.json);
        }
        What::Watch { name } => {
            let job = succeeded(follow(&mut client, &full(name), args.json).await?)?;
            print(&job, args.json);
        }
        What::Cancel { name } => {
            let job = client.cancel_job(request(CancelJobRequest { name: full(name) })).await?.into_inner();
            print(&job, args.json);
        }
        What::Pause { name } => {
            let job = client.pause_job(request(PauseJobRequest { name: full(name) })).await?.into_inner();
            print(&job, args.json);
        }
        What::Resume { name } => {
            let job = client.resume_job(request(ResumeJobRequest { name: full(name) })).await?.into_inner();
            print(&job, args.json);
        }
    }
    Ok(())
}

fn full(name: &str) -> String {
    if name.starts_with("jobs/") { name.to_owned() } else { format!("jobs/{name}") }
}

fn print(job: &Job, as_json: bool) {
    if as_json {
        println!("{}", to_json(job));
        return;
    }
    let mut line = format!("{}  {:<11} step {}/{}", job.name, state_name(job.state()), job.step, job.steps);
    for (what, evaluation) in [("base", &job.base_evaluation), ("tuned", &job.tuned_evaluation)] {
        if let Some(evaluation) = evaluation {
            line += &format!("  {what} loss {:.3}", evaluation.loss);
        }
    }
    for part in [&job.version, &job.error] {
        if !part.is_empty() {
            line += &format!("  {part}");
        }
    }
    println!("{line}");
}

/// A job as JSON.
pub(crate) fn to_json(job: &Job) -> Value {
    let evaluation = |evaluation: &Option<Evaluation>| {
        evaluation.as_ref().map(|e| {
            json!({
                "loss": e.loss, "rows": e.rows, "field_recall": e.field_recall,
                "preference_accuracy": e.preference_accuracy, "token_accuracy": e.token_accuracy,
            })
        })
    };
    json!({
        "name": job.name, "state": state_name(job.state()), "step": job.step, "steps": job.steps,
        "version": job.version, "best_step": job.best_step, "snapshot": job.snapshot, "error": job.error, "train_tokens": job.train_tokens,
        "train_seconds": job.train_seconds, "base": evaluation(&job.base_evaluation),
        "tuned": evaluation(&job.tuned_evaluation),
    })
}
