//! Retries of calls to a service that is not there yet.

use std::hash::{BuildHasher as _, RandomState};
use std::time::Duration;

use tokio::time::Instant;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// Calls `op` until it answers anything but UNAVAILABLE, or `deadline` has passed. Pauses grow from 50 ms to 2 s with
/// jitter; a pause that the status asks for (`RetryInfo`) is kept.
///
/// For idempotent calls alone: an UNAVAILABLE may come after the work was done.
///
/// # Errors
/// Returns the last UNAVAILABLE if there is no time for another try, DEADLINE_EXCEEDED if the first try takes all the
/// time, or any other status at once.
pub async fn retry_unavailable<T, F, Fut>(deadline: Duration, mut op: F) -> Result<T, Status>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T, Status>>,
{
    let end = Instant::now() + deadline;
    let mut pause = FIRST_PAUSE;
    let mut last = None;
    loop {
        let status = match tokio::time::timeout_at(end, op()).await {
            Ok(Err(status)) if status.code() == Code::Unavailable => status,
            Ok(outcome) => return outcome,
            Err(_) => return Err(last.unwrap_or_else(|| crate::deadline::exceeded(crate::channel::DOMAIN))),
        };
        let asked = status.get_details_retry_info().and_then(|info| info.retry_delay);
        let wait = asked.unwrap_or_else(|| jittered(pause));
        if Instant::now() + wait >= end {
            return Err(status);
        }
        tracing::debug!(wait_seconds = wait.as_secs_f64(), message = status.message(), "service is not there yet");
        tokio::time::sleep(wait).await;
        last = Some(status);
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Half of the pause to all of it, so that callers which failed together don't come back together.
fn jittered(pause: Duration) -> Duration {
    // A new RandomState has new keys: enough randomness for this without a generator.
    let random = RandomState::new().hash_one(0_u8) % 1000;
    pause.mul_f64(0.5 + random as f64 / 2000.0)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[tokio::test]
    async fn unavailable_is_tried_again_and_other_codes_are_not() {
        let tries = Cell::new(0);
        let answer = retry_unavailable(Duration::from_secs(60), || {
            tries.set(tries.get() + 1);
            let now = tries.get();
            async move { if now < 3 { Err(Status::unavailable("not yet")) } else { Ok(now) } }
        });
        assert_eq!(answer.await.unwrap(), 3);

        tries.set(0);
        let answer: Result<(), Status> = retry_unavailable(Duration::from_secs(60), || {
            tries.set(tries.get() + 1);
            async { Err(Status::aborted("no")) }
        })
        .await;
        assert_eq!((answer.unwrap_err().code(), tries.get()), (Code::Aborted, 1));
    }

    #[tokio::test]
    async fn it_ends_by_its_deadline() {
        let start = Instant::now();
        let answer: Result<(), Status> =
            retry_unavailable(Duration::from_millis(300), || async { Err(Status::unavailable("never")) }).await;
        assert_eq!(answer.unwrap_err().message(), "never");
        assert!(start.elapsed() < Duration::from_secs(3));

        let answer: Result<(), Status> =
            retry_unavailable(Duration::from_millis(300), std::future::pending::<Result<(), Status>>).await;
        assert_eq!(answer.unwrap_err().code(), Code::DeadlineExceeded);
    }
}
