//! Logs on stderr and, where a collector is named, traces and metrics over OTLP.
//!
//! Trace context passes from service to service with or without a collector, and log lines of a call carry its
//! `trace_id`.

use std::io::IsTerminal as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use opentelemetry::global;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_sdk::metrics::SdkMeterProvider;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _};

use crate::clock::Clock;
use crate::collector;
use crate::config::{LogFormat, TelemetryArgs};
use crate::lines::JsonLines;

/// Most time that the last spans, and then the last numbers, get at the end of the process: a dead collector must not
/// hold a shutdown up.
const FLUSH_TIME: Duration = Duration::from_millis(2500);
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
    #[error("cannot export to the endpoint in {variable}: {source}; write it like http://localhost:4317")]
    Exporter {
        /// The variable that names the endpoint.
        variable: &'static str,
        /// What is wrong with it.
        source: opentelemetry_otlp::ExporterBuildError,
    },
    /// Traces and metrics are exported by tasks of a runtime, and there is none.
    #[error("traces and metrics can be exported only inside a tokio runtime")]
    NoRuntime,
    /// There is telemetry already.
    #[error("telemetry is initialised already in this process")]
    Initialised,
}

/// Keeps telemetry going. Dropping it sends what is left: traces for at most 2.5 seconds, then metrics for as long.
#[must_use = "dropping the guard ends the export of traces and metrics"]
#[derive(Debug)]
pub struct TelemetryGuard {
    traces: SdkTracerProvider,
    metrics: Option<SdkMeterProvider>,
}

impl Drop for TelemetryGuard {
    fn drop(&mut self) {
        if let Err(error) = self.traces.shutdown_with_timeout(FLUSH_TIME) {
            tracing::warn!(%error, "the last traces were not sent");
        }
        if let Some(Err(error)) = self.metrics.as_ref().map(|metrics| metrics.shutdown_with_timeout(FLUSH_TIME)) {
            tracing::warn!(%error, "the last metrics were not sent");
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
    let traces = collector::tracer_provider(service, args.trace_ids)?;
    let metrics = collector::meter_provider(service)?;
    if let Some(metrics) = &metrics {
        global::set_meter_provider(metrics.clone());
    }

    let logs = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let logs = match args.log_format {
        LogFormat::Json => logs.json().event_format(JsonLines { clock: Clock::system() }).boxed(),
        LogFormat::Text => logs.with_ansi(std::io::stderr().is_terminal()).boxed(),
    };
    let traced = TRANSPORT.iter().fold(Targets::new().with_default(LevelFilter::INFO), |targets, name| {
        targets.with_target(*name, LevelFilter::OFF)
    });
    // Each layer has its own filter: quiet logs must not mean no traces.
    tracing_subscriber::registry()
        .with(tracing_opentelemetry::layer().with_tracer(traces.tracer("firn")).with_filter(traced))
        .with(logs.with_filter(filter))
        .try_init()
        .map_err(|_| TelemetryError::Initialised)?;
    log_panics();
    Ok(TelemetryGuard { traces, metrics })
}

/// Panics go the way of all other lines, so that a collector of JSON lines gets them whole.
fn log_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let location = panic.location().map(ToString::to_string);
        let backtrace = std::backtrace::Backtrace::capture();
        tracing::error!(panic = panic.payload_as_str(), location, %backtrace, "panicked");
    }));
}
