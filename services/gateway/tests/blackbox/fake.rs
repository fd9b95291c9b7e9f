//! The services behind the gateway, from their generated stubs.

mod files;
mod registry;
mod trainer;

use std::{
    pin::Pin,
    sync::{Arc, Mutex},
};

use firn_kit::{GrpcServer, ServerArgs, status};
use firn_proto::{
    dataprep::v1::{data_prep_service_server as data_prep_server, file_service_server as file_server},
    inference::v1::{self as pb, inference_service_server as inference},
    registry::v1::registry_service_server as registry_server,
    trainer::v1::trainer_service_server as trainer_server,
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
    pub(crate) files: Arc<Mutex<files::Stored>>,
    pub(crate) jobs: Arc<Mutex<trainer::Told>>,
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
            .add_service(data_prep_server::DataPrepServiceServer::new(fake.clone()))
            .add_service(file_server::FileServiceServer::new(fake.clone()))
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
    let delta = pb::Delta { text: text.to_owned(), ids: vec![1], logprobs: vec![], ..Default::default() };
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
        ..Default::default()
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

    async fn load_model(&self, _: Request<pb::LoadModelRequest>) -> Result<Response<pb::ServedModel>, Status> {
        Err(Status::unimplemented("not asked for"))
    }

    async fn unload_model(
        &self,
        _: Request<pb::UnloadModelRequest>,
    ) -> Result<Response<pb::UnloadModelResponse>, Status> {
        Err(Status::unimplemented("not asked for"))
    }

    async fn tokenize(&self, _: Request<pb::TokenizeRequest>) -> Result<Response<pb::TokenizeResponse>, Status> {
        Err(Status::unimplemented("not asked for"))
    }

    async fn get_stats(&self, _: Request<pb::GetStatsRequest>) -> Result<Response<pb::Stats>, Status> {
        Err(Status::unimplemented("not asked for"))
    }
}
