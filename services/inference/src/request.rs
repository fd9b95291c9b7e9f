//! Requests, checked: what comes out of here the engine can do.

use std::hash::{BuildHasher as _, RandomState};

use firn_llm::{config::ModelConfig, generate::Sampling, tokenizer::Message};
use firn_proto::inference::v1::{self as pb};

/// New tokens if the request does not say.
const DEFAULT_MAX_TOKENS: u32 = 256;
/// Most stop strings.
const MOST_STOPS: usize = 4;
/// Longest stop string in bytes: text is held back for as long.
const LONGEST_STOP: usize = 256;
/// Highest temperature: above, an answer is noise.
const HIGHEST_TEMPERATURE: f32 = 100.0;
/// Most turns of a chat.
const MOST_MESSAGES: usize = 1_024;
/// Bits of a seed that is drawn: those that a JSON number keeps.
const SEED_BITS: u32 = 53;

/// A field that can't be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {reason}")]
pub(crate) struct FieldError {
    pub(crate) field: &'static str,
    pub(crate) reason: String,
}

impl FieldError {
    pub(crate) fn new(field: &'static str, reason: impl Into<String>) -> Self {
        Self { field, reason: reason.into() }
    }
}

/// How an answer is made.
#[derive(Debug)]
pub(crate) struct Wishes {
    pub(crate) sampling: Sampling,
    pub(crate) max_tokens: usize,
    pub(crate) stop: Vec<String>,
    pub(crate) ignore_eos: bool,
    pub(crate) logprobs: bool,
}

/// Checks the sampling and fills its defaults in.
pub(crate) fn wishes(sampling: Option<pb::Sampling>) -> Result<Wishes, FieldError> {
    let given = sampling.unwrap_or_default();
    let temperature = given.temperature.unwrap_or(1.0);
    if !(0.0..=HIGHEST_TEMPERATURE).contains(&temperature) {
        return Err(FieldError::new("sampling.temperature", format!("must be from 0 to {HIGHEST_TEMPERATURE}")));
    }
    let top_p = given.top_p.unwrap_or(1.0);
    if !(top_p > 0.0 && top_p <= 1.0) {
        return Err(FieldError::new("sampling.top_p", "must be above 0 and at most 1"));
    }
    let max_tokens = given.max_tokens.unwrap_or(DEFAULT_MAX_TOKENS);
    if max_tokens == 0 {
        return Err(FieldError::new("sampling.max_tokens", "must be at least 1"));
    }
    if given.stop.len() > MOST_STOPS {
        return Err(FieldError::new("sampling.stop", format!("has more than {MOST_STOPS} strings")));
    }
    if given.stop.iter().any(|stop| stop.is_empty() || stop.len() > LONGEST_STOP) {
        return Err(FieldError::new("sampling.stop", format!("each string must have 1 to {LONGEST_STOP} bytes")));
    }
    let seed = given.seed.unwrap_or_else(drawn_seed);
    let top_k = given.top_k.unwrap_or(0) as usize;
    Ok(Wishes {
        sampling: Sampling { temperature, top_p, top_k, seed },
        max_tokens: max_tokens as usize,
        stop: given.stop,
        ignore_eos: given.ignore_eos,
        logprobs: given.logprobs,
    })
}

/// Checks a chat's turns.
pub(crate) fn messages(messages: Vec<pb::ChatMessage>) -> Result<Vec<Message>, FieldError> {
    if messages.is_empty() {
        return Err(FieldError::new("messages", "must not be empty"));
    }
    if messages.len() > MOST_MESSAGES {
        return Err(FieldError::new("messages", format!("has more than {MOST_MESSAGES} turns")));
    }
    if let Some(wrong) = messages.iter().position(|m| !["system", "user", "assistant"].contains(&m.role.as_str())) {
        return Err(FieldError::new("messages", format!("role of turn {wrong} must be system, user or assistant")));
    }
    Ok(messages.into_iter().map(|message| Message::new(message.role, message.content)).collect())
}

/// Checks that the model can read the ids.
pub(crate) fn check_ids(ids: &[u32], field: &'static str, config: &ModelConfig) -> Result<(), FieldError> {
    if ids.is_empty() {
        return Err(FieldError::new(field, "must not be empty"));
    }
    if ids.len() > config.context {
        let reason = format!("has {} tokens, more than the context of {}", ids.len(), config.context);
        return Err(FieldError::new(field, reason));
    }
    match ids.iter().find(|id| **id as usize >= config.vocab) {
        Some(id) => Err(FieldError::new(field, format!("id {id} is outside the vocabulary of {} ids", config.vocab))),
        None => Ok(()),
    }
}

fn drawn_seed() -> u64 {
    // A new RandomState has new keys: enough randomness for a seed without a generator.
    RandomState::new().hash_one(0_u8) >> (u64::BITS - SEED_BITS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_those_of_the_protocol() {
        let wishes = wishes(None).unwrap();
        let Sampling { temperature, top_p, top_k, seed } = wishes.sampling;
        assert_eq!((temperature, top_p, top_k, wishes.max_tokens), (1.0, 1.0, 0, 256));
        assert!(seed < 1 << SEED_BITS);
        assert_ne!(drawn_seed(), drawn_seed());
    }

    #[test]
    fn wrong_sampling_names_its_field() {
        let given = pb::Sampling::default;
        let five = vec!["a".to_owned(); 5];
        for (field, sampling) in [
            ("sampling.temperature", pb::Sampling { temperature: Some(-0.1), ..given() }),
            ("sampling.temperature", pb::Sampling { temperature: Some(f32::NAN), ..given() }),
            ("sampling.top_p", pb::Sampling { top_p: Some(0.0), ..given() }),
            ("sampling.top_p", pb::Sampling { top_p: Some(f32::NAN), ..given() }),
            ("sampling.max_tokens", pb::Sampling { max_tokens: Some(0), ..given() }),
            ("sampling.stop", pb::Sampling { stop: five, ..given() }),
            ("sampling.stop", pb::Sampling { stop: vec![String::new()], ..given() }),
        ] {
            assert_eq!(wishes(Some(sampling)).unwrap_err().field, field);
        }
    }

    #[test]
    fn turns_have_known_roles() {
        let turn = |role: &str| pb::ChatMessage { role: role.to_owned(), content: "x".to_owned() };
        assert_eq!(messages(vec![turn("user"), turn("assistant")]).unwrap().len(), 2);
        assert_eq!(messages(vec![]).unwrap_err().reason, "must not be empty");
        assert!(messages(vec![turn("user"), turn("tool")]).unwrap_err().reason.contains("turn 1"));
    }
}
