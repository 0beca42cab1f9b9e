//! What is told of decisions: records of them, and metrics.
use imageflow_decider::{Decision, Observation, explain};
use imageflow_types::FunctionName;
use imageflow_types::scaling::DecisionRecord;
use serde_json::{Map, Value, json};

use super::Decided;
use crate::inputs::PodStart;

/// All that is told of each function.
const GAUGES: [&str; 8] = [
    "imageflow_scaling_desired",
    "imageflow_scaling_ready",
    "imageflow_scaling_held",
    "imageflow_scaling_in_flight",
    "imageflow_scaling_arrivals_per_second",
    "imageflow_scaling_service_seconds",
    "imageflow_scaling_start_seconds",
    "imageflow_scaling_backlog",
];

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
    let figures = &decision.figures;
    let values = [
        Some(f64::from(decision.desired)),
        Some(f64::from(seen.ready)),
        Some(f64::from(seen.held)),
        Some(f64::from(seen.in_flight)),
        Some(figures.arrivals_per_second),
        Some(figures.service_ms / 1_000.0),
        Some(figures.start_ms / 1_000.0),
        seen.backlog.map(|backlog| backlog as f64),
    ];
    for (metric, value) in GAUGES.into_iter().zip(values) {
        if let Some(value) = value {
            metrics::gauge!(metric, "function" => name.to_string()).set(value);
        }
    }
}

/// A gauge stands where it was set last: of a function that was deleted at 0.
pub(super) fn publish_gone(name: &FunctionName) {
    for metric in GAUGES {
        metrics::gauge!(metric, "function" => name.to_string()).set(0.0);
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
