//! Numbers of the engine, which its thread writes and calls read.

use std::{
    collections::HashMap,
    sync::atomic::{AtomicU64, Ordering},
};

use firn_llm::cache::{CacheUse, PAGE_TOKENS};
use firn_proto::inference::v1::Stats;

/// Why an answer left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Left {
    Stop,
    Length,
    /// Its reader has left, or did not read.
    Abort,
    Error,
}

impl Left {
    const ALL: [(Self, &str); 4] =
        [(Self::Stop, "stop"), (Self::Length, "length"), (Self::Abort, "abort"), (Self::Error, "error")];
}

/// The numbers.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    running: AtomicU64,
    preempted_now: AtomicU64,
    cache_pages: AtomicU64,
    max_cache_pages: AtomicU64,
    idle_pages: AtomicU64,
    prefix_hits: AtomicU64,
    prompt_tokens: AtomicU64,
    answer_tokens: AtomicU64,
    preemptions: AtomicU64,
    steps: AtomicU64,
    left: [AtomicU64; 4],
}

impl Counters {
    /// A request has begun; the cache knew so many of its tokens.
    pub(crate) fn begun(&self, tokens: usize, cached: usize) {
        add(&self.prompt_tokens, tokens as u64);
        add(&self.prefix_hits, cached as u64);
    }

    pub(crate) fn preempted(&self) {
        add(&self.preemptions, 1);
    }

    /// An answer has left.
    pub(crate) fn left(&self, why: Left) {
        if let Some(at) = Left::ALL.iter().position(|(left, _)| *left == why) {
            add(&self.left[at], 1);
        }
    }

    /// A step gave so many tokens.
    pub(crate) fn stepped(&self, answer_tokens: usize) {
        add(&self.steps, 1);
        add(&self.answer_tokens, answer_tokens as u64);
    }

    /// What is there now; `preempted` answers wait to go on.
    pub(crate) fn now(&self, running: usize, preempted: usize, usage: CacheUse) {
        self.running.store(running as u64, Ordering::Relaxed);
        self.preempted_now.store(preempted as u64, Ordering::Relaxed);
        self.cache_pages.store(usage.used as u64, Ordering::Relaxed);
        self.max_cache_pages.store(usage.limit as u64, Ordering::Relaxed);
        self.idle_pages.store(usage.idle as u64, Ordering::Relaxed);
    }

    /// All numbers that the engine knows.
    pub(crate) fn stats(&self) -> Stats {
        let ended: HashMap<String, u64> =
            Left::ALL.iter().zip(&self.left).map(|((_, name), count)| ((*name).to_owned(), get(count))).collect();
        Stats {
            running: get(&self.running),
            waiting: get(&self.preempted_now),
            cache_pages: get(&self.cache_pages),
            max_cache_pages: get(&self.max_cache_pages),
            page_tokens: PAGE_TOKENS as u64,
            idle_pages: get(&self.idle_pages),
            // All of a prompt is looked for.
            prefix_queries_total: get(&self.prompt_tokens),
            prefix_hits_total: get(&self.prefix_hits),
            prompt_tokens_total: get(&self.prompt_tokens),
            answer_tokens_total: get(&self.answer_tokens),
            preemptions_total: get(&self.preemptions),
            steps_total: get(&self.steps),
            ended_total: ended,
            ..Stats::default()
        }
    }
}

fn add(counter: &AtomicU64, count: u64) {
    counter.fetch_add(count, Ordering::Relaxed);
}

fn get(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}
