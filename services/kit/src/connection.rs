//! One HTTP/2 connection of a server, and the tasks that belong to it.

use std::sync::Arc;
use std::time::Duration;

use hyper::rt::Executor;
use hyper::server::conn::http2;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::service::Routes;
use tonic::transport::server::TcpConnectInfo;

use crate::handshake::{self, Accepted};
use crate::metrics;
use crate::rpc::Rpc;
use crate::tls::Tls;

/// HTTP/2 windows of both ends. With the defaults a connection carries about half the bytes a second.
pub(crate) const STREAM_WINDOW: u32 = 4 << 20;
/// Four full streams: one that nobody reads must not stop the others.
pub(crate) const CONNECTION_WINDOW: u32 = 16 << 20;

const MAX_STREAMS: u32 = 1024;
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(60);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// What a peer that does not speak TLS gets to hear so.
const REFUSAL_TIME: Duration = Duration::from_secs(5);

/// The tasks of a server's connections and calls: `soft` asks them to finish, `hard` drops them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tasks {
    pub(crate) tracker: TaskTracker,
    pub(crate) soft: CancellationToken,
    pub(crate) hard: CancellationToken,
}

impl Tasks {
    pub(crate) fn spawn(&self, future: impl Future<Output: Send> + Send + 'static) {
        let hard = self.hard.clone();
        self.tracker.spawn(async move {
            tokio::select! {
                _ = future => {}
                () = hard.cancelled() => {}
            }
        });
    }
}

/// hyper runs every call as a task of its own; through this they end with the server.
impl<F> Executor<F> for Tasks
where
    F: Future<Output: Send> + Send + 'static,
{
    fn execute(&self, future: F) {
        self.spawn(future);
    }
}

/// Serves calls on `stream` until the peer leaves or, after `soft`, the open calls are done; with certificates, only to
/// peers that show one.
pub(crate) async fn serve(stream: TcpStream, tls: Option<Tls>, tasks: Tasks, rpc: Arc<Rpc>, routes: Routes) {
    let info = TcpConnectInfo { local_addr: stream.local_addr().ok(), remote_addr: stream.peer_addr().ok() };
    let peer = info.remote_addr;
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "cannot set TCP_NODELAY");
    }
    let Some(tls) = tls else { return answer(stream, info, tasks, rpc, routes).await };
    let accepted = tokio::select! {
        accepted = handshake::accept(&tls, stream) => accepted,
        () = tasks.soft.cancelled() => return,
    };
    match accepted {
        Ok(Accepted::Secured(stream)) => answer(stream, info, tasks, rpc, routes).await,
        Ok(Accepted::Plain(stream)) => {
            tracing::debug!(?peer, "a peer without TLS is refused");
            metrics::handshake_failed("plain");
            refuse(stream, tasks, &rpc.domain).await;
        }
        Err(error) => {
            tracing::debug!(%error, ?peer, "no connection");
            if let Some(cause) = error.counted() {
                metrics::handshake_failed(cause);
            }
        }
    }
}

/// Answers the calls of a connection.
async fn answer<S>(stream: S, info: TcpConnectInfo, tasks: Tasks, rpc: Arc<Rpc>, routes: Routes)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let peer = info.remote_addr;
    let service = hyper::service::service_fn(move |mut request: http::Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(info.clone());
        let (rpc, routes) = (Arc::clone(&rpc), routes.clone());
        async move { Ok::<_, std::convert::Infallible>(rpc.call(routes, request).await) }
    });
    let mut connection = std::pin::pin!(http(&tasks).serve_connection(TokioIo::new(stream), service));
    let outcome = tokio::select! {
        outcome = connection.as_mut() => outcome,
        () = tasks.soft.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = outcome {
        tracing::debug!(%error, ?peer, "connection ended");
    }
}

/// Answers each call of a peer that does not speak TLS with what it should do, for a short while.
async fn refuse(stream: TcpStream, tasks: Tasks, domain: &str) {
    let service = hyper::service::service_fn(|_: http::Request<hyper::body::Incoming>| {
        let answer = handshake::refusal(domain).into_http::<tonic::body::Body>();
        async move { Ok::<_, std::convert::Infallible>(answer) }
    });
    let connection = http(&tasks).serve_connection(TokioIo::new(stream), service);
    if let Ok(Err(error)) = tokio::time::timeout(REFUSAL_TIME, connection).await {
        tracing::debug!(%error, "connection ended");
    }
}

/// HTTP/2 as every connection has it.
fn http(tasks: &Tasks) -> http2::Builder<Tasks> {
    let mut builder = http2::Builder::new(tasks.clone());
    builder
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(MAX_STREAMS)
        // A call that is refused before its message has come counts as an error of the stream, and the count, which is that of the
        // connection's whole life, would end the connection with all calls on it. How much a peer can ask for is limited by
        // its streams and by the server's permits.
        .max_local_error_reset_streams(None)
        .keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT);
    builder
}
