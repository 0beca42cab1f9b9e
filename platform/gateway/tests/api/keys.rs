//! A repeat under the key of a run that is there.
use bytes::Bytes;
use imageflow_objects::{ObjectStore, PutOptions};
use imageflow_types::RunId;
use serde_json::{Value, json};

use crate::runs::seen;
use crate::support::{PNG, Setup, World, state};

const PATH: &str = "/v1/flows/thumbs/runs";

fn reference() -> String {
    json!({"input": {"bucket": "raw-images", "key": "a.png"}}).to_string()
}

fn key(key: &str) -> [(&str, &str); 2] {
    [("idempotency-key", key), ("content-type", "application/json")]
}

#[tokio::test]
async fn a_repeat_by_reference_is_the_run_that_it_made_whatever_became_of_the_object() {
    let world = World::sample().await;
    world.post("/v1/images?key=a.png", &[], PNG).await;
    let first = world.post(PATH, &key("k"), reference()).await.json();
    let etag = first["request"]["input"]["object"]["etag"].clone();
    assert!(etag.is_string(), "{first}");
    let other = Bytes::from_static(b"\x89PNG\r\n\x1a\nanother");
    let changed = world.objects.put("raw-images", "a.png", other, PutOptions::default());
    assert_ne!(json!(changed.await.unwrap().etag), etag);
    let again = async || -> Value {
        let reply = world.post(PATH, &key("k"), reference()).await;
        assert_eq!(reply.status, 202, "{:?}", reply.body);
        reply.json()
    };
    assert_eq!(again().await["request"], first["request"]);
    world.objects.delete("raw-images", "a.png").await.unwrap();
    assert_eq!(again().await["request"], first["request"]);
    assert_eq!(world.run_events().await.len(), 1);
}

#[tokio::test]
async fn a_repeat_is_no_new_work_for_one_who_has_too_much() {
    let setup = Setup {
        backlog: 100,
        ..Setup::default()
    };
    let world = World::sample_with(setup).await;
    let run = RunId::derive(&["idempotency", "thumbs", "k"]);
    let input = json!({"object": {"bucket": "raw-images", "key": "a.png", "etag": "e"}});
    let request = json!({"run": run, "target": {"flow": "thumbs"}, "input": input, "requestedMs": 1});
    let state = state(&serde_json::from_value(request).unwrap(), "succeeded", 2);
    world.write_run(&state).await;
    seen(&world, &state).await;
    let again = world.post(PATH, &key("k"), reference()).await;
    assert_eq!((again.status.as_u16(), &again.json()["run"]), (202, &json!(run)));
    world
        .post(PATH, &key("other"), reference())
        .await
        .problem(429, "overloaded");
}

#[tokio::test]
async fn a_repeat_that_asks_for_other_stages_is_a_conflict() {
    let world = World::sample().await;
    let key = [("idempotency-key", "k")];
    assert_eq!(world.post(PATH, &key, PNG).await.status, 202);
    let other = world.post(&format!("{PATH}?fuse=false"), &key, PNG).await;
    let problem = other.problem(409, "conflict");
    assert!(problem.contains("fuse") && problem.contains("new key"), "{problem}");
}
