//! The gateway as a value: bound, then run.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{Router, extract::State, http::StatusCode, routing::get};
use firn_kit::{Channel, SecretError};
use firn_proto::{
    dataprep::v1::{data_prep_service_client::DataPrepServiceClient, file_service_client::FileServiceClient},
    inference::v1::inference_service_client::InferenceServiceClient,
    registry::v1::registry_service_client::RegistryServiceClient,
    trainer::v1::trainer_service_client::TrainerServiceClient,
};
use tokio::{
    net::{TcpListener, TcpSocket},
    sync::watch,
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use crate::{
    app::App,
    auth::{Access, TOKEN, Token},
    config::{Config, Options},
    connections::{self, Routers},
    error::StartError,
    limits::Limits,
    routes::routers,
};

/// Largest message of a service in bytes: a page of 1000 jobs with their samples.
const LARGEST_MESSAGE: usize = 16 << 20;

/// Connections that the system holds until they are accepted, if it allows so many: a full queue drops callers without a
/// word.
const BACKLOG: u32 = 4_096;

/// The gateway, listening but not yet answering.
#[derive(Debug)]
pub struct Gateway {
    listener: TcpListener,
    local_addr: SocketAddr,
    health: Option<(SocketAddr, AbortOnDropHandle<()>)>,
    ready: Arc<watch::Sender<bool>>,
    routers: Routers,
    max_connections: usize,
    grace: Duration,
}

impl Gateway {
    /// Takes the addresses. The services may start later.
    ///
    /// # Errors
    /// An address cannot be used, or anyone could ask from elsewhere.
    pub async fn bind(config: Config) -> Result<Self, StartError> {
        Self::bind_with(config.options).await
    }

    /// As [`Self::bind`], without a command line: for services inside one process.
    ///
    /// # Errors
    /// As [`Self::bind`].
    pub async fn bind_with(options: Options) -> Result<Self, StartError> {
        let token = options.token.filter(|token| !token.is_empty());
        let token = match (token, options.token_file.filter(|path| !path.as_os_str().is_empty())) {
            (Some(_), Some(_)) => return Err(SecretError::Both { variable: TOKEN }.into()),
            (None, Some(path)) => Some(Token::read(&path)?),
            (token, None) => token,
        };
        let access = match token {
            _ if options.trust_ingress_user => Access::Ingress,
            Some(token) => Access::Bearer(token),
            None if options.no_auth => Access::Open,
            None if options.http.ip().is_loopback() => Access::Local,
            None => return Err(StartError::Unguarded { address: options.http }),
        };
        let inference = channel("--inference-endpoint", &options.inference_endpoint)?;
        let trainer = channel("--trainer-endpoint", &options.trainer_endpoint)?;
        let registry = channel("--registry-endpoint", &options.registry_endpoint)?;
        let data_prep = channel("--data-prep-endpoint", &options.data_prep_endpoint)?;
        let app = App {
            inference: InferenceServiceClient::new(inference).max_decoding_message_size(LARGEST_MESSAGE),
            trainer: TrainerServiceClient::new(trainer).max_decoding_message_size(LARGEST_MESSAGE),
            registry: RegistryServiceClient::new(registry).max_decoding_message_size(LARGEST_MESSAGE),
            files: FileServiceClient::new(data_prep.clone()).max_decoding_message_size(LARGEST_MESSAGE),
            data_prep: DataPrepServiceClient::new(data_prep).max_decoding_message_size(LARGEST_MESSAGE),
            metrics: Arc::default(),
            max_body_bytes: options.max_body_bytes,
            max_upload_bytes: options.max_upload_bytes,
            base: options.base.into(),
            answer_timeout: options.answer_timeout,
            heartbeat: options.heartbeat,
            function_patience: options.function_patience,
        };
        let (listener, local_addr) = listen(options.http, "--http").await?;
        let ready = Arc::new(watch::Sender::new(false));
        let health = match options.health_listen {
            Some(address) => {
                let (listener, address) = listen(address, "--health-listen").await?;
                Some((address, serve_health(listener, Arc::clone(&ready))))
            }
            None => None,
        };
        Ok(Self {
            listener,
            local_addr,
            health,
            ready,
            routers: routers(app, access, Limits::new(options.requests_per_minute)),
            max_connections: options.max_connections,
            grace: options.grace,
        })
    }

    /// Address for HTTP.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Address for GET /livez and /readyz, if there is one.
    #[must_use]
    pub fn health_addr(&self) -> Option<SocketAddr> {
        self.health.as_ref().map(|(address, _)| *address)
    }

    /// Answers until `shutdown` is cancelled; then open requests finish, or are cut after the grace time.
    pub async fn run(self, shutdown: CancellationToken) {
        let Self { listener, local_addr, health, ready, routers, max_connections, grace } = self;
        ready.send_replace(true);
        tracing::info!(service = "gateway", address = %local_addr, "serving");
        let serving = connections::serve(listener, routers, max_connections, grace, shutdown.clone());
        let stopping = async {
            shutdown.cancelled().await;
            // Whoever picks instances by health must hear it while requests still finish.
            ready.send_replace(false);
        };
        tokio::join!(serving, stopping);
        drop(health);
        tracing::info!(service = "gateway", "stopped");
    }
}

fn channel(flag: &'static str, endpoint: &str) -> Result<Channel, StartError> {
    firn_kit::channel(endpoint).map_err(|source| StartError::Endpoint { flag, source })
}

async fn listen(address: SocketAddr, flag: &'static str) -> Result<(TcpListener, SocketAddr), StartError> {
    let failed = |source| StartError::Listen { address, flag, source };
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }.map_err(failed)?;
    // As after a restart, when connections of the process before are not yet forgotten.
    socket.set_reuseaddr(true).map_err(failed)?;
    socket.bind(address).map_err(failed)?;
    let listener = socket.listen(BACKLOG).map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    Ok((listener, bound))
}

/// Serves `/livez` and `/readyz` until the handle is dropped.
fn serve_health(listener: TcpListener, ready: Arc<watch::Sender<bool>>) -> AbortOnDropHandle<()> {
    let router =
        Router::new().route("/livez", get(|| async { "alive\n" })).route("/readyz", get(readiness)).with_state(ready);
    AbortOnDropHandle::new(tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, router).await {
            tracing::error!(%error, "health port failed");
        }
    }))
}

async fn readiness(State(ready): State<Arc<watch::Sender<bool>>>) -> (StatusCode, &'static str) {
    if *ready.borrow() { (StatusCode::OK, "ready\n") } else { (StatusCode::SERVICE_UNAVAILABLE, "not ready\n") }
}
