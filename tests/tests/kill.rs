//! The platform is killed at random points while events run: nothing may be lost, nothing may be there twice.
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use imageflow_objects::{ObjectStore, PutOptions};
use imageflow_tests::{Platform, pictures};
use rand::Rng;
use serde_json::Value;

const EVENTS: usize = 300;
const KILLS: usize = 30;
/// For what the kills have left undone.
const PATIENCE: Duration = Duration::from_secs(180);

const RESOURCES: &str = r"
apiVersion: imageflow.dev/v1alpha1
kind: Function
metadata: { name: shrink }
spec: { operation: resize, scale: { max: 2 } }
---
apiVersion: imageflow.dev/v1alpha1
kind: Function
metadata: { name: grey }
spec: { operation: grayscale, scale: { max: 2 } }
---
apiVersion: imageflow.dev/v1alpha1
kind: Flow
metadata: { name: both }
spec:
  steps:
    - { name: small, function: shrink, params: { width: 16 } }
    - { name: grey, function: grey, after: [small] }
    - { name: tiny, function: shrink, after: [small], params: { width: 8 } }
---
apiVersion: imageflow.dev/v1alpha1
kind: Trigger
metadata: { name: on-upload }
spec:
  filters: [ { exact: { type: dev.imageflow.object.created } }, { prefix: { subject: raw-images/in/ } } ]
  flow: both
";

/// Puts what is left until the platform goes away.
async fn feed(objects: Arc<dyn ObjectStore>, next: Arc<AtomicUsize>) {
    loop {
        let n = next.load(Ordering::SeqCst);
        if n >= EVENTS {
            return;
        }
        let picture = pictures::png(32, 24, n as u32);
        let options = PutOptions {
            content_type: Some("image/png".into()),
            ..PutOptions::default()
        };
        // A put that was not answered may or may not have happened: the client repeats it, as clients do.
        if objects
            .put("raw-images", &format!("in/{n:03}.png"), picture.into(), options)
            .await
            .is_err()
        {
            return;
        }
        next.store(n + 1, Ordering::SeqCst);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thirty_kills_lose_nothing_and_double_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let platform = Platform::start(dir.path(), &[]);
    platform.api.apply(RESOURCES).await;
    let next = Arc::new(AtomicUsize::new(0));
    let mut running = platform;
    for kill in 0..KILLS {
        let feeder = tokio::spawn(feed(running.objects(), next.clone()));
        // The moment of the kill is the random input of this test; there is no state to wait for.
        let after = Duration::from_millis(rand::rng().random_range(5..700));
        tokio::select! {
            () = tokio::time::sleep(after) => {}
            // Keep some events for the later kills.
            () = async { while next.load(Ordering::SeqCst) < EVENTS * (kill + 1) / KILLS + 40 { tokio::task::yield_now().await } } => {}
        }
        running.kill();
        feeder.abort();
        running = Platform::start(dir.path(), &[]);
    }
    feed(running.objects(), next.clone()).await;
    assert_eq!(next.load(Ordering::SeqCst), EVENTS, "all events are in");

    let path = format!("/v1/runs?limit={}", EVENTS * 2);
    let done = |v: &Value| {
        let items = v["items"].as_array().unwrap();
        items.len() >= EVENTS && items.iter().all(|r| r["status"] != "running")
    };
    let runs = running.api.until_within(PATIENCE, &path, done).await;
    let runs = runs["items"].as_array().unwrap();
    let failed: Vec<&Value> = runs.iter().filter(|r| r["status"] != "succeeded").collect();
    assert!(
        failed.is_empty(),
        "{} runs failed, the first: {}",
        failed.len(),
        failed[0]
    );
    assert_eq!(runs.len(), EVENTS, "one run for each event");
    let inputs: BTreeSet<&str> = runs
        .iter()
        .map(|r| r["request"]["input"]["object"]["key"].as_str().unwrap())
        .collect();
    assert_eq!(inputs.len(), EVENTS, "each event has its run");

    let objects = running.objects();
    let mut results = BTreeSet::new();
    for run in runs {
        for (step, width) in [("grey", 16), ("tiny", 8)] {
            let step = run["steps"]
                .as_array()
                .unwrap()
                .iter()
                .find(|s| s["name"] == step)
                .unwrap();
            let (bucket, key) = (
                step["output"]["bucket"].as_str().unwrap(),
                step["output"]["key"].as_str().unwrap(),
            );
            let (info, body) = objects.get(bucket, key, None).await.unwrap();
            assert_eq!(
                info.etag,
                step["output"]["etag"].as_str().unwrap(),
                "{key} is what the run says"
            );
            let picture = imageflow_ops::probe(&body, &imageflow_ops::Limits::default()).unwrap();
            assert_eq!(picture.width, width, "{key}");
            assert!(results.insert(key.to_owned()), "{key} is the result of two runs");
        }
    }
    let mut stored = 0;
    let mut after: Option<String> = None;
    loop {
        let page = objects
            .list("processed-images", "both/", after.as_deref(), 1000)
            .await
            .unwrap();
        let Some(last) = page.last() else { break };
        after = Some(last.key.clone());
        stored += page.iter().filter(|o| !o.key.ends_with(".json")).count();
    }
    assert_eq!(
        stored,
        results.len(),
        "every stored result belongs to a run, and none is there twice"
    );
    let letters = running.api.get("/v1/dead-letters").await;
    assert_eq!(
        letters["items"].as_array().unwrap().len(),
        0,
        "no dead letter: {letters}"
    );
    running.stop();
}
