//! `finetune(…)` in the shape of Snowflake's: create, show, describe and cancel jobs.

use firn_proto::trainer::v1::{
    CancelJobRequest, CreateJobRequest, GetJobRequest, Job, JobState, ListCheckpointsRequest,
};
use serde_json::{Value, json};

use super::{job, options, rows::Row};
use crate::{
    app::{App, within},
    error::ApiError,
    jobs,
    newest::Window,
};

/// Most jobs that are shown.
const MOST_SHOWN: usize = 100;

/// What to do: the first argument, or the path's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verb {
    Create,
    Describe,
    Show,
    Cancel,
}

impl Verb {
    pub(crate) fn parse(name: &str) -> Option<Self> {
        match name.to_ascii_lowercase().as_str() {
            "create" => Some(Self::Create),
            "describe" | "status" => Some(Self::Describe),
            "show" | "list" => Some(Self::Show),
            "cancel" => Some(Self::Cancel),
            _ => None,
        }
    }
}

/// Does what a row says. `batch` makes a job that is asked for again the one that is there.
pub(crate) async fn answer(app: App, verb: Option<Verb>, batch: Option<String>, row: Row) -> Result<Value, ApiError> {
    let number = row.number.clone();
    let mut arguments = row.arguments()?.into_iter();
    let verb = match verb {
        Some(verb) => verb,
        None => {
            let named = arguments.next().and_then(|verb| verb.as_str().and_then(Verb::parse));
            let wrong = || ApiError::field("action", "the first argument must be CREATE, SHOW, DESCRIBE or CANCEL");
            named.ok_or_else(wrong)?
        }
    };
    match verb {
        Verb::Create => {
            let (spec, names) = options::spec(arguments)?;
            let request_id = batch.map(|batch| format!("{batch}-{number}")).unwrap_or_default();
            let request = within(CreateJobRequest { spec: Some(spec), request_id });
            let created = app.trainer.clone().create_job(request).await;
            Ok(json!(jobs::id(&created.map_err(|status| names.told(status))?.get_ref().name)))
        }
        Verb::Show => show(&app).await,
        Verb::Describe => {
            let name = name(arguments.next())?;
            let job = app.trainer.clone().get_job(within(GetJobRequest { name })).await?.into_inner();
            let loss = training_loss(&app, &job).await;
            Ok(job::described(job, loss))
        }
        Verb::Cancel => {
            let name = name(arguments.next())?;
            let job = app.trainer.clone().cancel_job(within(CancelJobRequest { name })).await?.into_inner();
            Ok(json!(format!("Canceled Job: {}", jobs::id(&job.name))))
        }
    }
}

/// A job by its id or its name.
fn name(given: Option<Value>) -> Result<String, ApiError> {
    match given {
        Some(Value::String(name)) if name.starts_with("jobs/") => Ok(name),
        Some(Value::String(id)) if !id.is_empty() => Ok(format!("jobs/{id}")),
        _ => Err(ApiError::field("job", "name the job by its id")),
    }
}

/// The newest jobs, newest first.
async fn show(app: &App) -> Result<Value, ApiError> {
    let window = Window::newest(MOST_SHOWN);
    let (jobs, _) = window.read(|token| jobs::page(app, token), |job: &Job| jobs::id(&job.name)).await?.objects()?;
    Ok(jobs.into_iter().map(job::shown).collect())
}

/// The last step's loss of a job that has ended well, if its checkpoint is still there.
async fn training_loss(app: &App, job: &Job) -> Option<f64> {
    if job.state() != JobState::Succeeded {
        return None;
    }
    let request = within(ListCheckpointsRequest { parent: job.name.clone() });
    let listed = app.trainer.clone().list_checkpoints(request).await.ok()?.into_inner();
    listed.checkpoints.into_iter().max_by_key(|checkpoint| checkpoint.step)?.metrics.map(|metrics| metrics.loss)
}
