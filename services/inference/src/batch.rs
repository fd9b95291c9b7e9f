//! Continuous batching: at each step, answers join, advance by one token together, and leave.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use firn_llm::{
    generate::{Sequence, Token, step},
    model::{Adapter, Decoder, ModelError},
};
use futures_util::{StreamExt as _, stream::FuturesUnordered};
use tokio::{runtime::Runtime, sync::mpsc};
use tokio_util::sync::CancellationToken;

use crate::engine::{End, Event, Failure, Generation, Job, Scoring};

/// Prompt tokens after which a step admits no further request: open answers must not wait for a crowd of long prompts.
const PREFILL_TOKENS: usize = 2_048;
/// Longest that an answer waits for its reader: a place in the batch is not for those who have forgotten it.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// How often paused answers are looked at if nothing else happens.
const PAUSE_CHECK: Duration = Duration::from_secs(1);
/// Room in an answer's channel that lets it advance: a token, and the place that is kept for a failure.
const ROOM: usize = 2;

/// The open answers.
pub(crate) struct Batch {
    model: Decoder,
    jobs: mpsc::Receiver<Job>,
    open: Vec<Open>,
    limit: usize,
    stop: CancellationToken,
}

/// An answer in the making.
struct Open {
    sequence: Sequence,
    adapter: Option<Arc<Adapter>>,
    /// Tokens that it may still get.
    left: usize,
    ends: Vec<u32>,
    events: mpsc::Sender<Event>,
    paused_since: Option<Instant>,
}

impl Open {
    /// Groups neighbours: those with the same adapter share its matrix products.
    fn group(&self) -> usize {
        self.adapter.as_ref().map_or(0, |adapter| Arc::as_ptr(adapter) as usize)
    }

    fn has_room(&self) -> bool {
        self.events.capacity() >= ROOM
    }

    /// Passes a token on; false if that was the last one.
    fn take(&mut self, token: Token, context: usize) -> bool {
        self.left -= 1;
        let event = if self.ends.contains(&token.id) {
            Event::Last(None, End::Stop)
        } else if self.left == 0 || self.sequence.context() > context {
            Event::Last(Some(token), End::Length)
        } else {
            Event::Token(token)
        };
        let last = matches!(event, Event::Last(..));
        // There is room, so this fails only if the reader has left.
        self.events.try_send(event).is_ok() && !last
    }

    fn fail(&self, failure: Failure) {
        // The last place is kept for this; a reader that has left needs no news.
        let _ = self.events.try_send(Event::Failed(failure));
    }

    /// False if the answer has nobody to go on for.
    fn is_wanted(&mut self, now: Instant) -> bool {
        if self.events.is_closed() {
            return false;
        }
        if self.has_room() {
            self.paused_since = None;
        } else if now.duration_since(*self.paused_since.get_or_insert(now)) >= LONGEST_PAUSE {
            self.fail(Failure::Stalled { seconds: LONGEST_PAUSE.as_secs() });
            return false;
        }
        true
    }
}

impl Batch {
    pub(crate) fn new(model: Decoder, jobs: mpsc::Receiver<Job>, limit: usize, stop: CancellationToken) -> Self {
        Self { model, jobs, open: Vec::new(), limit, stop }
    }

    /// Works until it is stopped or nobody can ask any more.
    pub(crate) fn run(mut self, runtime: &Runtime) {
        while !self.stop.is_cancelled() {
            self.admit();
            let now = Instant::now();
            self.open.retain_mut(|open| open.is_wanted(now));
            if !self.advance() && !runtime.block_on(self.wait()) {
                break;
            }
        }
        self.open.iter().for_each(|open| open.fail(Failure::Stopping));
        self.jobs.close();
        while let Ok(job) = self.jobs.try_recv() {
            if let Job::Generate(generation) = job {
                let _ = generation.events.try_send(Event::Failed(Failure::Stopping));
            }
        }
    }

    /// Takes what waits and fits, without waiting.
    fn admit(&mut self) {
        let mut tokens = 0;
        while self.open.len() < self.limit && tokens < PREFILL_TOKENS {
            let Ok(job) = self.jobs.try_recv() else { break };
            tokens += self.accept(job);
        }
    }

    /// Begins a job; gives the tokens that it has the model read.
    fn accept(&mut self, job: Job) -> usize {
        match job {
            Job::Generate(generation) => self.begin(generation),
            Job::Score(scoring) => self.score(scoring),
            #[cfg(test)]
            Job::Panic => panic!("asked to"),
        }
    }

    fn begin(&mut self, generation: Generation) -> usize {
        let Generation { ids, adapter, sampling, logprobs, max_tokens, ends, events } = generation;
        if events.is_closed() {
            return 0;
        }
        let tokens = ids.len();
        match Sequence::new(&self.model, ids, sampling, logprobs) {
            Ok(sequence) => {
                self.open.push(Open { sequence, adapter, left: max_tokens.max(1), ends, events, paused_since: None });
                self.open.sort_by_key(Open::group);
            }
            Err(error) => {
                let _ = events.try_send(Event::Failed(Failure::Model(error.to_string())));
            }
        }
        tokens
    }

    fn score(&self, scoring: Scoring) -> usize {
        let Scoring { ids, adapter, reply } = scoring;
        if reply.is_closed() {
            return 0;
        }
        let _ = reply.send(self.model.score(&ids, adapter.as_deref()));
        ids.len()
    }

    /// Advances all answers whose readers keep up; false if there is none.
    fn advance(&mut self) -> bool {
        let mut runs: Vec<bool> = self.open.iter().map(Open::has_room).collect();
        let mut batch: Vec<_> = self
            .open
            .iter_mut()
            .zip(&runs)
            .filter(|(_, runs)| **runs)
            .map(|(open, _)| (&mut open.sequence, open.adapter.as_deref()))
            .collect();
        if batch.is_empty() {
            return false;
        }
        let stepped: Result<Vec<Token>, ModelError> = step(&self.model, &mut batch);
        drop(batch);
        let context = self.model.config().context;
        let mut runs = runs.drain(..);
        match stepped {
            Ok(tokens) => {
                let mut tokens = tokens.into_iter();
                self.open.retain_mut(|open| {
                    if !runs.next().unwrap_or(false) {
                        return true;
                    }
                    tokens.next().is_some_and(|token| open.take(token, context))
                });
            }
            Err(error) => {
                // Their state is half advanced: none of them can go on.
                tracing::error!(%error, "a step failed");
                self.open.retain(|open| {
                    let failed = runs.next().unwrap_or(false);
                    if failed {
                        open.fail(Failure::Model(error.to_string()));
                    }
                    !failed
                });
            }
        }
        true
    }

    /// Waits for a job, or for a paused answer's reader; false if it is over.
    async fn wait(&mut self) -> bool {
        let Self { jobs, open, limit, stop, .. } = self;
        let may_admit = open.len() < *limit;
        // A reader that leaves ends this wait, too.
        let mut rooms: FuturesUnordered<_> =
            open.iter().map(|open| async { drop(open.events.reserve_many(ROOM).await) }).collect();
        let paused = !rooms.is_empty();
        let job = tokio::select! {
            () = stop.cancelled() => return false,
            job = jobs.recv(), if may_admit => job,
            _ = rooms.next(), if paused => return true,
            () = tokio::time::sleep(PAUSE_CHECK), if paused => return true,
        };
        drop(rooms);
        let Some(job) = job else { return false };
        self.accept(job);
        true
    }
}

#[cfg(test)]
#[path = "batch_tests.rs"]
mod tests;
