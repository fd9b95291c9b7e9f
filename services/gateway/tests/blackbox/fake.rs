//! The services behind the gateway, from their generated stubs.

use std::{
    pin::Pin,
    sync::{Arc, Mutex},
};

use firn_kit::{GrpcServer, ServerArgs, status};
use firn_proto::{
    inference::v1::{self as pb, inference_service_server as inference},
    registry::v1::{self as registry, registry_service_server as registry_server},
    trainer::v1::{self as trainer, trainer_service_server as trainer_server},
};
use futures_util::{Stream, StreamExt as _};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Response, Status};

pub(crate) type Piece = Result<pb::GenerateResponse, Status>;

/// What was asked, and what is answered.
#[derive(Clone, Debug, Default)]
pub(crate) struct Fake {
    pub(crate) asked: Arc<Mutex<Vec<pb::ChatRequest>>>,
    pub(crate) generated: Arc<Mutex<Vec<pb::GenerateRequest>>>,
    next: Arc<Mutex<Option<Script>>>,
}

/// The answer to the next request.
#[derive(Debug)]
struct Script {
    pieces: mpsc::Receiver<Piece>,
    dropped: oneshot::Sender<()>,
}

/// Tells of its end.
struct OnDrop(Option<oneshot::Sender<()>>);

impl Drop for OnDrop {
    fn drop(&mut self) {
        if let Some(sender) = self.0.take() {
            let _ = sender.send(());
        }
    }
}

impl Fake {
    /// Starts all of them at one address; they end with the test.
    pub(crate) async fn start() -> (Self, String) {
        let fake = Self::default();
        let server = GrpcServer::bind("fake", &ServerArgs::loopback()).await.unwrap();
        let address = format!("http://{}", server.local_addr());
        let server = server
            .add_service(inference::InferenceServiceServer::new(fake.clone()))
            .add_service(trainer_server::TrainerServiceServer::new(fake.clone()))
            .add_service(registry_server::RegistryServiceServer::new(fake.clone()));
        tokio::spawn(server.run(CancellationToken::new()));
        (fake, address)
    }

    /// The test writes the next answer itself, and hears when nobody reads it any more.
    pub(crate) fn script(&self) -> (mpsc::Sender<Piece>, oneshot::Receiver<()>) {
        let (sender, pieces) = mpsc::channel(64);
        let (dropped, gone) = oneshot::channel();
        *self.next.lock().unwrap() = Some(Script { pieces, dropped });
        (sender, gone)
    }

    fn answer(&self, model: &str) -> Result<Response<Pieces>, Status> {
        const DOMAIN: &str = "inference.firn.dev";
        let retry = std::time::Duration::from_secs(2);
        match model {
            "full" => return Err(status::resource_exhausted(DOMAIN, "QUEUE_FULL", "full", retry)),
            "wrong" => return Err(status::invalid_argument(DOMAIN, "sampling.temperature", "must be from 0")),
            "loading" => return Err(status::unavailable(DOMAIN, "LOADING", "wait", retry)),
            "base" | "" | "offers@best" => {}
            other => {
                let message = format!("there is no model `{other}`; there is base");
                return Err(status::status(Code::NotFound, DOMAIN, "MODEL_NOT_FOUND", message));
            }
        }
        let script = self.next.lock().unwrap().take();
        let (pieces, guard) = match script {
            Some(script) => (script.pieces, OnDrop(Some(script.dropped))),
            None => {
                let (sender, pieces) = mpsc::channel(8);
                for piece in [delta("Hello"), delta(" \"there\"\n🚀"), finish(pb::FinishReason::Stop)] {
                    sender.try_send(Ok(piece)).unwrap();
                }
                (pieces, OnDrop(None))
            }
        };
        let stream = ReceiverStream::new(pieces).map(move |piece| {
            let _alive = &guard;
            piece
        });
        Ok(Response::new(Box::pin(stream)))
    }
}

pub(crate) fn delta(text: &str) -> pb::GenerateResponse {
    let delta = pb::Delta { text: text.to_owned(), ids: vec![1], logprobs: vec![] };
    pb::GenerateResponse { event: Some(pb::generate_response::Event::Delta(delta)) }
}

pub(crate) fn finish(reason: pb::FinishReason) -> pb::GenerateResponse {
    let finish = pb::Finish {
        reason: reason.into(),
        prompt_tokens: 3,
        completion_tokens: 2,
        seed: 7,
        first_token_seconds: 0.5,
        seconds: 1.5,
    };
    pb::GenerateResponse { event: Some(pb::generate_response::Event::Finish(finish)) }
}

type Pieces = Pin<Box<dyn Stream<Item = Piece> + Send>>;

#[tonic::async_trait]
impl inference::InferenceService for Fake {
    type GenerateStream = Pieces;
    type ChatStream = Pieces;

    async fn generate(&self, request: Request<pb::GenerateRequest>) -> Result<Response<Pieces>, Status> {
        let request = request.into_inner();
        let answer = self.answer(&request.model);
        self.generated.lock().unwrap().push(request);
        answer
    }

    async fn chat(&self, request: Request<pb::ChatRequest>) -> Result<Response<Pieces>, Status> {
        let request = request.into_inner();
        let answer = self.answer(&request.model);
        self.asked.lock().unwrap().push(request);
        answer
    }

    async fn score(&self, _: Request<pb::ScoreRequest>) -> Result<Response<pb::ScoreResponse>, Status> {
        Err(Status::unimplemented("not asked for"))
    }

    async fn list_models(&self, _: Request<pb::ListModelsRequest>) -> Result<Response<pb::ListModelsResponse>, Status> {
        let base = pb::ServedModel { id: "base".to_owned(), context_length: 512, ..Default::default() };
        let tuned = pb::ServedModel { id: "offers@best".to_owned(), parent: "base".to_owned(), ..base.clone() };
        Ok(Response::new(pb::ListModelsResponse { models: vec![base, tuned] }))
    }
}

#[tonic::async_trait]
impl trainer_server::TrainerService for Fake {
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
}

#[tonic::async_trait]
impl registry_server::RegistryService for Fake {
    type WatchAliasesStream = Pin<Box<dyn Stream<Item = Result<registry::AliasEvent, Status>> + Send>>;
    type ReadFileStream = Pin<Box<dyn Stream<Item = Result<registry::ReadFileResponse, Status>> + Send>>;

    async fn list_models(
        &self,
        _: Request<registry::ListModelsRequest>,
    ) -> Result<Response<registry::ListModelsResponse>, Status> {
        let alias = registry::Alias { name: "models/offers/aliases/best".to_owned(), version: 2, sequence: 2 };
        let model = registry::Model { name: "models/offers".to_owned(), versions: 2, aliases: vec![alias] };
        Ok(Response::new(registry::ListModelsResponse { models: vec![model], next_page_token: String::new() }))
    }

    async fn create_version(
        &self,
        _: Request<registry::CreateVersionRequest>,
    ) -> Result<Response<registry::Version>, Status> {
        Err(Status::unimplemented("not asked for"))
    }

    async fn get_version(
        &self,
        _: Request<registry::GetVersionRequest>,
    ) -> Result<Response<registry::Version>, Status> {
        Err(Status::unimplemented("not asked for"))
    }

    async fn list_versions(
        &self,
        _: Request<registry::ListVersionsRequest>,
    ) -> Result<Response<registry::ListVersionsResponse>, Status> {
        Err(Status::unimplemented("not asked for"))
    }

    async fn set_alias(&self, _: Request<registry::SetAliasRequest>) -> Result<Response<registry::Alias>, Status> {
        Err(Status::unimplemented("not asked for"))
    }

    async fn watch_aliases(
        &self,
        _: Request<registry::WatchAliasesRequest>,
    ) -> Result<Response<Self::WatchAliasesStream>, Status> {
        Err(Status::unimplemented("not asked for"))
    }

    async fn read_file(&self, _: Request<registry::ReadFileRequest>) -> Result<Response<Self::ReadFileStream>, Status> {
        Err(Status::unimplemented("not asked for"))
    }
}
