//! The trainer, with jobs that all look alike.

use std::pin::Pin;

use firn_proto::{
    dataprep::v1::CreateSnapshotRequest,
    trainer::v1::{self as trainer, trainer_service_server::TrainerService},
};
use futures_util::Stream;
use tonic::{Request, Response, Status};

use super::Fake;

#[tonic::async_trait]
impl TrainerService for Fake {
    type WatchJobStream = Pin<Box<dyn Stream<Item = Result<trainer::JobEvent, Status>> + Send>>;

    async fn list_jobs(
        &self,
        request: Request<trainer::ListJobsRequest>,
    ) -> Result<Response<trainer::ListJobsResponse>, Status> {
        let job = trainer::Job {
            name: "jobs/j-1".to_owned(),
            state: trainer::JobState::Running.into(),
            step: 4,
            steps: 10,
            create_time: Some(prost_types::Timestamp { seconds: 0, nanos: 0 }),
            ..Default::default()
        };
        let request = request.into_inner();
        let count = usize::try_from(request.page_size).unwrap();
        let next_page_token = if request.page_token.is_empty() { "next" } else { "" }.to_owned();
        Ok(Response::new(trainer::ListJobsResponse { jobs: vec![job; count], next_page_token }))
    }

    async fn create_job(&self, request: Request<trainer::CreateJobRequest>) -> Result<Response<trainer::Job>, Status> {
        let request = request.into_inner();
        let spec = request.spec.clone().unwrap();
        if spec.model == "Wrong" {
            return Err(firn_kit::status::invalid_argument("trainer.firn.dev", "spec.model", "must be an id"));
        }
        let mut created = self.created.lock().unwrap();
        let known =
            created.iter().position(|other| !request.request_id.is_empty() && other.request_id == request.request_id);
        let place = known.unwrap_or_else(|| {
            created.push(request);
            created.len() - 1
        });
        let name = format!("jobs/job-{}", place + 1);
        Ok(Response::new(trainer::Job { name, spec: Some(spec), ..Default::default() }))
    }

    async fn get_job(&self, request: Request<trainer::GetJobRequest>) -> Result<Response<trainer::Job>, Status> {
        let name = request.into_inner().name;
        let (state, error) = match name.as_str() {
            "jobs/done" => (trainer::JobState::Succeeded, ""),
            "jobs/failed" => (trainer::JobState::Failed, "there are no rows"),
            "jobs/running" => (trainer::JobState::Running, ""),
            _ => return Err(Status::not_found(format!("there is no {name}"))),
        };
        let evaluation = |loss| Some(trainer::Evaluation { loss, rows: 5, ..Default::default() });
        let data = CreateSnapshotRequest { source: "inputs/train.parquet".to_owned(), ..Default::default() };
        let (base, model) = ("bases/a/b".to_owned(), "offers".to_owned());
        Ok(Response::new(trainer::Job {
            name,
            spec: Some(trainer::JobSpec { base, model, data: Some(data), ..Default::default() }),
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
        }))
    }

    async fn watch_job(&self, _: Request<trainer::WatchJobRequest>) -> Result<Response<Self::WatchJobStream>, Status> {
        Err(Status::unimplemented("not asked for"))
    }

    async fn cancel_job(&self, request: Request<trainer::CancelJobRequest>) -> Result<Response<trainer::Job>, Status> {
        Ok(Response::new(trainer::Job { name: request.into_inner().name, ..Default::default() }))
    }

    async fn pause_job(&self, _: Request<trainer::PauseJobRequest>) -> Result<Response<trainer::Job>, Status> {
        Err(Status::unimplemented("not asked for"))
    }

    async fn resume_job(&self, _: Request<trainer::ResumeJobRequest>) -> Result<Response<trainer::Job>, Status> {
        Err(Status::unimplemented("not asked for"))
    }

    async fn plan_job(&self, _: Request<trainer::PlanJobRequest>) -> Result<Response<trainer::JobPlan>, Status> {
        Err(Status::unimplemented("not asked for"))
    }

    async fn list_checkpoints(
        &self,
        _: Request<trainer::ListCheckpointsRequest>,
    ) -> Result<Response<trainer::ListCheckpointsResponse>, Status> {
        let checkpoint = |step: u64, loss| trainer::Checkpoint {
            step,
            metrics: Some(trainer::StepMetrics { step, loss, ..Default::default() }),
            ..Default::default()
        };
        Ok(Response::new(trainer::ListCheckpointsResponse {
            checkpoints: vec![checkpoint(5, 0.75), checkpoint(10, 0.5)],
        }))
    }
}
