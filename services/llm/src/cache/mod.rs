//! The key-value cache: pages of a few tokens that sequences take, share and give back (Kwon et al. 2023).
//!
//! A full page never changes, so sequences that begin alike share it, also after the one that computed it has ended. Which
//! pages are whose is decided by [`pages`], which knows no tensor; [`store`] keeps their rows.

mod pages;
mod store;

use crate::config::ModelConfig;
use crate::device::Device;
use crate::model::{Adapter, Decoder, ModelError};
pub(crate) use pages::{PageTable, Pages};
pub(crate) use store::Store;

/// Tokens of a page.
pub const PAGE_TOKENS: usize = 16;

/// Pages that each sequence can have, from which on it has one before it needs it.
#[cfg(feature = "cuda")]
const SPARE: usize = 4;

/// Pages of one model's keys and values, for many sequences.
#[derive(Debug)]
pub struct KvCache {
    pub(crate) pages: Pages,
    pub(crate) store: Store,
}

/// How full a cache is, in pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheUse {
    /// Pages that there may be.
    pub limit: usize,
    /// Pages that hold something, idle ones included.
    pub used: usize,
    /// Pages that no sequence has, kept for one that begins alike.
    pub idle: usize,
}

impl CacheUse {
    /// Pages that a sequence can have now.
    pub fn available(&self) -> usize {
        self.limit - self.used + self.idle
    }
}

impl KvCache {
    /// A cache of at most so many tokens, at least a page. Memory is taken as pages are used, and never given back; where a GPU
    /// has kernels for them, all of it at once.
    pub fn new(model: &Decoder, tokens: usize) -> Self {
        let config = model.config();
        let limit = tokens.div_ceil(PAGE_TOKENS).max(1);
        let width = config.kv_heads * config.head_dim;
        Self { pages: Pages::new(limit), store: Store::new(model, width, limit) }
    }

    /// Bytes that a token takes in a cache of this model on a device.
    pub fn bytes_per_token(model: &ModelConfig, device: &Device) -> usize {
        2 * model.layers() * model.kv_heads * model.head_dim * device.bytes()
    }

    /// Why decoding on a GPU gives its launches one by one, if it does for want of a recording.
    pub fn unrecorded(&self) -> Option<&str> {
        self.store.unrecorded()
    }

    /// How full it is.
    pub fn usage(&self) -> CacheUse {
        self.pages.usage()
    }

    /// True if there is room for all of a text and one token more, now. Known pages of its beginning that others have take
    /// no room.
    pub fn has_room_for(&self, ids: &[u32], adapter: Option<&Adapter>) -> bool {
        let shared = self.pages.held(adapter.map_or(0, Adapter::id), ids);
        (ids.len() + 1).div_ceil(PAGE_TOKENS) - shared <= self.usage().available()
    }

    /// Makes room for `tokens` more tokens of a sequence; false if there is none now.
    pub(crate) fn reserve(&mut self, table: &mut PageTable, tokens: usize) -> bool {
        let needed = (table.len() + tokens).div_ceil(PAGE_TOKENS).saturating_sub(table.pages().len());
        self.pages.usage().available() >= needed && self.pages.extend(table, needed)
    }

    /// True if steps of so many sequences may be begun before they are asked for, and there are pages enough that each sequence can
    /// have one more than it needs.
    #[cfg(feature = "cuda")]
    pub(crate) fn begins_ahead(&self, sequences: usize) -> bool {
        self.store.begins_ahead() && self.usage().available() >= SPARE * sequences
    }

    /// As [`Self::reserve`], as an error.
    pub(crate) fn require(&mut self, table: &mut PageTable, tokens: usize) -> Result<(), ModelError> {
        if self.reserve(table, tokens) {
            return Ok(());
        }
        Err(ModelError::CacheFull { limit: self.pages.usage().limit * PAGE_TOKENS })
    }
}
