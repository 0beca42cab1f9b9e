//! What is told of decisions: records of them, and metrics.
use imageflow_decider::{Decision, Observation, explain};
use imageflow_types::FunctionName;
use imageflow_types::scaling::DecisionRecord;
use serde_json::{Map, Value, json};

use super::Decided;
use crate::inputs::PodStart;

pub(super) fn record(one: &Decided, from: u32) -> DecisionRecord {
    let Decided {
        name,
        config,
        seen,
        decision,
        ..
    } = one;
    let mut inputs = Map::new();
    for part in [json!(seen), json!(decision.figures)] {
        if let Value::Object(fields) = part {
            inputs.extend(fields);
        }
    }
    inputs.insert("valid".into(), json!(decision.valid));
    let explained = explain(config, from, seen, decision);
    DecisionRecord {
        function: name.clone(),
        at_ms: seen.now_ms,
        from,
        to: decision.desired,
        summary: explained.sentence,
        change: explained.change,
        reasons: decision.reasons.iter().map(ToString::to_string).collect(),
        because: decision.reasons.iter().map(|reason| json!(reason)).collect(),
        inputs,
    }
}

/// Where the time of a cold start went.
pub(super) fn publish_start(start: &PodStart) {
    let phase = |phase: &'static str, ms: u64| {
        metrics::histogram!("imageflow_scaling_cold_start_seconds", "phase" => phase).record(ms as f64 / 1_000.0);
    };
    phase("whole", start.took_ms);
    if let Some(scheduling_ms) = start.scheduling_ms {
        phase("scheduled", scheduling_ms);
        phase("started", start.took_ms.saturating_sub(scheduling_ms));
    }
}

pub(super) fn publish(name: &FunctionName, seen: &Observation, decision: &Decision) {
    let gauge = |metric: &'static str, value: f64| metrics::gauge!(metric, "function" => name.to_string()).set(value);
    gauge("imageflow_scaling_desired", f64::from(decision.desired));
    gauge("imageflow_scaling_ready", f64::from(seen.ready));
    gauge("imageflow_scaling_held", f64::from(seen.held));
    gauge("imageflow_scaling_in_flight", f64::from(seen.in_flight));
    gauge(
        "imageflow_scaling_arrivals_per_second",
        decision.figures.arrivals_per_second,
    );
    gauge(
        "imageflow_scaling_service_seconds",
        decision.figures.service_ms / 1_000.0,
    );
    gauge("imageflow_scaling_start_seconds", decision.figures.start_ms / 1_000.0);
    if let Some(backlog) = seen.backlog {
        gauge("imageflow_scaling_backlog", backlog as f64);
    }
}

pub(super) fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(one) = cause {
        text.push_str(": ");
        text.push_str(&one.to_string());
        cause = one.source();
    }
    text
}
