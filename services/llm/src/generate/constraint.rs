//! Answers that keep to a JSON Schema, by llguidance: before each token it says which tokens may come.

use std::sync::Arc;

use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::{ApproximateTokEnv, SimpleVob, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory};
use serde_json::{Value, json};

use crate::tokenizer::Tokenizer;

/// Why an answer can't be kept to a schema.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConstraintError {
    /// The schema is no JSON.
    #[error("the schema is not JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// The schema asks for what can't be kept to.
    #[error("the schema can't be followed: {0}")]
    Schema(String),
    /// The tokenizer's tokens are not known as bytes, or it has no end of text.
    #[error("this tokenizer can't keep to a schema: {0}")]
    Tokenizer(String),
}

/// Lexer fuel and parser items of a token's mask (about 5 and 1 ms), and lexer states of an answer (about 1 kB each).
const LIMITS: (u64, usize, usize) = (70_000, 20_000, 20_000);

/// Makes constraints for one tokenizer.
pub struct Grammars {
    factory: ParserFactory,
}

impl std::fmt::Debug for Grammars {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Grammars").finish_non_exhaustive()
    }
}

/// What an answer must keep to, and how far it is.
pub struct Constraint {
    matcher: Matcher,
    mask: SimpleVob,
}

impl std::fmt::Debug for Constraint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Constraint").finish_non_exhaustive()
    }
}

impl Grammars {
    /// Learns the tokenizer's tokens; `vocab` is the model's number of ids.
    ///
    /// # Errors
    /// The tokenizer has no end of text.
    pub fn new(tokenizer: &Tokenizer, vocab: usize) -> Result<Self, ConstraintError> {
        let wrong = |reason: String| ConstraintError::Tokenizer(reason);
        let Some((&end, others)) = tokenizer.eos_ids().split_first() else {
            return Err(wrong("it names no token that ends a text".to_owned()));
        };
        let words: Vec<Vec<u8>> = (0..vocab as u32)
            .map(|id| match tokenizer.token_bytes(id) {
                // Marked so that a special token is never taken for its spelling.
                bytes if tokenizer.is_special(id) || tokenizer.eos_ids().contains(&id) => {
                    [&[TokTrie::SPECIAL_TOKEN_MARKER], bytes.as_slice()].concat()
                }
                bytes => bytes,
            })
            .collect();
        let trie = TokTrie::from(&TokRxInfo::new(vocab as u32, end), &words);
        let trie = if others.is_empty() { trie } else { trie.with_eos_tokens(tokenizer.eos_ids()) };
        let env: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let mut factory = ParserFactory::new_simple(&env).map_err(|error| wrong(error.to_string()))?;
        factory.quiet();
        // Masks are found between the steps of a batch, which all its answers wait for.
        let limits = factory.limits_mut();
        (limits.step_lexer_fuel, limits.step_max_items, limits.max_lexer_states) = LIMITS;
        Ok(Self { factory })
    }

    /// A constraint to a JSON Schema, given as text.
    ///
    /// # Errors
    /// The text is no JSON, or the schema can't be followed.
    pub fn json_schema(&self, schema: &str) -> Result<Constraint, ConstraintError> {
        let mut schema: Value = serde_json::from_str(schema)?;
        // A small model that may put blanks between tokens can go on with them for ever.
        if let Some(fields) = schema.as_object_mut() {
            let compact = json!({"whitespace_flexible": false, "item_separator": ", ", "key_separator": ": "});
            fields.entry("x-guidance").or_insert(compact);
        }
        let parser = self.factory.create_parser(TopLevelGrammar::from_json_schema(schema));
        let matcher = Matcher::new(parser);
        match matcher.get_error() {
            Some(error) => Err(ConstraintError::Schema(error.lines().next().unwrap_or_default().to_owned())),
            None => Ok(Constraint { matcher, mask: SimpleVob::new() }),
        }
    }
}

impl Constraint {
    /// Finds which tokens may come next.
    pub(crate) fn prepare(&mut self) -> Result<(), String> {
        self.mask = self.matcher.compute_mask_or_eos().map_err(|error| error.to_string())?;
        Ok(())
    }

    /// True if the token may come next.
    pub(crate) fn allows(&self, id: u32) -> bool {
        (id as usize) < self.mask.len() && self.mask.is_allowed(id)
    }

    /// Notes that it came; true if nothing may follow.
    pub(crate) fn take(&mut self, id: u32) -> Result<bool, String> {
        self.matcher.consume_token(id).map_err(|error| error.to_string())?;
        Ok(self.matcher.is_stopped())
    }
}
