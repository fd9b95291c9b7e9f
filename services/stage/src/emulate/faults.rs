//! Counts requests and says which of them fail.

use std::{
    num::NonZeroU64,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use super::Faults;

/// Every so many of a kind of request.
#[derive(Debug)]
pub(super) struct Every {
    period: Option<NonZeroU64>,
    count: AtomicU64,
}

impl Every {
    fn new(period: Option<NonZeroU64>, seed: u64) -> Self {
        Self { period, count: AtomicU64::new(seed) }
    }

    /// Counts a request. Does it meet the fault?
    pub(super) fn hit(&self) -> bool {
        let count = || self.count.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        self.period.is_some_and(|period| count() % period == 0)
    }
}

/// The counters of a mount.
#[derive(Debug)]
pub(super) struct Counters {
    pub(super) fail_write: Every,
    pub(super) fail_close: Every,
    pub(super) tear_close: Every,
    pub(super) fail_read: Every,
    pub(super) short_read: Every,
    pub(super) late_read: Every,
    pub(super) late_by: Duration,
}

impl Counters {
    pub(super) fn new(faults: &Faults) -> Self {
        let every = |period| Every::new(period, faults.seed);
        Self {
            fail_write: every(faults.fail_writes),
            fail_close: every(faults.fail_closes),
            tear_close: every(faults.tear_closes),
            fail_read: every(faults.fail_reads),
            short_read: every(faults.short_reads),
            late_read: every(faults.late_reads),
            late_by: faults.late_by,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hits(period: u64, seed: u64) -> Vec<bool> {
        let every = Every::new(NonZeroU64::new(period), seed);
        (0..6).map(|_| every.hit()).collect()
    }

    #[test]
    fn every_third_is_hit_and_a_seed_shifts_it() {
        assert_eq!(hits(3, 0), [false, false, true, false, false, true]);
        assert_eq!(hits(3, 1), [false, true, false, false, true, false]);
        assert_eq!(hits(1, 7), [true; 6]);
        assert_eq!(hits(0, 0), [false; 6]);
        assert_eq!(hits(2, u64::MAX)[..2], [true, false]);
    }
}
