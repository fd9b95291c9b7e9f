//! Tries again what may succeed in a moment.

use std::time::Duration;

use super::{HubError, HubLimits};

/// Longest pause that a server may ask for.
const LONGEST_ASKED: Duration = Duration::from_secs(5 * 60);

/// Counts tries that brought nothing.
pub(super) struct Tries<'a> {
    limits: &'a HubLimits,
    vain: u32,
}

impl<'a> Tries<'a> {
    pub(super) fn new(limits: &'a HubLimits) -> Self {
        Self { limits, vain: 0 }
    }

    /// Waits for the next try, or gives the error back if there is to be none.
    pub(super) async fn after(&mut self, error: HubError, progressed: bool) -> Result<(), HubError> {
        self.vain = if progressed { 1 } else { self.vain + 1 };
        if !error.is_passing() || self.vain >= self.limits.tries {
            return Err(error);
        }
        let asked = match &error {
            HubError::Status { retry_after, .. } => retry_after.unwrap_or_default().min(LONGEST_ASKED),
            _ => Duration::ZERO,
        };
        let pause = self.limits.pause.saturating_mul(1 << (self.vain - 1).min(5)).max(asked);
        tracing::warn!(%error, pause_seconds = pause.as_secs_f64(), "trying again");
        tokio::time::sleep(pause).await;
        Ok(())
    }
}

/// Calls until it succeeds, or fails for good.
pub(super) async fn retry<T, Fut>(limits: &HubLimits, call: impl Fn() -> Fut) -> Result<T, HubError>
where
    Fut: Future<Output = Result<T, HubError>>,
{
    let mut tries = Tries::new(limits);
    loop {
        match call().await {
            Ok(value) => return Ok(value),
            Err(error) => tries.after(error, false).await?,
        }
    }
}
