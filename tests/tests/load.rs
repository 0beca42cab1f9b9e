//! Load on three Kafka brokers: a function is scaled up and down under 20,000 events, events that kill their pod come among
//! others, and more callers come than may wait.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use http::Method;
use imageflow_process::raise_open_files;
use imageflow_tests::external::{World, calls, report};
use imageflow_tests::http::json;
use imageflow_tests::platform::binary;
use imageflow_tests::{Api, Platform};
use imageflow_types::topics;
use serde_json::{Value, json};
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinSet;

const PATIENCE: Duration = Duration::from_secs(300);
/// Events of one request.
const AT_ONCE: usize = 250;
const REBALANCES: &str = "imageflow_eventlog_kafka_rebalances_total";
const ENDED: &str = "imageflow_flow_runs_total";

/// Each of the tests is to have the machine for itself: what they claim of calls and rebalances is not of one that has no time.
static TURN: Mutex<()> = Mutex::const_new(());

/// The function `slow`, which notes its calls in a folder, and the trigger that gives it every event of the tests.
fn resources(calls: &Path, spec: &str) -> String {
    let program = binary().with_file_name("slow-function");
    format!(
        r"
apiVersion: imageflow.dev/v1alpha1
kind: Function
metadata: {{ name: slow }}
spec:
  command: [ {} ]
  env: [ {{ name: SLOW_CALLS, value: {} }} ]
{spec}
---
apiVersion: imageflow.dev/v1alpha1
kind: Trigger
metadata: {{ name: on-test }}
spec:
  filters: [ {{ exact: {{ type: test.event }} }} ]
  function: slow
",
        program.display(),
        calls.display()
    )
}

fn event(id: &str, data: &Value) -> Value {
    json!({"specversion": "1.0", "id": id, "source": "/test", "type": "test.event", "data": data})
}

/// Gives events to the API; a full one is asked again, as it says.
async fn send(api: &Api, events: &[Value]) {
    let headers = [("content-type", "application/cloudevents-batch+json")];
    let mut ticks = tokio::time::interval(Duration::from_millis(200));
    for batch in events.chunks(AT_ONCE) {
        loop {
            let body = serde_json::to_vec(batch).unwrap();
            let answer = api.send(Method::POST, "/v1/events", &headers, body).await;
            match answer.status().as_u16() {
                202 => break,
                429 => ticks.tick().await,
                _ => panic!("{}", json(&answer)),
            };
        }
    }
}

/// Calls the function until it is let in. Counts how often it is asked to come again, and tells the first time.
async fn call(api: Api, number: usize, refused: Arc<AtomicUsize>, first: mpsc::Sender<()>) {
    let headers = [("content-type", "application/cloudevents+json")];
    let body = json!({"specversion": "1.0", "id": format!("call-{number}"), "source": "/test", "type": "test.call"});
    loop {
        let answer = api
            .send(Method::POST, "/v1/functions/slow/invoke", &headers, body.to_string())
            .await;
        match answer.status().as_u16() {
            200 => return,
            429 => {
                refused.fetch_add(1, Ordering::SeqCst);
                // One that is full tells already.
                let _ = first.try_send(());
            }
            _ => panic!("call {number}: {}", json(&answer)),
        }
        let after = answer.headers()["retry-after"].to_str().unwrap().parse().unwrap();
        let mut ticks = tokio::time::interval(Duration::from_secs(after));
        ticks.tick().await;
        ticks.tick().await;
    }
}

/// Waits until the member has partitions of the function's topic, so that what comes later is told apart from it.
async fn settled(platform: &Platform) {
    let lag = |scaling: &Value| scaling["ready"] == 1;
    platform.api.until_within(PATIENCE, "/v1/scaling/slow", lag).await;
    let warm: Vec<Value> = (0..60).map(|i| event(&format!("warm-{i}"), &json!({}))).collect();
    send(&platform.api, &warm).await;
    ended(platform, 60, 0).await;
    // The groups of router, dispatcher, delay and notifications.
    let deadline = Instant::now() + PATIENCE;
    let mut ticks = tokio::time::interval(Duration::from_millis(100));
    while platform.api.metric(REBALANCES, &[]).await < 4.0 {
        ticks.tick().await;
        assert!(Instant::now() < deadline, "a group has no member");
    }
}

/// Waits until so many runs have ended, each way; it is told at once when they end another way.
async fn ended(platform: &Platform, succeeded: usize, failed: usize) {
    let label = |status: &str| format!("status=\"{status}\"");
    let (good, bad) = (label("succeeded"), label("failed"));
    let deadline = Instant::now() + PATIENCE;
    let mut ticks = tokio::time::interval(Duration::from_millis(20));
    loop {
        ticks.tick().await;
        let good = platform.api.metric(ENDED, &[&good]).await as usize;
        let bad = platform.api.metric(ENDED, &[&bad]).await as usize;
        if good + bad >= succeeded + failed {
            assert_eq!((good, bad), (succeeded, failed), "runs that succeeded and that failed");
            return;
        }
        assert!(
            Instant::now() < deadline,
            "{good} runs succeeded and {bad} failed, not {succeeded} and {failed} within {PATIENCE:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_function_scales_from_1_to_20_and_back_under_20_000_events_without_a_rebalance() {
    const EVENTS: usize = 20_000;
    let _turn = TURN.lock().await;
    let Some(world) = World::start().await else { return };
    let folder = tempfile::tempdir().unwrap();
    let platform = world.platform(&[]);
    // Five calls at once: 20 pods may do 500 a second, which is more than this machine has to give them.
    let spec = "  concurrency: { limit: 5, target: 5 }\n  scale: { min: 1, max: 20, keepWarm: { min: 1s, max: 1s } }";
    platform.api.apply(&resources(folder.path(), spec)).await;
    settled(&platform).await;
    let before = platform.api.metric(REBALANCES, &[]).await;
    let begun = Instant::now();
    let events: Vec<Value> = (0..EVENTS).map(|i| event(&format!("event-{i}"), &json!({}))).collect();
    let api = platform.api.clone();
    let feed = tokio::spawn(async move { send(&api, &events).await });
    let all_up = |scaling: &Value| scaling["ready"] == 20;
    platform.api.until_within(PATIENCE, "/v1/scaling/slow", all_up).await;
    println!("20 pods after {:?}", begun.elapsed());
    feed.await.unwrap();
    ended(&platform, 60 + EVENTS, 0).await;
    println!("all done after {:?}", begun.elapsed());
    let one = |scaling: &Value| scaling["ready"] == 1 && scaling["desired"] == 1;
    platform.api.until_within(PATIENCE, "/v1/scaling/slow", one).await;
    println!("one pod after {:?}", begun.elapsed());

    let after = platform.api.metric(REBALANCES, &[]).await;
    assert!(
        (after - before).abs() < 0.5,
        "{before} rebalances before, {after} after"
    );
    let calls = calls(folder.path());
    assert_eq!(calls.len(), 60 + EVENTS, "each event was called");
    let twice: usize = calls.values().map(|n| n - 1).sum();
    report(&format!(
        "from 1 to 20 pods and back: {twice} of {EVENTS} calls done twice"
    ));
    assert!(twice * 1000 < EVENTS, "{twice} calls were done twice");
    assert_eq!(platform.api.get("/v1/dead-letters").await["items"], json!([]));
    platform.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_kills_its_pod_in_every_partition_holds_nobody_else_up() {
    const GOOD: usize = 300;
    let _turn = TURN.lock().await;
    let Some(world) = World::start().await else { return };
    let folder = tempfile::tempdir().unwrap();
    let platform = world.platform(&[]);
    let spec = "  scale: { max: 2 }\n  delivery: { retry: 1, backoffDelay: 100ms }";
    platform.api.apply(&resources(folder.path(), spec)).await;
    // Of so many one falls into each partition, whichever these are: work goes by the run, whose id is made of the event's.
    let mut events: Vec<Value> = (0..24)
        .map(|i| event(&format!("poison-{i}"), &json!({"poison": true})))
        .collect();
    let poison = events.len();
    events.extend((0..GOOD).map(|i| event(&format!("good-{i}"), &json!({}))));
    send(&platform.api, &events).await;
    ended(&platform, GOOD, poison).await;

    let path = format!("/v1/runs?limit={}", 2 * (GOOD + poison));
    let is_failed = |run: &&Value| run["status"] == "failed";
    // What the router has counted others may see a moment later.
    let all = |list: &Value| list["items"].as_array().unwrap().iter().filter(is_failed).count() >= poison;
    let runs = platform.api.until_within(PATIENCE, &path, all).await;
    let mut hit = [0; topics::WORK_PARTITIONS as usize];
    for run in runs["items"].as_array().unwrap().iter().filter(is_failed) {
        let key = run["run"].as_str().unwrap().as_bytes();
        hit[imageflow_eventlog::partition_for_key(key, topics::WORK_PARTITIONS) as usize] += 1;
    }
    assert!(hit.iter().all(|n| *n > 0), "a partition was spared: {hit:?}");
    let all = |list: &Value| list["items"].as_array().unwrap().len() >= poison;
    let letters = platform.api.until("/v1/dead-letters?limit=1000", all).await;
    assert_eq!(letters["items"].as_array().unwrap().len(), poison, "each is kept once");
    let calls = calls(folder.path());
    assert_eq!(calls.len(), GOOD + poison, "each event was called");
    // A poison is called once more by what is asked for; the good ones only when they were with one.
    let twice: usize = calls.values().map(|times| times - 1).sum();
    report(&format!(
        "poison: {} of {GOOD} good calls done twice",
        twice.saturating_sub(poison)
    ));
    // One that was with a poison is called again, but not blamed.
    let blamed = platform
        .api
        .metric("imageflow_function_attempts_failed_total", &[])
        .await as usize;
    assert_eq!(
        blamed,
        2 * poison,
        "each poison has two attempts, and nobody else a failed one"
    );
    platform.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn more_callers_than_may_wait_are_asked_to_come_again_and_each_is_answered_once_as_is_each_event() {
    // 1,000 may wait for a function.
    const CALLERS: usize = 1_200;
    const EVENTS: usize = 300;
    let _turn = TURN.lock().await;
    let Some(world) = World::start().await else { return };
    raise_open_files();
    let folder = tempfile::tempdir().unwrap();
    let platform = world.platform(&[]);
    let spec = |pods: u32| {
        let spec = format!("  timeout: 2m\n  concurrency: {{ limit: 5, target: 5 }}\n  scale: {{ max: {pods} }}");
        resources(folder.path(), &spec)
    };
    platform.api.apply(&spec(1)).await;
    let refused = Arc::<AtomicUsize>::default();
    let (first, mut told) = mpsc::channel(1);
    let call = |number| call(platform.api.clone(), number, refused.clone(), first.clone());
    let mut callers: JoinSet<()> = (0..CALLERS).map(call).collect();
    drop(first);
    let events: Vec<Value> = (0..EVENTS).map(|i| event(&format!("event-{i}"), &json!({}))).collect();
    send(&platform.api, &events).await;
    // One pod does 25 a second, so the queue fills up.
    let first = tokio::time::timeout(PATIENCE, told.recv()).await.unwrap();
    assert!(first.is_some(), "the queue was never full");
    platform.api.apply(&spec(8)).await;
    while let Some(ended) = callers.join_next().await {
        ended.unwrap();
    }
    ended(&platform, EVENTS, 0).await;
    let refused = refused.load(Ordering::SeqCst);
    report(&format!(
        "a full queue: {refused} times asked to come again, 0 calls done twice"
    ));
    let calls = calls(folder.path());
    assert_eq!(calls.len(), CALLERS + EVENTS, "all were called");
    assert!(calls.values().all(|n| *n == 1), "some were called twice");
    assert_eq!(platform.api.get("/v1/dead-letters").await["items"], json!([]));
    platform.stop();
}
