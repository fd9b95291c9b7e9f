//! What can fail, and the one place where a service's status becomes an HTTP answer in OpenAI's shape.

use std::time::Duration;

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use firn_kit::{ChannelError, SecretError};
use serde_json::{Value, json};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::names::Names;

/// Why the gateway could not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// It would listen beyond this machine, and anyone could ask.
    #[error(
        "{address} can be reached from elsewhere: set FIRN_GATEWAY_TOKEN or FIRN_GATEWAY_TOKEN_FILE, or give --no-auth if \
         something in front checks callers, or --trust-ingress-user behind Snowflake's ingress"
    )]
    Unguarded {
        /// The address.
        address: std::net::SocketAddr,
    },
    /// The token can't be had.
    #[error(transparent)]
    Token(#[from] SecretError),
    /// The address can't be used.
    #[error("cannot listen on {address}: {source}; choose another with {flag}")]
    Listen {
        /// The address.
        address: std::net::SocketAddr,
        /// The flag that sets it.
        flag: &'static str,
        /// What the system says.
        source: std::io::Error,
    },
    /// A service's address is none.
    #[error("{flag}: {source}")]
    Endpoint {
        /// The flag that sets it.
        flag: &'static str,
        /// Why.
        source: ChannelError,
    },
}

/// An answer that says what went wrong.
#[derive(Clone, Debug)]
pub(crate) struct ApiError {
    status: StatusCode,
    message: String,
    param: Option<String>,
    code: Option<&'static str>,
    retry_after: Option<Duration>,
}

impl ApiError {
    /// The request can't be done as it is.
    pub(crate) fn refused(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), param: None, code: None, retry_after: None }
    }

    /// There is no such route.
    pub(crate) fn unknown_path() -> Self {
        Self::refused(StatusCode::NOT_FOUND, "there is nothing at this path").code("unknown_url")
    }

    /// A field of the request is wrong.
    pub(crate) fn field(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self { param: Some(param.into()), ..Self::refused(StatusCode::BAD_REQUEST, message) }
    }

    pub(crate) fn unauthorized() -> Self {
        let message = "send the gateway's token as `Authorization: Bearer …`";
        Self { code: Some("invalid_api_key"), ..Self::refused(StatusCode::UNAUTHORIZED, message) }
    }

    /// The ingress names the user of every request, but this one has none.
    pub(crate) fn nameless() -> Self {
        let message = "no user is named: come through the ingress, or create the function with CONTEXT_HEADERS = \
                       (CURRENT_USER)";
        Self { code: Some("no_user"), ..Self::refused(StatusCode::UNAUTHORIZED, message) }
    }

    /// The caller has asked too often, and may again after this time.
    pub(crate) fn too_many(wait: Duration) -> Self {
        let message = "too many requests in a minute; wait, or have --requests-per-minute raised";
        Self::refused(StatusCode::TOO_MANY_REQUESTS, message).after(wait).code("rate_limit_exceeded")
    }

    /// There are as many connections as may be.
    pub(crate) fn crowded() -> Self {
        let message = "too many connections at once; try again in a moment, or have --max-connections raised";
        Self::refused(StatusCode::TOO_MANY_REQUESTS, message).after(Duration::from_secs(1)).code("rate_limit_exceeded")
    }

    pub(crate) fn internal() -> Self {
        Self::refused(StatusCode::INTERNAL_SERVER_ERROR, "internal error; the gateway's log has the cause")
    }

    /// It may be tried again after this time.
    pub(crate) fn after(self, wait: Duration) -> Self {
        Self { retry_after: Some(wait), ..self }
    }

    /// When it may be tried again, if that makes sense.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }

    pub(crate) fn code(self, code: &'static str) -> Self {
        Self { code: Some(code), ..self }
    }

    /// The same, told of a field that the caller knows.
    pub(crate) fn about(self, param: &str) -> Self {
        Self { param: Some(param.to_owned()), ..self }
    }

    /// The error as OpenAI's clients read it.
    pub(crate) fn body(&self) -> Value {
        let kind = match self.status {
            StatusCode::UNAUTHORIZED => "authentication_error",
            StatusCode::FORBIDDEN => "permission_error",
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            status if status.is_client_error() => "invalid_request_error",
            _ => "server_error",
        };
        json!({"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}})
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.body())).into_response();
        if let Some(wait) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(wait.as_secs_f64().ceil() as u64));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

impl From<Status> for ApiError {
    fn from(status: Status) -> Self {
        Self::named(status, &Names::default())
    }
}

impl ApiError {
    /// What a service says, with the names that the caller has for its fields.
    pub(crate) fn named(status: Status, names: &Names) -> Self {
        let details = status.get_error_details();
        let reason = details.error_info().map(|info| info.reason.as_str());
        let is_model = reason == Some("MODEL_NOT_FOUND");
        let violation = details.bad_request().and_then(|request| request.field_violations.first());
        let (param, message) = match violation {
            Some(violation) => {
                let name = names.of(&violation.field);
                let message = format!("{name}: {}", violation.description);
                (Some(name), message)
            }
            None => (is_model.then(|| names.of("model")), status.message().to_owned()),
        };
        let (http, code) = match status.code() {
            Code::InvalidArgument => {
                (StatusCode::BAD_REQUEST, (reason == Some("CONTEXT_TOO_LONG")).then_some("context_length_exceeded"))
            }
            Code::OutOfRange | Code::FailedPrecondition => (StatusCode::BAD_REQUEST, None),
            Code::NotFound => (StatusCode::NOT_FOUND, Some(if is_model { "model_not_found" } else { "not_found" })),
            Code::AlreadyExists | Code::Aborted => (StatusCode::CONFLICT, None),
            Code::PermissionDenied => (StatusCode::FORBIDDEN, None),
            Code::ResourceExhausted => (StatusCode::TOO_MANY_REQUESTS, Some("rate_limit_exceeded")),
            Code::Unimplemented => (StatusCode::NOT_IMPLEMENTED, None),
            Code::Unavailable | Code::Cancelled => (StatusCode::SERVICE_UNAVAILABLE, Some("unavailable")),
            Code::DeadlineExceeded => (StatusCode::GATEWAY_TIMEOUT, Some("timeout")),
            // Who is not authenticated is the gateway: callers show themselves to it alone.
            Code::Ok | Code::Unknown | Code::Internal | Code::DataLoss | Code::Unauthenticated => {
                tracing::error!(code = ?status.code(), message = status.message(), "a service failed");
                (StatusCode::INTERNAL_SERVER_ERROR, None)
            }
        };
        let busy = matches!(http, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE);
        let asked = details.retry_info().and_then(|info| info.retry_delay);
        let retry_after = busy.then(|| asked.unwrap_or(Duration::from_secs(1)));
        Self { status: http, message, param, code, retry_after }
    }
}

#[cfg(test)]
mod tests {
    use firn_kit::status;

    use super::*;

    const DOMAIN: &str = "inference.firn.dev";

    #[test]
    fn a_wrong_field_keeps_its_name() {
        let error = ApiError::from(status::invalid_argument(DOMAIN, "sampling.top_p", "must be above 0"));
        assert_eq!(error.status, StatusCode::BAD_REQUEST);
        let body = json!({"error": {
            "message": "top_p: must be above 0", "type": "invalid_request_error", "param": "top_p", "code": null,
        }});
        assert_eq!(error.body(), body);
    }

    #[test]
    fn codes_become_what_clients_act_on() {
        let retry = Duration::from_millis(2500);
        let cases = [
            (status::status(Code::NotFound, DOMAIN, "MODEL_NOT_FOUND", "no"), 404, "invalid_request_error", None),
            (status::resource_exhausted(DOMAIN, "QUEUE_FULL", "full", retry), 429, "rate_limit_error", Some("3")),
            (status::unavailable(DOMAIN, "LOADING", "wait", retry), 503, "server_error", Some("3")),
            (Status::unavailable("nobody"), 503, "server_error", Some("1")),
            (Status::deadline_exceeded("late"), 504, "server_error", None),
            (Status::internal("defect"), 500, "server_error", None),
            (Status::unauthenticated("the stack's secret"), 500, "server_error", None),
        ];
        for (status, code, kind, retry_after) in cases {
            let error = ApiError::from(status);
            assert_eq!(error.body()["error"]["type"], kind);
            let response = error.into_response();
            assert_eq!(response.status().as_u16(), code);
            let header = response.headers().get(header::RETRY_AFTER).map(|value| value.to_str().unwrap());
            assert_eq!(header, retry_after, "{code}");
        }
    }
}
