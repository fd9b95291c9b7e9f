//! W3C trace context in and out, and the spans of calls.
//!
//! The propagator is used directly and not through OpenTelemetry's global: context then also passes where several
//! services share a process and none of them owns it.

use std::sync::LazyLock;

use http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::propagation::{Extractor, Injector, TextMapPropagator as _};
use opentelemetry::trace::TraceContextExt as _;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tracing::Span;
use tracing::field::Empty;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

/// The header that W3C's trace context has.
const TRACEPARENT: &str = "traceparent";

static PROPAGATOR: LazyLock<TraceContextPropagator> = LazyLock::new(TraceContextPropagator::new);

/// Span of a call that this process answers, child of the caller's.
pub(crate) fn server_span(path: &str, headers: &HeaderMap) -> Span {
    let method = path.trim_start_matches('/');
    let span = tracing::info_span!(
        "rpc",
        otel.name = method,
        otel.kind = "server",
        otel.status_code = Empty,
        rpc.system.name = "grpc",
        rpc.method = method,
        rpc.response.status_code = Empty,
        trace_id = Empty,
    );
    // The only error is that nothing collects traces.
    let _ = span.set_parent(PROPAGATOR.extract(&Headers(headers)));
    if let Some(id) = trace_id(&span) {
        span.record("trace_id", id);
    }
    span
}

/// Span of a call that this process makes, with its context put into the request's headers.
pub(crate) fn client_span(path: &str, headers: &mut HeaderMap) -> Span {
    let method = path.trim_start_matches('/');
    let span = tracing::info_span!(
        "rpc_client",
        otel.name = method,
        otel.kind = "client",
        rpc.system.name = "grpc",
        rpc.method = method,
    );
    PROPAGATOR.inject_context(&span.context(), &mut HeadersMut(headers));
    span
}

/// What the current span is part of, as W3C writes it: for work that goes on when the call that asked for it is over.
/// `None` where nothing traces.
#[must_use]
pub fn context() -> Option<String> {
    let mut headers = HeaderMap::new();
    PROPAGATOR.inject_context(&Span::current().context(), &mut HeadersMut(&mut headers));
    headers.get(TRACEPARENT)?.to_str().ok().map(str::to_owned)
}

/// Makes a span that has not begun part of what [`context`] said, be it of this process or of one before; what is no
/// context changes nothing.
pub fn continue_from(span: &Span, context: &str) {
    let Ok(value) = HeaderValue::try_from(context) else { return };
    let headers = HeaderMap::from_iter([(HeaderName::from_static(TRACEPARENT), value)]);
    // The only error is that nothing collects traces.
    let _ = span.set_parent(PROPAGATOR.extract(&Headers(&headers)));
}

/// Id of the trace that the current span belongs to, 32 hex digits.
pub(crate) fn current_trace_id() -> Option<String> {
    trace_id(&Span::current())
}

fn trace_id(span: &Span) -> Option<String> {
    let context = span.context();
    let span = context.span();
    let span_context = span.span_context();
    span_context.is_valid().then(|| span_context.trace_id().to_string())
}

struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).and_then(|value| value.to_str().ok())
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(HeaderName::as_str).collect()
    }
}

struct HeadersMut<'a>(&'a mut HeaderMap);

impl Injector for HeadersMut<'_> {
    fn set(&mut self, key: &str, value: String) {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(key), HeaderValue::try_from(value))
            && !value.is_empty()
        {
            self.0.insert(name, value);
        }
    }
}
