//! How connections with certificates begin, on both sides.

use std::error::Error;
use std::io;
use std::pin::Pin;
use std::time::Duration;

use http::Uri;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioIo;
use rustls::pki_types::{InvalidDnsNameError, ServerName};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};
use tonic::{Code, Status};
use tower::ServiceExt as _;

use crate::status;
use crate::tls::Tls;

/// What a handshake may take, from the first byte on: who says nothing holds a connection no longer.
const HANDSHAKE_TIME: Duration = Duration::from_secs(5);
/// What a refused peer gets to read why: bytes of its own that nobody has read would take the reason away.
const FAREWELL_TIME: Duration = Duration::from_secs(1);
/// The first byte of a TLS connection: a record of a handshake.
const HANDSHAKE: u8 = 22;

/// A connection that a server accepted.
pub(crate) enum Accepted {
    /// The peer has shown a certificate.
    Secured(Box<server::TlsStream<TcpStream>>),
    /// The peer does not speak TLS.
    Plain(TcpStream),
}

/// Why there is no secured connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AcceptError {
    #[error("the handshake was not done after {} seconds", HANDSHAKE_TIME.as_secs())]
    Slow,
    #[error("the peer left before the handshake")]
    Left,
    #[error("the handshake failed: {0}")]
    Failed(#[from] io::Error),
}

impl AcceptError {
    /// What it is counted as; one who only looks whether the port is open does no harm.
    pub(crate) fn counted(&self) -> Option<&'static str> {
        match self {
            Self::Slow => Some("timeout"),
            Self::Left => None,
            Self::Failed(_) => Some("handshake"),
        }
    }
}

/// Shakes hands with who has connected.
pub(crate) async fn accept(tls: &Tls, stream: TcpStream) -> Result<Accepted, AcceptError> {
    match timeout(HANDSHAKE_TIME, shake(tls, stream)).await {
        Ok(Ok(accepted)) => Ok(accepted),
        Ok(Err((error, Some(stream)))) => {
            let _ = timeout(FAREWELL_TIME, farewell(stream)).await;
            Err(error)
        }
        Ok(Err((error, None))) => Err(error),
        Err(_) => Err(AcceptError::Slow),
    }
}

async fn shake(tls: &Tls, stream: TcpStream) -> Result<Accepted, (AcceptError, Option<TcpStream>)> {
    let mut first = [0];
    match stream.peek(&mut first).await {
        Ok(0) => return Err((AcceptError::Left, None)),
        Ok(_) if first != [HANDSHAKE] => return Ok(Accepted::Plain(stream)),
        Ok(_) => {}
        Err(error) => return Err((error.into(), None)),
    }
    match TlsAcceptor::from(tls.server()).accept(stream).into_fallible().await {
        Ok(stream) => Ok(Accepted::Secured(Box::new(stream))),
        Err((error, stream)) => Err((error.into(), Some(stream))),
    }
}

/// Ends a connection so that the peer gets all that was sent to it.
async fn farewell(mut stream: TcpStream) -> io::Result<()> {
    stream.shutdown().await?;
    let mut rest = [0; 4096];
    while stream.read(&mut rest).await? > 0 {}
    Ok(())
}

/// The answer to a call in plain text, in the name of the server's `domain`.
pub(crate) fn refusal(domain: &str) -> Status {
    let message = "this service answers over TLS alone, to callers with a certificate: set FIRN_TLS_CA, FIRN_TLS_CERT and \
                   FIRN_TLS_KEY, and write https:// in its address";
    status::status(Code::Unauthenticated, domain, "TLS_REQUIRED", message)
}

/// Why a channel has no secured connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    #[error("no host to verify: {0}")]
    Name(#[from] InvalidDnsNameError),
    #[error(transparent)]
    Connect(Box<dyn Error + Send + Sync>),
    #[error("no TLS with {host}: {source}")]
    Handshake { host: String, source: io::Error },
    #[error("{host} refused this service's certificate, which FIRN_TLS_CERT names: {source}")]
    Refused { host: String, source: io::Error },
}

type Connecting =
    Pin<Box<dyn Future<Output = Result<TokioIo<client::TlsStream<TcpStream>>, ConnectError>> + Send + 'static>>;

/// Connects over `http`, shows the certificate, and verifies the server by its authority and the host's name.
pub(crate) fn connector(
    http: HttpConnector,
    tls: Tls,
) -> impl tower::Service<Uri, Response = TokioIo<client::TlsStream<TcpStream>>, Error = ConnectError, Future = Connecting>
+ Send {
    tower::service_fn(move |uri: Uri| -> Connecting {
        let (http, tls) = (http.clone(), tls.clone());
        Box::pin(async move {
            let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']').to_owned();
            let name = ServerName::try_from(host.clone())?;
            let connected = http.oneshot(uri).await.map_err(|error| ConnectError::Connect(error.into()))?;
            let secured = TlsConnector::from(tls.client()).connect(name, connected.into_inner()).await;
            let mut secured = secured.map_err(|source| ConnectError::Handshake { host: host.clone(), source })?;
            // For the client the handshake is over before the server has looked at its certificate. A server of HTTP/2 speaks
            // first; what it says, or why it does not, must not be lost between the calls that wait for the connection.
            match secured.fill_buf().await {
                Ok([]) => Err(ConnectError::Refused { host, source: io::ErrorKind::UnexpectedEof.into() }),
                Ok(_) => Ok(TokioIo::new(secured)),
                Err(source) => Err(ConnectError::Refused { host, source }),
            }
        })
    })
}
