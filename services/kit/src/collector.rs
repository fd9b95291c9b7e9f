//! What goes to a collector over OTLP: traces and metrics, each to the endpoint that OpenTelemetry's variables name.

use opentelemetry::KeyValue;
use opentelemetry_otlp::{ExporterBuildError, MetricExporter, SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::metrics::SdkMeterProvider;
use opentelemetry_sdk::trace::SdkTracerProvider;

use crate::build_info;
use crate::clock::Clock;
use crate::config::TraceIds;
use crate::telemetry::TelemetryError;
use crate::trace_ids::TimedIds;

/// Where traces go: the first variable that is set and not empty. Snowflake sets one a signal, most others the last.
const TRACES: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"];
/// Where metrics go.
const METRICS: [&str; 2] = ["OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"];

/// Makes traces, and sends them if a collector is named.
pub(crate) fn tracer_provider(service: &'static str, ids: TraceIds) -> Result<SdkTracerProvider, TelemetryError> {
    let mut builder = SdkTracerProvider::builder().with_resource(resource(service));
    if ids == TraceIds::Snowflake {
        builder = builder.with_id_generator(TimedIds::new(Clock::system()));
    }
    let Some((variable, endpoint)) = endpoint(TRACES) else { return Ok(builder.build()) };
    let exporter = exporter(variable, || SpanExporter::builder().with_tonic().with_endpoint(endpoint).build())?;
    Ok(builder.with_batch_exporter(exporter).build())
}

/// Counts and sends what is counted every minute, or as often as `OTEL_METRIC_EXPORT_INTERVAL` says; none if no
/// collector is named.
pub(crate) fn meter_provider(service: &'static str) -> Result<Option<SdkMeterProvider>, TelemetryError> {
    let Some((variable, endpoint)) = endpoint(METRICS) else { return Ok(None) };
    let exporter = exporter(variable, || MetricExporter::builder().with_tonic().with_endpoint(endpoint).build())?;
    let builder = SdkMeterProvider::builder().with_resource(resource(service));
    Ok(Some(builder.with_periodic_exporter(exporter).build()))
}

fn resource(service: &'static str) -> Resource {
    Resource::builder()
        .with_service_name(format!("firn-{service}"))
        .with_attribute(KeyValue::new("service.version", build_info::VERSION))
        .build()
}

fn exporter<T>(
    variable: &'static str,
    build: impl FnOnce() -> Result<T, ExporterBuildError>,
) -> Result<T, TelemetryError> {
    if tokio::runtime::Handle::try_current().is_err() {
        return Err(TelemetryError::NoRuntime);
    }
    build().map_err(|source| TelemetryError::Exporter { variable, source })
}

fn endpoint(variables: [&'static str; 2]) -> Option<(&'static str, String)> {
    variables.iter().find_map(|variable| {
        let value = std::env::var(variable).ok().filter(|value| !value.is_empty())?;
        Some((*variable, with_scheme(value)))
    })
}

/// A collector without a scheme is one beside us; the exporter would take it for one with TLS.
fn with_scheme(endpoint: String) -> String {
    if endpoint.contains("://") { endpoint } else { format!("http://{endpoint}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_without_a_scheme_is_plain() {
        assert_eq!(with_scheme("localhost:4317".to_owned()), "http://localhost:4317");
        assert_eq!(with_scheme("http://collector:4317".to_owned()), "http://collector:4317");
    }
}
