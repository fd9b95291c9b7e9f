//! Who may ask: a bearer token, a user whom the ingress names, or this machine alone.

use std::{convert::Infallible, net::IpAddr, path::Path, str::FromStr, sync::Arc};

use axum::{
    extract::{Request, State},
    http::{HeaderMap, StatusCode, header},
    middleware::Next,
    response::Response,
};
use firn_kit::{Secret, SecretError};
use subtle::ConstantTimeEq as _;

use crate::{error::ApiError, tenant::Tenant};

/// Variable with the token itself; with `_FILE` behind it, with the path of a file that holds it.
pub(crate) const TOKEN: &str = "FIRN_GATEWAY_TOKEN";

/// A secret that callers send. It is never shown.
#[derive(Clone, Debug)]
pub struct Token(Secret<Arc<str>>);

impl Token {
    /// Makes a token; an empty one is like none.
    pub fn new(secret: impl Into<Arc<str>>) -> Self {
        Self(Secret::given(secret.into()))
    }

    /// Takes the token from the file, which may be renewed while the process runs: each of its lines, at most four, is
    /// one that callers may send.
    ///
    /// # Errors
    /// Fails if the file can't be read, or holds no line or too many.
    pub fn read(path: &Path) -> Result<Self, SecretError> {
        Secret::read(TOKEN, path, line).map(Self)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.current().is_empty()
    }

    /// Compares in a time that does not depend on where the texts differ.
    fn matches(&self, given: &str) -> bool {
        self.0.accepts(|token| token.as_bytes().ct_eq(given.as_bytes()).into())
    }
}

impl FromStr for Token {
    type Err = Infallible;

    fn from_str(secret: &str) -> Result<Self, Infallible> {
        Ok(Self::new(secret))
    }
}

fn line(text: &str) -> Result<Arc<str>, String> {
    if text.is_empty() || text.contains(char::is_control) {
        return Err("must be a line of text that is not empty".to_owned());
    }
    Ok(text.into())
}

/// The rule for callers of all but the page, health and metrics.
#[derive(Clone, Debug)]
pub(crate) enum Access {
    /// They send this.
    Bearer(Token),
    /// They are on this machine, and say so: a web page that makes a browser ask here under a name of its own is not.
    Local,
    /// Snowflake's ingress is the single way in, and says who they are.
    Ingress,
    /// Something in front has checked them.
    Open,
}

/// Refuses what the rule does not allow, and says to the routes whose request it is.
pub(crate) async fn check(
    State(access): State<Access>,
    mut request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let headers = request.headers();
    let is_elsewhere = is_of_other_site(headers) || matches!(access, Access::Local) && !has_own_origin(headers);
    if !request.method().is_safe() && is_elsewhere {
        let message = "a page of another site must not change anything here";
        return Err(ApiError::refused(StatusCode::FORBIDDEN, message).code("wrong_origin"));
    }
    let tenant = match &access {
        Access::Bearer(token) => {
            if !bearer(headers).is_some_and(|given| token.matches(given)) {
                return Err(ApiError::unauthorized());
            }
            Tenant::token()
        }
        Access::Local => {
            if !is_local(headers) {
                let message = "without a token, only localhost or an IP address may be asked for";
                return Err(ApiError::refused(StatusCode::FORBIDDEN, message).code("wrong_host"));
            }
            Tenant::local()
        }
        Access::Ingress => Tenant::ingress(headers).ok_or_else(ApiError::nameless)?,
        Access::Open => Tenant::local(),
    };
    request.extensions_mut().insert(tenant);
    Ok(next.run(request).await)
}

/// Does a browser say that another site's page made it ask? A form, and a POST without a body, it sends for anyone. Other
/// callers say nothing.
fn is_of_other_site(headers: &HeaderMap) -> bool {
    let site = headers.get("sec-fetch-site").and_then(|site| site.to_str().ok());
    site.is_some_and(|site| !matches!(site, "same-origin" | "none"))
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// A browser too old for `Sec-Fetch-Site` names at least the page's origin.
fn has_own_origin(headers: &HeaderMap) -> bool {
    let Some(origin) = headers.get(header::ORIGIN) else { return true };
    let host = headers.get(header::HOST).map(header::HeaderValue::as_bytes);
    let name = origin.as_bytes().strip_prefix(b"http://").or_else(|| origin.as_bytes().strip_prefix(b"https://"));
    name.is_some() && name == host
}

fn is_local(headers: &HeaderMap) -> bool {
    let Some(host) = headers.get(header::HOST).and_then(|host| host.to_str().ok()) else { return false };
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let name = name.trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: header::HeaderName, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(name, value.parse().unwrap())])
    }

    #[test]
    fn only_the_token_itself_matches() {
        let token = Token::new("s3cret");
        assert!(token.matches("s3cret"));
        for wrong in ["", "s3cre", "s3crett", "s3creT", "s3crets3cret"] {
            assert!(!token.matches(wrong), "{wrong}");
        }
    }

    #[test]
    fn bearer_tokens_are_found() {
        assert_eq!(bearer(&headers(header::AUTHORIZATION, "Bearer abc")), Some("abc"));
        assert_eq!(bearer(&headers(header::AUTHORIZATION, "bearer  abc")), Some("abc"));
        assert_eq!(bearer(&headers(header::AUTHORIZATION, "Basic abc")), None);
        assert_eq!(bearer(&HeaderMap::new()), None);
    }

    #[test]
    fn other_sites_are_told_from_this_one() {
        for (site, elsewhere) in [("same-origin", false), ("none", false), ("cross-site", true), ("same-site", true)] {
            let site = headers(header::HeaderName::from_static("sec-fetch-site"), site);
            assert_eq!(is_of_other_site(&site), elsewhere, "{site:?}");
        }
        let of = |origin: &str| {
            let mut headers = headers(header::ORIGIN, origin);
            headers.insert(header::HOST, "localhost:8080".parse().unwrap());
            has_own_origin(&headers)
        };
        assert!(of("http://localhost:8080") && !of("http://evil.example") && !of("null") && !of("localhost:8080"));
        assert!(has_own_origin(&HeaderMap::new()) && !is_of_other_site(&HeaderMap::new()));
    }

    #[test]
    fn local_hosts_are_localhost_and_addresses() {
        for host in ["localhost", "LOCALHOST:8080", "127.0.0.1:8080", "[::1]:8080", "[::1]", "10.0.0.1"] {
            assert!(is_local(&headers(header::HOST, host)), "{host}");
        }
        for host in ["evil.example", "evil.example:8080", "localhost.evil.example", ""] {
            assert!(!is_local(&headers(header::HOST, host)), "{host}");
        }
        assert!(!is_local(&HeaderMap::new()));
    }
}
