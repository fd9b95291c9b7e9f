//! An answer's stream: tokens in, pieces of text out.

use std::{
    future::ready,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use firn_proto::inference::v1::{self as pb, generate_response::Event as Piece};
use futures_util::{Stream, StreamExt as _, stream};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use crate::{
    answer::Answer,
    base::Base,
    error::AnswerError,
    job::{End, Event},
};

/// An answer as a call sends it.
pub(crate) type Pieces = Pin<Box<dyn Stream<Item = Result<pb::GenerateResponse, Status>> + Send>>;

/// What an answer's stream is made of.
#[derive(Debug)]
pub(crate) struct Reader {
    pub(crate) base: Arc<Base>,
    pub(crate) events: mpsc::Receiver<Event>,
    pub(crate) stops: Vec<String>,
    pub(crate) satisfied: Arc<AtomicBool>,
    pub(crate) started: Instant,
    /// What is known of the end already.
    pub(crate) finish: pb::Finish,
}

impl Reader {
    /// The stream. The work is polled as part of it, so it ends where the stream is dropped: no task outlives its call.
    pub(crate) fn pieces(self) -> Pieces {
        let (pieces, out) = mpsc::channel(1);
        let work = stream::once(self.run(pieces)).filter_map(|()| ready(None));
        Box::pin(stream::select(ReceiverStream::new(out), work))
    }

    async fn run(self, pieces: Sender) {
        if let Err(error) = self.read(&pieces).await {
            // Nobody to tell if the reader has left.
            let _ = pieces.send(Err(error.into())).await;
        }
    }

    async fn read(self, pieces: &Sender) -> Result<(), AnswerError> {
        let Self { base, mut events, stops, satisfied, started, mut finish } = self;
        let mut answer = Answer::new(&base.tokenizer, stops);
        let mut end = None;
        while end.is_none() {
            let event = events.recv().await.ok_or(AnswerError::EngineGone)?;
            let (token, last) = match event {
                Event::Begun { cached } => {
                    finish.cached_tokens = u32::try_from(cached).unwrap_or(u32::MAX);
                    continue;
                }
                Event::Token(token) => (Some(token), None),
                Event::Last(token, end) => (token, Some(end)),
                Event::Failed(failure) => return Err(failure.into()),
            };
            if finish.first_token_seconds == 0.0 {
                finish.first_token_seconds = started.elapsed().as_secs_f64();
            }
            end = last;
            if let Some(token) = token {
                let (delta, stopped) = answer.push(token).map_err(AnswerError::Text)?;
                send(pieces, delta.map(Piece::Delta)).await;
                if stopped {
                    // The engine sees that nobody listens, and frees the place while the rest is sent.
                    satisfied.store(true, Ordering::Relaxed);
                    events.close();
                    end = Some(End::Stop);
                    finish.reason = pb::FinishReason::Stop.into();
                }
            }
        }
        if finish.reason != i32::from(pb::FinishReason::Stop) {
            let (delta, stopped) = answer.finish().map_err(AnswerError::Text)?;
            send(pieces, delta.map(Piece::Delta)).await;
            let stop = stopped || end == Some(End::Stop);
            let reason = if stop { pb::FinishReason::Stop } else { pb::FinishReason::Length };
            finish.reason = reason.into();
        }
        finish.completion_tokens = u32::try_from(answer.tokens()).unwrap_or(u32::MAX);
        finish.seconds = started.elapsed().as_secs_f64();
        send(pieces, Some(Piece::Finish(finish))).await;
        Ok(())
    }
}

type Sender = mpsc::Sender<Result<pb::GenerateResponse, Status>>;

async fn send(pieces: &Sender, piece: Option<Piece>) {
    if piece.is_some() {
        // If the reader has left, so has the stream that polls this.
        let _ = pieces.send(Ok(pb::GenerateResponse { event: piece })).await;
    }
}
