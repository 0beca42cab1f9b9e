//! How soon the autoscaler decides.
use std::time::{SystemTime, UNIX_EPOCH};

use http::Method;
use serde_json::{Value, json};

use crate::figures::{beside, figure, percentile};
use crate::http::Api;

/// Events to a function at zero, after one that finds what is read for the first time.
const ROUNDS: usize = 20;

const RESOURCES: &str = r"
apiVersion: imageflow.dev/v1alpha1
kind: Function
metadata: { name: woken }
spec: { operation: noop, scale: { keepWarm: { min: 1s, max: 1s } } }
---
apiVersion: imageflow.dev/v1alpha1
kind: Trigger
metadata: { name: on-wake }
spec: { filters: [ { exact: { type: com.example.wake } } ], function: woken }
";

fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// From an event for a function at zero being sent until the decision to start a pod: the gateway's write, the router's
/// transaction and the dispatcher are in it.
///
/// # Panics
/// When the platform does not answer.
pub async fn from_zero(api: &Api, on: &str) {
    api.apply(RESOURCES).await;
    let mut took = Vec::new();
    for round in 0..=ROUNDS {
        let none = |v: &Value| v["status"]["pods"]["ready"] == 0 && v["status"]["pods"]["starting"] == 0;
        api.until("/v1/functions/woken", none).await;
        let event = json!({"specversion": "1.0", "id": format!("wake-{round}"), "source": "/bench", "type": "com.example.wake"});
        let sent = now_ms();
        let headers = [("content-type", "application/cloudevents+json")];
        let answer = api.send(Method::POST, "/v1/events", &headers, event.to_string()).await;
        assert!(
            answer.status().is_success(),
            "{}",
            String::from_utf8_lossy(answer.body())
        );
        let up = |decision: &Value| decision["from"] == 0 && decision["atMs"].as_i64() >= Some(sent);
        let decided = |v: &Value| v["decisions"].as_array().is_some_and(|all| all.iter().any(up));
        let told = api.until("/v1/scaling/woken", decided).await;
        let all = told["decisions"].as_array().into_iter().flatten();
        let at = all.filter(|d| up(d)).filter_map(|d| d["atMs"].as_i64()).min();
        took.push((at.unwrap_or(i64::MAX) - sent) as f64);
    }
    took.remove(0);
    let p50 = percentile(&mut took, 0.5);
    let name = format!("0 -> 1 decided after an event is sent, {on}, p50");
    figure(&name, p50, "ms", "<= 100", p50 <= 100.0);
    beside(&format!("the same, {on}, p95"), percentile(&mut took, 0.95), "ms");
}
