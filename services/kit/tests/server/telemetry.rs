//! Logs and traces, as a process and its neighbours see them.

use std::io::Read as _;
use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Instant;

use firn_kit::{LogFormat, TelemetryArgs, TelemetryError, telemetry};
use opentelemetry::trace::{SpanKind, TracerProvider as _};
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{SdkTracerProvider, SpanData, SpanExporter};
use tonic::Request;
use tracing_subscriber::layer::SubscriberExt as _;

use crate::fake::{PATIENCE, Running, eventually, score};

#[derive(Clone, Debug, Default)]
struct Memory(Arc<Mutex<Vec<SpanData>>>);

impl SpanExporter for Memory {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        self.0.lock().unwrap().extend(batch);
        Ok(())
    }
}

impl Memory {
    fn span(&self, kind: SpanKind) -> Option<SpanData> {
        self.0.lock().unwrap().iter().find(|span| span.span_kind == kind).cloned()
    }
}

/// With one subscriber alone, what a thread without one meets first is taken for what nobody wants, on all threads.
static SECOND: LazyLock<tracing::Dispatch> = LazyLock::new(|| tracing::Dispatch::new(tracing_subscriber::registry()));

/// The runtime of these tests has one thread, so a thread's subscriber is that of client and server, and of no other test.
fn collect() -> (Memory, tracing::subscriber::DefaultGuard) {
    LazyLock::force(&SECOND);
    let memory = Memory::default();
    let provider = SdkTracerProvider::builder().with_simple_exporter(memory.clone()).build();
    let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("test"));
    (memory, tracing::subscriber::set_default(tracing_subscriber::registry().with(layer)))
}

#[tokio::test]
async fn the_servers_span_is_a_child_of_the_clients() {
    let (memory, _guard) = collect();
    let server = Running::start(firn_kit::ServerArgs::loopback()).await;
    server.client().score(score("ok")).await.unwrap();
    eventually(async || memory.span(SpanKind::Server).is_some()).await;

    let (client, server) = (memory.span(SpanKind::Client).unwrap(), memory.span(SpanKind::Server).unwrap());
    assert_eq!(server.name, "firn.inference.v1.InferenceService/Score");
    assert_eq!(server.span_context.trace_id(), client.span_context.trace_id());
    assert_eq!(server.parent_span_id, client.span_context.span_id());
    assert!(server.parent_span_is_remote);
    let status = server.attributes.iter().find(|attribute| attribute.key.as_str() == "rpc.response.status_code");
    assert_eq!(status.unwrap().value.as_str(), "OK");
}

#[tokio::test]
async fn a_strangers_traceparent_is_taken_up() {
    let (memory, _guard) = collect();
    let server = Running::start(firn_kit::ServerArgs::loopback()).await;
    let mut request = Request::new(score("ok"));
    let trace = "0af7651916cd43dd8448eb211c80319c";
    request.metadata_mut().insert("traceparent", format!("00-{trace}-b7ad6b7169203331-01").parse().unwrap());
    let channel = server.foreign_channel();
    firn_proto::inference::v1::inference_service_client::InferenceServiceClient::new(channel)
        .score(request)
        .await
        .unwrap();
    eventually(async || memory.span(SpanKind::Server).is_some()).await;
    assert_eq!(memory.span(SpanKind::Server).unwrap().span_context.trace_id().to_string(), trace);
}

#[tokio::test]
async fn work_that_goes_on_belongs_to_the_call_that_asked_for_it() {
    let (memory, _guard) = collect();
    assert_eq!(firn_kit::trace::context(), None);
    let asked = tracing::info_span!("call");
    let context = asked.in_scope(firn_kit::trace::context).unwrap();
    drop(asked);
    let work = tracing::info_span!("work");
    firn_kit::trace::continue_from(&work, &context);
    work.in_scope(|| tracing::info_span!("step").in_scope(|| {}));
    let other = tracing::info_span!("other");
    firn_kit::trace::continue_from(&other, "no context\n");
    drop((work, other));
    let spans = memory.0.lock().unwrap().clone();
    let named = |name: &str| -> Vec<SpanData> { spans.iter().filter(|span| span.name == name).cloned().collect() };
    let (call, work, other) = (&named("call")[0], &named("work")[0], &named("other")[0]);
    assert_eq!(work.parent_span_id, call.span_context.span_id());
    assert_eq!(work.span_context.trace_id(), call.span_context.trace_id());
    assert_eq!(named("step")[0].span_context.trace_id(), call.span_context.trace_id());
    assert_ne!(other.span_context.trace_id(), call.span_context.trace_id());
}

/// Set in a child process to what it is to do.
const CHILD: &str = "FIRN_TEST_TELEMETRY_CHILD";

/// Runs one test, such as `telemetry::it_works`, as a process of its own: telemetry belongs to a process, and its output
/// to stderr.
pub(crate) fn child(test: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", test, "--nocapture"])
        .env(CHILD, "1")
        .env_remove("OTEL_EXPORTER_OTLP_ENDPOINT")
        .env_remove("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
        .env_remove("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT")
        .env_remove("FIRN_MESH_TOKEN")
        .env_remove("FIRN_MESH_TOKEN_FILE")
        .env_remove("FIRN_TLS_CA")
        .env_remove("FIRN_TLS_CERT")
        .env_remove("FIRN_TLS_KEY")
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    command
}

pub(crate) fn in_child() -> bool {
    std::env::var_os(CHILD).is_some()
}

/// A server, a call that fails, and the end of both.
async fn one_failing_call() {
    let server = Running::start(firn_kit::ServerArgs::loopback()).await;
    server.client().score(score("panic")).await.unwrap_err();
    server.shutdown.cancel();
    server.stopped().await;
}

pub(crate) fn json_args() -> TelemetryArgs {
    TelemetryArgs { log_format: LogFormat::Json, ..TelemetryArgs::default() }
}

#[test]
fn lines_are_json_with_the_trace_and_a_second_init_is_refused() {
    if in_child() {
        return json_child();
    }
    let output = child("telemetry::lines_are_json_with_the_trace_and_a_second_init_is_refused").output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{stderr}");
    let lines: Vec<serde_json::Value> = stderr
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect();
    let line = |body: &str| {
        lines.iter().find(|line| line["body"] == body).unwrap_or_else(|| panic!("no `{body}` in {stderr}"))
    };
    let hello = line("hello");
    assert_eq!((&hello["attributes"]["answer"], &hello["severity_text"]), (&42.into(), &"INFO".into()));
    assert_eq!(hello["scope"]["name"], "server::telemetry");
    hello["timestamp"].as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
    assert_eq!(line("panicked")["attributes"]["panic"], "secret of the handler");
    let failed = &line("call failed")["attributes"];
    assert_eq!(failed["status"], "INTERNAL");
    assert_eq!(failed["trace_id"].as_str().unwrap().len(), 32, "{failed}");
    assert_eq!((&failed["span"]["name"], &failed["span"]["trace_id"]), (&"rpc".into(), &failed["trace_id"]));
    assert!(!lines.iter().any(|line| line["body"] == "not shown"));
    let long = lines.iter().find(|line| line["attributes"]["kept"] == "whole").unwrap();
    assert!(long["body"].as_str().unwrap().ends_with("… (100000 bytes)"));
    assert!(stderr.lines().all(|line| line.len() < 16 << 10));
}

fn json_child() {
    let args = json_args();
    let bad = TelemetryArgs { log: "firn=loud".to_owned(), ..args.clone() };
    let error = telemetry::init("test", &bad).unwrap_err();
    assert!(error.to_string().contains("--log `firn=loud`"), "{error}");

    let _guard = telemetry::init("test", &args).unwrap();
    assert!(matches!(telemetry::init("test", &args), Err(TelemetryError::Initialised)));
    tracing::info!(answer = 42, "hello");
    tracing::debug!("not shown");
    tracing::info!(kept = "whole", "{}", "long".repeat(25_000));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(one_failing_call());
}

#[test]
fn traces_go_to_the_named_collector_and_a_dead_one_holds_nobody_up() {
    if in_child() {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        return runtime.block_on(async {
            let _guard = telemetry::init("test", &json_args()).unwrap();
            one_failing_call().await;
        });
    }
    // It takes connections and never answers: the worst kind of dead.
    let collector = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = collector.local_addr().unwrap();
    let start = Instant::now();
    let mut child = child("telemetry::traces_go_to_the_named_collector_and_a_dead_one_holds_nobody_up")
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{address}"))
        .spawn()
        .unwrap();
    let preface = std::thread::spawn(move || {
        let (mut stream, _) = collector.accept().unwrap();
        let mut preface = [0; 14];
        stream.read_exact(&mut preface).unwrap();
        (preface, stream)
    });
    assert!(child.wait().unwrap().success());
    assert!(start.elapsed() < PATIENCE, "{:?}", start.elapsed());
    assert!(preface.is_finished(), "the child exported nothing");
    assert_eq!(&preface.join().unwrap().0, b"PRI * HTTP/2.0");
}
