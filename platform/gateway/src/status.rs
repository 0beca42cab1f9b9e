//! Whether the platform is well, for people and probes.
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::IntoResponse;
use http::header::CONTENT_TYPE;
use serde_json::json;

use crate::problem::Answer;
use crate::state::{Gateway, log_problem};

/// `GET /v1/status`.
pub async fn get(State(gateway): State<Arc<Gateway>>) -> Answer {
    let catalog = gateway.deps.resources.snapshot();
    let usage = gateway.deps.log.usage().await.map_err(|e| log_problem(&e))?;
    let table = gateway.deps.pods.watch().borrow().clone();
    Ok(Json(json!({
        "version": env!("CARGO_PKG_VERSION"),
        "uptimeSeconds": (gateway.now_ms() - gateway.config.started_ms) / 1000,
        "functions": catalog.functions.len(), "flows": catalog.flows.len(), "triggers": catalog.triggers.len(),
        "pods": table.pods.len(),
        "runsRunning": gateway.runs.live(),
        // Of Kafka neither is known, which is not 0.
        "log": {"bytes": usage.bytes, "limitBytes": usage.limit},
        "endpoints": {"api": gateway.config.api_url, "s3": gateway.config.s3_url},
    }))
    .into_response())
}

/// `GET /healthz/live`.
pub async fn live() -> &'static str {
    "ok"
}

/// `GET /healthz/ready`: ready until the log is closed, which this process does when it stops. Whether Kafka's brokers are there is
/// asked of nobody: without them all gateways would turn unready at once, and callers get no answer at all in place of a 503 that
/// says what is wrong.
pub async fn ready(State(gateway): State<Arc<Gateway>>) -> Answer {
    gateway.deps.log.usage().await.map_err(|e| log_problem(&e))?;
    Ok("ok".into_response())
}

/// `GET /metrics`.
pub async fn metrics(State(gateway): State<Arc<Gateway>>) -> Answer {
    let text = (gateway.deps.metrics)();
    Ok(([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response())
}
