//! The services behind the gateway, from their generated stubs.

mod files;
mod inference;
mod registry;
mod trainer;

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{Arc, Mutex},
};

use firn_kit::{GrpcServer, ServerArgs, status};
use firn_proto::{
    dataprep::v1::{data_prep_service_server::DataPrepServiceServer, file_service_server::FileServiceServer},
    inference::v1::{self as pb, inference_service_server::InferenceServiceServer},
    registry::v1::registry_service_server::RegistryServiceServer,
    trainer::v1::{CreateJobRequest, trainer_service_server::TrainerServiceServer},
};
use futures_util::{Stream, StreamExt as _};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Response, Status};

const DOMAIN: &str = "inference.firn.dev";

pub(crate) type Piece = Result<pb::GenerateResponse, Status>;

/// What was asked, and what is answered.
#[derive(Clone, Debug, Default)]
pub(crate) struct Fake {
    pub(crate) asked: Arc<Mutex<Vec<pb::ChatRequest>>>,
    pub(crate) generated: Arc<Mutex<Vec<pb::GenerateRequest>>>,
    pub(crate) loaded: Arc<Mutex<Vec<String>>>,
    pub(crate) created: Arc<Mutex<Vec<CreateJobRequest>>>,
    /// What jobs were told, such as `cancel jobs/job-1`.
    pub(crate) told: Arc<Mutex<Vec<String>>>,
    /// If not 0, each of two pages of jobs has so many, which all run.
    pub(crate) many_jobs: Arc<Mutex<usize>>,
    pub(crate) files: Arc<Mutex<files::Stored>>,
    /// Answers that are open, and the most that were at once.
    pub(crate) open: Arc<Mutex<(usize, usize)>>,
    /// So many answers of `crowded` may be open at once; more find the queue full.
    pub(crate) places: Arc<Mutex<usize>>,
    /// So many requests find the queue full.
    pub(crate) full: Arc<Mutex<usize>>,
    /// What the next call that changes or answers something is refused with.
    pub(crate) refusal: Arc<Mutex<Option<Status>>>,
    pub(crate) tokenized: Arc<Mutex<Vec<pb::TokenizeRequest>>>,
    next: Arc<Mutex<VecDeque<Script>>>,
}

/// The answer to a coming request.
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
            .add_service(InferenceServiceServer::new(fake.clone()))
            .add_service(TrainerServiceServer::new(fake.clone()))
            .add_service(DataPrepServiceServer::new(fake.clone()))
            .add_service(FileServiceServer::new(fake.clone()))
            .add_service(RegistryServiceServer::new(fake.clone()));
        tokio::spawn(server.run(CancellationToken::new()));
        (fake, address)
    }

    /// The next call is refused for a field.
    pub(crate) fn refuse(&self, field: &str) {
        *self.refusal.lock().unwrap() = Some(status::invalid_argument(DOMAIN, field, "is wrong"));
    }

    /// Fails if the test wants that.
    fn refused(&self) -> Result<(), Status> {
        self.refusal.lock().unwrap().take().map_or(Ok(()), Err)
    }

    /// The test writes the next answer itself, and hears when nobody reads it any more. Called again, the one after it.
    pub(crate) fn script(&self) -> (mpsc::Sender<Piece>, oneshot::Receiver<()>) {
        let (sender, pieces) = mpsc::channel(64);
        let (dropped, gone) = oneshot::channel();
        self.next.lock().unwrap().push_back(Script { pieces, dropped });
        (sender, gone)
    }

    /// An answer that takes its time, if fewer than `most` are open. Looked at and counted at once: callers come side by side.
    fn slow(&self, most: usize) -> Option<Response<Pieces>> {
        let open = Arc::clone(&self.open);
        {
            let mut counts = open.lock().unwrap();
            if counts.0 >= most {
                return None;
            }
            counts.0 += 1;
            counts.1 = counts.1.max(counts.0);
        }
        let pieces = futures_util::stream::once(async {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            Ok(delta("slow"))
        });
        let end = futures_util::stream::once(async move {
            open.lock().unwrap().0 -= 1;
            Ok(finish(pb::FinishReason::Stop))
        });
        Some(Response::new(Box::pin(pieces.chain(end))))
    }

    fn answer(&self, model: &str, sampling: Option<&pb::Sampling>) -> Result<Response<Pieces>, Status> {
        self.refused()?;
        let retry = std::time::Duration::from_secs(2);
        let full = std::mem::take(&mut *self.full.lock().unwrap());
        if full > 0 {
            *self.full.lock().unwrap() = full - 1;
            let soon = std::time::Duration::from_millis(10);
            return Err(status::resource_exhausted(DOMAIN, "QUEUE_FULL", "full", soon));
        }
        match model {
            "full" => return Err(status::resource_exhausted(DOMAIN, "QUEUE_FULL", "full", retry)),
            "wrong" => return Err(status::invalid_argument(DOMAIN, "sampling.temperature", "must be from 0")),
            "loading" => return Err(status::unavailable(DOMAIN, "LOADING", "wait", retry)),
            "slow" | "crowded" => {
                let most = if model == "crowded" { *self.places.lock().unwrap() } else { usize::MAX };
                let full = || status::resource_exhausted(DOMAIN, "QUEUE_FULL", "full", retry);
                return self.slow(most).ok_or_else(full);
            }
            "base" | "" | "offers@best" => {}
            other => return Err(not_found(other)),
        }
        let script = self.next.lock().unwrap().pop_front();
        let (pieces, guard) = match script {
            Some(script) => (script.pieces, OnDrop(Some(script.dropped))),
            None => {
                let (sender, pieces) = mpsc::channel(8);
                let mut last = finish(pb::FinishReason::Stop);
                if let (Some(pb::generate_response::Event::Finish(finish)), Some(seed)) =
                    (&mut last.event, sampling.and_then(|sampling| sampling.seed))
                {
                    finish.seed = seed;
                }
                for piece in [delta("Hello"), delta(" \"there\"\n🚀"), last] {
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

fn not_found(model: &str) -> Status {
    let message = format!("there is no model `{model}`; there is base");
    status::status(Code::NotFound, DOMAIN, "MODEL_NOT_FOUND", message)
}

pub(crate) fn delta(text: &str) -> pb::GenerateResponse {
    let delta = pb::Delta { text: text.to_owned(), ids: vec![1], ..Default::default() };
    pb::GenerateResponse { event: Some(pb::generate_response::Event::Delta(delta)) }
}

/// A token as text with what stood beside it, and its log-probability.
pub(crate) fn token(text: &str, token: &[u8], logprob: f32) -> pb::GenerateResponse {
    let chosen = pb::Candidate { id: 1, token: token.to_vec(), logprob };
    let other = pb::Candidate { id: 2, token: b"other".to_vec(), logprob: -4.0 };
    let details = vec![pb::TokenLogprobs { top: vec![chosen.clone(), other], chosen: Some(chosen) }];
    let delta = pb::Delta { text: text.to_owned(), ids: vec![1], logprobs: vec![logprob], details };
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
        cached_tokens: 1,
        version: "models/offers/versions/2".to_owned(),
    };
    pb::GenerateResponse { event: Some(pb::generate_response::Event::Finish(finish)) }
}

type Pieces = Pin<Box<dyn Stream<Item = Piece> + Send>>;
