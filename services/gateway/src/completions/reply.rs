//! Answers in OpenAI's shapes: what whole ones and events share.

use axum::{
    Json,
    response::{IntoResponse as _, Response},
};
use firn_proto::inference::v1::{Finish, FinishReason};
use futures_util::future::try_join_all;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{
    calls::{Answer, Pieces, collect},
    logprobs::Offset,
};
use crate::{error::ApiError, names::Names};

/// Which route's shapes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    Chat,
    Text,
}

/// What all objects of one request's answers share.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    pub(crate) shape: Shape,
    /// Log-probabilities were asked for.
    pub(crate) logprobs: bool,
    /// What the caller calls what inference may refuse, also in the middle of an answer.
    pub(crate) names: Names,
    id: String,
    created: i64,
    model: String,
}

impl Reply {
    pub(crate) fn new(shape: Shape, model: String, logprobs: bool, names: Names) -> Self {
        let prefix = if shape == Shape::Chat { "chatcmpl" } else { "cmpl" };
        let id = format!("{prefix}-{}", Uuid::new_v4().simple());
        let model = if model.is_empty() { "base".to_owned() } else { model };
        Self { shape, logprobs, names, id, created: firn_kit::Clock::system().now().as_second(), model }
    }

    /// Waits for all answers, and to their end.
    pub(crate) async fn whole(self, calls: Vec<Pieces>) -> Result<Response, ApiError> {
        let answers = try_join_all(calls.into_iter().map(collect)).await.map_err(|status| self.names.told(status))?;
        let choices: Vec<Value> =
            answers.iter().enumerate().map(|(index, answer)| self.whole_choice(index, answer)).collect();
        let finishes: Vec<Finish> = answers.into_iter().map(|answer| answer.finish).collect();
        let object = if self.shape == Shape::Chat { "chat.completion" } else { "text_completion" };
        let mut body = self.object(object, choices.into());
        body["usage"] = usage(&finishes);
        body["firn"] = beyond(&finishes);
        Ok(Json(body).into_response())
    }

    fn whole_choice(&self, index: usize, answer: &Answer) -> Value {
        let logprobs = self.logprobs.then(|| Offset::default().logprobs(self.shape, &answer.tokens));
        let reason = reason(&answer.finish);
        match self.shape {
            Shape::Chat => {
                let message = json!({"role": "assistant", "content": answer.text, "refusal": null});
                json!({"index": index, "message": message, "logprobs": logprobs, "finish_reason": reason})
            }
            Shape::Text => {
                json!({"index": index, "text": answer.text, "logprobs": logprobs, "finish_reason": reason})
            }
        }
    }

    pub(crate) fn object(&self, object: &str, choices: Value) -> Value {
        json!({
            "id": self.id, "object": object, "created": self.created, "model": self.model,
            "system_fingerprint": null, "choices": choices,
        })
    }
}

pub(crate) fn reason(finish: &Finish) -> &'static str {
    if finish.reason() == FinishReason::Length { "length" } else { "stop" }
}

/// Token counts: the prompt's once, however many answers it got, and the answers' summed.
pub(crate) fn usage(finishes: &[Finish]) -> Value {
    let prompt = finishes.iter().map(|finish| u64::from(finish.prompt_tokens)).max().unwrap_or(0);
    let answers: u64 = finishes.iter().map(|finish| u64::from(finish.completion_tokens)).sum();
    json!({
        "prompt_tokens": prompt, "completion_tokens": answers, "total_tokens": prompt + answers,
        "prompt_tokens_details": {"cached_tokens": cached(finishes)},
    })
}

/// Beyond OpenAI's: what makes the answer reproducible, how long it took, and who gave it.
pub(crate) fn beyond(finishes: &[Finish]) -> Value {
    let Some(first) = finishes.first() else { return Value::Null };
    let soonest = finishes.iter().map(|finish| finish.first_token_seconds).fold(f64::INFINITY, f64::min);
    let seconds = finishes.iter().map(|finish| finish.seconds).fold(0.0, f64::max);
    json!({
        "seed": first.seed, "first_token_seconds": soonest, "seconds": seconds,
        "cached_tokens": cached(finishes), "version": first.version,
    })
}

/// What none of the answers had to compute.
fn cached(finishes: &[Finish]) -> u32 {
    finishes.iter().map(|finish| finish.cached_tokens).min().unwrap_or(0)
}
