//! The gRPC service: messages in, one call, messages out.

use std::pin::Pin;

use firn_kit::page::page;
use firn_proto::trainer::v1::{
    CancelJobRequest, CreateJobRequest, GetJobRequest, Job, JobEvent, JobPlan, ListCheckpointsRequest,
    ListCheckpointsResponse, ListJobsRequest, ListJobsResponse, PauseJobRequest, PlanJobRequest, ResumeJobRequest,
    WatchJobRequest, trainer_service_server::TrainerService,
};
use futures_util::Stream;
use tonic::{Request, Response, Status};

use crate::{
    error::page_status,
    events,
    forecast::Forecaster,
    queue::Jobs,
    spec::{FieldError, Spec},
};

/// Longest request id in bytes.
const LONGEST_REQUEST_ID: usize = 128;

/// Answers calls.
#[derive(Clone, Debug)]
pub(crate) struct Rpc {
    pub(crate) jobs: Jobs,
    pub(crate) forecaster: Forecaster,
}

#[tonic::async_trait]
impl TrainerService for Rpc {
    async fn create_job(&self, request: Request<CreateJobRequest>) -> Result<Response<Job>, Status> {
        let CreateJobRequest { spec, request_id } = request.into_inner();
        let spec = Spec::check(spec.ok_or_else(|| FieldError::new("spec", "must be set"))?)?;
        if request_id.len() > LONGEST_REQUEST_ID {
            return Err(FieldError::new("request_id", format!("has more than {LONGEST_REQUEST_ID} bytes")).into());
        }
        Ok(Response::new(self.jobs.create(spec, request_id).await?))
    }

    async fn get_job(&self, request: Request<GetJobRequest>) -> Result<Response<Job>, Status> {
        Ok(Response::new(self.jobs.get(&request.get_ref().name)?.to_proto()))
    }

    async fn list_jobs(&self, request: Request<ListJobsRequest>) -> Result<Response<ListJobsResponse>, Status> {
        let request = request.into_inner();
        let (jobs, next_page_token) =
            page(self.jobs.list(), request.page_size, &request.page_token).map_err(page_status)?;
        Ok(Response::new(ListJobsResponse { jobs, next_page_token }))
    }

    type WatchJobStream = Pin<Box<dyn Stream<Item = Result<JobEvent, Status>> + Send>>;

    async fn watch_job(&self, request: Request<WatchJobRequest>) -> Result<Response<Self::WatchJobStream>, Status> {
        let WatchJobRequest { name, cursor } = request.into_inner();
        let (spec, events) = self.jobs.events(&name).await?;
        let stream = events::watch(spec, events, cursor, self.jobs.stopped().clone());
        Ok(Response::new(Box::pin(stream)))
    }

    async fn cancel_job(&self, request: Request<CancelJobRequest>) -> Result<Response<Job>, Status> {
        Ok(Response::new(self.jobs.cancel(&request.get_ref().name).await?))
    }

    async fn pause_job(&self, request: Request<PauseJobRequest>) -> Result<Response<Job>, Status> {
        Ok(Response::new(self.jobs.pause(&request.get_ref().name)?))
    }

    async fn resume_job(&self, request: Request<ResumeJobRequest>) -> Result<Response<Job>, Status> {
        Ok(Response::new(self.jobs.resume(&request.get_ref().name).await?))
    }

    async fn list_checkpoints(
        &self,
        request: Request<ListCheckpointsRequest>,
    ) -> Result<Response<ListCheckpointsResponse>, Status> {
        let checkpoints = self.jobs.checkpoints(&request.get_ref().parent).await?;
        Ok(Response::new(ListCheckpointsResponse { checkpoints }))
    }

    async fn plan_job(&self, request: Request<PlanJobRequest>) -> Result<Response<JobPlan>, Status> {
        let spec = request.into_inner().spec.ok_or_else(|| FieldError::new("spec", "must be set"))?;
        Ok(Response::new(self.forecaster.forecast(Spec::check(spec)?).await?))
    }
}
