//! Answers as server-sent events, as they come.

use std::{convert::Infallible, time::Duration};

use axum::{
    http::{HeaderName, HeaderValue},
    response::{
        IntoResponse as _, Response, Sse,
        sse::{Event, KeepAlive},
    },
};
use firn_proto::inference::v1::{Finish, GenerateResponse, generate_response::Event as Piece};
use futures_util::{
    Stream, StreamExt as _,
    stream::{self, select_all},
};
use serde_json::{Value, json};
use tonic::Status;

use super::{
    calls::{Pieces, cut_short},
    logprobs::Offset,
    reply::{Reply, Shape, beyond, reason, usage},
};

/// Keeps nginx and its kin from holding events back.
pub(crate) const UNBUFFERED: (HeaderName, HeaderValue) =
    (HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));

/// One of the answers, so far.
#[derive(Clone, Debug, Default)]
struct Choice {
    offset: Offset,
    finish: Option<Finish>,
}

/// The answers of one request, so far.
#[derive(Debug)]
struct Events {
    reply: Reply,
    include_usage: bool,
    choices: Vec<Choice>,
}

/// Passes the answers on as they come, each piece with its answer's index.
pub(crate) fn events(reply: Reply, calls: Vec<Pieces>, include_usage: bool, heartbeat: Duration) -> Response {
    let events = Events { reply, include_usage, choices: vec![Choice::default(); calls.len()] };
    let first: Vec<String> = match events.reply.shape {
        Shape::Chat => (0..calls.len())
            .map(|index| {
                events.chunk(index, &json!({"role": "assistant", "content": ""}), Value::Null, None).to_string()
            })
            .collect(),
        Shape::Text => vec![],
    };
    let calls = calls.into_iter().enumerate().map(|(index, pieces)| {
        let end = stream::once(async { Err(cut_short()) });
        pieces.chain(end).map(move |piece| (index, piece)).boxed()
    });
    let rest = stream::unfold(Some((events, select_all(calls))), |state| async move {
        let (mut events, mut calls) = state?;
        let (index, piece) = calls.next().await?;
        let (data, is_last) = events.data(index, piece);
        Some((data, (!is_last).then_some((events, calls))))
    });
    let data = stream::iter(first).chain(rest.flat_map(stream::iter));
    ([UNBUFFERED], sse(data, heartbeat)).into_response()
}

impl Events {
    /// What one piece becomes, and whether it is the last one.
    fn data(&mut self, index: usize, piece: Result<GenerateResponse, Status>) -> (Vec<String>, bool) {
        let Some(choice) = self.choices.get_mut(index).filter(|choice| choice.finish.is_none()) else {
            // Behind an answer's end there is nothing.
            return (vec![], false);
        };
        match piece.map(|piece| piece.event) {
            Ok(Some(Piece::Delta(delta))) => {
                let tokens = if self.reply.logprobs { delta.details.as_slice() } else { &[] };
                if delta.text.is_empty() && tokens.is_empty() {
                    return (vec![], false);
                }
                let logprobs =
                    if tokens.is_empty() { Value::Null } else { choice.offset.logprobs(self.reply.shape, tokens) };
                (vec![self.chunk(index, &json!({"content": delta.text}), logprobs, None).to_string()], false)
            }
            Ok(Some(Piece::Finish(finish))) => {
                choice.finish = Some(finish.clone());
                let mut last = self.chunk(index, &json!({}), Value::Null, Some(reason(&finish)));
                last["firn"] = beyond(&[finish]);
                let mut data = vec![last.to_string()];
                let finishes: Option<Vec<Finish>> = self.choices.iter().map(|choice| choice.finish.clone()).collect();
                if let Some(finishes) = &finishes {
                    data.extend(self.end(finishes));
                }
                (data, finishes.is_some())
            }
            Ok(None) => (vec![], false),
            // The status line is long gone; clients look for an object with `error`.
            Err(status) => (vec![self.reply.names.told(status).body().to_string()], true),
        }
    }

    fn end(&self, finishes: &[Finish]) -> Vec<String> {
        let mut data = vec![];
        if self.include_usage {
            let mut counts = self.reply.object(self.object(), json!([]));
            counts["usage"] = usage(finishes);
            data.push(counts.to_string());
        }
        data.push("[DONE]".to_owned());
        data
    }

    fn chunk(&self, index: usize, delta: &Value, logprobs: Value, reason: Option<&str>) -> Value {
        let choice = match self.reply.shape {
            Shape::Chat => json!({"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}),
            Shape::Text => {
                let text = delta["content"].as_str().unwrap_or("");
                json!({"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason})
            }
        };
        let mut chunk = self.reply.object(self.object(), json!([choice]));
        if self.include_usage {
            chunk["usage"] = Value::Null;
        }
        chunk
    }

    fn object(&self) -> &'static str {
        if self.reply.shape == Shape::Chat { "chat.completion.chunk" } else { "text_completion" }
    }
}

fn sse(data: impl Stream<Item = String> + Send + 'static, heartbeat: Duration) -> Response {
    let events = data.map(|data| Ok::<_, Infallible>(Event::default().data(data)));
    Sse::new(events).keep_alive(KeepAlive::new().interval(heartbeat).text("alive")).into_response()
}
