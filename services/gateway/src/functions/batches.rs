//! Batches that run or have run: a batch that is sent again gets the answer of the first time.

use std::{
    collections::HashMap,
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use axum::http::StatusCode;
use bytes::Bytes;
use tokio::{
    sync::watch,
    time::{Instant, timeout},
};
use tokio_util::task::AbortOnDropHandle;

use crate::{error::ApiError, tenant::Tenant};

/// Which batch: nobody gets another's answer, even by its id.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    pub(crate) tenant: Tenant,
    pub(crate) path: String,
    pub(crate) id: String,
}

/// What became of a batch: its rows, or why none of them could be done.
pub(crate) type Outcome = Result<Bytes, ApiError>;

/// The batches that are remembered. They run on whoever asked for them leaves, and end with this store.
#[derive(Debug)]
pub(crate) struct Batches {
    most: usize,
    most_bytes: usize,
    life: Duration,
    entries: Mutex<HashMap<Key, Entry>>,
}

#[derive(Debug)]
struct Entry {
    answer: watch::Receiver<Option<Outcome>>,
    /// When it was done, and how large the answer is.
    done: Option<(Instant, usize)>,
    _task: AbortOnDropHandle<()>,
}

/// A batch that one waits for.
#[derive(Debug)]
pub(crate) struct Waiting(watch::Receiver<Option<Outcome>>);

/// A batch ended without an answer, by a defect.
#[derive(Debug)]
pub(crate) struct Lost;

impl Default for Batches {
    fn default() -> Self {
        Self::new(1000, 64 << 20, Duration::from_secs(600))
    }
}

impl Batches {
    fn new(most: usize, most_bytes: usize, life: Duration) -> Self {
        Self { most, most_bytes, life, entries: Mutex::default() }
    }

    /// Starts a batch, unless it runs or has run already.
    pub(crate) fn begin(
        self: &Arc<Self>,
        key: Key,
        work: impl Future<Output = Outcome> + Send + 'static,
    ) -> Result<Waiting, ApiError> {
        let mut entries = self.fresh();
        // A batch that failed as a whole may be tried again under its id.
        let failed = |entry: &Entry| matches!(*entry.answer.borrow(), Some(Err(_)));
        if let Some(entry) = entries.get(&key).filter(|entry| !failed(entry)) {
            return Ok(Waiting(entry.answer.clone()));
        }
        if entries.len() >= self.most && !forget_oldest(&mut entries) {
            let busy = "too many batches run already";
            return Err(ApiError::refused(StatusCode::TOO_MANY_REQUESTS, busy).after(Duration::from_secs(5)));
        }
        let (sender, answer) = watch::channel(None);
        let (store, done) = (Arc::downgrade(self), key.clone());
        let task = tokio::spawn(async move {
            let rows = work.await;
            let size = rows.as_ref().map_or(0, Bytes::len);
            sender.send_replace(Some(rows));
            if let Some(store) = store.upgrade() {
                store.finished(&done, size);
            }
        });
        let entry = Entry { answer: answer.clone(), done: None, _task: AbortOnDropHandle::new(task) };
        entries.insert(key, entry);
        Ok(Waiting(answer))
    }

    /// A batch that is there.
    pub(crate) fn find(&self, key: &Key) -> Option<Waiting> {
        self.fresh().get(key).map(|entry| Waiting(entry.answer.clone()))
    }

    fn finished(&self, key: &Key, size: usize) {
        let mut entries = self.fresh();
        if let Some(entry) = entries.get_mut(key) {
            entry.done = Some((Instant::now(), size));
        }
        // Whoever waits for one that is forgotten here has its answer all the same.
        while bytes(&entries) > self.most_bytes && forget_oldest(&mut entries) {}
    }

    /// What is there, less what is too old or was lost.
    fn fresh(&self) -> MutexGuard<'_, HashMap<Key, Entry>> {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.retain(|_, entry| match entry.done {
            Some((at, _)) => at.elapsed() < self.life,
            None => entry.answer.has_changed().is_ok() || entry.answer.borrow().is_some(),
        });
        entries
    }
}

fn bytes(entries: &HashMap<Key, Entry>) -> usize {
    entries.values().filter_map(|entry| entry.done).map(|(_, size)| size).sum()
}

/// Forgets the one that has been done for the longest time. False if none is done.
fn forget_oldest(entries: &mut HashMap<Key, Entry>) -> bool {
    let done = entries.iter().filter_map(|(key, entry)| entry.done.map(|(at, _)| (at, key)));
    let Some(key) = done.min_by_key(|(at, _)| *at).map(|(_, key)| key.clone()) else { return false };
    entries.remove(&key).is_some()
}

impl Waiting {
    /// The answer, if it comes in time.
    pub(crate) async fn wait(&mut self, time: Duration) -> Result<Option<Outcome>, Lost> {
        match timeout(time, self.0.wait_for(Option::is_some)).await {
            Ok(Ok(answer)) => Ok(answer.clone()),
            Ok(Err(_)) => Err(Lost),
            Err(_) => Ok(None),
        }
    }

    /// The answer, if it is there.
    pub(crate) fn now(&mut self) -> Result<Option<Outcome>, Lost> {
        let answer = self.0.borrow().clone();
        // A sender that is gone has left an answer, unless it was lost.
        if answer.is_none() && self.0.has_changed().is_err() && self.0.borrow().is_none() {
            return Err(Lost);
        }
        Ok(answer)
    }
}

#[cfg(test)]
#[path = "batches_tests.rs"]
mod tests;
