//! The gRPC service: messages in, one call, messages out.

use std::{future::ready, pin::Pin, sync::Arc, time::Instant};

use firn_llm::model::Adapter;
use firn_proto::inference::v1::{
    self as pb, generate_request, generate_response::Event as Piece, inference_service_server::InferenceService,
    score_request,
};
use futures_util::{Stream, StreamExt as _, stream};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::{
    answer::Answer,
    base::Base,
    engine::{AHEAD, End, Engine, Event, Generation, Job, Scoring},
    error::AnswerError,
    models::{BASE, Models},
    request::{FieldError, Wishes, check_ids, messages, wishes},
};

/// Answers calls.
#[derive(Clone, Debug)]
pub(crate) struct Rpc {
    pub(crate) base: Arc<Base>,
    pub(crate) models: Models,
    pub(crate) engine: Engine,
}

type Pieces = Pin<Box<dyn Stream<Item = Result<pb::GenerateResponse, Status>> + Send>>;

/// What a prompt was given as.
enum Prompt {
    Text(String),
    Ids(Vec<u32>),
    Chat(Vec<firn_llm::tokenizer::Message>),
}

#[tonic::async_trait]
impl InferenceService for Rpc {
    type GenerateStream = Pieces;
    type ChatStream = Pieces;

    async fn generate(&self, request: Request<pb::GenerateRequest>) -> Result<Response<Pieces>, Status> {
        let pb::GenerateRequest { model, input, sampling } = request.into_inner();
        let prompt = match input {
            Some(generate_request::Input::Prompt(text)) => ("prompt", Prompt::Text(text)),
            Some(generate_request::Input::Ids(ids)) => ("ids", Prompt::Ids(ids.ids)),
            None => return Err(AnswerError::Field(FieldError::new("input", "must be prompt or ids")).into()),
        };
        self.answer(&model, prompt, sampling).await
    }

    async fn chat(&self, request: Request<pb::ChatRequest>) -> Result<Response<Pieces>, Status> {
        let pb::ChatRequest { model, messages: turns, sampling } = request.into_inner();
        let turns = messages(turns).map_err(AnswerError::from)?;
        self.answer(&model, ("messages", Prompt::Chat(turns)), sampling).await
    }

    async fn score(&self, request: Request<pb::ScoreRequest>) -> Result<Response<pb::ScoreResponse>, Status> {
        let pb::ScoreRequest { model, input } = request.into_inner();
        let adapter = self.models.find(&model).map_err(AnswerError::from)?;
        let text = match input {
            Some(score_request::Input::Text(text)) => ("text", Prompt::Text(text)),
            Some(score_request::Input::Ids(ids)) => ("ids", Prompt::Ids(ids.ids)),
            None => return Err(AnswerError::Field(FieldError::new("input", "must be text or ids")).into()),
        };
        let ids = self.read(text).await?;
        let (reply, scores) = oneshot::channel();
        let scoring = Scoring { ids: ids.clone(), adapter, reply };
        self.engine.submit(Job::Score(scoring)).map_err(AnswerError::from)?;
        let logprobs = scores.await.map_err(|_| AnswerError::EngineGone)?.map_err(AnswerError::Score)?;
        let sum = logprobs.iter().map(|logprob| f64::from(*logprob)).sum();
        Ok(Response::new(pb::ScoreResponse { ids, logprobs, sum }))
    }

    async fn list_models(&self, _: Request<pb::ListModelsRequest>) -> Result<Response<pb::ListModelsResponse>, Status> {
        let context_length = u32::try_from(self.base.config.context).unwrap_or(u32::MAX);
        let base = pb::ServedModel { id: BASE.to_owned(), context_length, ..Default::default() };
        let adapters = self.models.list().into_iter().map(|(id, served)| pb::ServedModel {
            id,
            version: served.version,
            parent: BASE.to_owned(),
            context_length,
        });
        Ok(Response::new(pb::ListModelsResponse { models: [base].into_iter().chain(adapters).collect() }))
    }
}

impl Rpc {
    async fn answer(
        &self,
        model: &str,
        prompt: (&'static str, Prompt),
        sampling: Option<pb::Sampling>,
    ) -> Result<Response<Pieces>, Status> {
        let started = Instant::now();
        let wishes = wishes(sampling).map_err(AnswerError::from)?;
        let adapter = self.models.find(model).map_err(AnswerError::from)?;
        let ids = self.read(prompt).await?;
        let pieces = self.begin(ids, adapter, wishes, started)?;
        Ok(Response::new(pieces))
    }

    /// Turns a prompt into ids that the model can read.
    async fn read(&self, (field, prompt): (&'static str, Prompt)) -> Result<Vec<u32>, AnswerError> {
        let base = Arc::clone(&self.base);
        let tokenised = move || {
            let wrong = |error: firn_llm::tokenizer::TokenizerError| FieldError::new(field, error.to_string());
            let ids = match prompt {
                Prompt::Ids(ids) => ids,
                Prompt::Chat(turns) => base.tokenizer.render(&turns, true).map_err(wrong)?.ids,
                Prompt::Text(text) => {
                    let ids = base.tokenizer.encode(&text, true).map_err(wrong)?;
                    // Nothing to go on from: then the text begins here.
                    if ids.is_empty() { base.tokenizer.bos_id().into_iter().collect() } else { ids }
                }
            };
            check_ids(&ids, field, &base.config)?;
            Ok::<_, FieldError>(ids)
        };
        // A long text takes a while, in which other calls go on.
        Ok(tokio::task::spawn_blocking(tokenised).await??)
    }

    fn begin(
        &self,
        ids: Vec<u32>,
        adapter: Option<Arc<Adapter>>,
        wishes: Wishes,
        started: Instant,
    ) -> Result<Pieces, AnswerError> {
        let Wishes { sampling, max_tokens, stop, ignore_eos, logprobs } = wishes;
        let (sender, events) = mpsc::channel(AHEAD + 1);
        let ends = if ignore_eos { Vec::new() } else { self.base.tokenizer.eos_ids().to_vec() };
        let finish = pb::Finish {
            prompt_tokens: u32::try_from(ids.len()).unwrap_or(u32::MAX),
            seed: sampling.seed,
            ..Default::default()
        };
        let generation = Generation { ids, adapter, sampling, logprobs, max_tokens, ends, events: sender };
        self.engine.submit(Job::Generate(generation))?;

        // The work is polled as part of the stream, so it ends where the stream is dropped: no task outlives its call.
        let (pieces, out) = mpsc::channel(1);
        let reading = Reading { base: Arc::clone(&self.base), events, pieces, started, finish };
        let work = stream::once(reading.run(stop)).filter_map(|()| ready(None));
        Ok(Box::pin(stream::select(ReceiverStream::new(out), work)))
    }
}

/// Makes pieces of text out of an answer's tokens.
struct Reading {
    base: Arc<Base>,
    events: mpsc::Receiver<Event>,
    pieces: mpsc::Sender<Result<pb::GenerateResponse, Status>>,
    started: Instant,
    finish: pb::Finish,
}

impl Reading {
    async fn run(self, stops: Vec<String>) {
        let pieces = self.pieces.clone();
        if let Err(error) = self.read(stops).await {
            // Nobody to tell if the reader has left.
            let _ = pieces.send(Err(error.into())).await;
        }
    }

    async fn read(self, stops: Vec<String>) -> Result<(), AnswerError> {
        let Self { base, mut events, pieces, started, mut finish } = self;
        let mut answer = Answer::new(&base.tokenizer, stops);
        let mut end = None;
        while end.is_none() {
            let event = events.recv().await.ok_or(AnswerError::EngineGone)?;
            if finish.first_token_seconds == 0.0 {
                finish.first_token_seconds = started.elapsed().as_secs_f64();
            }
            let (token, last) = match event {
                Event::Token(token) => (Some(token), None),
                Event::Last(token, end) => (token, Some(end)),
                Event::Failed(failure) => return Err(failure.into()),
            };
            end = last;
            if let Some(token) = token {
                let (delta, stopped) = answer.push(token).map_err(AnswerError::Text)?;
                send(&pieces, delta.map(Piece::Delta)).await;
                if stopped {
                    // The engine sees that nobody listens, and frees the place while the rest is sent.
                    events.close();
                    end = Some(End::Stop);
                    finish.reason = pb::FinishReason::Stop.into();
                }
            }
        }
        if finish.reason != i32::from(pb::FinishReason::Stop) {
            let (delta, stopped) = answer.finish().map_err(AnswerError::Text)?;
            send(&pieces, delta.map(Piece::Delta)).await;
            let stop = stopped || end == Some(End::Stop);
            let reason = if stop { pb::FinishReason::Stop } else { pb::FinishReason::Length };
            finish.reason = reason.into();
        }
        finish.completion_tokens = u32::try_from(answer.tokens()).unwrap_or(u32::MAX);
        finish.seconds = started.elapsed().as_secs_f64();
        send(&pieces, Some(Piece::Finish(finish))).await;
        Ok(())
    }
}

async fn send(pieces: &mpsc::Sender<Result<pb::GenerateResponse, Status>>, piece: Option<Piece>) {
    if piece.is_some() {
        // If the reader has left, so has the stream that polls this.
        let _ = pieces.send(Ok(pb::GenerateResponse { event: piece })).await;
    }
}
