//! The pod's own figures. The recorder is the server's, so that two servers in one process do not mix; `run` also makes it
//! the process's, so that a function's own `metrics` calls come out too.
use std::sync::Arc;
use std::time::Duration;

use metrics::{Counter, Gauge, Histogram, Key, Label, Level, Metadata, Recorder};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle, PrometheusRecorder};

const METADATA: Metadata<'static> = Metadata::new(module_path!(), Level::INFO, None);

/// Bucket bounds of durations, seconds: from a header probe to the slowest picture of the default time limit.
const SECONDS: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
];

pub(crate) struct Metrics {
    recorder: Arc<PrometheusRecorder>,
    handle: PrometheusHandle,
    service: Histogram,
    duration: Histogram,
    in_flight: Gauge,
    /// Of the requests that ended well: looked up once, for a short call would feel it.
    ok: Counter,
}

const REQUESTS: &str = "imageflow_function_requests_total";
const OK: &str = "ok";

impl Metrics {
    pub(crate) fn new(function: &str, revision: &str) -> Self {
        let builder = PrometheusBuilder::new();
        // Fails only for an empty list of buckets.
        let builder = builder
            .set_buckets(SECONDS)
            .unwrap_or_else(|_| PrometheusBuilder::new());
        let recorder = builder
            .add_global_label("function", function)
            .add_global_label("revision", revision)
            .build_recorder();
        Self {
            handle: recorder.handle(),
            service: recorder
                .register_histogram(&Key::from_static_name("imageflow_function_service_seconds"), &METADATA),
            duration: recorder
                .register_histogram(&Key::from_static_name("imageflow_function_request_seconds"), &METADATA),
            in_flight: recorder.register_gauge(&Key::from_static_name("imageflow_function_in_flight"), &METADATA),
            ok: recorder.register_counter(&labelled(REQUESTS, "outcome", OK), &METADATA),
            recorder: Arc::new(recorder),
        }
    }

    /// Makes this recorder the process's, unless there is one.
    pub(crate) fn install(&self) {
        if metrics::set_global_recorder(Arc::clone(&self.recorder)).is_err() {
            tracing::debug!("the process has a metrics recorder already");
        }
    }

    /// The function itself took this long.
    pub(crate) fn served(&self, service: Duration) {
        self.service.record(service.as_secs_f64());
    }

    /// A request ended; `outcome` is `ok` or an error code.
    pub(crate) fn ended(&self, outcome: &'static str, took: Duration) {
        self.duration.record(took.as_secs_f64());
        match outcome {
            OK => self.ok.increment(1),
            outcome => self.counter(REQUESTS, "outcome", outcome).increment(1),
        }
    }

    /// A request was not admitted.
    pub(crate) fn refused(&self, reason: &'static str) {
        self.counter("imageflow_function_refused_total", "reason", reason)
            .increment(1);
    }

    fn counter(&self, name: &'static str, label: &'static str, value: &'static str) -> Counter {
        self.recorder.register_counter(&labelled(name, label, value), &METADATA)
    }

    pub(crate) fn render(&self, in_flight: u32) -> String {
        self.in_flight.set(f64::from(in_flight));
        self.handle.render()
    }

    /// Moves samples into buckets; without it they pile up while nobody scrapes.
    pub(crate) fn upkeep(&self) {
        self.handle.run_upkeep();
    }
}

fn labelled(name: &'static str, label: &'static str, value: &'static str) -> Key {
    Key::from_parts(name, vec![Label::new(label, value)])
}
