//! A request's body: JSON, of a limited size, in a limited time.

use std::time::Duration;

use axum::{
    body::to_bytes,
    extract::Request,
    http::{StatusCode, header},
};
use bytes::Bytes;

use crate::error::ApiError;

/// Longest that a body may take to arrive.
const BODY_TIME: Duration = Duration::from_secs(30);

/// Reads a body that says that it is JSON. A page of another origin can send such a body only if this gateway allows it,
/// which it never does.
pub(crate) async fn json_body(request: Request, limit: usize) -> Result<Bytes, ApiError> {
    let kind = request.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or("");
    if !kind.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json")) {
        let message = "send JSON with `Content-Type: application/json`";
        return Err(ApiError::refused(StatusCode::UNSUPPORTED_MEDIA_TYPE, message));
    }
    let too_large = || {
        let message = format!("the body has more than {limit} bytes");
        ApiError::refused(StatusCode::PAYLOAD_TOO_LARGE, message)
    };
    let announced = request.headers().get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    if announced.is_some_and(|length: usize| length > limit) {
        return Err(too_large());
    }
    match tokio::time::timeout(BODY_TIME, to_bytes(request.into_body(), limit)).await {
        Ok(Ok(body)) => Ok(body),
        // A caller that leaves in the middle hears no answer, so what is left is the limit.
        Ok(Err(_)) => Err(too_large()),
        Err(_) => Err(ApiError::refused(StatusCode::REQUEST_TIMEOUT, "the body did not arrive in time")),
    }
}
