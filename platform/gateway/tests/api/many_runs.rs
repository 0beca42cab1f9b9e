//! Many runs, and large ones.
use imageflow_eventlog::NewRecord;
use imageflow_types::work::RunRequest;
use imageflow_types::{RunId, RunState, topics};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::runs::seen;
use crate::support::{World, state};

/// A run of that number, made so many milliseconds after 1970.
fn run(number: i64, status: &str) -> RunState {
    let run = RunId::derive(&["idempotency", "thumbs", &number.to_string()]);
    let input = json!({"object": {"bucket": "raw-images", "key": "a.png", "etag": "e"}});
    let request = json!({"run": run, "target": {"flow": "thumbs"}, "input": input, "requestedMs": 1});
    let request: RunRequest = serde_json::from_value(request).unwrap();
    let mut state = state(&request, status, 1);
    state.created_ms = number;
    state
}

async fn write(world: &World, states: &[RunState]) {
    let record = |state: &RunState| {
        let value = serde_json::to_vec(state).unwrap();
        NewRecord::new(topics::RUNS).key(state.run.to_string()).value(value)
    };
    world.log.produce(states.iter().map(record).collect()).await.unwrap();
    for partition in 0..topics::PARTITIONS {
        let of = |s: &&RunState| {
            imageflow_eventlog::partition_for_key(s.run.as_str().as_bytes(), topics::PARTITIONS) == partition
        };
        if let Some(last) = states.iter().rev().find(of) {
            seen(world, last).await;
        }
    }
}

#[tokio::test]
async fn runs_are_known_as_long_as_the_router_knows_them() {
    let world = World::sample().await;
    let (slow, ended) = (run(0, "running"), run(1, "succeeded"));
    let mut states = vec![slow.clone(), ended.clone()];
    states.extend((2..10_050).map(|number| run(number, "failed")));
    write(&world, &states).await;
    for state in [&slow, &ended] {
        let shown = world.get(&format!("/v1/runs/{}", state.run)).await.json();
        assert_eq!(shown["status"], state.status.as_str(), "{shown}");
    }
    assert_eq!(world.get("/v1/status").await.json()["runsRunning"], 1);
    let cancelled = world.post(&format!("/v1/runs/{}/cancel", slow.run), &[], "").await;
    assert_eq!(cancelled.status, 202);
    let listed = world.get("/v1/runs?status=succeeded").await.json();
    assert_eq!(listed["items"][0]["run"], ended.run.as_str());
    // Nobody makes a run of a cause that the router knows.
    let headers = [
        ("idempotency-key", "1"),
        ("content-type", "application/json"),
        ("prefer", "wait=60"),
    ];
    let body = json!({"input": {"bucket": "raw-images", "key": "a.png"}}).to_string();
    let again = world.post("/v1/flows/thumbs/runs", &headers, body).await;
    assert_eq!(
        (again.status.as_u16(), &again.json()["status"]),
        (200, &json!("succeeded"))
    );
}

/// A dozen, which have more bytes together than a page or what a watch makes at once.
async fn large(world: &World) -> Vec<RunState> {
    let mut states: Vec<_> = (0..12).map(|number| run(number, "succeeded")).collect();
    for state in &mut states {
        state.steps[0].data = json!("x".repeat(900_000));
    }
    write(world, &states).await;
    states
}

#[tokio::test]
async fn a_page_of_large_runs_ends_before_its_limit() {
    let world = World::sample().await;
    let states = large(&world).await;
    let first = world.get("/v1/runs?limit=100").await.json();
    let items = |page: &Value| page["items"].as_array().unwrap().clone();
    let shown = items(&first).len();
    assert!(shown < 12, "{shown}");
    let path = format!("/v1/runs?limit=100&after={}", first["next"].as_str().unwrap());
    let second = world.get(&path).await.json();
    assert!(second.get("next").is_none());
    let all: Vec<RunState> = [items(&first), items(&second)]
        .concat()
        .into_iter()
        .map(|item| serde_json::from_value(item).unwrap())
        .collect();
    let newest_first: Vec<_> = states.into_iter().rev().collect();
    assert!(all == newest_first);
}

#[tokio::test]
async fn a_watch_of_large_runs_makes_a_few_lines_at_a_time() {
    const LARGEST: usize = 2 << 20;
    let world = World::sample().await;
    let states = large(&world).await;
    let mut stream = TcpStream::connect(world.addr).await.unwrap();
    stream
        .write_all(b"GET /v1/runs?watch=true HTTP/1.1\r\nhost: localhost\r\n\r\n")
        .await
        .unwrap();
    let mut came = Vec::new();
    let mut lines = 0;
    while lines < states.len() {
        let at = came.len();
        let read = stream.read_buf(&mut came).await.unwrap();
        assert_ne!(read, 0, "{:?}", String::from_utf8_lossy(&came[..came.len().min(1000)]));
        lines += came[at.saturating_sub(1)..].windows(2).filter(|b| b == b"}\n").count();
    }
    let head = came.windows(4).position(|b| b == b"\r\n\r\n").unwrap() + 4;
    let mut rest = &came[head..];
    while let Some(end) = rest.windows(2).position(|b| b == b"\r\n") {
        let length = std::str::from_utf8(&rest[..end]).unwrap();
        let length = usize::from_str_radix(length, 16).unwrap();
        assert!(length < LARGEST, "{length}");
        let next = end + 2 + length + 2;
        rest = rest.get(next..).unwrap_or_default();
    }
}
