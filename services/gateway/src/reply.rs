//! Answers in OpenAI's shapes: one JSON object, or events.

use std::{convert::Infallible, time::Duration};

use axum::{
    Json,
    http::{HeaderName, HeaderValue},
    response::{
        IntoResponse, Response, Sse,
        sse::{Event, KeepAlive},
    },
};
use firn_proto::inference::v1::{Finish, FinishReason, GenerateResponse, generate_response::Event as Piece};
use futures_util::{Stream, StreamExt as _, stream};
use serde_json::{Value, json};
use tonic::{Status, Streaming};
use uuid::Uuid;

use crate::error::ApiError;

/// How often a silent stream shows that it is alive: proxies cut one after a minute or less.
pub(crate) const HEARTBEAT: Duration = Duration::from_secs(10);
/// Keeps nginx and its kin from holding events back.
pub(crate) const UNBUFFERED: (HeaderName, HeaderValue) =
    (HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));

/// Which route's shapes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    Chat,
    Text,
}

/// What all objects of one answer share.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    shape: Shape,
    id: String,
    created: i64,
    model: String,
}

impl Reply {
    pub(crate) fn new(shape: Shape, model: String) -> Self {
        let prefix = if shape == Shape::Chat { "chatcmpl" } else { "cmpl" };
        let id = format!("{prefix}-{}", Uuid::new_v4().simple());
        let model = if model.is_empty() { "base".to_owned() } else { model };
        Self { shape, id, created: firn_kit::Clock::system().now().as_second(), model }
    }

    /// Waits for the whole answer.
    pub(crate) async fn whole(self, mut pieces: Streaming<GenerateResponse>) -> Result<Response, ApiError> {
        let mut text = String::new();
        while let Some(piece) = pieces.message().await? {
            match piece.event {
                Some(Piece::Delta(delta)) => text.push_str(&delta.text),
                Some(Piece::Finish(finish)) => {
                    let reason = reason(&finish);
                    let choice = match self.shape {
                        Shape::Chat => {
                            let message = json!({"role": "assistant", "content": text, "refusal": null});
                            json!({"index": 0, "message": message, "logprobs": null, "finish_reason": reason})
                        }
                        Shape::Text => json!({"index": 0, "text": text, "logprobs": null, "finish_reason": reason}),
                    };
                    let object = if self.shape == Shape::Chat { "chat.completion" } else { "text_completion" };
                    let mut body = self.object(object, json!([choice]));
                    body["usage"] = usage(&finish);
                    body["firn"] = timings(&finish);
                    return Ok(Json(body).into_response());
                }
                None => {}
            }
        }
        Err(cut_short().into())
    }

    /// Passes the answer on as it comes.
    pub(crate) fn events(self, pieces: Streaming<GenerateResponse>, include_usage: bool) -> Response {
        let first = match self.shape {
            Shape::Chat => Some(self.chunk(json!({"role": "assistant", "content": ""}), &Value::Null, include_usage)),
            Shape::Text => None,
        };
        let rest = stream::unfold(Some((self, pieces)), move |state| async move {
            let (reply, mut pieces) = state?;
            let next = pieces.message().await.and_then(|piece| piece.ok_or_else(cut_short));
            let (data, is_last) = reply.data(next, include_usage);
            Some((data, (!is_last).then_some((reply, pieces))))
        });
        let data = stream::iter(first.map(|chunk| chunk.to_string())).chain(rest.flat_map(stream::iter));
        ([UNBUFFERED], sse(data)).into_response()
    }

    /// What one piece becomes, and whether it is the last one.
    fn data(&self, piece: Result<GenerateResponse, Status>, include_usage: bool) -> (Vec<String>, bool) {
        match piece.map(|piece| piece.event) {
            Ok(Some(Piece::Delta(delta))) if delta.text.is_empty() => (vec![], false),
            Ok(Some(Piece::Delta(delta))) => {
                let chunk = self.chunk(json!({"content": delta.text}), &Value::Null, include_usage);
                (vec![chunk.to_string()], false)
            }
            Ok(Some(Piece::Finish(finish))) => {
                let mut last = self.chunk(json!({}), &json!(reason(&finish)), include_usage);
                last["firn"] = timings(&finish);
                let mut data = vec![last.to_string()];
                if include_usage {
                    let mut counts = self.object(self.chunk_object(), json!([]));
                    counts["usage"] = usage(&finish);
                    data.push(counts.to_string());
                }
                data.push("[DONE]".to_owned());
                (data, true)
            }
            Ok(None) => (vec![], false),
            // The status line is long gone; clients look for an object with `error`.
            Err(status) => (vec![ApiError::from(status).body().to_string()], true),
        }
    }

    fn chunk(&self, delta: Value, reason: &Value, include_usage: bool) -> Value {
        let choice = match self.shape {
            Shape::Chat => json!({"index": 0, "delta": delta, "logprobs": null, "finish_reason": reason}),
            Shape::Text => {
                let text = delta["content"].as_str().unwrap_or("");
                json!({"index": 0, "text": text, "logprobs": null, "finish_reason": reason})
            }
        };
        let mut chunk = self.object(self.chunk_object(), json!([choice]));
        if include_usage {
            chunk["usage"] = Value::Null;
        }
        chunk
    }

    fn chunk_object(&self) -> &'static str {
        if self.shape == Shape::Chat { "chat.completion.chunk" } else { "text_completion" }
    }

    fn object(&self, object: &str, choices: Value) -> Value {
        json!({
            "id": self.id, "object": object, "created": self.created, "model": self.model,
            "system_fingerprint": null, "choices": choices,
        })
    }
}

fn sse(data: impl Stream<Item = String> + Send + 'static) -> Response {
    let events = data.map(|data| Ok::<_, Infallible>(Event::default().data(data)));
    Sse::new(events).keep_alive(KeepAlive::new().interval(HEARTBEAT).text("alive")).into_response()
}

fn reason(finish: &Finish) -> &'static str {
    if finish.reason() == FinishReason::Length { "length" } else { "stop" }
}

fn usage(finish: &Finish) -> Value {
    let (prompt, answer) = (finish.prompt_tokens, finish.completion_tokens);
    json!({
        "prompt_tokens": prompt, "completion_tokens": answer,
        "total_tokens": u64::from(prompt) + u64::from(answer),
    })
}

/// Beyond OpenAI's: what makes the answer reproducible, and how long it took.
fn timings(finish: &Finish) -> Value {
    json!({"seed": finish.seed, "first_token_seconds": finish.first_token_seconds, "seconds": finish.seconds})
}

fn cut_short() -> Status {
    Status::unavailable("the answer ended before its end")
}
