//! Starting, waiting for, watching and ending runs.
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Method;
use http_body_util::BodyExt;
use imageflow_eventlog::NewRecord;
use imageflow_objects::{ObjectStore, PutOptions};
use imageflow_types::work::{Input, RunRequest};
use imageflow_types::{RunEvent, RunId, RunState, topics};
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::support::{PNG, Setup, World, state};

const PATH: &str = "/v1/flows/thumbs/runs";
const SOON: Duration = Duration::from_secs(10);

/// The wish for a run, once it is in the log. The handler writes it before it waits or answers.
pub async fn request(world: &World) -> RunRequest {
    loop {
        if let Some(RunEvent::Requested(request)) = world.run_events().await.pop() {
            return request;
        }
        tokio::task::yield_now().await;
    }
}

/// The same, once the router has taken it and the gateway knows.
async fn taken(world: &World) -> RunRequest {
    let request = request(world).await;
    seen(world, &state(&request, "running", 1)).await;
    request
}

/// A run that was asked for and is known.
async fn known(world: &World, status: &str) -> RunState {
    world.post(PATH, &[("idempotency-key", status)], PNG).await;
    let id = RunId::derive(&["idempotency", "thumbs", status]);
    let wanted = world.run_events().await.into_iter().find(|e| e.run() == &id).unwrap();
    let RunEvent::Requested(request) = wanted else {
        panic!("{wanted:?}")
    };
    let state = state(&request, status, if status == "running" { 1 } else { 2 });
    if status != "running" {
        world.write_run(&state).await;
    }
    seen(world, &state).await;
    state
}

/// Waits until the gateway's view has it.
pub async fn seen(world: &World, state: &RunState) {
    let path = format!("/v1/runs/{}", state.run);
    let reply = async {
        loop {
            let reply = world.get(&path).await;
            if reply.status == 200 && reply.json()["version"] == state.version {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    timeout(SOON, reply).await.unwrap();
}

#[tokio::test]
async fn an_image_is_stored_as_the_runs_own_and_the_wish_is_in_the_log() {
    let world = World::sample().await;
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let reply = world
        .post("/v1/flows/thumbs/runs?fuse=false", &[("traceparent", trace)], PNG)
        .await;
    assert_eq!(reply.status, 202);
    let request = request(&world).await;
    assert_eq!(reply.header("location"), format!("/v1/runs/{}", request.run));
    assert_eq!(reply.json()["run"], request.run.as_str());
    assert!(
        !request.fuse
            && request
                .traceparent
                .unwrap()
                .contains("0af7651916cd43dd8448eb211c80319c")
    );
    let stored = world.objects.all().remove(0);
    assert!(stored.bucket == "raw-images" && stored.key.starts_with(".inputs/") && stored.key.ends_with(".png"));
    assert_eq!(stored.metadata["imageflow-run"], request.run.as_str());
    let Input::Object(input) = request.input else {
        panic!("no object")
    };
    assert_eq!(
        (input.key, input.etag, input.size),
        (stored.key, stored.etag, PNG.len() as u64)
    );
}

#[tokio::test]
async fn a_reference_is_pinned_to_the_bytes_it_has_now() {
    let world = World::sample().await;
    let etag = world.post("/v1/images?key=a%20b.png", &[], PNG).await.json()["etag"].clone();
    let body = json!({"input": {"bucket": "raw-images", "key": "a b.png"}, "params": {"width": 9}});
    let json = [("content-type", "application/json; charset=utf-8")];
    assert_eq!(
        world
            .post("/v1/functions/resize/runs", &json, body.to_string())
            .await
            .status,
        202
    );
    let request = request(&world).await;
    assert_eq!(request.params["width"], 9);
    let Input::Object(input) = request.input else {
        panic!("no object")
    };
    assert_eq!((input.key.as_str(), json!(input.etag)), ("a b.png", etag));
}

#[tokio::test]
async fn of_an_image_the_query_has_the_parameters_with_their_types() {
    let world = World::sample().await;
    let path = "/v1/functions/resize/runs?width=64&fuse=false&height=3%30";
    assert_eq!(world.post(path, &[], PNG).await.status, 202);
    let request = request(&world).await;
    assert_eq!(Value::from(request.params), json!({"width": 64, "height": 30}));
    assert!(!request.fuse);
}

#[tokio::test]
async fn the_query_goes_with_a_reference_too() {
    let world = World::sample().await;
    world.post("/v1/images?key=a.png", &[], PNG).await;
    let headers = [("content-type", "application/json")];
    let body = json!({"input": {"bucket": "raw-images", "key": "a.png"}, "params": {"width": 9}}).to_string();
    let path = "/v1/functions/resize/runs";
    let reply = world.post(&format!("{path}?height=8"), &headers, body.clone()).await;
    assert_eq!(reply.status, 202);
    assert_eq!(
        Value::from(request(&world).await.params),
        json!({"width": 9, "height": 8})
    );
    let twice = world.post(&format!("{path}?width=8"), &headers, body).await;
    assert!(twice.problem(400, "invalid-argument").contains("params.width"));
}

#[tokio::test]
async fn one_idempotency_key_is_one_run_and_another_input_a_conflict() {
    let world = World::sample().await;
    let key = [("idempotency-key", "k-1")];
    let first = world.post(PATH, &key, PNG).await.json()["run"].clone();
    assert_eq!(world.post(PATH, &key, PNG).await.json()["run"], first);
    let other = [PNG, b"!"].concat();
    let problem = world.post(PATH, &key, other).await.problem(409, "conflict");
    assert!(problem.contains("Idempotency-Key"), "{problem}");
    assert_eq!(
        world.run_events().await.len(),
        1,
        "a run that is known is not asked for again"
    );
    assert_eq!(world.objects.all().len(), 1, "what is refused is not stored");
}

#[tokio::test]
async fn one_idempotency_key_with_other_params_is_a_conflict() {
    let world = World::sample().await;
    world.post("/v1/images?key=a.png", &[], PNG).await;
    let headers = [("idempotency-key", "k-1"), ("content-type", "application/json")];
    let ask = async |params: Value| {
        let body = json!({"input": {"bucket": "raw-images", "key": "a.png"}, "params": params});
        world
            .post("/v1/functions/resize/runs", &headers, body.to_string())
            .await
    };
    let first = ask(json!({"width": 9, "height": 8})).await;
    assert_eq!(first.status, 202);
    let again = ask(json!({"height": 8, "width": 9})).await;
    assert_eq!(again.json()["run"], first.json()["run"], "their order says nothing");
    let problem = ask(json!({"width": 10})).await.problem(409, "conflict");
    assert!(
        problem.contains("Idempotency-Key") && problem.contains("params") && problem.contains("new key"),
        "{problem}"
    );
    assert_eq!(world.run_events().await.len(), 1);
}

#[tokio::test]
async fn of_two_inputs_at_once_under_one_key_the_second_is_a_conflict() {
    let world = World::sample().await;
    let headers = [("idempotency-key", "k-1"), ("content-type", "application/json")];
    world.post("/v1/images?key=a.png", &[], PNG).await;
    let mut bodies = Vec::new();
    for width in [9, 10] {
        bodies.push(json!({"input": {"bucket": "raw-images", "key": "a.png"}, "params": {"width": width}}).to_string());
    }
    let path = "/v1/functions/resize/runs";
    let (one, two) = tokio::join!(
        world.post(path, &headers, bodies.remove(0)),
        world.post(path, &headers, bodies.remove(0)),
    );
    let mut statuses = [one.status.as_u16(), two.status.as_u16()];
    statuses.sort_unstable();
    assert_eq!(statuses, [202, 409], "whichever the router took first");
}

#[tokio::test]
async fn a_key_that_cannot_be_told_apart_is_refused() {
    let world = World::sample().await;
    for key in ["", "grün"] {
        let problem = world
            .post(PATH, &[("idempotency-key", key)], PNG)
            .await
            .problem(400, "invalid-argument");
        assert!(problem.contains("Idempotency-Key"), "{problem}");
    }
    assert!(world.run_events().await.is_empty());
}

#[tokio::test]
async fn who_waits_gets_the_final_state_or_the_image_itself() {
    let world = World::sample().await;
    let waits = [("prefer", "wait=60"), ("accept", "image/*")];
    let (reply, ()) = tokio::join!(world.post(PATH, &waits, PNG), async {
        let request = taken(&world).await;
        let options = PutOptions {
            content_type: Some("image/webp".into()),
            ..PutOptions::default()
        };
        let made = world
            .objects
            .put("processed-images", "out.webp", Bytes::from("RESULT"), options)
            .await
            .unwrap();
        let mut state = state(&request, "succeeded", 2);
        let output = json!({"bucket": made.bucket, "key": made.key, "etag": made.etag});
        state.steps[0].output = serde_json::from_value(output).unwrap();
        world.write_run(&state).await;
    });
    assert_eq!((reply.status.as_u16(), &reply.body[..]), (200, &b"RESULT"[..]));
    assert_eq!(reply.header("content-type"), "image/webp");
    let run = reply.header("imageflow-run").to_owned();
    assert_eq!(world.get(&format!("/v1/runs/{run}/output/small")).await.body, "RESULT");
    let problem = world
        .get(&format!("/v1/runs/{run}/output/smal"))
        .await
        .problem(404, "not-found");
    assert!(problem.contains("did you mean \\\"small\\\"?"), "{problem}");
    world.objects.cut("RES".len());
    let broken = world.get(&format!("/v1/runs/{run}/output")).await;
    broken.problem(503, "unavailable");
}

#[tokio::test]
async fn the_image_of_a_failed_run_is_its_error() {
    let world = World::sample().await;
    let waits = [("prefer", "wait"), ("accept", "image/png")];
    let (reply, ()) = tokio::join!(world.post(PATH, &waits, PNG), async {
        let request = taken(&world).await;
        let mut state = state(&request, "failed", 2);
        let error = json!({"code": "unprocessable", "message": "truncated"});
        state.steps[0].error = serde_json::from_value(error).unwrap();
        world.write_run(&state).await;
    });
    let problem = reply.problem(422, "unprocessable");
    assert!(
        problem.contains("truncated") && problem.contains("step small") && problem.contains("run-"),
        "{problem}"
    );
}

#[tokio::test]
async fn runs_are_listed_by_flow_and_state() {
    let world = World::sample().await;
    let running = known(&world, "running").await;
    let failed = known(&world, "failed").await;
    let ids = async |query: &str| -> Vec<String> {
        let items = world.get(&format!("/v1/runs?{query}")).await.json()["items"].clone();
        items
            .as_array()
            .unwrap()
            .iter()
            .map(|s| s["run"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(ids("status=failed").await, [failed.run.as_str()]);
    assert_eq!(ids("flow=other").await, [""; 0]);
    let all = ids("flow=thumbs").await;
    assert_eq!(all.len(), 2);
    assert_eq!(ids("limit=1").await, all[..1]);
    assert_eq!(
        ids(&format!("after={}", all[0])).await,
        all[1..],
        "the next page begins after the last run of this one"
    );
    assert!(all.contains(&running.run.to_string()));
}

#[tokio::test]
async fn a_page_goes_on_where_the_one_before_ended_even_when_that_run_is_gone() {
    let world = World::sample().await;
    for status in ["running", "failed", "succeeded"] {
        known(&world, status).await;
    }
    let all = world.get("/v1/runs").await.json();
    assert!(all.get("next").is_none(), "nothing comes after: {all}");
    let first = world.get("/v1/runs?limit=1").await.json();
    let next = first["next"].as_str().unwrap();
    let gone = RunId::parse(first["items"][0]["run"].as_str().unwrap()).unwrap();
    world
        .log
        .produce(vec![NewRecord::new(topics::RUNS).key(gone.to_string())])
        .await
        .unwrap();
    let forgotten = async {
        while world.get(&format!("/v1/runs/{gone}")).await.status != 404 {
            tokio::task::yield_now().await;
        }
    };
    timeout(SOON, forgotten).await.unwrap();
    let second = world.get(&format!("/v1/runs?after={next}")).await.json();
    assert_eq!(
        second["items"].as_array().unwrap()[..],
        all["items"].as_array().unwrap()[1..]
    );
    let by_id = world.get(&format!("/v1/runs?after={gone}")).await;
    let problem = by_id.problem(400, "invalid-argument");
    assert!(problem.contains(gone.as_str()) && problem.contains("next"), "{problem}");
}

#[tokio::test]
async fn a_watch_tells_each_state_and_ends_with_the_run() {
    let world = World::sample().await;
    let running = known(&world, "running").await;
    let path = format!("/v1/runs/{}?watch=true", running.run);
    let response = world.open(Method::GET, &path, &[], "").await;
    assert_eq!(response.headers()["content-type"], "application/x-ndjson");
    let mut body = response.into_body();
    let first = body.frame().await.unwrap().unwrap().into_data().unwrap();
    assert_eq!(serde_json::from_slice::<RunState>(&first).unwrap(), running);
    let done = state(&running.request, "succeeded", 5);
    world.write_run(&done).await;
    let rest = timeout(SOON, body.collect()).await.unwrap().unwrap().to_bytes();
    let lines: Vec<&[u8]> = rest.split_inclusive(|b| *b == b'\n').collect();
    assert_eq!(lines.len(), 1);
    assert_eq!(serde_json::from_slice::<RunState>(lines[0]).unwrap(), done);
}

#[tokio::test]
async fn a_watch_of_a_run_nobody_knows_is_not_found_at_once() {
    let world = World::sample().await;
    let reply = timeout(SOON, world.get("/v1/runs/run-000?watch=true")).await.unwrap();
    let problem = reply.problem(404, "not-found");
    assert!(problem.contains("run-000") && problem.contains("wait=60"), "{problem}");
    let problem = world
        .get("/v1/runs/run-000?watch=true&wait=61")
        .await
        .problem(400, "invalid-argument");
    assert!(problem.contains("wait") && problem.contains("0 to 60"), "{problem}");
}

#[tokio::test]
async fn a_watch_with_patience_gets_the_run_that_comes_meanwhile() {
    let world = World::sample().await;
    let id = RunId::derive(&["idempotency", "thumbs", "later"]);
    let path = format!("/v1/runs/{id}?watch=true&wait=60");
    let (response, ()) = tokio::join!(world.open(Method::GET, &path, &[], ""), async {
        world.post(PATH, &[("idempotency-key", "later")], PNG).await;
    });
    assert_eq!(response.status(), 200);
    let first = response
        .into_body()
        .frame()
        .await
        .unwrap()
        .unwrap()
        .into_data()
        .unwrap();
    assert_eq!(serde_json::from_slice::<RunState>(&first).unwrap().run, id);
}

#[tokio::test]
async fn a_watch_whose_run_does_not_come_is_not_found_after_its_patience() {
    let world = World::sample().await;
    let begun = Instant::now();
    let reply = timeout(SOON, world.get("/v1/runs/run-000?watch=true&wait=1"))
        .await
        .unwrap();
    reply.problem(404, "not-found");
    assert!(begun.elapsed() >= Duration::from_secs(1), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_watch_ends_when_its_run_is_forgotten() {
    let world = World::sample().await;
    let running = known(&world, "running").await;
    let path = format!("/v1/runs/{}?watch=true", running.run);
    let body = world.open(Method::GET, &path, &[], "").await.into_body();
    let tombstone = NewRecord::new(topics::RUNS).key(running.run.to_string());
    world.log.produce(vec![tombstone]).await.unwrap();
    timeout(SOON, body.collect()).await.unwrap().unwrap();
}

#[tokio::test]
async fn only_a_run_under_way_can_be_cancelled() {
    let world = World::sample().await;
    let running = known(&world, "running").await;
    let failed = known(&world, "failed").await;
    let cancel = |run: &RunId| format!("/v1/runs/{run}/cancel");
    assert_eq!(world.post(&cancel(&running.run), &[], "").await.status, 202);
    let cancelled = world
        .run_events()
        .await
        .iter()
        .any(|e| matches!(e, RunEvent::Cancel { run, .. } if *run == running.run));
    assert!(cancelled);
    let problem = world.post(&cancel(&failed.run), &[], "").await.problem(409, "conflict");
    assert!(problem.contains("failed"), "{problem}");
}

#[tokio::test]
async fn at_shutdown_watchers_end_and_waiting_callers_are_answered() {
    let mut world = World::with(Setup::default()).await;
    world.apply(crate::support::SAMPLE).await;
    let watch = world
        .open(Method::GET, "/v1/runs?watch=true", &[], "")
        .await
        .into_body();
    let waits = [("prefer", "wait=300")];
    let (reply, ()) = tokio::join!(timeout(SOON, world.post(PATH, &waits, PNG)), async {
        taken(&world).await;
        world.stop.cancel();
    });
    assert_eq!(
        reply.expect("the wait ends with the platform").status,
        202,
        "the run goes on after a restart"
    );
    timeout(SOON, watch.collect()).await.unwrap().unwrap();
    timeout(SOON, &mut world.server).await.unwrap().unwrap().unwrap();
}
