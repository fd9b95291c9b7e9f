//! What is counted for a collector: calls and requests, how long they take, and how they end. Names and attributes are
//! those of OpenTelemetry's conventions.
//!
//! Instruments are made when they are first used; what is made before telemetry is initialised counts nothing.

use std::sync::LazyLock;

use opentelemetry::metrics::{Counter, Histogram};
use opentelemetry::{KeyValue, StringValue, global};
use tonic::Code;

use crate::status;

/// Bounds in seconds: a call is answered in milliseconds, a stream may take an hour.
const SECONDS: [f64; 15] = [0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0, 600.0, 3600.0];
/// Stands for all methods that are not there: callers must not make us remember without bounds.
const OTHER: &str = "_OTHER";

static CALLS: LazyLock<Histogram<f64>> =
    LazyLock::new(|| histogram("rpc.server.call.duration", "How long calls take, by method and status."));
static REQUESTS: LazyLock<Histogram<f64>> =
    LazyLock::new(|| histogram("http.server.request.duration", "How long requests take, by route and status."));
static HANDSHAKES: LazyLock<Counter<u64>> = LazyLock::new(|| {
    let meter = global::meter("firn");
    let builder = meter.u64_counter("tls.server.handshake.failures");
    builder.with_description("Connections that were refused before a call, by cause.").build()
});

fn histogram(name: &'static str, description: &'static str) -> Histogram<f64> {
    let meter = global::meter("firn");
    let builder = meter.f64_histogram(name).with_unit("s").with_description(description);
    builder.with_boundaries(SECONDS.to_vec()).build()
}

/// Counts a call that is over; `method` is `None` where there is no such method.
pub(crate) fn call(method: Option<&str>, code: Code, seconds: f64) {
    let method: StringValue = method.unwrap_or(OTHER).to_owned().into();
    let name = status::code_name(code);
    let mut attributes = vec![
        KeyValue::new("rpc.system.name", "grpc"),
        KeyValue::new("rpc.method", method),
        KeyValue::new("rpc.response.status_code", name),
    ];
    if status::is_defect(code) {
        attributes.push(KeyValue::new("error.type", name));
    }
    CALLS.record(seconds, &attributes);
}

/// Counts a connection that was refused; `cause` must be of a limited number.
pub(crate) fn handshake_failed(cause: &'static str) {
    HANDSHAKES.add(1, &[KeyValue::new("error.type", cause)]);
}

/// Counts an HTTP request whose answer has begun; `route` must be of a limited number.
pub fn http_request(method: &str, route: &str, status: u16, seconds: f64) {
    // Whoever asks may invent methods.
    let known = ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"];
    let method = known.into_iter().find(|known| *known == method).unwrap_or(OTHER);
    let mut attributes = vec![
        KeyValue::new("http.request.method", method),
        KeyValue::new("http.route", route.to_owned()),
        KeyValue::new("http.response.status_code", i64::from(status)),
    ];
    if status >= 500 {
        attributes.push(KeyValue::new("error.type", status.to_string()));
    }
    REQUESTS.record(seconds, &attributes);
}
