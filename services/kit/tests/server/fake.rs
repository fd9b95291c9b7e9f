//! An inference service that does what the prompt says, in a running server.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use firn_kit::{Channel, GrpcServer, MeshToken, Readiness, ServeError, ServerArgs, Tls};
use firn_proto::inference::v1::inference_service_client::InferenceServiceClient;
use firn_proto::inference::v1::inference_service_server::{InferenceService, InferenceServiceServer};
use firn_proto::inference::v1::{
    ChatRequest, Delta, GenerateRequest, GenerateResponse, GetStatsRequest, ListModelsRequest, ListModelsResponse,
    LoadModelRequest, ScoreRequest, ScoreResponse, ServedModel, Stats, TokenizeRequest, TokenizeResponse,
    UnloadModelRequest, UnloadModelResponse, generate_request, generate_response, score_request,
};
use futures_util::stream::{self, BoxStream, StreamExt as _};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

/// No wait of these tests is longer.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Clone, Default)]
pub(crate) struct Fake {
    /// Calls whose work has begun.
    pub(crate) begun: Arc<AtomicUsize>,
    /// Calls whose work was dropped or is done.
    pub(crate) ended: Arc<AtomicUsize>,
}

struct Ended(Arc<AtomicUsize>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

pub(crate) fn score(text: &str) -> ScoreRequest {
    ScoreRequest { model: String::new(), input: Some(score_request::Input::Text(text.to_owned())) }
}

pub(crate) fn generate(prompt: &str) -> GenerateRequest {
    GenerateRequest { input: Some(generate_request::Input::Prompt(prompt.to_owned())), ..Default::default() }
}

fn delta() -> GenerateResponse {
    let delta = Delta { text: "x".to_owned(), ..Default::default() };
    GenerateResponse { event: Some(generate_response::Event::Delta(delta)) }
}

#[tonic::async_trait]
impl InferenceService for Fake {
    type GenerateStream = BoxStream<'static, Result<GenerateResponse, Status>>;
    type ChatStream = Self::GenerateStream;

    async fn generate(&self, request: Request<GenerateRequest>) -> Result<Response<Self::GenerateStream>, Status> {
        let Some(generate_request::Input::Prompt(prompt)) = request.into_inner().input else { unreachable!() };
        let ended = Ended(Arc::clone(&self.ended));
        let stream = match prompt.as_str() {
            "forever" => stream::unfold(ended, |ended| async {
                tokio::time::sleep(Duration::from_millis(5)).await;
                Some((Ok(delta()), ended))
            })
            .boxed(),
            "silent" => stream::unfold(ended, |ended| async {
                std::future::pending::<()>().await;
                Some((Ok(delta()), ended))
            })
            .boxed(),
            "panic" => stream::iter(0..2).map(|i| if i == 0 { Ok(delta()) } else { panic!("in the stream") }).boxed(),
            other => panic!("no such behaviour: {other}"),
        };
        Ok(Response::new(stream))
    }

    async fn chat(&self, _: Request<ChatRequest>) -> Result<Response<Self::ChatStream>, Status> {
        Err(Status::unimplemented("not needed"))
    }

    async fn score(&self, request: Request<ScoreRequest>) -> Result<Response<ScoreResponse>, Status> {
        self.begun.fetch_add(1, Ordering::SeqCst);
        let _ended = Ended(Arc::clone(&self.ended));
        match request.into_inner().input {
            Some(score_request::Input::Text(text)) if text == "ok" => Ok(Response::new(ScoreResponse::default())),
            Some(score_request::Input::Text(text)) if text == "hang" => std::future::pending().await,
            _ => panic!("secret of the handler"),
        }
    }

    async fn list_models(&self, _: Request<ListModelsRequest>) -> Result<Response<ListModelsResponse>, Status> {
        Ok(Response::new(ListModelsResponse::default()))
    }

    async fn load_model(&self, _: Request<LoadModelRequest>) -> Result<Response<ServedModel>, Status> {
        Err(Status::unimplemented("not needed"))
    }

    async fn unload_model(&self, _: Request<UnloadModelRequest>) -> Result<Response<UnloadModelResponse>, Status> {
        Err(Status::unimplemented("not needed"))
    }

    async fn tokenize(&self, _: Request<TokenizeRequest>) -> Result<Response<TokenizeResponse>, Status> {
        Err(Status::unimplemented("not needed"))
    }

    async fn get_stats(&self, _: Request<GetStatsRequest>) -> Result<Response<Stats>, Status> {
        Err(Status::unimplemented("not needed"))
    }
}

pub(crate) struct Running {
    pub(crate) address: SocketAddr,
    pub(crate) health: SocketAddr,
    pub(crate) readiness: Readiness,
    pub(crate) fake: Fake,
    pub(crate) shutdown: CancellationToken,
    pub(crate) task: JoinHandle<Result<(), ServeError>>,
}

impl Running {
    pub(crate) async fn start(args: ServerArgs) -> Self {
        Self::start_with(args, None).await
    }

    pub(crate) async fn start_with(args: ServerArgs, token: Option<MeshToken>) -> Self {
        Self::start_as(args, token, None).await
    }

    pub(crate) async fn start_as(mut args: ServerArgs, token: Option<MeshToken>, tls: Option<Tls>) -> Self {
        args.health_listen = Some("127.0.0.1:0".parse().unwrap());
        let fake = Fake::default();
        let server = GrpcServer::bind("inference", &args).await.unwrap();
        let server = server.with_token(token).with_tls(tls).add_service(InferenceServiceServer::new(fake.clone()));
        let (address, health, readiness) = (server.local_addr(), server.health_addr().unwrap(), server.readiness());
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(server.run(shutdown.clone()));
        Self { address, health, readiness, fake, shutdown, task }
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// A channel as services use it.
    pub(crate) fn channel(&self) -> Channel {
        firn_kit::channel(&self.endpoint()).unwrap()
    }

    pub(crate) fn client(&self) -> InferenceServiceClient<Channel> {
        InferenceServiceClient::new(self.channel())
    }

    /// A channel of somebody else: what it sees is the server's doing alone.
    pub(crate) fn foreign_channel(&self) -> tonic::transport::Channel {
        tonic::transport::Endpoint::from_shared(self.endpoint()).unwrap().connect_lazy()
    }

    pub(crate) async fn ended(&self, calls: usize) {
        eventually(async || self.fake.ended.load(Ordering::SeqCst) >= calls).await;
    }

    /// Waits for `run` to return.
    pub(crate) async fn stopped(self) {
        tokio::time::timeout(PATIENCE, self.task).await.expect("run returns").unwrap().unwrap();
    }
}

/// Waits until `done`; fails after [`PATIENCE`].
pub(crate) async fn eventually(done: impl AsyncFn() -> bool) {
    tokio::time::timeout(PATIENCE, async {
        while !done().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("it happens");
}
