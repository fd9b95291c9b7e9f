//! HTTP/1.1 connections: served up to a limit, refused beyond it, and ended in time.

use std::{convert::Infallible, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    extract::Request,
    response::{IntoResponse as _, Response},
};
use futures_util::{FutureExt as _, StreamExt as _};
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
/// Most connections that are refused at once; what comes besides waits in the system's queue.
const MOST_REFUSED: usize = 1_024;
/// Longest that a refusal may take, from the connection on.
const REFUSAL_TIME: Duration = Duration::from_secs(5);
/// What cut connections get to notice.
const CUT_TIME: Duration = Duration::from_secs(1);

/// Who answers.
#[derive(Clone, Debug)]
pub(crate) struct Routers {
    /// Those for whom there is a place.
    pub(crate) served: Router,
    /// The others: it refuses.
    pub(crate) refused: Router,
}

/// Serves so many connections at once until `shutdown`, then lets open requests finish for the grace time.
pub(crate) async fn serve(
    listener: TcpListener,
    routers: Routers,
    most: usize,
    grace: Duration,
    shutdown: CancellationToken,
) {
    let (tasks, places) = (TaskTracker::new(), Places::new(most));
    let (soft, hard) = (CancellationToken::new(), CancellationToken::new());
    // Whoever drops this future leaves no connection behind.
    let _cut = hard.clone().drop_guard();
    loop {
        let (stream, place) = tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            accepted = accept(&listener, &places) => accepted,
        };
        let (routers, soft, hard) = (routers.clone(), soft.clone(), hard.clone());
        tasks.spawn(async move {
            tokio::select! {
                () = take(stream, place, routers, soft) => {}
                () = hard.cancelled() => {}
            }
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

/// Places for connections.
#[derive(Clone, Debug)]
struct Places {
    served: Arc<Semaphore>,
    refused: Arc<Semaphore>,
}

/// A connection's place.
#[derive(Debug)]
enum Place {
    Served(OwnedSemaphorePermit),
    Refused(Option<OwnedSemaphorePermit>),
}

impl Places {
    fn new(most: usize) -> Self {
        let places = |count: usize| Arc::new(Semaphore::new(count.clamp(1, Semaphore::MAX_PERMITS)));
        Self { served: places(most), refused: places(MOST_REFUSED) }
    }
}

/// Serves a connection, or refuses all that it asks for.
async fn take(stream: TcpStream, place: Place, routers: Routers, soft: CancellationToken) {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new());
    match place {
        Place::Served(_place) => connection(stream, http.header_read_timeout(HEAD_TIME), routers.served, soft).await,
        Place::Refused(_place) => {
            let http = http.header_read_timeout(REFUSAL_TIME).keep_alive(false);
            let _ = tokio::time::timeout(REFUSAL_TIME, connection(stream, http, routers.refused, soft)).await;
        }
    }
}

async fn connection(stream: TcpStream, http: &http1::Builder, router: Router, soft: CancellationToken) {
    // Small events must not wait for more to send.
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |request| respond(router.clone(), request));
    let connection = http.serve_connection(TokioIo::new(stream), service);
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

/// Refuses a request for whose connection there is no place.
pub(crate) async fn refuse(request: Request) -> ApiError {
    // A connection that is closed before its request was read loses the answer.
    request.into_body().into_data_stream().for_each(|_| std::future::ready(())).await;
    ApiError::crowded()
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

/// Waits for a connection, however often accepting fails, and finds a place for it. Where there is none at all it waits
/// before it accepts, so that the system holds the others back.
async fn accept(listener: &TcpListener, places: &Places) -> (TcpStream, Place) {
    // The semaphores are never closed, so there always is a permit.
    let refused = Arc::clone(&places.refused).acquire_owned().await.ok();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let served = Arc::clone(&places.served).try_acquire_owned();
                return (stream, served.map_or(Place::Refused(refused), Place::Served));
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}
