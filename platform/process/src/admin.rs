//! What an operator asks of a service: whether it lives, whether it is ready, how it does.
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::serve::serve_until;

/// Whether a service is ready for work. Starts as not ready.
#[derive(Debug, Clone, Default)]
pub struct Readiness(Arc<AtomicBool>);

impl Readiness {
    /// Says so.
    pub fn set(&self, ready: bool) {
        self.0.store(ready, Ordering::Relaxed);
    }

    /// What was said last.
    #[must_use]
    pub fn get(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

#[derive(Clone)]
struct Admin {
    metrics: PrometheusHandle,
    ready: Readiness,
}

/// Serves `/healthz/live`, `/healthz/ready` (503 while it is not) and `/metrics` until `stop`.
///
/// # Errors
/// When the listener fails.
pub async fn serve_admin(
    listener: TcpListener,
    metrics: PrometheusHandle,
    ready: Readiness,
    stop: CancellationToken,
) -> std::io::Result<()> {
    let router = Router::new()
        .route("/healthz/live", get(|| async { StatusCode::OK }))
        .route("/healthz/ready", get(is_ready))
        .route("/metrics", get(show))
        .with_state(Admin { metrics, ready });
    serve_until(listener, router, stop).await
}

async fn is_ready(State(admin): State<Admin>) -> StatusCode {
    if admin.ready.get() {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    }
}

async fn show(State(admin): State<Admin>) -> Response {
    let text = admin.metrics.render();
    ([(CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response()
}
