//! Logs to standard error, spans to OTLP when an endpoint is set.
use std::str::FromStr;
use std::time::Duration;

use http::HeaderMap;
use imageflow_events::trace::TraceParent;
use opentelemetry::Context;
use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState, TracerProvider};
use opentelemetry_otlp::WithExportConfig;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{BatchConfigBuilder, BatchSpanProcessor, SdkTracerProvider};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::Config;
use crate::error::ConfigError;

/// A pod may live for seconds only: its spans should not wait for the default of five.
const EXPORT_EVERY: Duration = Duration::from_millis(500);
/// A collector that does not answer must not hold the end of a pod.
const FLUSH: Duration = Duration::from_secs(2);

/// Sets the process's subscriber, unless there is one. Inside a runtime: the exporter's channel needs it.
pub(crate) fn init(config: &Config) -> Result<Option<SdkTracerProvider>, ConfigError> {
    let filter = Targets::from_str(&config.log).map_err(|error| ConfigError {
        variable: "IMAGEFLOW_LOG",
        value: config.log.clone(),
        why: format!("is not a log filter such as \"info\" or \"warn,imageflow_sdk=debug\": {error}"),
    })?;
    let provider = config
        .otlp_endpoint
        .as_deref()
        .map(|endpoint| provider(config, endpoint))
        .transpose()?;
    let spans = provider.as_ref().map(|provider| {
        tracing_opentelemetry::layer()
            .with_tracer(provider.tracer("imageflow-sdk"))
            .with_filter(LevelFilter::INFO)
    });
    let text = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_filter(filter);
    if tracing_subscriber::registry()
        .with(spans)
        .with(text)
        .try_init()
        .is_err()
    {
        tracing::debug!("the process has a subscriber already");
    }
    Ok(provider)
}

fn provider(config: &Config, endpoint: &str) -> Result<SdkTracerProvider, ConfigError> {
    let exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_tonic()
        .with_endpoint(endpoint)
        .build()
        .map_err(|error| ConfigError {
            variable: "OTEL_EXPORTER_OTLP_ENDPOINT",
            value: endpoint.to_owned(),
            why: format!("cannot be exported to: {error}"),
        })?;
    let batches = BatchConfigBuilder::default().with_scheduled_delay(EXPORT_EVERY).build();
    let resource = Resource::builder_empty()
        .with_service_name(config.function.clone())
        .with_attribute(opentelemetry::KeyValue::new("service.instance.id", config.pod.clone()))
        .with_attribute(opentelemetry::KeyValue::new("service.version", config.revision.clone()))
        .build();
    Ok(SdkTracerProvider::builder()
        .with_span_processor(BatchSpanProcessor::builder(exporter).with_batch_config(batches).build())
        .with_resource(resource)
        .build())
}

/// Sends what is left. Blocks for at most two seconds.
pub(crate) fn flush(provider: &SdkTracerProvider) {
    if let Err(error) = provider.shutdown_with_timeout(FLUSH) {
        tracing::warn!(%error, "spans were lost at the end");
    }
}

/// The span of one request.
pub(crate) fn request_span(config: &Config) -> Span {
    tracing::info_span!(
        "function",
        otel.name = %config.function,
        otel.kind = "server",
        revision = %config.revision,
        event = tracing::field::Empty,
        run = tracing::field::Empty,
        step = tracing::field::Empty,
    )
}

/// Makes a span part of the caller's trace.
pub(crate) fn continue_trace(span: &Span, parent: Option<TraceParent>) {
    let Some(parent) = parent else { return };
    let context = SpanContext::new(
        TraceId::from(parent.trace_id),
        SpanId::from(parent.span_id),
        TraceFlags::new(parent.flags),
        true,
        TraceState::default(),
    );
    // Fails when no spans are exported, and then there is nothing to do.
    let _ = span.set_parent(Context::new().with_remote_span_context(context));
}

/// The caller's trace by the header of the W3C.
pub(crate) fn header_trace(headers: &HeaderMap) -> Option<TraceParent> {
    TraceParent::parse(headers.get("traceparent")?.to_str().ok()?)
}
