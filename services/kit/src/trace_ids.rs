//! Trace ids that begin with the time.

use opentelemetry::trace::{SpanId, TraceId};
use opentelemetry_sdk::trace::{IdGenerator, RandomIdGenerator};

use crate::clock::Clock;

/// Trace ids whose four highest bytes are the minutes since 1970, and the rest random: Snowflake shows no other traces.
#[derive(Debug)]
pub(crate) struct TimedIds {
    clock: Clock,
    random: RandomIdGenerator,
}

impl TimedIds {
    pub(crate) fn new(clock: Clock) -> Self {
        Self { clock, random: RandomIdGenerator::default() }
    }
}

impl IdGenerator for TimedIds {
    fn new_trace_id(&self) -> TraceId {
        let mut id = self.random.new_trace_id().to_bytes();
        let minutes = u32::try_from(self.clock.now().as_second() / 60).unwrap_or_default();
        let (time, _) = id.split_at_mut(size_of::<u32>());
        time.copy_from_slice(&minutes.to_be_bytes());
        TraceId::from_bytes(id)
    }

    fn new_span_id(&self) -> SpanId {
        self.random.new_span_id()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use jiff::SignedDuration;

    use super::*;

    #[test]
    fn an_id_begins_with_the_minute_and_goes_on_at_random() {
        let clock = Clock::fixed("2026-11-24T10:00:59Z".parse().unwrap());
        let ids = TimedIds::new(clock.clone());
        let minute = |id: TraceId| u32::from_be_bytes(id.to_bytes()[..4].try_into().unwrap());
        let expected = 29_925_240;
        let made: HashSet<TraceId> = (0..100).map(|_| ids.new_trace_id()).collect();
        assert_eq!(made.len(), 100);
        assert!(made.iter().all(|id| minute(*id) == expected));
        let rest: HashSet<[u8; 12]> = made.iter().map(|id| id.to_bytes()[4..].try_into().unwrap()).collect();
        assert_eq!(rest.len(), 100);
        clock.advance(SignedDuration::from_secs(1));
        assert_eq!(minute(ids.new_trace_id()), expected + 1);
        assert_ne!(ids.new_span_id(), ids.new_span_id());
    }
}
