//! Ids to text, one id at a time.

use super::{Tokenizer, TokenizerError};

/// Decodes a stream of ids into whole characters.
#[derive(Debug)]
pub struct StreamDecoder<'a> {
    tokenizer: &'a Tokenizer,
    ids: Vec<u32>,
    // Text up to `prefix` is context for the decoder, text up to `read` was given out.
    prefix: usize,
    read: usize,
}

impl<'a> StreamDecoder<'a> {
    pub(super) fn new(tokenizer: &'a Tokenizer) -> Self {
        Self { tokenizer, ids: Vec::new(), prefix: 0, read: 0 }
    }

    /// Takes the next id; gives the new text once it is whole.
    ///
    /// # Errors
    /// The tokenizer refuses the id.
    pub fn push(&mut self, id: u32) -> Result<Option<String>, TokenizerError> {
        self.ids.push(id);
        self.advance(false)
    }

    /// Gives what is left, half characters as replacement characters.
    ///
    /// # Errors
    /// The tokenizer refuses an id.
    pub fn finish(&mut self) -> Result<Option<String>, TokenizerError> {
        self.advance(true)
    }

    fn advance(&mut self, last: bool) -> Result<Option<String>, TokenizerError> {
        let before = self.tokenizer.decode(&self.ids[self.prefix..self.read], true)?;
        let after = self.tokenizer.decode(&self.ids[self.prefix..], true)?;
        if after.len() <= before.len() || (after.ends_with('\u{FFFD}') && !last) {
            return Ok(None);
        }
        let new = after[before.len()..].to_owned();
        self.prefix = self.read;
        self.read = self.ids.len();
        Ok(Some(new))
    }
}
