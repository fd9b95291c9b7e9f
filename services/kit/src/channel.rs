//! Channels to other services.

use std::error::Error;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use hyper_util::client::legacy::connect::HttpConnector;
use tokio::time::Instant;
use tonic::body::Body;
use tonic::transport::Endpoint;
use tonic::{Code, Status, TimeoutExpired};
use tracing::Instrument as _;

use crate::deadline::{self, DeadlineBody};
use crate::mesh::MeshToken;
use crate::secret::SecretError;
use crate::tls::{Tls, TlsError};
use crate::{connection, handshake, trace};

/// Domain of what a client says about a service that did not answer.
pub(crate) const DOMAIN: &str = "client.firn.dev";

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(10);
const TCP_KEEP_ALIVE: Duration = Duration::from_secs(60);

/// Why there is no channel.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChannelError {
    /// Not a URL of a service.
    #[error("`{endpoint}` is not the address of a service; write it like http://127.0.0.1:7001")]
    Endpoint {
        /// What was given.
        endpoint: String,
    },
    /// The address says plain text, and the environment names certificates.
    #[error(
        "`{endpoint}` is an address for plain text, and FIRN_TLS_CA, FIRN_TLS_CERT and FIRN_TLS_KEY name certificates: \
         write https:// in the address, or unset the three"
    )]
    Plain {
        /// What was given.
        endpoint: String,
    },
    /// The address says TLS, and the environment names no certificates.
    #[error(
        "`{endpoint}` is an address for TLS, which needs certificates: set FIRN_TLS_CA, FIRN_TLS_CERT and FIRN_TLS_KEY, or \
         write http:// in the address"
    )]
    NoCertificates {
        /// What was given.
        endpoint: String,
    },
    /// The stack's secret can't be had.
    #[error(transparent)]
    Token(#[from] SecretError),
    /// The certificates can't be had.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// Makes a channel to the service at `endpoint`, such as `http://127.0.0.1:7001`; `https://…` where the environment names
/// certificates.
///
/// Calls carry the stack's secret, if the environment names one. It connects when it is first used, and again whenever the
/// connection is lost, so that services may start in any order; until then calls fail as UNAVAILABLE.
///
/// # Errors
/// Fails if `endpoint` is no URL with a host, its scheme is not the one that goes with the environment's certificates, or
/// the environment names a secret or certificates that are none.
///
/// # Panics
/// Panics outside a tokio runtime.
pub fn channel(endpoint: &str) -> Result<Channel, ChannelError> {
    channel_with(endpoint, Tls::from_env()?)
}

/// The same with these certificates, or none, instead of the environment's.
///
/// # Errors
/// As [`channel()`].
///
/// # Panics
/// As [`channel()`].
pub fn channel_with(endpoint: &str, tls: Option<Tls>) -> Result<Channel, ChannelError> {
    let given = || endpoint.to_owned();
    let uri: http::Uri = endpoint.parse().map_err(|_| ChannelError::Endpoint { endpoint: given() })?;
    let has_host = uri.host().is_some_and(|host| !host.is_empty());
    match (uri.scheme_str().filter(|_| has_host), &tls) {
        (Some("http"), None) | (Some("https"), Some(_)) => {}
        (Some("http"), Some(_)) => return Err(ChannelError::Plain { endpoint: given() }),
        (Some("https"), None) => return Err(ChannelError::NoCertificates { endpoint: given() }),
        _ => return Err(ChannelError::Endpoint { endpoint: given() }),
    }
    let transport = Endpoint::from(uri)
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .tcp_keepalive(Some(TCP_KEEP_ALIVE))
        .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(connection::STREAM_WINDOW)
        .initial_connection_window_size(connection::CONNECTION_WINDOW);
    let inner = match tls {
        Some(tls) => {
            let mut http = HttpConnector::new();
            http.enforce_http(false);
            http.set_nodelay(true);
            http.set_keepalive(Some(TCP_KEEP_ALIVE));
            transport.connect_with_connector_lazy(handshake::connector(http, tls))
        }
        None => transport.connect_lazy(),
    };
    Ok(Channel { inner, endpoint: endpoint.into(), domain: DOMAIN.into(), token: MeshToken::from_env()? })
}

/// A channel that carries trace context out, ends calls and streams at their deadline as DEADLINE_EXCEEDED, and names the
/// endpoint where it can't be reached. Cheap to clone; clones share the connection.
#[derive(Clone, Debug)]
pub struct Channel {
    inner: tonic::transport::Channel,
    endpoint: Arc<str>,
    domain: Arc<str>,
    token: Option<MeshToken>,
}

impl Channel {
    /// The same with this secret, or none, instead of the environment's.
    #[must_use]
    pub fn with_token(self, token: Option<MeshToken>) -> Self {
        Self { token, ..self }
    }
}

impl tower::Service<http::Request<Body>> for Channel {
    type Response = http::Response<Body>;
    type Error = Status;
    type Future = BoxFuture<'static, Result<Self::Response, Status>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Status>> {
        self.inner.poll_ready(cx).map_err(|error| to_status(error, &self.endpoint))
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        let deadline = deadline::granted(request.headers()).map(|granted| Instant::now() + granted);
        let path = request.uri().path().to_owned();
        let span = trace::client_span(&path, request.headers_mut());
        if let Some(token) = &self.token {
            token.sign(request.headers_mut());
        }
        let answer = self.inner.call(request);
        let (endpoint, domain) = (Arc::clone(&self.endpoint), Arc::clone(&self.domain));
        async move {
            let response = answer.await.map_err(|error| to_status(error, &endpoint))?;
            Ok(response.map(|body| Body::new(DeadlineBody::new(body, deadline, domain))))
        }
        .instrument(span)
        .boxed()
    }
}

fn to_status(error: tonic::transport::Error, endpoint: &str) -> Status {
    let mut source: Option<&(dyn Error + 'static)> = Some(&error);
    while let Some(cause) = source {
        // tonic would make CANCELLED of it, which says that the caller gave up.
        if cause.is::<TimeoutExpired>() {
            return deadline::exceeded(DOMAIN);
        }
        source = cause.source();
    }
    let status = Status::from_error(Box::new(error));
    match status.code() {
        Code::Unavailable => {
            let message = format!("{endpoint} does not answer: {}", status.message());
            crate::status::status(Code::Unavailable, DOMAIN, "NOT_REACHED", message)
        }
        _ => status,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_http_addresses_make_a_channel() {
        assert!(channel("http://127.0.0.1:7001").is_ok());
        assert!(channel("http://trainer:7001").is_ok());
        for bad in ["", "127.0.0.1:7001", "ftp://x:1", "http://", "/x", "not an address"] {
            let error = channel(bad).unwrap_err().to_string();
            assert!(error.contains("http://127.0.0.1:7001"), "{bad}: {error}");
        }
        let error = channel("https://trainer:7001").unwrap_err().to_string();
        assert!(error.contains("https://trainer:7001") && error.contains("set FIRN_TLS_CA"), "{error}");
    }
}
