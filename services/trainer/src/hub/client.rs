//! Requests to the hub, and to where it redirects them.

use std::{net::IpAddr, sync::Arc, time::Duration};

use reqwest::{
    Client, Method, Response, StatusCode, Url,
    header::{ACCEPT_ENCODING, AUTHORIZATION, HeaderMap, HeaderValue, LOCATION, RANGE, RETRY_AFTER},
    redirect::Policy,
};
use rustls::{ClientConfig, RootCertStore};

use super::{HubError, HubLimits, HubOptions, Repo, options::Token};

/// Redirects of one request: the hub's storage is one away, a renamed repository two.
const MOST_REDIRECTS: usize = 5;
/// The hub's reason for a refusal.
const ERROR_CODE: &str = "x-error-code";

/// One repository of a hub.
pub(super) struct Hub {
    http: Client,
    endpoint: Url,
    token: Option<Token>,
    repo: Repo,
    limits: HubLimits,
}

/// An answer, and the headers of the hub itself, which describe a file even if another host sends it.
struct Answer {
    hub: HeaderMap,
    last: Response,
}

impl Hub {
    /// Reads the token and this machine's certificates. Blocks.
    pub(super) fn open(options: &HubOptions, repo: &Repo) -> Result<Self, HubError> {
        let (endpoint, token, limits) = (endpoint(&options.hub_endpoint)?, options.token()?, options.limits.clone());
        let refuse = |reason: String| HubError::Endpoint { reason };
        if token.is_some() && endpoint.scheme() == "http" && !is_loopback(&endpoint) {
            return Err(refuse("the token would travel in the clear: use https".to_owned()));
        }
        let tls = tls().map_err(|error| refuse(error.to_string()))?;
        let mut builder = Client::builder()
            .user_agent(concat!("firn/", env!("CARGO_PKG_VERSION")))
            .tls_backend_preconfigured(tls)
            .redirect(Policy::none())
            .connect_timeout(limits.connect);
        if is_loopback(&endpoint) {
            builder = builder.no_proxy();
        }
        let http = builder.build().map_err(|error| refuse(reason(error)))?;
        Ok(Self { http, endpoint, token, repo: repo.clone(), limits })
    }

    pub(super) fn repo(&self) -> &Repo {
        &self.repo
    }

    pub(super) fn limits(&self) -> &HubLimits {
        &self.limits
    }

    pub(super) fn endpoint(&self) -> &Url {
        &self.endpoint
    }

    /// Where the hub lists a revision's files, with their hashes.
    pub(super) fn listing_url(&self) -> Result<Url, HubError> {
        let repo = &self.repo;
        let mut url = self.url(&["api", "models", repo.org(), repo.name(), "revision", repo.revision()])?;
        url.set_query(Some("blobs=true"));
        Ok(url)
    }

    /// Where a file of a commit is.
    pub(super) fn file_url(&self, commit: &str, file: &str) -> Result<Url, HubError> {
        self.url(&[self.repo.org(), self.repo.name(), "resolve", commit, file])
    }

    fn url(&self, path: &[&str]) -> Result<Url, HubError> {
        let mut url = self.endpoint.clone();
        let none = |()| HubError::Endpoint { reason: "it has no host".to_owned() };
        url.path_segments_mut().map_err(none)?.pop_if_empty().extend(path);
        Ok(url)
    }

    /// Asks for bytes from the one at `from` on. The answer is a success, or says that there is no such byte.
    pub(super) async fn get(&self, what: &str, url: Url, from: u64) -> Result<Response, HubError> {
        Ok(self.send(Method::GET, what, url, from).await?.last)
    }

    /// Asks what the hub says about a file. Where it lies is not asked.
    pub(super) async fn head(&self, what: &str, url: Url) -> Result<HeaderMap, HubError> {
        Ok(self.send(Method::HEAD, what, url, 0).await?.hub)
    }

    /// Follows redirects itself: the token is for the hub alone.
    async fn send(&self, method: Method, what: &str, mut url: Url, from: u64) -> Result<Answer, HubError> {
        let mut described = None;
        for _ in 0..=MOST_REDIRECTS {
            let ours = url.origin() == self.endpoint.origin();
            let response = self.once(&method, what, &url, from, ours).await?;
            if ours {
                described = Some(response.headers().clone());
            }
            if !response.status().is_redirection() {
                let status = response.status();
                if !status.is_success() && status != StatusCode::RANGE_NOT_SATISFIABLE {
                    return Err(self.refusal(&response, what, ours));
                }
                return Ok(Answer { hub: described.unwrap_or_default(), last: response });
            }
            let next = self.follow(&url, &response, what)?;
            if method == Method::HEAD && next.origin() != self.endpoint.origin() {
                return Ok(Answer { hub: described.unwrap_or_default(), last: response });
            }
            url = next;
        }
        let reason = format!("more than {MOST_REDIRECTS} times");
        Err(HubError::Redirect { host: host(&url), what: what.to_owned(), reason })
    }

    async fn once(&self, method: &Method, what: &str, url: &Url, from: u64, ours: bool) -> Result<Response, HubError> {
        let mut request = self.http.request(method.clone(), url.clone()).header(ACCEPT_ENCODING, "identity");
        if from > 0 {
            request = request.header(RANGE, format!("bytes={from}-"));
        }
        if let Some(token) = self.token.as_ref().filter(|_| ours) {
            let refuse = |_| HubError::Token { origin: token.origin.clone(), reason: "it is no header".to_owned() };
            let mut value = HeaderValue::from_str(&format!("Bearer {}", token.secret())).map_err(refuse)?;
            value.set_sensitive(true);
            request = request.header(AUTHORIZATION, value);
        }
        match tokio::time::timeout(self.limits.stall, request.send()).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(self.cut(what, url, error)),
            Err(_) => Err(self.stalled(what, url)),
        }
    }

    fn follow(&self, url: &Url, response: &Response, what: &str) -> Result<Url, HubError> {
        let refuse =
            |reason: &str| HubError::Redirect { host: host(url), what: what.to_owned(), reason: reason.to_owned() };
        let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
        let next = location.and_then(|location| url.join(location).ok()).ok_or_else(|| refuse("to nowhere"))?;
        match next.scheme() {
            "https" => Ok(next),
            "http" if self.endpoint.scheme() == "http" => Ok(next),
            _ => Err(refuse("from https to something else")),
        }
    }

    /// The next bytes of an answer; `None` at its end.
    pub(super) async fn chunk(&self, what: &str, response: &mut Response) -> Result<Option<bytes::Bytes>, HubError> {
        match tokio::time::timeout(self.limits.stall, response.chunk()).await {
            Ok(Ok(chunk)) => Ok(chunk),
            Ok(Err(error)) => Err(self.cut(what, response.url(), error)),
            Err(_) => Err(self.stalled(what, response.url())),
        }
    }

    fn cut(&self, what: &str, url: &Url, error: reqwest::Error) -> HubError {
        HubError::Connection { host: host(url), what: what.to_owned(), reason: reason(error) }
    }

    fn stalled(&self, what: &str, url: &Url) -> HubError {
        HubError::Stalled { host: host(url), what: what.to_owned(), waited: self.limits.stall }
    }

    /// What a status other than success means.
    fn refusal(&self, response: &Response, what: &str, ours: bool) -> HubError {
        let (status, headers, repo) = (response.status(), response.headers(), self.repo.to_string());
        let code = headers.get(ERROR_CODE).and_then(|code| code.to_str().ok()).unwrap_or_default();
        let after = headers.get(RETRY_AFTER).and_then(|seconds| seconds.to_str().ok()?.parse().ok());
        let passing = || HubError::Status {
            host: host(response.url()),
            what: what.to_owned(),
            status: status.as_u16(),
            retry_after: after.map(Duration::from_secs),
        };
        // A signed address of the storage ends after a while; the hub gives a new one.
        if !ours || status.is_server_error() {
            return passing();
        }
        match (status, &self.token) {
            (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, _) if code == "GatedRepo" => HubError::Gated { repo },
            (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, None) => HubError::NeedsToken { repo },
            (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, Some(token)) => {
                HubError::TokenRefused { repo, origin: token.origin.clone() }
            }
            (StatusCode::NOT_FOUND, _) if code == "RevisionNotFound" => HubError::NoRevision {
                repo: format!("{}/{}", self.repo.org(), self.repo.name()),
                revision: self.repo.revision().to_owned(),
            },
            (StatusCode::NOT_FOUND, _) => HubError::NotFound { repo },
            (StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS, _) => passing(),
            _ => HubError::NoHub { host: host(response.url()), reason: format!("{status} for {what}") },
        }
    }
}

/// Parses the hub's address.
fn endpoint(text: &str) -> Result<Url, HubError> {
    let refuse = |reason: String| HubError::Endpoint { reason };
    // Not the text: it may hold a password.
    let url = Url::parse(text).map_err(|error| refuse(format!("{error}; write it like {}", super::ENDPOINT)))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(refuse(format!("its scheme is {}, not https", url.scheme())));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(refuse("it must not hold a user or a password: use HF_TOKEN or --hub-token-file".to_owned()));
    }
    Ok(url)
}

/// This machine's certificates, or Mozilla's where it has none, as in a bare image. `SSL_CERT_FILE` names others.
fn tls() -> Result<ClientConfig, rustls::Error> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

/// With the port, if it is a special one.
pub(super) fn host(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let address = host.trim_matches(['[', ']']).parse::<IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

/// The last cause, without the address, which may be a signed one.
fn reason(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut cause: &dyn std::error::Error = &error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    let (first, last) = (error.to_string(), cause.to_string());
    if first == last { first } else { format!("{first}: {last}") }
}
