//! A trainer with a few jobs.

use std::pin::Pin;

use firn_kit::status;
use firn_proto::{
    dataprep::v1::CreateSnapshotRequest,
    trainer::v1::{self as pb, job_event::Event, trainer_service_server::TrainerService},
};
use futures_util::{Stream, StreamExt as _, stream};
use tonic::{Request, Response, Status};

use super::Fake;

fn job(name: &str, state: pb::JobState) -> pb::Job {
    let data = CreateSnapshotRequest {
        dataset: "offers".to_owned(),
        source: "inputs/files/file-1/a.jsonl".to_owned(),
        ..Default::default()
    };
    let hyperparameters = pb::Hyperparameters {
        learning_rate: Some(2e-3),
        epochs: Some(3.0),
        batch_size: Some(4),
        seed: Some(42),
        ..Default::default()
    };
    let lora = pb::LoraSpec { r: 16, alpha: 32.0, dropout: 0.05, ..Default::default() };
    pb::Job {
        name: name.to_owned(),
        spec: Some(pb::JobSpec {
            base: "bases/firn/tiny".to_owned(),
            model: "offers".to_owned(),
            alias: "latest".to_owned(),
            data: Some(data),
            lora: Some(lora),
            hyperparameters: Some(hyperparameters),
            ..Default::default()
        }),
        state: state.into(),
        step: 4,
        steps: 10,
        train_tokens: 1000,
        create_time: Some(prost_types::Timestamp { seconds: 0, nanos: 0 }),
        ..Default::default()
    }
}

/// `job-1` runs, `job-done` has ended, `job-bad` failed; `done`, `failed` and `running` have another base.
fn known(name: &str) -> Result<pb::Job, Status> {
    match name {
        "jobs/job-1" | "jobs/job-broken" => Ok(job(name, pb::JobState::Running)),
        "jobs/job-done" => {
            let tuned = pb::Evaluation { loss: 1.5, rows: 2, preference_accuracy: Some(0.75), ..Default::default() };
            Ok(pb::Job { tuned_evaluation: Some(tuned), ..job(name, pb::JobState::Succeeded) })
        }
        "jobs/job-bad" => Ok(pb::Job { error: "no rows".to_owned(), ..job(name, pb::JobState::Failed) }),
        "jobs/done" => Ok(ended(name, pb::JobState::Succeeded, "")),
        "jobs/failed" => Ok(ended(name, pb::JobState::Failed, "there are no rows")),
        "jobs/running" => Ok(ended(name, pb::JobState::Running, "")),
        other => Err(status::not_found("trainer.firn.dev", "job", other)),
    }
}

/// A job half way through, or what came of it, on a base of its own.
fn ended(name: &str, state: pb::JobState, error: &str) -> pb::Job {
    let evaluation = |loss| Some(pb::Evaluation { loss, rows: 5, ..Default::default() });
    let data = CreateSnapshotRequest { source: "inputs/train.parquet".to_owned(), ..Default::default() };
    let (base, model) = ("bases/a/b".to_owned(), "offers".to_owned());
    pb::Job {
        name: name.to_owned(),
        spec: Some(pb::JobSpec { base, model, data: Some(data), ..Default::default() }),
        state: state.into(),
        error: error.to_owned(),
        step: 5,
        steps: 10,
        version: "models/offers/versions/3".to_owned(),
        train_tokens: 999,
        tuned_evaluation: evaluation(1.5),
        base_evaluation: evaluation(2.5),
        create_time: Some(prost_types::Timestamp { seconds: 7, nanos: 0 }),
        ..Default::default()
    }
}

fn step(step: u64) -> pb::StepMetrics {
    let held_out = pb::Measurement { loss: 2.5, accuracy: 0.5, best: true };
    pb::StepMetrics { step, steps: 10, loss: 1.25, held_out: Some(held_out), ..Default::default() }
}

impl Fake {
    fn told(&self, verb: &str, name: &str, state: pb::JobState) -> Result<Response<pb::Job>, Status> {
        let known = known(name)?;
        if name == "jobs/job-done" {
            let message = format!("{name} has succeeded already");
            return Err(status::failed_precondition("trainer.firn.dev", "JOB_ENDED", message));
        }
        self.told.lock().unwrap().push(format!("{verb} {name}"));
        Ok(Response::new(pb::Job { state: state.into(), ..known }))
    }
}

#[tonic::async_trait]
impl TrainerService for Fake {
    type WatchJobStream = Pin<Box<dyn Stream<Item = Result<pb::JobEvent, Status>> + Send>>;

    async fn list_jobs(&self, request: Request<pb::ListJobsRequest>) -> Result<Response<pb::ListJobsResponse>, Status> {
        let (first, many) = (request.get_ref().page_token.is_empty(), *self.many_jobs.lock().unwrap());
        let next_page_token = if first { "next" } else { "" }.to_owned();
        let names = match (many, first) {
            (1.., _) => vec!["jobs/job-1"; many],
            (0, true) => vec!["jobs/job-done", "jobs/job-bad"],
            (0, false) => vec!["jobs/job-1"],
        };
        let asked = usize::try_from(request.get_ref().page_size).ok().filter(|asked| *asked > 0).unwrap_or(usize::MAX);
        let jobs = names.into_iter().take(asked).map(|name| known(name).unwrap()).collect();
        Ok(Response::new(pb::ListJobsResponse { jobs, next_page_token }))
    }

    async fn create_job(&self, request: Request<pb::CreateJobRequest>) -> Result<Response<pb::Job>, Status> {
        self.refused()?;
        let request = request.into_inner();
        let spec = request.spec.clone();
        if spec.as_ref().is_some_and(|spec| spec.model == "Wrong") {
            return Err(status::invalid_argument("trainer.firn.dev", "spec.model", "must be an id"));
        }
        let mut created = self.created.lock().unwrap();
        let known =
            created.iter().position(|other| !request.request_id.is_empty() && other.request_id == request.request_id);
        let place = known.unwrap_or_else(|| {
            created.push(request);
            created.len() - 1
        });
        let queued = job(&format!("jobs/job-{}", place + 1), pb::JobState::Queued);
        Ok(Response::new(pb::Job { spec, ..queued }))
    }

    async fn get_job(&self, request: Request<pb::GetJobRequest>) -> Result<Response<pb::Job>, Status> {
        known(&request.get_ref().name).map(Response::new)
    }

    async fn watch_job(&self, request: Request<pb::WatchJobRequest>) -> Result<Response<Self::WatchJobStream>, Status> {
        let pb::WatchJobRequest { name, cursor } = request.into_inner();
        let last = known(&name)?;
        let progress = pb::Progress { what: "rows".to_owned(), done: 1, total: 2 };
        let mut events = vec![
            (1, Event::State(job(&name, pb::JobState::Queued))),
            (2, Event::State(job(&name, pb::JobState::Running))),
            (3, Event::Step(step(4))),
            (3, Event::Progress(progress)),
        ];
        if name == "jobs/job-done" {
            events.push((4, Event::State(last)));
        }
        // An hour after the job was created and a second apart; a step of an old job does not know.
        let is_old = name == "jobs/job-1";
        let event = move |(cursor, event)| {
            let has_time = match &event {
                Event::State(_) => true,
                Event::Step(_) => !is_old,
                Event::Progress(_) => false,
            };
            let seconds = 3600 + i64::try_from(cursor).unwrap();
            let time = has_time.then_some(prost_types::Timestamp { seconds, nanos: 0 });
            Ok(pb::JobEvent { cursor, event: Some(event), time })
        };
        let kept = events.into_iter().filter(move |(at, _)| *at > cursor).map(event);
        let kept = stream::iter(kept.collect::<Vec<_>>());
        Ok(Response::new(match name.as_str() {
            "jobs/job-done" => kept.boxed(),
            "jobs/job-broken" => kept.chain(stream::iter([Err(Status::unavailable("stopping"))])).boxed(),
            _ => kept.chain(stream::pending()).boxed(),
        }))
    }

    async fn cancel_job(&self, request: Request<pb::CancelJobRequest>) -> Result<Response<pb::Job>, Status> {
        self.told("cancel", &request.get_ref().name, pb::JobState::Cancelled)
    }

    async fn pause_job(&self, request: Request<pb::PauseJobRequest>) -> Result<Response<pb::Job>, Status> {
        self.told("pause", &request.get_ref().name, pb::JobState::Paused)
    }

    async fn resume_job(&self, request: Request<pb::ResumeJobRequest>) -> Result<Response<pb::Job>, Status> {
        self.told("resume", &request.get_ref().name, pb::JobState::Queued)
    }

    async fn plan_job(&self, _: Request<pb::PlanJobRequest>) -> Result<Response<pb::JobPlan>, Status> {
        Err(Status::unimplemented("not asked for"))
    }

    async fn list_checkpoints(
        &self,
        request: Request<pb::ListCheckpointsRequest>,
    ) -> Result<Response<pb::ListCheckpointsResponse>, Status> {
        let parent = request.into_inner().parent;
        known(&parent)?;
        let checkpoint = |at: u64| pb::Checkpoint {
            name: format!("{parent}/checkpoints/{at}"),
            step: at,
            path: format!("{parent}/checkpoints/{at:06}"),
            metrics: Some(step(at)),
            best: at == 100,
        };
        let mut checkpoints = vec![checkpoint(50), checkpoint(100)];
        if let ("jobs/done", Some(last)) = (parent.as_str(), checkpoints.last_mut()) {
            last.metrics = Some(pb::StepMetrics { loss: 0.5, ..step(100) });
        }
        Ok(Response::new(pb::ListCheckpointsResponse { checkpoints }))
    }
}
