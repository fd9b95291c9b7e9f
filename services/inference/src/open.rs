//! An answer in the making.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use firn_llm::{
    generate::{Sequence, Token},
    model::Adapter,
};
use tokio::sync::mpsc;

use crate::{
    counters::Left,
    job::{End, Event, Failure},
};

/// Longest that an answer waits for its reader: a place in the batch is not for those who have forgotten it.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// How long a reader may be behind before its answer gives its place to one that waits.
const GRACE: Duration = Duration::from_millis(500);
/// Room in an answer's channel that lets it advance: a token, and the place that is kept for a failure.
pub(crate) const ROOM: usize = 2;

/// An answer in the making.
#[derive(Debug)]
pub(crate) struct Open {
    /// One more than that of the answer before it.
    pub(crate) born: u64,
    pub(crate) sequence: Sequence,
    pub(crate) adapter: Option<Arc<Adapter>>,
    /// Tokens that it may still get.
    pub(crate) left: usize,
    pub(crate) ends: Vec<u32>,
    pub(crate) satisfied: Arc<AtomicBool>,
    pub(crate) events: mpsc::Sender<Event>,
    pub(crate) paused_since: Option<Instant>,
}

/// What became of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    GoesOn,
    Ended(End),
    /// Its reader has left.
    Abandoned,
}

impl Open {
    /// Groups neighbours: those with the same adapter share its matrix products.
    pub(crate) fn group(&self) -> usize {
        self.adapter.as_ref().map_or(0, |adapter| Arc::as_ptr(adapter) as usize)
    }

    pub(crate) fn has_room(&self) -> bool {
        self.events.capacity() >= ROOM
    }

    pub(crate) fn is_abandoned(&self) -> bool {
        self.events.is_closed()
    }

    /// What an answer whose reader has left is counted as.
    pub(crate) fn left(&self) -> Left {
        if self.satisfied.load(Ordering::Relaxed) { Left::Stop } else { Left::Abort }
    }

    /// Its reader has kept it waiting for a moment, so that somebody else may have its place.
    pub(crate) fn is_paused(&self, now: Instant) -> bool {
        !self.has_room() && self.paused_since.is_some_and(|since| now.duration_since(since) >= GRACE)
    }

    /// Passes a token on.
    pub(crate) fn take(&mut self, token: Token, context: usize) -> Fate {
        self.left -= 1;
        let (event, fate) = if self.ends.contains(&token.id) {
            (Event::Last(None, End::Stop), Fate::Ended(End::Stop))
        } else if token.complete {
            (Event::Last(Some(token), End::Stop), Fate::Ended(End::Stop))
        } else if self.left == 0 || self.sequence.context() > context {
            (Event::Last(Some(token), End::Length), Fate::Ended(End::Length))
        } else {
            (Event::Token(token), Fate::GoesOn)
        };
        // There is room, so this fails only if the reader has left.
        if self.events.try_send(event).is_ok() { fate } else { Fate::Abandoned }
    }

    pub(crate) fn fail(&self, failure: Failure) {
        // The last place is kept for this; a reader that has left needs no news.
        let _ = self.events.try_send(Event::Failed(failure));
    }

    /// False if its reader has kept it waiting for too long.
    pub(crate) fn is_read(&mut self, now: Instant) -> bool {
        if self.has_room() {
            self.paused_since = None;
        } else if now.duration_since(*self.paused_since.get_or_insert(now)) >= LONGEST_PAUSE {
            self.fail(Failure::Stalled { seconds: LONGEST_PAUSE.as_secs() });
            return false;
        }
        true
    }
}
