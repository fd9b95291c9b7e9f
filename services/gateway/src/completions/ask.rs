//! OpenAI's requests, read and turned into the protocol's.

use firn_proto::inference::v1::{ChatRequest, GenerateRequest, Sampling};
use serde::Deserialize;
use serde_json::json;

use super::{
    prompt::{messages, prompt},
    sampling::sampling,
    schema::json_schema,
};
use crate::{
    error::ApiError,
    fields::{Fields, is_nothing},
    names::Names,
};

/// Most answers to one request.
const MOST_ANSWERS: u32 = 8;
/// Most probable tokens beside each of a chat's, and of a completion's.
const MOST_TOP: (u32, u32) = (20, 5);
/// What changes no answer of ours: bookkeeping of OpenAI's platform, and how to call tools that nobody may name.
const BOOKKEEPING: [&str; 5] = ["user", "metadata", "safety_identifier", "prompt_cache_key", "parallel_tool_calls"];
/// What is not done, and may be there if it is switched off.
const NOT_DONE: [&str; 11] = [
    "store",
    "tools",
    "functions",
    "function_call",
    "modalities",
    "audio",
    "prediction",
    "web_search_options",
    "echo",
    "suffix",
    "reasoning_effort",
];

/// A request, whichever route it came by.
#[derive(Debug)]
pub(crate) struct Ask {
    /// As the caller names it.
    pub(crate) model: String,
    pub(crate) input: Input,
    /// Answers to give, at least one.
    pub(crate) n: u32,
    /// The caller reads log-probabilities.
    pub(crate) logprobs: bool,
    /// Answer as events.
    pub(crate) stream: bool,
    /// Send the token counts at the end of the events.
    pub(crate) include_usage: bool,
    /// What the caller calls what inference may refuse.
    pub(crate) names: Names,
}

/// The call to make.
#[derive(Clone, Debug)]
pub(crate) enum Input {
    Chat(ChatRequest),
    Text(GenerateRequest),
}

impl Input {
    /// The same for one of many answers.
    pub(crate) fn with_seed(&self, seed: Option<u64>) -> Self {
        let mut input = self.clone();
        let (Self::Chat(ChatRequest { sampling, .. }) | Self::Text(GenerateRequest { sampling, .. })) = &mut input;
        sampling.get_or_insert_default().seed = seed;
        input
    }

    /// The model's name, as the caller says it.
    pub(crate) fn model(&self) -> &str {
        let (Self::Chat(ChatRequest { model, .. }) | Self::Text(GenerateRequest { model, .. })) = self;
        model
    }

    /// The seed that the caller chose.
    pub(crate) fn seed(&self) -> Option<u64> {
        let (Self::Chat(ChatRequest { sampling, .. }) | Self::Text(GenerateRequest { sampling, .. })) = self;
        sampling.as_ref().and_then(|sampling| sampling.seed)
    }
}

impl Ask {
    /// Reads a body of `/v1/chat/completions`.
    pub(crate) fn chat(body: &[u8], tenant: String) -> Result<Self, ApiError> {
        Self::chat_fields(Fields::parse(body)?, tenant)
    }

    /// The same from fields that are parsed.
    pub(crate) fn chat_fields(mut fields: Fields, tenant: String) -> Result<Self, ApiError> {
        let messages = messages(&mut fields)?;
        let wanted = fields.take("logprobs")?.unwrap_or(false);
        let top: Option<u32> = fields.take("top_logprobs")?;
        if !wanted && top.is_some_and(|top| top > 0) {
            return Err(ApiError::field("top_logprobs", "top_logprobs needs logprobs to be true"));
        }
        let top = wanted.then(|| up_to("top_logprobs", top.unwrap_or(0), MOST_TOP.0)).transpose()?;
        Self::read(fields, top, Names::default(), |model, sampling| {
            Input::Chat(ChatRequest { model, messages, sampling: Some(sampling), tenant })
        })
    }

    /// Reads a body of `/v1/completions`.
    pub(crate) fn text(body: &[u8], tenant: String) -> Result<Self, ApiError> {
        let mut fields = Fields::parse(body)?;
        let input = Some(prompt(&mut fields)?);
        let names = Names::default().with("ids", "prompt").with("sampling.top_logprobs", "logprobs");
        let top = fields.take::<u32>("logprobs")?.map(|top| up_to("logprobs", top, MOST_TOP.1)).transpose()?;
        Self::read(fields, top, names, |model, sampling| {
            Input::Text(GenerateRequest { model, input, sampling: Some(sampling), tenant })
        })
    }

    /// `top`: how many probable tokens to name beside each, if log-probabilities are wanted.
    fn read(
        mut fields: Fields,
        top: Option<u32>,
        names: Names,
        input: impl FnOnce(String, Sampling) -> Input,
    ) -> Result<Self, ApiError> {
        let model = fields.take::<String>("model")?.unwrap_or_default();
        let most = if fields.has("max_completion_tokens") { "max_completion_tokens" } else { "max_tokens" };
        let schema = if fields.has("guided_json") { "guided_json" } else { "response_format" };
        let names = names.with("sampling.max_tokens", most).with("sampling.json_schema", schema);
        let mut sampling = sampling(&mut fields)?;
        (sampling.logprobs, sampling.top_logprobs) = (top.is_some(), top.unwrap_or(0));
        sampling.json_schema = json_schema(&mut fields)?;
        let n = match fields.take("n")?.unwrap_or(1) {
            0 => return Err(ApiError::field("n", "n must be at least 1")),
            n => up_to("n", n, MOST_ANSWERS)?,
        };
        // The best of as many as are sent are those that are sent.
        fields.neutral("best_of", |best| *best == json!(1) || *best == json!(n))?;
        let stream = fields.take("stream")?.unwrap_or(false);
        let options = fields.take::<StreamOptions>("stream_options")?.unwrap_or_default();
        for name in NOT_DONE {
            // `modalities` says by ["text"] that nothing else is wanted, `reasoning_effort` by "none".
            fields.neutral(name, |value| is_nothing(value) || *value == json!(["text"]) || value == "none")?;
        }
        // Without tools, "auto" chooses none.
        fields.neutral("tool_choice", |choice| choice == "none" || choice == "auto")?;
        fields.neutral("service_tier", |tier| tier == "auto" || tier == "default")?;
        BOOKKEEPING.iter().for_each(|name| fields.skip(name));
        fields.end()?;
        let input = input(model.clone(), sampling);
        let include_usage = options.include_usage;
        Ok(Self { model, input, n, logprobs: top.is_some(), stream, include_usage, names })
    }
}

fn up_to(name: &str, value: u32, most: u32) -> Result<u32, ApiError> {
    if value > most {
        return Err(ApiError::field(name, format!("{name} must be at most {most}")));
    }
    Ok(value)
}

#[derive(Default, Deserialize)]
struct StreamOptions {
    #[serde(default)]
    include_usage: bool,
}

#[cfg(test)]
#[path = "ask_tests.rs"]
mod tests;
