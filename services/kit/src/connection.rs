//! One HTTP/2 connection of a server, and the tasks that belong to it.

use std::sync::Arc;
use std::time::Duration;

use hyper::rt::Executor;
use hyper::server::conn::http2;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::service::Routes;
use tonic::transport::server::TcpConnectInfo;

use crate::rpc::Rpc;

/// HTTP/2 windows of both ends. With the defaults a connection carries about half the bytes a second.
pub(crate) const STREAM_WINDOW: u32 = 4 << 20;
/// Four full streams: one that nobody reads must not stop the others.
pub(crate) const CONNECTION_WINDOW: u32 = 16 << 20;

const MAX_STREAMS: u32 = 1024;
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(60);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(20);

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

/// Serves calls on `stream` until the peer leaves or, after `soft`, the open calls are done.
pub(crate) async fn serve(stream: TcpStream, tasks: Tasks, rpc: Arc<Rpc>, routes: Routes) {
    let info = TcpConnectInfo { local_addr: stream.local_addr().ok(), remote_addr: stream.peer_addr().ok() };
    let peer = info.remote_addr;
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "cannot set TCP_NODELAY");
    }
    let service = hyper::service::service_fn(move |mut request: http::Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(info.clone());
        let (rpc, routes) = (Arc::clone(&rpc), routes.clone());
        async move { Ok::<_, std::convert::Infallible>(rpc.call(routes, request).await) }
    });
    let connection = http2::Builder::new(tasks.clone())
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(MAX_STREAMS)
        // A call that is refused before its message has come counts as an error of the stream, and the count, which is that of the
        // connection's whole life, would end the connection with all calls on it. How much a peer can ask for is limited by
        // its streams and by the server's permits.
        .max_local_error_reset_streams(None)
        .keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
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
