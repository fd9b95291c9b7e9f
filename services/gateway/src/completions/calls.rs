//! The calls behind a request: one an answer.

use std::pin::Pin;

use firn_proto::inference::v1::{Finish, GenerateResponse, TokenLogprobs, generate_response::Event};
use futures_util::{Stream, StreamExt as _, future::try_join_all};
use tonic::Status;
use uuid::Uuid;

use super::ask::{Ask, Input};
use crate::app::{App, timed};

/// An answer as it comes.
pub(crate) type Pieces = Pin<Box<dyn Stream<Item = Result<GenerateResponse, Status>> + Send>>;

/// An answer that is complete.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) text: String,
    pub(crate) tokens: Vec<TokenLogprobs>,
    pub(crate) finish: Finish,
}

/// Starts all answers to a request. They differ by their seeds, which follow from the first one's.
pub(crate) async fn open(app: &App, ask: &Ask) -> Result<Vec<Pieces>, Status> {
    if ask.n == 1 {
        return Ok(vec![call(app, ask.input.clone()).await?]);
    }
    let first = ask.input.seed().unwrap_or_else(|| Uuid::new_v4().as_u64_pair().1);
    let calls = (0..ask.n).map(|index| call(app, ask.input.with_seed(Some(first.wrapping_add(index.into())))));
    try_join_all(calls).await
}

/// Starts one answer. Dropping it cancels the call.
pub(crate) async fn call(app: &App, input: Input) -> Result<Pieces, Status> {
    let mut inference = app.inference.clone();
    let mut meter = app.metrics.meter(input.model());
    let pieces = match input {
        Input::Chat(request) => inference.chat(timed(request, app.answer_timeout)).await,
        Input::Text(request) => inference.generate(timed(request, app.answer_timeout)).await,
    };
    let seen = move |piece: &Result<GenerateResponse, Status>| {
        if let Ok(piece) = piece {
            meter.see(piece);
        }
    };
    Ok(pieces?.into_inner().inspect(seen).boxed())
}

/// Waits for the whole of an answer.
pub(crate) async fn collect(mut pieces: Pieces) -> Result<Answer, Status> {
    let (mut text, mut tokens) = (String::new(), Vec::new());
    while let Some(piece) = pieces.next().await {
        match piece?.event {
            Some(Event::Delta(delta)) => {
                text.push_str(&delta.text);
                tokens.extend(delta.details);
            }
            Some(Event::Finish(finish)) => return Ok(Answer { text, tokens, finish }),
            None => {}
        }
    }
    Err(cut_short())
}

/// A stream ended without saying so.
pub(crate) fn cut_short() -> Status {
    Status::unavailable("the answer ended before its end")
}
