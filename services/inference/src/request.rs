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
/// Most probable tokens beside each chosen one.
const MOST_TOP_LOGPROBS: u32 = 20;
/// Largest presence and frequency penalty, either way.
const LARGEST_PENALTY: f32 = 2.0;
/// Largest repetition penalty; the smallest is its inverse.
const LARGEST_REPETITION: f32 = 10.0;
/// Most biased tokens, and the largest bias, either way.
const MOST_BIASES: usize = 1_024;
const LARGEST_BIAS: f32 = 100.0;
/// Longest JSON Schema in bytes.
const LONGEST_SCHEMA: usize = 64 << 10;
/// Longest tenant's name in bytes.
const LONGEST_TENANT: usize = 256;
/// Bits of a seed that is drawn: those that a JSON number keeps.
const SEED_BITS: u32 = 53;

/// A field that can't be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {reason}")]
pub(crate) struct FieldError {
    pub(crate) field: &'static str,
    pub(crate) reason: String,
    /// The prompt does not fit into the context, which callers may mend by themselves.
    pub(crate) is_too_long: bool,
}

impl FieldError {
    pub(crate) fn new(field: &'static str, reason: impl Into<String>) -> Self {
        Self { field, reason: reason.into(), is_too_long: false }
    }
}

/// How an answer is made.
#[derive(Debug)]
pub(crate) struct Wishes {
    pub(crate) sampling: Sampling,
    pub(crate) max_tokens: usize,
    pub(crate) stop: Vec<String>,
    pub(crate) ignore_eos: bool,
    /// Log-probabilities, those of so many most probable tokens included.
    pub(crate) logprobs: Option<usize>,
    /// JSON Schema that the answer keeps to; empty: none.
    pub(crate) schema: String,
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
    let min_p = given.min_p.unwrap_or(0.0);
    if !(0.0..=1.0).contains(&min_p) {
        return Err(FieldError::new("sampling.min_p", "must be from 0 to 1"));
    }
    for (field, penalty) in
        [("sampling.presence_penalty", given.presence_penalty), ("sampling.frequency_penalty", given.frequency_penalty)]
    {
        if !(-LARGEST_PENALTY..=LARGEST_PENALTY).contains(&penalty) {
            return Err(FieldError::new(field, format!("must be from -{LARGEST_PENALTY} to {LARGEST_PENALTY}")));
        }
    }
    let repetition_penalty = given.repetition_penalty.unwrap_or(1.0);
    if !(1.0 / LARGEST_REPETITION..=LARGEST_REPETITION).contains(&repetition_penalty) {
        let reason = format!("must be from {} to {LARGEST_REPETITION}", 1.0 / LARGEST_REPETITION);
        return Err(FieldError::new("sampling.repetition_penalty", reason));
    }
    if given.logit_bias.len() > MOST_BIASES {
        return Err(FieldError::new("sampling.logit_bias", format!("has more than {MOST_BIASES} tokens")));
    }
    if given.logit_bias.values().any(|bias| !(-LARGEST_BIAS..=LARGEST_BIAS).contains(bias)) {
        let reason = format!("each bias must be from -{LARGEST_BIAS} to {LARGEST_BIAS}");
        return Err(FieldError::new("sampling.logit_bias", reason));
    }
    if given.top_logprobs > MOST_TOP_LOGPROBS {
        return Err(FieldError::new("sampling.top_logprobs", format!("must be at most {MOST_TOP_LOGPROBS}")));
    }
    if given.json_schema.len() > LONGEST_SCHEMA {
        return Err(FieldError::new("sampling.json_schema", format!("has more than {LONGEST_SCHEMA} bytes")));
    }
    let mut bias: Vec<(u32, f32)> = given.logit_bias.into_iter().collect();
    bias.sort_unstable_by_key(|(id, _)| *id);
    Ok(Wishes {
        sampling: Sampling {
            temperature,
            top_p,
            top_k: given.top_k.unwrap_or(0) as usize,
            min_p,
            seed: given.seed.unwrap_or_else(drawn_seed),
            presence_penalty: given.presence_penalty,
            frequency_penalty: given.frequency_penalty,
            repetition_penalty,
            bias,
        },
        max_tokens: max_tokens as usize,
        stop: given.stop,
        ignore_eos: given.ignore_eos,
        logprobs: given.logprobs.then_some(given.top_logprobs as usize),
        schema: given.json_schema,
    })
}

/// Checks whose request it is.
pub(crate) fn tenant(tenant: String) -> Result<String, FieldError> {
    if tenant.len() > LONGEST_TENANT {
        return Err(FieldError::new("tenant", format!("has more than {LONGEST_TENANT} bytes")));
    }
    Ok(tenant)
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
        return Err(FieldError { is_too_long: true, ..FieldError::new(field, reason) });
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
        let seed = wishes.sampling.seed;
        assert_eq!((wishes.sampling, wishes.max_tokens), (Sampling { seed, ..Sampling::default() }, 256));
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
            ("sampling.min_p", pb::Sampling { min_p: Some(1.5), ..given() }),
            ("sampling.presence_penalty", pb::Sampling { presence_penalty: 2.5, ..given() }),
            ("sampling.frequency_penalty", pb::Sampling { frequency_penalty: f32::NAN, ..given() }),
            ("sampling.repetition_penalty", pb::Sampling { repetition_penalty: Some(0.0), ..given() }),
            ("sampling.logit_bias", pb::Sampling { logit_bias: [(1, 101.0)].into(), ..given() }),
            ("sampling.top_logprobs", pb::Sampling { top_logprobs: 21, ..given() }),
            ("sampling.json_schema", pb::Sampling { json_schema: " ".repeat(LONGEST_SCHEMA + 1), ..given() }),
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
