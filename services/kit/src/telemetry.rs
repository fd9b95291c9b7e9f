//! Logs on stderr and, where a collector is named, traces over OTLP.
//!
//! Trace context passes from service to service with or without a collector, and log lines of a call carry its
//! `trace_id`.

use std::io::IsTerminal as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _};

use crate::build_info;
use crate::config::{LogFormat, TelemetryArgs};

/// Variables of OpenTelemetry that name a collector; the exporter reads them itself.
const ENDPOINTS: [&str; 2] = ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"];
/// Most time that the last spans get at the end of the process: a dead collector must not hold a shutdown up.
const FLUSH_TIME: Duration = Duration::from_secs(5);
/// What carries the exporter's own calls: its spans would be exported, which makes new ones.
const TRANSPORT: [&str; 6] = ["h2", "hyper", "hyper_util", "tonic", "tower", "opentelemetry"];

static INITIALISED: AtomicBool = AtomicBool::new(false);

/// Why there is no telemetry.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TelemetryError {
    /// The filter is not one.
    #[error("--log `{filter}` is not a filter: {source}; write a level such as `info`, or `target=level,…`")]
    Filter {
        /// What was given.
        filter: String,
        /// What is wrong with it.
        source: tracing_subscriber::filter::ParseError,
    },
    /// The exporter can't be built.
    #[error("cannot export traces to the endpoint in OTEL_EXPORTER_OTLP_ENDPOINT: {0}")]
    Exporter(#[from] opentelemetry_otlp::ExporterBuildError),
    /// Traces are exported by tasks of a runtime, and there is none.
    #[error("traces can be exported only inside a tokio runtime")]
    NoRuntime,
    /// There is telemetry already.
    #[error("telemetry is initialised already in this process")]
    Initialised,
}

/// Keeps telemetry going. Dropping it sends what is left, for at most 5 seconds.
#[must_use = "dropping the guard ends the export of traces"]
#[derive(Debug)]
pub struct TelemetryGuard {
    provider: SdkTracerProvider,
}

impl Drop for TelemetryGuard {
    fn drop(&mut self) {
        if let Err(error) = self.provider.shutdown_with_timeout(FLUSH_TIME) {
            tracing::warn!(%error, "the last traces were not sent");
        }
    }
}

/// Sets logging and tracing up for the process. `service` is the role, such as `trainer`.
///
/// # Errors
/// Fails if the filter is not one, a collector is named but can't be used, or telemetry was initialised before.
pub fn init(service: &'static str, args: &TelemetryArgs) -> Result<TelemetryGuard, TelemetryError> {
    let filter =
        EnvFilter::try_new(&args.log).map_err(|source| TelemetryError::Filter { filter: args.log.clone(), source })?;
    if INITIALISED.swap(true, Ordering::SeqCst) {
        return Err(TelemetryError::Initialised);
    }
    let provider = provider(service)?;

    let logs = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let logs = match args.log_format {
        LogFormat::Json => logs.json().flatten_event(true).with_span_list(false).boxed(),
        LogFormat::Text => logs.with_ansi(std::io::stderr().is_terminal()).boxed(),
    };
    let traced = TRANSPORT.iter().fold(Targets::new().with_default(LevelFilter::INFO), |targets, name| {
        targets.with_target(*name, LevelFilter::OFF)
    });
    // Each layer has its own filter: quiet logs must not mean no traces.
    tracing_subscriber::registry()
        .with(tracing_opentelemetry::layer().with_tracer(provider.tracer("firn")).with_filter(traced))
        .with(logs.with_filter(filter))
        .try_init()
        .map_err(|_| TelemetryError::Initialised)?;
    log_panics();
    Ok(TelemetryGuard { provider })
}

fn provider(service: &'static str) -> Result<SdkTracerProvider, TelemetryError> {
    let resource = Resource::builder()
        .with_service_name(format!("firn-{service}"))
        .with_attribute(KeyValue::new("service.version", build_info::VERSION))
        .build();
    let builder = SdkTracerProvider::builder().with_resource(resource);
    if !ENDPOINTS.iter().any(|name| std::env::var_os(name).is_some_and(|value| !value.is_empty())) {
        return Ok(builder.build());
    }
    if tokio::runtime::Handle::try_current().is_err() {
        return Err(TelemetryError::NoRuntime);
    }
    let exporter = opentelemetry_otlp::SpanExporter::builder().with_tonic().build()?;
    Ok(builder.with_batch_exporter(exporter).build())
}

/// Panics go the way of all other lines, so that a collector of JSON lines gets them whole.
fn log_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let location = panic.location().map(ToString::to_string);
        let backtrace = std::backtrace::Backtrace::capture();
        tracing::error!(panic = panic.payload_as_str(), location, %backtrace, "panicked");
    }));
}
