//! Logs, spans, metrics: set up once for the process.
use std::str::FromStr;
use std::time::Duration;

use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use opentelemetry::trace::TracerProvider;
use opentelemetry_otlp::{ExporterBuildError, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tokio_util::task::AbortOnDropHandle;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::{LevelFilter, ParseError, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};

/// Between two times that samples of histograms are counted into their buckets.
const UPKEEP: Duration = Duration::from_secs(5);
/// A collector that does not answer must not hold the end of the process.
const FLUSH: Duration = Duration::from_secs(2);
/// Bucket bounds of durations, seconds: from a look into memory to a call that waits for a flow. Buckets can be summed over
/// replicas, which quantiles cannot.
const SECONDS: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
];

/// How logs look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Settings.
#[derive(Debug, Clone)]
pub struct TelemetryConfig {
    /// Name of the service in spans.
    pub service: String,
    /// A level, or levels by crate: `info`, `warn,imageflow_router=debug`.
    pub filter: String,
    /// How logs look.
    pub format: LogFormat,
    /// Whether logs may have colours.
    pub ansi: bool,
    /// Where spans go (OTLP over gRPC), if anywhere.
    pub otlp_endpoint: Option<String>,
}

/// Why telemetry could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter.
    #[error("\"{filter}\" is not a log filter such as info or warn,imageflow_router=debug: {source}")]
    Filter {
        /// As given.
        filter: String,
        /// Why not.
        source: ParseError,
    },
    /// The OTLP endpoint.
    #[error("spans cannot be sent to \"{endpoint}\": {source}")]
    Otlp {
        /// As given.
        endpoint: String,
        /// Why not.
        source: ExporterBuildError,
    },
    /// Logs are set up already.
    #[error("logs are set up already: {0}")]
    Twice(#[from] TryInitError),
    /// Metrics are set up already.
    #[error("metrics cannot be set up: {0}")]
    Metrics(#[from] BuildError),
}

/// Keeps what must be flushed at the end.
pub struct Telemetry {
    provider: Option<SdkTracerProvider>,
    metrics: PrometheusHandle,
    upkeep: AbortOnDropHandle<()>,
}

impl Telemetry {
    /// Sets the process's logs, spans and metrics. Inside a runtime: the exporter's channel needs it.
    ///
    /// # Errors
    /// [`TelemetryError`].
    pub fn start(config: &TelemetryConfig) -> Result<Self, TelemetryError> {
        let filter = Targets::from_str(&config.filter).map_err(|source| TelemetryError::Filter {
            filter: config.filter.clone(),
            source,
        })?;
        let provider = config
            .otlp_endpoint
            .as_deref()
            .map(|e| provider(&config.service, e))
            .transpose()?;
        let spans = provider.as_ref().map(|provider| {
            let tracer = provider.tracer("imageflow");
            tracing_opentelemetry::layer()
                .with_tracer(tracer)
                .with_filter(LevelFilter::INFO)
        });
        let writer = tracing_subscriber::fmt::layer()
            .with_writer(std::io::stderr)
            .with_ansi(config.ansi);
        let logs = match config.format {
            LogFormat::Text => writer.with_filter(filter).boxed(),
            LogFormat::Json => writer.json().with_filter(filter).boxed(),
        };
        tracing_subscriber::registry().with(spans).with(logs).try_init()?;
        let metrics = PrometheusBuilder::new()
            .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), SECONDS)?
            .install_recorder()?;
        let kept = metrics.clone();
        // What histograms were given stays a list until it is counted into buckets, by a scrape or by this.
        let upkeep = tokio::spawn(async move {
            let mut every = tokio::time::interval(UPKEEP);
            loop {
                every.tick().await;
                kept.run_upkeep();
            }
        });
        Ok(Self {
            provider,
            metrics,
            upkeep: AbortOnDropHandle::new(upkeep),
        })
    }

    /// Metrics as Prometheus text.
    #[must_use]
    pub fn metrics(&self) -> PrometheusHandle {
        self.metrics.clone()
    }

    /// Sends what is left. Blocks for at most two seconds.
    pub fn flush(self) {
        drop(self.upkeep);
        if let Some(Err(error)) = self.provider.map(|p| p.shutdown_with_timeout(FLUSH)) {
            tracing::warn!(%error, "spans were lost at the end");
        }
    }
}

fn provider(service: &str, endpoint: &str) -> Result<SdkTracerProvider, TelemetryError> {
    let exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_tonic()
        .with_endpoint(endpoint)
        .build();
    let exporter = exporter.map_err(|source| TelemetryError::Otlp {
        endpoint: endpoint.to_owned(),
        source,
    })?;
    let resource = Resource::builder_empty().with_service_name(service.to_owned()).build();
    Ok(SdkTracerProvider::builder()
        .with_batch_exporter(exporter)
        .with_resource(resource)
        .build())
}
