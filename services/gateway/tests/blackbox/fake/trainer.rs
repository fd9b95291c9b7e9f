//! The trainer, with jobs that all look alike.

use std::pin::Pin;

use firn_proto::trainer::v1::{self as trainer, trainer_service_server::TrainerService};
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
        let count = usize::try_from(request.into_inner().page_size).unwrap();
        Ok(Response::new(trainer::ListJobsResponse { jobs: vec![job; count], next_page_token: "next".to_owned() }))
    }

    async fn create_job(&self, _: Request<trainer::CreateJobRequest>) -> Result<Response<trainer::Job>, Status> {
        Err(Status::unimplemented("not asked for"))
    }

    async fn get_job(&self, _: Request<trainer::GetJobRequest>) -> Result<Response<trainer::Job>, Status> {
        Err(Status::unimplemented("not asked for"))
    }

    async fn watch_job(&self, _: Request<trainer::WatchJobRequest>) -> Result<Response<Self::WatchJobStream>, Status> {
        Err(Status::unimplemented("not asked for"))
    }

    async fn cancel_job(&self, _: Request<trainer::CancelJobRequest>) -> Result<Response<trainer::Job>, Status> {
        Err(Status::unimplemented("not asked for"))
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
        Err(Status::unimplemented("not asked for"))
    }
}
