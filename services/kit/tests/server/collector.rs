//! What a collector gets from two services of which one calls the other.

use std::collections::BTreeSet;
use std::io::Read as _;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex};

use firn_kit::{ServerArgs, TelemetryArgs, TraceIds, telemetry};
use firn_proto::inference::v1::inference_service_client::InferenceServiceClient;
use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_server::{
    MetricsService, MetricsServiceServer,
};
use opentelemetry_proto::tonic::collector::metrics::v1::{ExportMetricsServiceRequest, ExportMetricsServiceResponse};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value::Value};
use opentelemetry_proto::tonic::metrics::v1::{HistogramDataPoint, metric::Data, number_data_point};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::Span;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::task::AbortOnDropHandle;
use tonic::{Request, Response, Status};

use crate::fake::{Running, eventually, score};
use crate::telemetry::{child, in_child, json_args};

/// Where the child that serves says its address, and where the one that calls finds it.
const ADDRESS: &str = "FIRN_TEST_ADDRESS";

/// Spans and numbers, each with the service that sent it.
#[derive(Clone, Default)]
pub(crate) struct Received {
    spans: Arc<Mutex<Vec<(String, Span)>>>,
    /// With the metric's name between them.
    points: Arc<Mutex<Vec<(String, String, HistogramDataPoint)>>>,
    /// What is only counted: the metric's name, what kind of error it is of, and how many.
    pub(crate) counts: Arc<Mutex<Vec<(String, String, i64)>>>,
}

/// An attribute's text; empty where there is none.
fn text(attributes: &[KeyValue], key: &str) -> String {
    let value = attributes.iter().find(|attribute| attribute.key == key).and_then(|found| found.value.clone());
    match value.and_then(|value| value.value) {
        Some(Value::StringValue(text)) => text,
        None => String::new(),
        other => panic!("{key} is {other:?}"),
    }
}

fn service(resource: Option<Resource>) -> String {
    text(&resource.unwrap().attributes, "service.name")
}

#[tonic::async_trait]
impl TraceService for Received {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        for of_resource in request.into_inner().resource_spans {
            let service = service(of_resource.resource);
            let spans = of_resource.scope_spans.into_iter().flat_map(|scope| scope.spans);
            self.spans.lock().unwrap().extend(spans.map(|span| (service.clone(), span)));
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

#[tonic::async_trait]
impl MetricsService for Received {
    async fn export(
        &self,
        request: Request<ExportMetricsServiceRequest>,
    ) -> Result<Response<ExportMetricsServiceResponse>, Status> {
        for of_resource in request.into_inner().resource_metrics {
            let service = service(of_resource.resource);
            for metric in of_resource.scope_metrics.into_iter().flat_map(|scope| scope.metrics) {
                match metric.data {
                    Some(Data::Histogram(histogram)) => {
                        let of_metric = histogram.data_points.into_iter();
                        let points = of_metric.map(|point| (service.clone(), metric.name.clone(), point));
                        self.points.lock().unwrap().extend(points);
                    }
                    Some(Data::Sum(sum)) => {
                        let counts = sum.data_points.into_iter().map(|point| {
                            let Some(number_data_point::Value::AsInt(count)) = point.value else { panic!("{point:?}") };
                            (metric.name.clone(), text(&point.attributes, "error.type"), count)
                        });
                        self.counts.lock().unwrap().extend(counts);
                    }
                    other => panic!("{} is {other:?}", metric.name),
                }
            }
        }
        Ok(Response::new(ExportMetricsServiceResponse::default()))
    }
}

/// A collector on a port of its own, and its address without a scheme.
pub(crate) async fn collect() -> (Received, String, AbortOnDropHandle<()>) {
    let received = Received::default();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let server = tonic::transport::Server::builder()
        .add_service(TraceServiceServer::new(received.clone()))
        .add_service(MetricsServiceServer::new(received.clone()))
        .serve_with_incoming(TcpListenerStream::new(listener));
    (received, address, AbortOnDropHandle::new(tokio::spawn(async move { server.await.unwrap() })))
}

#[tokio::test(flavor = "multi_thread")]
async fn two_services_share_a_trace_and_each_signal_goes_to_its_endpoint() {
    const NAME: &str = "collector::two_services_share_a_trace_and_each_signal_goes_to_its_endpoint";
    if in_child() {
        return if std::env::var("FIRN_TEST_ROLE").unwrap() == "callee" { callee().await } else { caller().await };
    }
    let (traces, traces_address, _one) = collect().await;
    let (metrics, metrics_address, _other) = collect().await;
    let folder = tempfile::tempdir().unwrap();
    let start = |role: &str| -> Child {
        child(NAME)
            .env("FIRN_TEST_ROLE", role)
            .env(ADDRESS, folder.path().join("address"))
            .env("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", &traces_address)
            .env("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", format!("http://{metrics_address}"))
            .stdin(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap()
    };
    let mut callee = start("callee");
    eventually(async || folder.path().join("address").exists()).await;
    let minutes = || u32::try_from(jiff::Timestamp::now().as_second() / 60).unwrap();
    let before = minutes();
    assert!(tokio::task::block_in_place(|| start("caller").wait()).unwrap().success());
    drop(callee.stdin.take());
    assert!(tokio::task::block_in_place(|| callee.wait()).unwrap().success());

    let spans = traces.spans.lock().unwrap().clone();
    let of = |service: &str, kind: i32| -> Vec<Span> {
        spans.iter().filter(|(from, span)| from == service && span.kind == kind).map(|(_, span)| span.clone()).collect()
    };
    // 2 is a server's span and 3 a client's; the caller makes two calls in one span of its own.
    let (client, server) = (of("firn-caller", 3), of("firn-callee", 2));
    assert_eq!((client.len(), server.len()), (2, 2), "{spans:?}");
    let ids: BTreeSet<Vec<u8>> = spans.iter().map(|(_, span)| span.trace_id.clone()).collect();
    assert_eq!(ids.len(), 1, "one trace for both services");
    let minute = u32::from_be_bytes(client[0].trace_id[..4].try_into().unwrap());
    assert!((before..=minutes()).contains(&minute), "{minute} is not the time");
    for span in &server {
        assert!(client.iter().any(|client| client.span_id == span.parent_span_id), "{span:?}");
    }

    let points = metrics.points.lock().unwrap().clone();
    let count = |from: &str, metric: &str, attributes: &[(&str, &str)]| -> u64 {
        let wanted = points.iter().filter(|(service, name, point)| {
            let has = |(key, value): &(&str, &str)| text(&point.attributes, key) == *value;
            service == from && name == metric && attributes.iter().all(has)
        });
        wanted.map(|(_, _, point)| point.count).max().unwrap_or_default()
    };
    let calls = |status, error| {
        let method = ("rpc.method", "firn.inference.v1.InferenceService/Score");
        let attributes = [method, ("rpc.response.status_code", status), ("error.type", error)];
        count("firn-callee", "rpc.server.call.duration", &attributes)
    };
    assert_eq!((calls("OK", ""), calls("INTERNAL", "INTERNAL"), calls("OK", "OK")), (1, 1, 0), "{points:?}");
    let requests = |method, error| {
        let attributes = [("http.request.method", method), ("http.route", "/v1/models"), ("error.type", error)];
        count("firn-caller", "http.server.request.duration", &attributes)
    };
    assert_eq!((requests("GET", ""), requests("_OTHER", "503")), (2, 1), "{points:?}");
    assert!(traces.points.lock().unwrap().is_empty() && metrics.spans.lock().unwrap().is_empty());
}

fn args() -> TelemetryArgs {
    TelemetryArgs { trace_ids: TraceIds::Snowflake, ..json_args() }
}

fn address() -> PathBuf {
    std::env::var_os(ADDRESS).unwrap().into()
}

/// Serves until its input ends.
async fn callee() {
    let _guard = telemetry::init("callee", &args()).unwrap();
    let server = Running::start(ServerArgs::loopback()).await;
    let unfinished = address().with_extension("unfinished");
    std::fs::write(&unfinished, server.endpoint()).unwrap();
    std::fs::rename(unfinished, address()).unwrap();
    tokio::task::block_in_place(|| std::io::stdin().read_to_end(&mut Vec::new())).unwrap();
    server.shutdown.cancel();
    server.stopped().await;
}

async fn caller() {
    let _guard = telemetry::init("caller", &args()).unwrap();
    let endpoint = std::fs::read_to_string(address()).unwrap();
    let mut client = InferenceServiceClient::new(firn_kit::channel(&endpoint).unwrap());
    let calls = async {
        client.score(score("ok")).await.unwrap();
        client.score(score("panic")).await.unwrap_err();
    };
    tracing::Instrument::instrument(calls, tracing::info_span!("request")).await;
    for (method, status) in [("GET", 200), ("GET", 200), ("BREW", 503)] {
        firn_kit::metrics::http_request(method, "/v1/models", status, 0.5);
    }
}
