//! Continuous batching (Yu et al. 2022): at each step answers join, read or say their next tokens together, and leave.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use firn_llm::{
    cache::KvCache,
    generate::{Part, Scorer, Sequence, Stepped, step},
    model::{Adapter, Decoder, ModelError},
};
use futures_util::{StreamExt as _, stream::FuturesUnordered};
use tokio::{
    runtime::Runtime,
    sync::{mpsc, oneshot},
};
use tokio_util::sync::CancellationToken;

use crate::{
    counters::{Counters, Left},
    job::{End, Event, Failure, Generation, Job, Scoring},
    open::{Fate, Open, ROOM},
    waiting::{Next, Place, Queued, Waiting},
};

/// How often paused answers are looked at if nothing else happens.
const PAUSE_CHECK: Duration = Duration::from_millis(250);

/// How much at once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Answers in the batch.
    pub(crate) sequences: usize,
    /// Tokens of a step: prompts are read in pieces, so that open answers don't wait for a long one.
    pub(crate) step_tokens: usize,
}

/// The open answers.
pub(crate) struct Batch {
    pub(crate) model: Decoder,
    pub(crate) cache: KvCache,
    pub(crate) jobs: mpsc::UnboundedReceiver<Queued>,
    pub(crate) limits: Limits,
    pub(crate) counters: Arc<Counters>,
    pub(crate) stop: CancellationToken,
    pub(crate) waiting: Waiting,
    pub(crate) open: Vec<Open>,
    /// Texts that are scored, the first one now.
    pub(crate) scoring: VecDeque<Begun>,
    pub(crate) born: u64,
}

/// A text that is scored between the steps, in pieces, so that no answer waits for it.
pub(crate) struct Begun {
    scorer: Scorer,
    adapter: Option<Arc<Adapter>>,
    reply: oneshot::Sender<Result<Vec<f32>, ModelError>>,
    /// Its place in the queue: so many texts at most are held.
    _place: Place,
}

impl Batch {
    /// Works until it is stopped or nobody can ask any more.
    pub(crate) fn run(mut self, runtime: &Runtime) {
        while !self.stop.is_cancelled() {
            while let Ok(queued) = self.jobs.try_recv() {
                self.waiting.push(queued);
            }
            self.tidy();
            let worked = self.advance();
            self.counters.now(self.open.len(), self.waiting.again().count(), self.cache.usage());
            if !worked && !runtime.block_on(self.wait()) {
                break;
            }
        }
        self.end();
    }

    /// Lets those go who are not wanted any more.
    fn tidy(&mut self) {
        let now = Instant::now();
        for left in self.waiting.forget_abandoned(now) {
            self.counters.left(left);
        }
        let mut at = 0;
        while at < self.open.len() {
            if self.open[at].is_abandoned() || !self.open[at].is_read(now) {
                let left = self.open[at].left();
                self.leave(at, left);
            } else {
                at += 1;
            }
        }
    }

    /// One step of everybody who can go on, and of those who can begin; false if there is nobody.
    fn advance(&mut self) -> bool {
        let mut plan = self.plan_open();
        self.admit(&mut plan);
        let scored = self.score();
        if plan.is_empty() {
            return scored;
        }
        // Neighbours with the same adapter share its products.
        self.open.sort_by_key(|open| (open.group(), open.born));
        let tokens_of = |open: &Open| plan.iter().find(|(born, _)| *born == open.born).map(|(_, tokens)| *tokens);
        let mut parts: Vec<Part<'_>> = Vec::with_capacity(plan.len());
        let mut taking = Vec::with_capacity(plan.len());
        for open in &mut self.open {
            let Some(tokens) = tokens_of(open) else { continue };
            taking.push(open.born);
            parts.push(Part { sequence: &mut open.sequence, adapter: open.adapter.as_deref(), tokens });
        }
        match step(&self.model, &mut self.cache, &mut parts) {
            Ok(stepped) => self.deal(taking.into_iter().zip(stepped)),
            Err(error) => {
                // Their state is half advanced: none of them can go on.
                tracing::error!(%error, "a step failed");
                for born in taking {
                    self.fail(born, || Failure::Model(error.to_string()));
                }
            }
        }
        true
    }

    /// Open answers that go on in this step, with their tokens. Room is reserved for all of them.
    fn plan_open(&mut self) -> Vec<(u64, usize)> {
        let mut order: Vec<(bool, u64)> = self
            .open
            .iter()
            .filter(|open| open.has_room())
            // Who speaks comes before who reads, and the older before the younger.
            .map(|open| (open.sequence.unread() > 1, open.born))
            .collect();
        order.sort_unstable();
        let (mut plan, mut left) = (Vec::with_capacity(order.len()), self.limits.step_tokens);
        for (_, born) in order {
            // An answer before it may have taken its pages.
            let Some(open) = self.open.iter().find(|open| open.born == born) else { continue };
            let unread = open.sequence.unread();
            let tokens = unread.min(left);
            if tokens > 0 && self.make_room(born, tokens) {
                plan.push((born, tokens));
                // A token of an answer is no prompt: only reading counts.
                left -= if unread > 1 { tokens } else { 0 };
            }
        }
        plan.retain(|(born, _)| self.open.iter().any(|open| open.born == *born));
        plan
    }

    /// Reserves pages for an answer; paused and younger ones give theirs up for it. False if it must wait itself.
    fn make_room(&mut self, born: u64, tokens: usize) -> bool {
        loop {
            let Some(at) = self.open.iter().position(|open| open.born == born) else { return false };
            if self.open[at].sequence.reserve(&mut self.cache, tokens) {
                return true;
            }
            let youngest = |open: &&Open| (!open.has_room(), open.born);
            let victim = self.open.iter().filter(|open| open.born != born).max_by_key(youngest);
            let victim =
                victim.filter(|victim| !victim.has_room() || victim.born > born).map_or(born, |open| open.born);
            self.preempt(victim);
            if victim == born {
                return false;
            }
        }
    }

    /// Takes an answer's pages; it goes on later where it is.
    fn preempt(&mut self, born: u64) {
        let Some(at) = self.open.iter().position(|open| open.born == born) else { return };
        let mut open = self.open.swap_remove(at);
        open.sequence.release(&mut self.cache);
        self.counters.preempted();
        self.waiting.push_again(open);
    }

    /// Begins what waits and fits.
    fn admit(&mut self, plan: &mut Vec<(u64, usize)>) {
        let reading: usize = plan.iter().map(|(_, tokens)| *tokens).filter(|tokens| *tokens > 1).sum();
        let mut left = self.limits.step_tokens.saturating_sub(reading);
        while left > 0 && self.has_place() {
            let Some(next) = self.waiting.pop() else { break };
            let Some(open) = self.begin(next) else { continue };
            let mut open = match open {
                Ok(open) => open,
                Err(next) => {
                    self.waiting.put_back(next);
                    break;
                }
            };
            let tokens = open.sequence.unread().min(left);
            if !open.sequence.reserve(&mut self.cache, tokens) {
                open.sequence.release(&mut self.cache);
                self.waiting.push_again(open);
                break;
            }
            left -= tokens;
            plan.push((open.born, tokens));
            self.open.push(open);
        }
    }

    /// True if one more fits into the batch; an answer whose reader is behind gives its place to one that waits.
    fn has_place(&mut self) -> bool {
        if self.open.len() < self.limits.sequences {
            return true;
        }
        let now = Instant::now();
        let paused = self.open.iter().filter(|open| open.is_paused(now)).min_by_key(|open| open.paused_since);
        match paused.map(|open| open.born) {
            Some(born) if self.waiting.has_ready() => {
                self.preempt(born);
                true
            }
            _ => false,
        }
    }

    /// Begins one; gives it back if there is no room for it yet, and nothing if it is done with.
    fn begin(&mut self, next: Next) -> Option<Result<Open, Next>> {
        let (ids, adapter) = match &next {
            Next::Again(open) => (open.sequence.ids(), open.adapter.as_deref()),
            Next::New(Queued { job: Job::Generate(generation), .. }) => {
                (generation.ids.as_slice(), generation.adapter.as_deref())
            }
            Next::New(_) => (&[][..], None),
        };
        while !self.cache.has_room_for(ids, adapter) {
            let paused = self.open.iter().filter(|open| !open.has_room()).max_by_key(|open| open.born);
            match paused.map(|open| open.born) {
                Some(born) => self.preempt(born),
                None => return Some(Err(next)),
            }
        }
        match next {
            Next::Again(mut open) => {
                open.sequence.attach(&mut self.cache, open.adapter.as_deref());
                Some(Ok(open))
            }
            Next::New(Queued { job: Job::Generate(generation), .. }) => self.open(*generation).map(Ok),
            Next::New(Queued { job: Job::Score(scoring), place, .. }) => {
                let Scoring { ids, adapter, reply } = scoring;
                match Scorer::new(&self.model, ids) {
                    Ok(scorer) => self.scoring.push_back(Begun { scorer, adapter, reply, _place: place }),
                    Err(error) => drop(reply.send(Err(error))),
                }
                None
            }
            #[cfg(test)]
            Next::New(Queued { job: Job::Panic, .. }) => panic!("asked to"),
        }
    }

    fn open(&mut self, generation: Generation) -> Option<Open> {
        let Generation { ids, adapter, sampling, constraint, logprobs, max_tokens, ends, satisfied, events } =
            generation;
        let tokens = ids.len();
        let mut sequence = match Sequence::new(&self.model, ids, sampling) {
            Ok(sequence) => sequence,
            Err(error) => {
                self.counters.left(Left::Error);
                let _ = events.try_send(Event::Failed(Failure::Model(error.to_string())));
                return None;
            }
        };
        if let Some(constraint) = constraint {
            sequence = sequence.with_constraint(constraint);
        }
        if let Some(top) = logprobs {
            sequence = sequence.with_logprobs(top);
        }
        let cached = sequence.attach(&mut self.cache, adapter.as_deref());
        self.counters.begun(tokens, cached);
        // The channel is empty: this fails only if the reader has left, which the next step sees.
        let _ = events.try_send(Event::Begun { cached });
        self.born += 1;
        Some(Open {
            born: self.born,
            sequence,
            adapter,
            left: max_tokens.max(1),
            ends,
            satisfied,
            events,
            paused_since: None,
        })
    }

    /// One piece of the first text that is scored; false if there is none.
    fn score(&mut self) -> bool {
        self.scoring.retain(|begun| !begun.reply.is_closed());
        let Some(mut begun) = self.scoring.pop_front() else { return false };
        match begun.scorer.advance(&self.model, begun.adapter.as_deref(), self.limits.step_tokens) {
            Ok(false) => self.scoring.push_front(begun),
            Ok(true) => drop(begun.reply.send(Ok(begun.scorer.into_logs()))),
            Err(error) => drop(begun.reply.send(Err(error))),
        }
        true
    }

    /// Hands the tokens of a step out.
    fn deal(&mut self, stepped: impl Iterator<Item = (u64, Stepped)>) {
        let context = self.model.config().context;
        let mut tokens = 0;
        for (born, stepped) in stepped {
            let Some(at) = self.open.iter().position(|open| open.born == born) else { continue };
            let fate = match stepped {
                Stepped::Read => Fate::GoesOn,
                Stepped::Chose(token) => {
                    tokens += 1;
                    self.open[at].take(token, context)
                }
                Stepped::Stuck(reason) => {
                    self.fail(born, || Failure::Constraint(reason.clone()));
                    continue;
                }
            };
            match fate {
                Fate::GoesOn => {}
                Fate::Ended(End::Stop) => self.leave(at, Left::Stop),
                Fate::Ended(End::Length) => self.leave(at, Left::Length),
                Fate::Abandoned => {
                    let left = self.open[at].left();
                    self.leave(at, left);
                }
            }
        }
        self.counters.stepped(tokens);
    }

    fn fail(&mut self, born: u64, failure: impl FnOnce() -> Failure) {
        if let Some(at) = self.open.iter().position(|open| open.born == born) {
            self.open[at].fail(failure());
            self.leave(at, Left::Error);
        }
    }

    fn leave(&mut self, at: usize, why: Left) {
        let mut open = self.open.swap_remove(at);
        open.sequence.release(&mut self.cache);
        self.counters.left(why);
    }

    /// Waits for a job, or for a paused answer's reader; false if it is over.
    async fn wait(&mut self) -> bool {
        let Self { jobs, open, waiting, stop, limits, .. } = self;
        let job = {
            // A reader that leaves ends this wait, too. Who waits to go on can't while the batch is full.
            let again = waiting.again().filter(|_| open.len() < limits.sequences);
            let mut rooms: FuturesUnordered<_> =
                open.iter().chain(again).map(|open| async { drop(open.events.reserve_many(ROOM).await) }).collect();
            let paused = !rooms.is_empty();
            tokio::select! {
                () = stop.cancelled() => return false,
                job = jobs.recv() => job,
                _ = rooms.next(), if paused => return true,
                () = tokio::time::sleep(PAUSE_CHECK), if paused => return true,
            }
        };
        let Some(job) = job else { return false };
        waiting.push(job);
        true
    }

    /// Tells everybody that it is over.
    fn end(&mut self) {
        self.open.iter().for_each(|open| open.fail(Failure::Stopping));
        self.jobs.close();
        while let Ok(queued) = self.jobs.try_recv() {
            self.waiting.push(queued);
        }
        for next in self.waiting.drain() {
            match next {
                Next::Again(open) => open.fail(Failure::Stopping),
                Next::New(Queued { job: Job::Generate(generation), .. }) => {
                    let _ = generation.events.try_send(Event::Failed(Failure::Stopping));
                }
                Next::New(_) => {}
            }
        }
    }
}

#[cfg(test)]
#[path = "batch_tests.rs"]
mod tests;
