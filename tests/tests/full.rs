//! Full disks, through the real binary: what is refused is told, what was taken is done.

use std::time::Duration;

use http::Method;
use imageflow_tests::http::json;
use imageflow_tests::{Platform, pictures};
use serde_json::{Value, json};

const RESOURCES: &str = r"
apiVersion: imageflow.dev/v1alpha1
kind: Function
metadata: { name: nothing }
spec: { operation: noop, scale: { max: 1 }, concurrency: { target: 8, limit: 8 } }
---
apiVersion: imageflow.dev/v1alpha1
kind: Function
metadata: { name: flip }
spec: { operation: flip, delivery: { retry: 1, backoffDelay: 10ms } }
---
apiVersion: imageflow.dev/v1alpha1
kind: Trigger
metadata: { name: on-tick }
spec: { filters: [ { exact: { type: com.example.tick } } ], function: nothing }
";

const BATCH: usize = 100;
const PATIENCE: Duration = Duration::from_secs(120);

fn batch(number: usize) -> String {
    let event = |n: usize| json!({"specversion": "1.0", "id": format!("{number}-{n}"), "source": "urn:test", "type": "com.example.tick", "data": {"pad": "x".repeat(300)}});
    json!((0..BATCH).map(event).collect::<Vec<_>>()).to_string()
}

#[tokio::test]
async fn a_full_log_asks_callers_to_come_again_and_does_all_that_it_took() {
    let dir = tempfile::tempdir().unwrap();
    let platform = Platform::start(dir.path(), &["--log-limit-bytes", "3000000"]);
    let api = &platform.api;
    api.apply(RESOURCES).await;
    let headers = [("content-type", "application/cloudevents-batch+json")];
    let mut taken = 0;
    let refusal = loop {
        let answer = api.send(Method::POST, "/v1/events", &headers, batch(taken)).await;
        if answer.status() != 202 {
            break answer;
        }
        taken += 1;
    };
    assert_eq!(refusal.status(), 429, "{}", json(&refusal));
    assert!(refusal.headers().contains_key("retry-after"));
    let detail = json(&refusal)["detail"].as_str().unwrap().to_owned();
    assert!(detail.contains("event log") && detail.contains("3000000"), "{detail}");

    // Ended runs themselves may be forgotten before their time, so they are counted.
    let deadline = tokio::time::Instant::now() + PATIENCE;
    let mut ticks = tokio::time::interval(Duration::from_millis(50));
    loop {
        let done = api.metric("imageflow_flow_runs_total", &["status=\"succeeded\""]).await;
        if done >= (taken * BATCH) as f64 {
            break;
        }
        assert!(
            tokio::time::Instant::now() < deadline,
            "{done} of {} ended",
            taken * BATCH
        );
        ticks.tick().await;
    }
    assert_eq!(api.get("/v1/dead-letters").await["items"], json!([]));
    // What was done made room.
    loop {
        let answer = api.send(Method::POST, "/v1/events", &headers, batch(taken)).await;
        if answer.status() == 202 {
            break;
        }
        assert_eq!(answer.status(), 429);
        assert!(tokio::time::Instant::now() < deadline, "there is still no room");
        ticks.tick().await;
    }
    platform.stop();
}

#[tokio::test]
async fn a_full_object_store_is_told_and_the_work_is_kept_for_later() {
    let dir = tempfile::tempdir().unwrap();
    let input = pictures::png(300, 200, 1);
    let limit = (input.len() + 4_000).to_string();
    let platform = Platform::start(dir.path(), &["--object-limit-bytes", &limit]);
    let api = &platform.api;
    api.apply(RESOURCES).await;
    let headers = [("content-type", "image/png")];
    let run = api
        .send(Method::POST, "/v1/functions/flip/runs", &headers, input.clone())
        .await;
    assert_eq!(run.status(), 202, "{}", json(&run));
    let letters = api
        .until("/v1/dead-letters", |v| !v["items"].as_array().unwrap().is_empty())
        .await;
    let letter = &letters["items"][0];
    assert_eq!(letter["function"], "flip", "{letter}");
    let message = letter["error"]["message"].as_str().unwrap();
    assert!(message.contains("no space"), "{letter}");
    assert_eq!(letter["attempts"].as_array().unwrap().len(), 2, "{letter}");

    let mut seed = 2;
    let refused = loop {
        let input = pictures::png(300, 200, seed);
        let answer = api.send(Method::POST, "/v1/functions/flip/runs", &headers, input).await;
        if answer.status() != 202 {
            break answer;
        }
        seed += 1;
    };
    assert_eq!(refused.status(), 507, "{}", json(&refused));
    platform.stop();

    // With more room the letter is sent again and its work is done.
    let platform = Platform::start(dir.path(), &[]);
    let id = letter["id"].as_str().unwrap();
    let path = format!("/v1/dead-letters/{id}/replay");
    let answer = platform.api.send(Method::POST, &path, &[], "").await;
    assert_eq!(answer.status(), 202, "{}", json(&answer));
    let done = |v: &Value| {
        v["items"]
            .as_array()
            .unwrap()
            .iter()
            .any(|r| r["status"] == "succeeded")
    };
    platform.api.until("/v1/runs?flow=function/flip", done).await;
    platform.stop();
}
