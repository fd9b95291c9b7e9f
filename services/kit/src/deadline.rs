//! Deadlines: the `grpc-timeout` header, and a body that ends when the time is up.
//!
//! tonic stops its timer once response headers are there, so a stream outlives its deadline; the body here does not.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use tokio::time::{Instant, Sleep};
use tonic::{Code, Status};

use crate::status::status;

/// Header with the time that a caller grants.
const HEADER: &str = "grpc-timeout";

/// Time that the caller grants, if it says so in a way that the protocol allows.
pub(crate) fn granted(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(HEADER)?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let amount: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(amount * 3600),
        "M" => Duration::from_secs(amount * 60),
        "S" => Duration::from_secs(amount),
        "m" => Duration::from_millis(amount),
        "u" => Duration::from_micros(amount),
        "n" => Duration::from_nanos(amount),
        _ => return None,
    })
}

/// The status of a call whose time is up.
pub(crate) fn exceeded(domain: &str) -> Status {
    status(Code::DeadlineExceeded, domain, "DEADLINE_EXCEEDED", "the deadline passed before the call was done")
}

/// A status as the trailers that end a stream.
pub(crate) fn trailers(status: &Status) -> HeaderMap {
    let mut map = HeaderMap::new();
    if status.add_header(&mut map).is_err() {
        // Only a status whose message can't be a header gets here; its code is what counts.
        map.clear();
        map.insert("grpc-status", http::HeaderValue::from(status.code() as i32));
    }
    map
}

/// A response body that ends with DEADLINE_EXCEEDED at its deadline and drops what produced it.
pub(crate) struct DeadlineBody {
    inner: Option<tonic::body::Body>,
    timer: Option<Pin<Box<Sleep>>>,
    domain: Arc<str>,
}

impl DeadlineBody {
    pub(crate) fn new(inner: tonic::body::Body, deadline: Option<Instant>, domain: Arc<str>) -> Self {
        // An ended body needs no timer; most errors are such.
        let timer = deadline.filter(|_| !inner.is_end_stream()).map(|at| Box::pin(tokio::time::sleep_until(at)));
        Self { inner: Some(inner), timer, domain }
    }
}

impl Body for DeadlineBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        let Some(inner) = &mut this.inner else { return Poll::Ready(None) };
        // The timer goes first: a stream that always has an item would never let it run.
        if this.timer.as_mut().is_some_and(|timer| timer.as_mut().poll(cx).is_ready()) {
            this.inner = None;
            return Poll::Ready(Some(Ok(Frame::trailers(trailers(&exceeded(&this.domain))))));
        }
        let frame = std::task::ready!(Pin::new(inner).poll_frame(cx));
        if frame.is_none() {
            this.inner = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_parse_as_the_protocol_says() {
        let parse = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(HEADER, text.parse().unwrap());
            granted(&headers)
        };
        assert_eq!(parse("2S"), Some(Duration::from_secs(2)));
        assert_eq!(parse("150m"), Some(Duration::from_millis(150)));
        assert_eq!(parse("99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
        for bad in ["", "S", "2", "2x", "123456789S", "-1S", "+1S", "1 S"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
        assert_eq!(granted(&HeaderMap::new()), None);
    }
}
