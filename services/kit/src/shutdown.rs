//! Signals.

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Exit status of a process that a second signal ended: that of a shell after Ctrl-C.
const INTERRUPTED: i32 = 130;

/// Returns a token that the first SIGTERM or SIGINT cancels. A second signal ends the process at once, for people who do
/// not want to wait for the grace period.
///
/// # Errors
/// Fails if the handlers can't be installed.
///
/// # Panics
/// Panics outside a tokio runtime.
pub fn shutdown_token() -> std::io::Result<CancellationToken> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let token = CancellationToken::new();
    let cancelled = token.clone();
    tokio::spawn(async move {
        let name = tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        };
        tracing::info!(signal = name, "shutting down; a second signal ends at once");
        cancelled.cancel();
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        std::process::exit(INTERRUPTED);
    });
    Ok(token)
}
