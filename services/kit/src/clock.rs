//! Time as a value, so that tests decide what time it is.

use std::sync::{Arc, Mutex, PoisonError};

use jiff::{SignedDuration, Timestamp};

/// Tells the time: the system's, or one that a test set. Clones share a test's time.
#[derive(Clone, Debug)]
pub struct Clock(Source);

#[derive(Clone, Debug)]
enum Source {
    System,
    Fixed(Arc<Mutex<Timestamp>>),
}

impl Clock {
    /// The system's clock.
    #[must_use]
    pub fn system() -> Self {
        Self(Source::System)
    }

    /// A clock that stands at `now` until it is advanced.
    #[must_use]
    pub fn fixed(now: Timestamp) -> Self {
        Self(Source::Fixed(Arc::new(Mutex::new(now))))
    }

    /// The time.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        match &self.0 {
            Source::System => Timestamp::now(),
            Source::Fixed(now) => *now.lock().unwrap_or_else(PoisonError::into_inner),
        }
    }

    /// Moves a fixed clock on, at most to the end of time; the system's clock stays as it is.
    pub fn advance(&self, by: SignedDuration) {
        if let Source::Fixed(now) = &self.0 {
            let mut now = now.lock().unwrap_or_else(PoisonError::into_inner);
            *now = now.checked_add(by).unwrap_or(Timestamp::MAX);
        }
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::system()
    }
}

/// Converts a time for a message.
#[must_use]
pub fn to_proto(time: Timestamp) -> prost_types::Timestamp {
    // Protobuf counts nanoseconds forward from the second, jiff away from zero.
    let nanos = time.subsec_nanosecond();
    let borrowed = i64::from(nanos < 0);
    prost_types::Timestamp {
        seconds: time.as_second() - borrowed,
        nanos: if nanos < 0 { nanos + 1_000_000_000 } else { nanos },
    }
}

/// Converts a message's time.
///
/// # Errors
/// Fails if the time lies outside the years -9999 to 9999 or the nanoseconds outside a second.
pub fn from_proto(time: &prost_types::Timestamp) -> Result<Timestamp, jiff::Error> {
    Timestamp::new(time.seconds, time.nanos)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_survive_the_way_there_and_back() {
        for time in ["2026-11-23T10:00:00.123456789Z", "1969-12-31T23:59:58.5Z", "1970-01-01T00:00:00Z"] {
            let time: Timestamp = time.parse().unwrap();
            let proto = to_proto(time);
            assert!((0..1_000_000_000).contains(&proto.nanos), "{proto:?}");
            assert_eq!(from_proto(&proto).unwrap(), time);
        }
        assert!(from_proto(&prost_types::Timestamp { seconds: i64::MAX, nanos: 0 }).is_err());
    }

    #[test]
    fn a_fixed_clock_moves_only_when_told() {
        let clock = Clock::fixed(Timestamp::UNIX_EPOCH);
        let other = clock.clone();
        assert_eq!(clock.now(), Timestamp::UNIX_EPOCH);
        clock.advance(SignedDuration::from_secs(3));
        assert_eq!(other.now().as_second(), 3);
    }
}
