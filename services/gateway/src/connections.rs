//! HTTP/1.1 connections: accepted up to a limit, served, and ended in time.

use std::{convert::Infallible, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    response::{IntoResponse as _, Response},
};
use futures_util::FutureExt as _;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::ServiceExt as _;
use tracing::Instrument as _;

use crate::error::ApiError;

/// Longest wait for a request's head, from the connection or the last answer on.
const HEAD_TIME: Duration = Duration::from_secs(30);
/// Pause after a failed accept: without file descriptors the next one fails at once, too.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// What cut connections get to notice.
const CUT_TIME: Duration = Duration::from_secs(1);

/// Serves until `shutdown`, then lets open requests finish for the grace time.
pub(crate) async fn serve(
    listener: TcpListener,
    router: Router,
    most: usize,
    grace: Duration,
    shutdown: CancellationToken,
) {
    let (tasks, slots) = (TaskTracker::new(), Arc::new(Semaphore::new(most.clamp(1, Semaphore::MAX_PERMITS))));
    let (soft, hard) = (CancellationToken::new(), CancellationToken::new());
    // Whoever drops this future leaves no connection behind.
    let _cut = hard.clone().drop_guard();
    loop {
        let (stream, slot) = tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            accepted = accept(&listener, &slots) => accepted,
        };
        let (router, soft, hard) = (router.clone(), soft.clone(), hard.clone());
        tasks.spawn(async move {
            tokio::select! {
                () = connection(stream, router, soft) => {}
                () = hard.cancelled() => {}
            }
            drop(slot);
        });
    }
    drop(listener);
    soft.cancel();
    tasks.close();
    if tokio::time::timeout(grace, tasks.wait()).await.is_err() {
        tracing::warn!(grace_seconds = grace.as_secs_f64(), "grace period passed, open requests are cut");
        hard.cancel();
        let _ = tokio::time::timeout(CUT_TIME, tasks.wait()).await;
    }
}

async fn connection(stream: TcpStream, router: Router, soft: CancellationToken) {
    // Small events must not wait for more to send.
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |request| respond(router.clone(), request));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let outcome = tokio::select! {
        outcome = connection.as_mut() => outcome,
        () = soft.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = outcome {
        tracing::debug!(%error, "connection ended");
    }
}

/// Answers one request; a defect is an answer, too.
async fn respond(router: Router, request: hyper::Request<Incoming>) -> Result<Response, Infallible> {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let started = Instant::now();
    let span = tracing::info_span!("http", otel.name = %method, otel.kind = "server", %method, path);
    let answer = AssertUnwindSafe(router.oneshot(request.map(Body::new))).catch_unwind();
    let response = match answer.instrument(span.clone()).await {
        Ok(Ok(response)) => response,
        Ok(Err(never)) => match never {},
        Err(_) => {
            // The panic hook has logged where.
            span.in_scope(|| tracing::error!("a request panicked"));
            ApiError::internal().into_response()
        }
    };
    let (status, seconds) = (response.status().as_u16(), started.elapsed().as_secs_f64());
    span.in_scope(|| tracing::debug!(status, seconds, "request answered"));
    Ok(response)
}

/// Waits for a free slot and a connection, however often accepting fails.
async fn accept(listener: &TcpListener, slots: &Arc<Semaphore>) -> (TcpStream, Option<OwnedSemaphorePermit>) {
    // The semaphore is never closed, so there always is a permit.
    let slot = Arc::clone(slots).acquire_owned().await.ok();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return (stream, slot),
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}
