//! How tokens are chosen, as OpenAI's clients and vLLM's say it.

use std::collections::HashMap;

use firn_proto::inference::v1::Sampling;
use serde::Deserialize;

use crate::{error::ApiError, fields::Fields};

/// Most texts that end an answer.
const MOST_STOPS: usize = 4;
/// Most tokens with a bias.
const MOST_BIASES: usize = 1024;

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMore<T> {
    One(T),
    More(Vec<T>),
}

/// Takes all fields of sampling, but log-probabilities and schemas.
pub(crate) fn sampling(fields: &mut Fields) -> Result<Sampling, ApiError> {
    let older: Option<u32> = fields.take("max_tokens")?;
    let max_tokens = fields.take("max_completion_tokens")?.or(older);
    let stop = match fields.take("stop")? {
        None => Vec::new(),
        Some(OneOrMore::One(stop)) => vec![stop],
        Some(OneOrMore::More(stops)) => stops,
    };
    if stop.len() > MOST_STOPS {
        return Err(ApiError::field("stop", format!("stop must be at most {MOST_STOPS} texts")));
    }
    // Other servers know -1 as all tokens.
    let top_k = match fields.take::<i64>("top_k")? {
        Some(-1) => Some(0),
        Some(count) => {
            Some(u32::try_from(count).map_err(|_| ApiError::field("top_k", "top_k must be from 0 on, or -1 for all"))?)
        }
        None => None,
    };
    let seed = match fields.take::<serde_json::Number>("seed")? {
        // Any number will do as a seed, a negative one by its bits.
        Some(number) => {
            let seed = number.as_u64().or_else(|| number.as_i64().map(i64::cast_unsigned));
            Some(seed.ok_or_else(|| ApiError::field("seed", "seed must be a whole number of 64 bits"))?)
        }
        None => None,
    };
    Ok(Sampling {
        temperature: fields.take("temperature")?,
        top_p: fields.take("top_p")?,
        top_k,
        min_p: fields.take("min_p")?,
        seed,
        max_tokens,
        stop,
        ignore_eos: fields.take("ignore_eos")?.unwrap_or(false),
        presence_penalty: fields.take("presence_penalty")?.unwrap_or(0.0),
        frequency_penalty: fields.take("frequency_penalty")?.unwrap_or(0.0),
        repetition_penalty: fields.take("repetition_penalty")?,
        logit_bias: logit_bias(fields)?,
        ..Sampling::default()
    })
}

/// JSON has texts as keys only, so token ids come as such.
fn logit_bias(fields: &mut Fields) -> Result<HashMap<u32, f32>, ApiError> {
    let given = fields.take::<HashMap<String, f32>>("logit_bias")?.unwrap_or_default();
    if given.len() > MOST_BIASES {
        return Err(ApiError::field("logit_bias", format!("logit_bias must name at most {MOST_BIASES} tokens")));
    }
    let bias = |(id, bias): (String, f32)| {
        let wrong = || ApiError::field("logit_bias", "logit_bias must have token ids as keys");
        id.parse().map(|id| (id, bias)).map_err(|_| wrong())
    };
    given.into_iter().map(bias).collect()
}
