//! Log-probabilities in OpenAI's two shapes.

use firn_proto::inference::v1::{Candidate, TokenLogprobs};
use serde_json::{Map, Value, json};

use super::reply::Shape;

/// What stands for no chance at all: JSON has no infinity.
const IMPOSSIBLE: f32 = -9999.0;

/// Where an answer's next token begins, for the older shape.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Offset {
    /// Characters that have begun.
    begun: usize,
}

impl Offset {
    /// The log-probabilities of these tokens, which follow those before; null without any.
    pub(crate) fn logprobs(&mut self, shape: Shape, tokens: &[TokenLogprobs]) -> Value {
        match shape {
            Shape::Chat => json!({"content": tokens.iter().map(content).collect::<Vec<_>>(), "refusal": null}),
            Shape::Text => self.lists(tokens),
        }
    }

    fn lists(&mut self, tokens: &[TokenLogprobs]) -> Value {
        let (mut texts, mut logprobs, mut tops, mut offsets) = (vec![], vec![], vec![], vec![]);
        for token in tokens {
            let Some(chosen) = &token.chosen else { continue };
            texts.push(text(chosen));
            logprobs.push(logprob(chosen));
            offsets.push(self.step(&chosen.token));
            let mut top = Map::new();
            // Parts of characters may look alike: the more probable one is named.
            for candidate in token.top.iter().chain([chosen]) {
                top.entry(text(candidate)).or_insert_with(|| logprob(candidate));
            }
            tops.push(top);
        }
        json!({"tokens": texts, "token_logprobs": logprobs, "top_logprobs": tops, "text_offset": offsets})
    }

    /// Where a token begins, in characters. One that goes on with a character begins where that does.
    fn step(&mut self, bytes: &[u8]) -> usize {
        let goes_on = |byte: &u8| byte & 0b1100_0000 == 0b1000_0000;
        let start = self.begun.saturating_sub(usize::from(bytes.first().is_some_and(goes_on)));
        self.begun += bytes.iter().filter(|byte| !goes_on(byte)).count();
        start
    }
}

fn content(token: &TokenLogprobs) -> Value {
    let mut content = token.chosen.as_ref().map(one).unwrap_or_default();
    content["top_logprobs"] = token.top.iter().map(one).collect();
    content
}

fn one(candidate: &Candidate) -> Value {
    json!({"token": text(candidate), "logprob": logprob(candidate), "bytes": candidate.token})
}

fn text(candidate: &Candidate) -> String {
    String::from_utf8_lossy(&candidate.token).into_owned()
}

fn logprob(candidate: &Candidate) -> Value {
    json!(if candidate.logprob.is_nan() { IMPOSSIBLE } else { candidate.logprob.max(IMPOSSIBLE) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(bytes: &[u8], logprob: f32) -> TokenLogprobs {
        let chosen = Candidate { id: 1, token: bytes.to_vec(), logprob };
        TokenLogprobs {
            top: vec![Candidate { logprob: -0.25, token: b"x".to_vec(), ..chosen.clone() }],
            chosen: Some(chosen),
        }
    }

    #[test]
    fn offsets_count_characters_across_pieces() {
        let rocket = "🚀".as_bytes();
        let mut offset = Offset::default();
        let first = offset.logprobs(Shape::Text, &[token("né".as_bytes(), -1.0), token(&rocket[..2], -0.5)]);
        let second = offset.logprobs(Shape::Text, &[token(&rocket[2..], f32::NEG_INFINITY), token(b"!", -2.0)]);
        assert_eq!((&first["text_offset"], &second["text_offset"]), (&json!([0, 2]), &json!([2, 3])));
        assert_eq!(
            (&first["tokens"], &second["token_logprobs"]),
            (&json!(["né", "\u{fffd}"]), &json!([-9999.0, -2.0]))
        );
        assert_eq!(first["top_logprobs"][0], json!({"x": -0.25, "né": -1.0}));
    }

    #[test]
    fn a_chat_s_tokens_keep_their_bytes() {
        let shown = Offset::default().logprobs(Shape::Chat, &[token(&[0xf0, 0x9f], -1.5)]);
        let top = json!([{"token": "x", "logprob": -0.25, "bytes": [120]}]);
        let one = json!({"token": "\u{fffd}", "logprob": -1.5, "bytes": [240, 159], "top_logprobs": top});
        assert_eq!(shown, json!({"content": [one], "refusal": null}));
    }
}
