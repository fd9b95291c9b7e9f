//! The log-probabilities of a text, piece by piece.

use crate::cache::{KvCache, PAGE_TOKENS, PageTable};
use crate::model::{Adapter, Decoder, ModelError, Run};
use crate::ops::cross_entropy;

/// A text on its way through the model, in a cache of its own.
#[derive(Debug)]
pub struct Scorer {
    ids: Vec<u32>,
    /// Made with the first piece.
    cache: Option<KvCache>,
    table: PageTable,
    logs: Vec<f32>,
}

impl Scorer {
    /// Begins with a text.
    ///
    /// # Errors
    /// An id is unknown, or there are too many.
    pub fn new(model: &Decoder, ids: Vec<u32>) -> Result<Self, ModelError> {
        model.check_row(&ids)?;
        let logs = Vec::with_capacity(ids.len());
        Ok(Self { ids, cache: None, table: PageTable::default(), logs })
    }

    /// Reads at most so many tokens more, at least one; true when all is read.
    ///
    /// # Errors
    /// The model can't compute them.
    pub fn advance(&mut self, model: &Decoder, adapter: Option<&Adapter>, tokens: usize) -> Result<bool, ModelError> {
        let Some(last) = self.ids.len().checked_sub(1) else { return Ok(true) };
        let begin = self.table.len();
        let end = last.min(begin.saturating_add(tokens.max(1)));
        if begin < end {
            let cache = self.cache.get_or_insert_with(|| KvCache::new(model, last.next_multiple_of(PAGE_TOKENS)));
            cache.require(&mut self.table, end - begin)?;
            let run = Run { ids: &self.ids[begin..end], table: &mut self.table, adapter };
            let hidden = model.hidden(cache, &mut [run])?;
            let targets = &self.ids[begin + 1..=end];
            self.logs.extend(cross_entropy::log_probabilities(&hidden, model.head_weight(), targets));
        }
        Ok(end == last)
    }

    /// Log-probability of each id but the first, given those before it, nats.
    pub fn into_logs(self) -> Vec<f32> {
        self.logs
    }
}
