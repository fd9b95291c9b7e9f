//! Health: `grpc.health.v1` beside the services, and GET /livez and /readyz over HTTP/1.1 for probes that speak no gRPC.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::State as Extract;
use axum::http::StatusCode;
use axum::routing::get;
use futures_util::stream::{self, BoxStream, StreamExt as _};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;
use tonic::{Request, Response, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_server::Health;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    NotReady,
    Ready,
    Stopping,
}

/// Whether a service takes calls. Clones share it. Starts as not ready; once the server shuts down it stays so.
#[derive(Clone, Debug)]
pub struct Readiness(Arc<watch::Sender<State>>);

impl Readiness {
    pub(crate) fn new() -> Self {
        Self(Arc::new(watch::Sender::new(State::NotReady)))
    }

    /// Says whether the service takes calls now. Does nothing once the server shuts down.
    pub fn set(&self, ready: bool) {
        let wanted = if ready { State::Ready } else { State::NotReady };
        self.0.send_if_modified(|state| {
            let changes = *state != State::Stopping && *state != wanted;
            if changes {
                *state = wanted;
            }
            changes
        });
    }

    /// Whether the service takes calls now.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        *self.0.borrow() == State::Ready
    }

    /// The server shuts down: not ready for good, and watches end.
    pub(crate) fn stop(&self) {
        self.0.send_replace(State::Stopping);
    }
}

/// `grpc.health.v1.Health` for the process (`""`) and each of the services in it: they are ready together.
#[derive(Debug)]
pub(crate) struct HealthService {
    pub(crate) services: BTreeSet<&'static str>,
    pub(crate) readiness: Readiness,
}

impl HealthService {
    fn knows(&self, service: &str) -> bool {
        service.is_empty() || self.services.contains(service)
    }
}

fn answer(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse { status: status.into() }
}

fn of_state(state: State) -> HealthCheckResponse {
    answer(if state == State::Ready { ServingStatus::Serving } else { ServingStatus::NotServing })
}

#[tonic::async_trait]
impl Health for HealthService {
    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        let service = &request.get_ref().service;
        if !self.knows(service) {
            return Err(Status::not_found("this process has no such service"));
        }
        let state = *self.readiness.0.borrow();
        Ok(Response::new(of_state(state)))
    }

    type WatchStream = BoxStream<'static, Result<HealthCheckResponse, Status>>;

    async fn watch(&self, request: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        if !self.knows(&request.get_ref().service) {
            // The protocol wants an answer here and not an error.
            return Ok(Response::new(stream::iter([Ok(answer(ServingStatus::ServiceUnknown))]).boxed()));
        }
        let states = stream::unfold((self.readiness.0.subscribe(), None), |(mut states, last)| async move {
            match last {
                None => {}
                // An open watch must not hold the shutdown up.
                Some(State::Stopping) => return None,
                Some(_) => states.changed().await.ok()?,
            }
            let state = *states.borrow_and_update();
            Some((Ok(of_state(state)), (states, Some(state))))
        });
        Ok(Response::new(states.boxed()))
    }
}

/// Serves `/livez` and `/readyz` until the handle is dropped.
pub(crate) fn serve_http(listener: TcpListener, address: SocketAddr, readiness: Readiness) -> AbortOnDropHandle<()> {
    let router =
        Router::new().route("/livez", get(|| async { "alive\n" })).route("/readyz", get(ready)).with_state(readiness);
    AbortOnDropHandle::new(tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, router).await {
            tracing::error!(%error, %address, "health port failed");
        }
    }))
}

async fn ready(Extract(readiness): Extract<Readiness>) -> (StatusCode, &'static str) {
    if readiness.is_ready() { (StatusCode::OK, "ready\n") } else { (StatusCode::SERVICE_UNAVAILABLE, "not ready\n") }
}
