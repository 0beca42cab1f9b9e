//! A reconcile that somebody asks for.
use bytes::Bytes;
use imageflow_eventlog::{NewRecord, TopicSpec};
use imageflow_events::AttributesReader;
use imageflow_objects::{ObjectStore, PutOptions};
use imageflow_types::topics;
use serde_json::{Value, json};

use crate::support::{PNG, World};

const RECONCILE: &str = "/v1/buckets/raw-images/reconcile";

async fn put(world: &World, key: &str) {
    let options = PutOptions {
        content_type: Some("image/png".into()),
        ..PutOptions::default()
    };
    let put = world.objects.put("raw-images", key, Bytes::from_static(PNG), options);
    put.await.unwrap();
}

/// Writes that everything up to far in the future is told.
async fn told(world: &World) {
    let topic = TopicSpec::compacted(topics::MARKS, 1);
    world.log.ensure_topics(&[topic]).await.unwrap();
    let mark = json!({"schema": 1, "toldMs": 4_102_444_800_000_i64}).to_string();
    let record = NewRecord::new(topics::MARKS).key("raw-images").value(mark);
    world.log.produce(vec![record]).await.unwrap();
}

async fn ask(world: &World, query: &str) -> Value {
    let reply = world.post(&format!("{RECONCILE}{query}"), &[], "").await;
    assert_eq!(reply.status, 200, "{:?}", reply.body);
    reply.json()
}

fn answer(looked_at: usize, raised: usize) -> Value {
    json!({"bucket": "raw-images", "lookedAt": looked_at, "raised": raised})
}

async fn ids(world: &World) -> Vec<String> {
    let records = world.records(topics::EVENTS).await;
    let read = records.iter().map(|r| {
        let event = imageflow_events::record::read(r.key.as_deref(), &r.headers, r.value.as_ref()).unwrap();
        event.id().to_owned()
    });
    read.collect()
}

#[tokio::test]
async fn a_missing_event_is_raised_once_and_counted() {
    let world = World::sample().await;
    put(&world, "a.png").await;
    put(&world, ".inputs/own.png").await;
    assert_eq!(ask(&world, "").await, answer(1, 1));
    assert_eq!(ask(&world, "").await, answer(1, 0), "its event is not missing any more");
    put(&world, "b.png").await;
    assert_eq!(ask(&world, "").await, answer(2, 1));
    assert_eq!(ids(&world).await.len(), 2);
}

#[tokio::test]
async fn all_looks_at_what_is_older_than_the_mark_and_tells_the_same_event() {
    let world = World::sample().await;
    told(&world).await;
    put(&world, "a.png").await;
    assert_eq!(ask(&world, "").await, answer(0, 0));
    assert_eq!(ask(&world, "?all=true").await, answer(1, 1));
    assert_eq!(ask(&world, "?all=true").await, answer(1, 1));
    assert_eq!(ask(&world, "").await, answer(0, 0), "the mark is where it was");
    let ids = ids(&world).await;
    assert!(ids.len() == 2 && ids[0] == ids[1], "so its run is the same: {ids:?}");
}

#[tokio::test]
async fn only_buckets_of_triggers_are_looked_at() {
    let world = World::sample().await;
    let refused = world.post("/v1/buckets/raw-image/reconcile", &[], "").await;
    let problem = refused.problem(404, "not-found");
    let expected = "no trigger reads bucket \\\"raw-image\\\", only raw-images;";
    assert!(problem.contains(expected), "{problem}");
    // It is there, but nothing may read it.
    let refused = world.post("/v1/buckets/system-logs/reconcile", &[], "").await;
    refused.problem(404, "not-found");
    let empty = World::start().await;
    let problem = empty.post(RECONCILE, &[], "").await.problem(404, "not-found");
    assert!(problem.contains("there is no trigger"), "{problem}");
}
