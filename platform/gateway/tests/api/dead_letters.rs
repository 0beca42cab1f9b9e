//! What could not be done, and doing it again.
use imageflow_eventlog::NewRecord;
use imageflow_types::{RunEvent, topics};
use serde_json::{Value, json};

use crate::support::World;

async fn letter(world: &World, id: &str, at_ms: i64, content: Value) {
    let mut letter =
        json!({"id": id, "function": "resize", "error": {"code": "unprocessable", "message": "m"}, "atMs": at_ms});
    letter
        .as_object_mut()
        .unwrap()
        .extend(content.as_object().unwrap().clone());
    let record = NewRecord::new(topics::DEAD_LETTERS)
        .key("resize")
        .value(letter.to_string());
    world.log.produce(vec![record]).await.unwrap();
}

fn request() -> Value {
    json!({"request": {"run": "run-1", "target": {"flow": "thumbs"}, "requestedMs": 1,
        "input": {"object": {"bucket": "raw-images", "key": "a", "etag": "e"}}}})
}

async fn ids(world: &World, query: &str) -> Vec<String> {
    let items = world.get(&format!("/v1/dead-letters{query}")).await.json()["items"].clone();
    items
        .as_array()
        .unwrap()
        .iter()
        .map(|i| i["id"].as_str().unwrap().to_owned())
        .collect()
}

#[tokio::test]
async fn letters_are_listed_newest_first_and_by_function() {
    let world = World::start().await;
    letter(&world, "l-1", 1, request()).await;
    letter(&world, "l-2", 2, request()).await;
    assert_eq!(ids(&world, "").await, ["l-2", "l-1"]);
    assert_eq!(ids(&world, "?limit=1&function=resize").await, ["l-2"]);
    assert_eq!(ids(&world, "?function=crop").await, [""; 0]);
    assert_eq!(world.get("/v1/dead-letters/l-1").await.json()["error"]["message"], "m");
    let problem = world.get("/v1/dead-letters/l-3").await.problem(404, "not-found");
    assert!(problem.contains("did you mean"), "{problem}");
}

#[tokio::test]
async fn a_letter_told_twice_is_one_letter() {
    let world = World::start().await;
    letter(&world, "l-1", 1, request()).await;
    letter(&world, "l-1", 2, request()).await;
    assert_eq!(ids(&world, "").await, ["l-1"]);
}

#[tokio::test]
async fn a_replay_asks_for_a_new_run_once_and_takes_the_letter_off_the_list() {
    let world = World::start().await;
    letter(&world, "l-1", 1, request()).await;
    let reply = world.post("/v1/dead-letters/l-1/replay", &[], "").await;
    assert_eq!(reply.status, 202);
    let RunEvent::Requested(wanted) = world.run_events().await.remove(0) else {
        panic!("no wish")
    };
    assert_eq!(reply.json()["run"], wanted.run.as_str());
    assert_ne!(wanted.run.as_str(), "run-1");
    assert!(ids(&world, "").await.is_empty());
    world
        .post("/v1/dead-letters/l-1/replay", &[], "")
        .await
        .problem(404, "not-found");
    assert_eq!(world.run_events().await.len(), 1);
}

#[tokio::test]
async fn an_event_that_made_no_run_is_sent_again() {
    let world = World::start().await;
    let event = json!({"specversion": "1.0", "id": "1", "source": "urn:t", "type": "com.example.a"});
    letter(&world, "e-1", 1, json!({"event": event, "function": "-"})).await;
    letter(&world, "l-1", 2, request()).await;
    let reply = world.post("/v1/dead-letters/replay?function=-", &[], "").await;
    assert_eq!(reply.json()["items"].as_array().unwrap().len(), 1);
    assert_eq!(world.records(topics::EVENTS).await.len(), 1);
    assert_eq!(ids(&world, "").await, ["l-1"]);
}

#[tokio::test]
async fn a_letter_that_holds_nothing_is_kept_and_said_so() {
    let world = World::start().await;
    letter(&world, "l-1", 1, json!({})).await;
    world
        .post("/v1/dead-letters/l-1/replay", &[], "")
        .await
        .problem(409, "conflict");
    assert_eq!(ids(&world, "").await, ["l-1"]);
}
