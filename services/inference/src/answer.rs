//! From tokens to text: whole characters, and stop strings that are held back until they can't match.

use firn_llm::{
    generate::Token,
    tokenizer::{StreamDecoder, Tokenizer, TokenizerError},
};
use firn_proto::inference::v1::{Candidate, Delta, TokenLogprobs};

/// One answer's text.
#[derive(Debug)]
pub(crate) struct Answer<'a> {
    tokenizer: &'a Tokenizer,
    decoder: StreamDecoder<'a>,
    stops: Vec<String>,
    /// Text that may be the beginning of a stop string.
    held: String,
    /// Tokens that were not sent, with the place in `held` where their text begins.
    waiting: Vec<(Token, usize)>,
    /// Tokens that were sent.
    sent: usize,
}

impl<'a> Answer<'a> {
    pub(crate) fn new(tokenizer: &'a Tokenizer, stops: Vec<String>) -> Self {
        Self { tokenizer, decoder: tokenizer.decoder(), stops, held: String::new(), waiting: Vec::new(), sent: 0 }
    }

    /// Takes a token. Gives what can be sent, and whether a stop string ended the answer.
    pub(crate) fn push(&mut self, token: Token) -> Result<(Option<Delta>, bool), TokenizerError> {
        let id = token.id;
        self.waiting.push((token, self.held.len()));
        let Some(text) = self.decoder.push(id)? else { return Ok((None, false)) };
        self.held.push_str(&text);
        Ok(self.advance())
    }

    /// Gives what is left when no token comes any more; nothing can match now, or a stop string does.
    pub(crate) fn finish(&mut self) -> Result<(Option<Delta>, bool), TokenizerError> {
        if let Some(text) = self.decoder.finish()? {
            self.held.push_str(&text);
        }
        if let Some(at) = self.stop() {
            return Ok((self.release_text(at), true));
        }
        Ok((self.release(self.held.len(), self.waiting.len()), false))
    }

    /// Tokens that were sent.
    pub(crate) fn tokens(&self) -> usize {
        self.sent
    }

    fn advance(&mut self) -> (Option<Delta>, bool) {
        let stop = self.stop();
        let bytes = stop.unwrap_or_else(|| self.held.len() - self.possible());
        (self.release_text(bytes), stop.is_some())
    }

    /// Where the first stop string begins.
    fn stop(&self) -> Option<usize> {
        self.stops.iter().filter_map(|stop| self.held.find(stop.as_str())).min()
    }

    /// Bytes at the end of `held` that a stop string may begin with.
    fn possible(&self) -> usize {
        let beginning = |stop: &String| {
            let ends = stop.char_indices().map(|(at, _)| at).skip(1);
            ends.filter(|at| self.held.ends_with(&stop[..*at])).max().unwrap_or(0)
        };
        self.stops.iter().map(beginning).max().unwrap_or(0)
    }

    /// Gives text with the tokens that it comes from.
    fn release_text(&mut self, bytes: usize) -> Option<Delta> {
        let tokens = self.waiting.iter().take_while(|(_, start)| *start < bytes).count();
        self.release(bytes, tokens)
    }

    fn release(&mut self, bytes: usize, tokens: usize) -> Option<Delta> {
        if bytes == 0 && tokens == 0 {
            return None;
        }
        let rest = self.held.split_off(bytes);
        let text = std::mem::replace(&mut self.held, rest);
        let out: Vec<Token> = self.waiting.drain(..tokens).map(|(token, _)| token).collect();
        for (_, start) in &mut self.waiting {
            *start = start.saturating_sub(bytes);
        }
        self.sent += out.len();
        Some(Delta {
            text,
            ids: out.iter().map(|token| token.id).collect(),
            logprobs: out.iter().filter_map(|token| token.logprob).collect(),
            details: out.iter().filter_map(|token| self.details(token)).collect(),
        })
    }

    fn details(&self, token: &Token) -> Option<TokenLogprobs> {
        let candidate = |id: u32, logprob: f32| Candidate { id, token: self.tokenizer.token_bytes(id), logprob };
        let chosen = Some(candidate(token.id, token.logprob?));
        Some(TokenLogprobs { chosen, top: token.top.iter().map(|(id, logprob)| candidate(*id, *logprob)).collect() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokenizer() -> Tokenizer {
        let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/llama");
        Tokenizer::from_dir(&dir).unwrap()
    }

    /// The deltas' texts, all ids, and whether a stop string was met.
    fn stream(text: &str, stops: &[&str]) -> (Vec<String>, Vec<u32>, bool) {
        let tokenizer = tokenizer();
        let mut answer = Answer::new(&tokenizer, stops.iter().map(|stop| (*stop).to_owned()).collect());
        let (mut texts, mut ids, mut stopped) = (vec![], vec![], false);
        let mut keep = |delta: Option<Delta>| {
            if let Some(delta) = delta {
                texts.push(delta.text);
                ids.extend(delta.ids);
            }
        };
        for id in tokenizer.encode(text, false).unwrap() {
            let (delta, stop) = answer.push(Token { id, logprob: None, top: vec![], complete: false }).unwrap();
            keep(delta);
            stopped = stop;
            if stopped {
                break;
            }
        }
        if !stopped {
            let (delta, stop) = answer.finish().unwrap();
            keep(delta);
            stopped = stop;
        }
        assert_eq!(answer.tokens(), ids.len());
        (texts, ids, stopped)
    }

    #[test]
    fn text_without_stops_is_whole() {
        for text in ["Buy the desk speaker before the 4th", "naïve café – 東京 🚀 end", "half 🚀"] {
            let (texts, ids, stopped) = stream(text, &[]);
            assert_eq!((texts.concat().as_str(), stopped), (text, false));
            assert_eq!(ids, tokenizer().encode(text, false).unwrap());
        }
    }

    #[test]
    fn what_ends_in_half_a_character_loses_nothing() {
        let tokenizer = tokenizer();
        let mut ids = tokenizer.encode("half 🚀", false).unwrap();
        ids.pop();
        let mut answer = Answer::new(&tokenizer, vec!["never".to_owned()]);
        let mut deltas: Vec<Delta> = ids
            .iter()
            .filter_map(|id| answer.push(Token { id: *id, logprob: None, top: vec![], complete: false }).unwrap().0)
            .collect();
        assert!(deltas.iter().all(|delta| !delta.text.contains('\u{FFFD}')));
        deltas.extend(answer.finish().unwrap().0);
        assert_eq!(deltas.iter().flat_map(|delta| delta.ids.clone()).collect::<Vec<_>>(), ids);
        let text: String = deltas.into_iter().map(|delta| delta.text).collect();
        assert_eq!(text, tokenizer.decode(&ids, true).unwrap());
        assert!(text.starts_with("half \u{FFFD}"), "{text:?}");
    }

    #[test]
    fn a_stop_string_ends_the_text_before_it_wherever_tokens_end() {
        for (stop, expected) in
            [("desk", "Buy the "), ("esk spea", "Buy the d"), ("B", ""), (" 4th", "Buy the desk speaker before the")]
        {
            let (texts, ids, stopped) = stream("Buy the desk speaker before the 4th", &[stop, "never"]);
            assert_eq!((texts.concat().as_str(), stopped), (expected, true), "{stop}");
            assert!(expected.is_empty() == ids.is_empty());
        }
    }

    #[test]
    fn a_beginning_of_a_stop_string_is_sent_once_it_cannot_match() {
        let (texts, _, stopped) = stream("Buy the desk speaker", &["Buy the house", "speaker!"]);
        assert_eq!((texts.concat().as_str(), stopped), ("Buy the desk speaker", false));
        assert!(!texts[0].starts_with("Buy") || texts[0].len() > "Buy the ".len(), "{texts:?}");
        assert!(texts.last().unwrap().ends_with("speaker"));
    }
}
