//! The server that every service runs in.
//!
//! It accepts connections itself instead of through tonic's transport: tonic's own timer answers a passed deadline as
//! CANCELLED, and its graceful shutdown waits for open streams without an end.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::Request;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tonic::body::Body;
use tonic::server::NamedService;
use tonic::service::Routes;
use tonic_health::pb::health_server::HealthServer;

use crate::config::ServerArgs;
use crate::connection::{self, Tasks};
use crate::health::{self, HealthService, Readiness};
use crate::mesh::MeshToken;
use crate::methods::Methods;
use crate::rpc::Rpc;
use crate::secret::SecretError;
use crate::tls::{Tls, TlsError};

/// Most connections at once; others wait in the kernel's queue. Far above what services and probes open.
const MAX_CONNECTIONS: usize = 1024;
/// Pause after a failed accept: without file descriptors the next one fails at once, too.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// What cut tasks get to notice, after the grace period.
const CUT_TIME: Duration = Duration::from_secs(1);

/// Why a server does not listen.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// Another process has the address.
    #[error("address {address} is taken: {source}; choose another with {flag}")]
    Taken {
        /// The address.
        address: SocketAddr,
        /// The flag that sets it.
        flag: &'static str,
        /// What the system says.
        source: std::io::Error,
    },
    /// The system does not let the process listen there.
    #[error("cannot listen on {address}: {source}; choose another with {flag}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The flag that sets it.
        flag: &'static str,
        /// What the system says.
        source: std::io::Error,
    },
    /// The stack's secret can't be had.
    #[error(transparent)]
    Token(#[from] SecretError),
    /// The certificates can't be had.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// Why a server does not run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// The descriptors of the protocol can't be read: a broken build.
    #[error("cannot read the protocol's descriptors: {0}")]
    Descriptors(#[from] prost::DecodeError),
    /// Reflection can't be set up: a broken build.
    #[error("cannot set reflection up: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
}

/// A bound gRPC server that does not run yet.
pub struct GrpcServer {
    service: &'static str,
    args: ServerArgs,
    listener: TcpListener,
    local_addr: SocketAddr,
    health: Option<(SocketAddr, AbortOnDropHandle<()>)>,
    routes: Routes,
    names: BTreeSet<&'static str>,
    readiness: Readiness,
    token: Option<MeshToken>,
    tls: Option<Tls>,
}

impl std::fmt::Debug for GrpcServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GrpcServer")
            .field("service", &self.service)
            .field("local_addr", &self.local_addr)
            .field("names", &self.names)
            .finish_non_exhaustive()
    }
}

impl GrpcServer {
    /// Binds the addresses. `service` is the role, such as `trainer`. From here on `/livez` answers; calls wait until
    /// [`run`](Self::run), and must then carry the stack's secret, if the environment names one, and come over TLS, if it
    /// names certificates.
    ///
    /// # Errors
    /// Fails if an address can't be bound, and names it, or the environment names a secret or certificates that are none.
    pub async fn bind(service: &'static str, args: &ServerArgs) -> Result<Self, BindError> {
        let (token, tls) = (MeshToken::from_env()?, Tls::from_env()?);
        let (listener, local_addr) = listen(args.listen, "--listen").await?;
        let readiness = Readiness::new();
        let health = match args.health_listen {
            Some(address) => {
                let (listener, address) = listen(address, "--health-listen").await?;
                Some((address, health::serve_http(listener, address, readiness.clone())))
            }
            None => None,
        };
        Ok(Self {
            service,
            args: args.clone(),
            listener,
            local_addr,
            health,
            routes: Routes::default(),
            names: BTreeSet::new(),
            readiness,
            token,
            tls,
        })
    }

    /// The address for gRPC, with the port that the system chose if 0 was asked for.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// The address of `/livez` and `/readyz`.
    #[must_use]
    pub fn health_addr(&self) -> Option<SocketAddr> {
        self.health.as_ref().map(|(address, _)| *address)
    }

    /// Adds a generated service, with the message limits that it has. Health and reflection know it from here on.
    #[must_use]
    pub fn add_service<S>(mut self, service: S) -> Self
    where
        S: tower::Service<Request<Body>, Error = Infallible> + NamedService + Clone + Send + Sync + 'static,
        S::Response: axum::response::IntoResponse,
        S::Future: Send + 'static,
    {
        self.names.insert(S::NAME);
        self.routes = self.routes.add_service(service);
        self
    }

    /// Asks for this secret, or for none, instead of the environment's.
    #[must_use]
    pub fn with_token(self, token: Option<MeshToken>) -> Self {
        Self { token, ..self }
    }

    /// Asks for certificates as these, or for none, instead of the environment's.
    #[must_use]
    pub fn with_tls(self, tls: Option<Tls>) -> Self {
        Self { tls, ..self }
    }

    /// The switch between ready and not ready.
    #[must_use]
    pub fn readiness(&self) -> Readiness {
        self.readiness.clone()
    }

    /// Serves until `shutdown` fires and the open calls are done, or the grace period has passed and they were cut.
    ///
    /// # Errors
    /// Fails before the first call if the protocol's descriptors can't be read.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), ServeError> {
        let Self { service, args, listener, local_addr, health, routes, names, readiness, token, tls } = self;

        let mut reflection = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(firn_proto::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .with_service_name("grpc.health.v1.Health")
            .with_service_name("grpc.reflection.v1.ServerReflection");
        for name in &names {
            reflection = reflection.with_service_name(*name);
        }
        let routes = routes
            .add_service(reflection.build_v1()?)
            .add_service(HealthServer::new(HealthService { services: names, readiness: readiness.clone() }))
            .prepare();
        let rpc = Arc::new(Rpc {
            domain: format!("{service}.firn.dev").into(),
            token,
            methods: Methods::of_firn()?,
            unary_timeout: args.unary_timeout,
            permits: Arc::new(Semaphore::new(args.max_in_flight.min(Semaphore::MAX_PERMITS))),
        });

        let tasks = Tasks::default();
        // Whoever drops this future, instead of using the token, leaves no task behind either.
        let _cut = tasks.hard.clone().drop_guard();
        let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        tracing::info!(service, address = %local_addr, tls = tls.is_some(), "serving");
        loop {
            let (stream, slot) = tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                accepted = accept(&listener, &slots) => accepted,
            };
            let connection = connection::serve(stream, tls.clone(), tasks.clone(), Arc::clone(&rpc), routes.clone());
            tasks.spawn(async move {
                connection.await;
                drop(slot);
            });
        }

        // Whoever picks instances by health must hear it before calls are refused.
        readiness.stop();
        drop(listener);
        tasks.soft.cancel();
        tasks.tracker.close();
        if tokio::time::timeout(args.grace, tasks.tracker.wait()).await.is_err() {
            tracing::warn!(grace_seconds = args.grace.as_secs_f64(), "grace period passed, open calls are cut");
            tasks.hard.cancel();
            // A handler that never yields can't be cut; the process ends without it.
            let _ = tokio::time::timeout(CUT_TIME, tasks.tracker.wait()).await;
        }
        drop(health);
        tracing::info!(service, "stopped");
        Ok(())
    }
}

async fn listen(address: SocketAddr, flag: &'static str) -> Result<(TcpListener, SocketAddr), BindError> {
    let failed = |source: std::io::Error| match source.kind() {
        std::io::ErrorKind::AddrInUse => BindError::Taken { address, flag, source },
        _ => BindError::Listen { address, flag, source },
    };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    Ok((listener, bound))
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
