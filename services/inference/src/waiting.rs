//! Requests that wait for a place in the batch: tenants take turns, and each tenant's own come in their order.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use crate::{counters::Left, job::Job, open::Open};

/// Counts who waits, up to a limit.
#[derive(Clone, Debug)]
pub(crate) struct Places {
    taken: Arc<AtomicUsize>,
    limit: usize,
}

/// A place among those who wait, until it is dropped.
#[derive(Debug)]
pub(crate) struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Places {
    pub(crate) fn new(limit: usize) -> Self {
        Self { taken: Arc::default(), limit }
    }

    pub(crate) fn limit(&self) -> usize {
        self.limit
    }

    pub(crate) fn taken(&self) -> usize {
        self.taken.load(Ordering::Relaxed)
    }

    /// Takes a place if there is one.
    pub(crate) fn take(&self) -> Option<Place> {
        let more = |taken: usize| (taken < self.limit).then_some(taken + 1);
        let taken = self.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        taken.ok().map(|_| Place(Arc::clone(&self.taken)))
    }
}

/// A job with its place.
#[derive(Debug)]
pub(crate) struct Queued {
    pub(crate) tenant: String,
    pub(crate) job: Job,
    /// Held until the job begins or is dropped.
    pub(crate) place: Place,
}

/// Who comes next.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "there is one at a time, on the stack")]
pub(crate) enum Next {
    /// An answer that gave its pages up: it goes on before anybody begins.
    Again(Open),
    New(Queued),
}

/// Those who wait.
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    /// The oldest first.
    again: VecDeque<Open>,
    /// No queue in it is empty.
    tenants: BTreeMap<String, VecDeque<Queued>>,
    /// Whose turn it is.
    turn: VecDeque<String>,
}

impl Waiting {
    pub(crate) fn push(&mut self, queued: Queued) {
        let queue = self.tenants.entry(queued.tenant.clone()).or_default();
        if queue.is_empty() {
            self.turn.push_back(queued.tenant.clone());
        }
        queue.push_back(queued);
    }

    /// An answer waits for room to go on.
    pub(crate) fn push_again(&mut self, open: Open) {
        let at = self.again.partition_point(|other| other.born < open.born);
        self.again.insert(at, open);
    }

    /// Takes who comes next.
    pub(crate) fn pop(&mut self) -> Option<Next> {
        // Who waits for its reader as well would only be sent away again.
        if let Some(open) = self.again.iter().position(Open::has_room).and_then(|at| self.again.remove(at)) {
            return Some(Next::Again(open));
        }
        let tenant = self.turn.pop_front()?;
        let queue = self.tenants.get_mut(&tenant)?;
        let queued = queue.pop_front()?;
        if queue.is_empty() {
            self.tenants.remove(&tenant);
        } else {
            self.turn.push_back(tenant);
        }
        Some(Next::New(queued))
    }

    /// Puts back who was taken and does not fit yet: next time it is the first again.
    pub(crate) fn put_back(&mut self, next: Next) {
        match next {
            Next::Again(open) => self.push_again(open),
            Next::New(queued) => {
                self.turn.retain(|tenant| *tenant != queued.tenant);
                self.turn.push_front(queued.tenant.clone());
                self.tenants.entry(queued.tenant.clone()).or_default().push_front(queued);
            }
        }
    }

    /// Answers that wait to go on.
    pub(crate) fn again(&self) -> impl Iterator<Item = &Open> {
        self.again.iter()
    }

    /// Forgets whom nobody waits for; gives what those answers are counted as.
    pub(crate) fn forget_abandoned(&mut self, now: Instant) -> Vec<Left> {
        let mut abandoned = Vec::new();
        self.again.retain_mut(|open| {
            let stays = !open.is_abandoned() && open.is_read(now);
            if !stays {
                abandoned.push(open.left());
            }
            stays
        });
        for queue in self.tenants.values_mut() {
            queue.retain(|queued| {
                let stays = !queued.job.is_abandoned();
                if !stays && matches!(queued.job, Job::Generate(_)) {
                    abandoned.push(Left::Abort);
                }
                stays
            });
        }
        self.tenants.retain(|_, queue| !queue.is_empty());
        let tenants = &self.tenants;
        self.turn.retain(|tenant| tenants.contains_key(tenant));
        abandoned
    }

    /// Takes everybody out.
    pub(crate) fn drain(&mut self) -> impl Iterator<Item = Next> {
        self.turn.clear();
        let again = std::mem::take(&mut self.again).into_iter().map(Next::Again);
        again.chain(std::mem::take(&mut self.tenants).into_values().flatten().map(Next::New))
    }

    /// Somebody could begin or go on if there were a place.
    pub(crate) fn has_ready(&self) -> bool {
        !self.turn.is_empty() || self.again.iter().any(Open::has_room)
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;
    use crate::job::Scoring;

    fn queued(places: &Places, tenant: &str, id: u32) -> (Queued, oneshot::Receiver<impl Sized>) {
        let (reply, receiver) = oneshot::channel();
        let job = Job::Score(Scoring { ids: vec![id], adapter: None, reply });
        (Queued { tenant: tenant.to_owned(), job, place: places.take().unwrap() }, receiver)
    }

    fn id(next: &Next) -> u32 {
        match next {
            Next::New(Queued { job: Job::Score(scoring), .. }) => scoring.ids[0],
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn tenants_take_turns_and_their_own_requests_keep_their_order() {
        let (places, mut waiting, mut replies) = (Places::new(16), Waiting::default(), vec![]);
        for (tenant, number) in [("a", 1), ("a", 2), ("a", 3), ("b", 11), ("c", 21), ("b", 12)] {
            let (queued, reply) = queued(&places, tenant, number);
            waiting.push(queued);
            replies.push(reply);
        }
        let first = waiting.pop().unwrap();
        assert_eq!(id(&first), 1);
        waiting.put_back(first);
        let order: Vec<u32> = std::iter::from_fn(|| waiting.pop()).map(|next| id(&next)).collect();
        assert_eq!(order, [1, 11, 21, 2, 12, 3]);
        assert_eq!(places.taken(), 0, "who has begun waits no more");
    }

    #[test]
    fn places_are_limited_and_come_back() {
        let (places, mut waiting) = (Places::new(2), Waiting::default());
        let (one, reply) = queued(&places, "a", 1);
        let (two, kept) = queued(&places, "b", 2);
        waiting.push(one);
        waiting.push(two);
        assert!(places.take().is_none());
        drop(reply);
        assert_eq!(waiting.forget_abandoned(Instant::now()), [], "scores are no answers");
        assert_eq!(places.taken(), 1);
        assert!(places.take().is_some());
        assert_eq!(id(&waiting.pop().unwrap()), 2);
        assert!(waiting.pop().is_none());
        drop(kept);
    }
}
