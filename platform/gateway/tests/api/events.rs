//! CloudEvents from outside.
use imageflow_events::{AttributesReader, Event, ext, record};
use imageflow_types::topics;
use serde_json::json;

use crate::support::{Reply, World};

const STRUCTURED: (&str, &str) = ("content-type", "application/cloudevents+json");
const BATCH: (&str, &str) = ("content-type", "application/cloudevents-batch+json");

async fn kept(world: &World) -> Vec<Event> {
    let records = world.records(topics::EVENTS).await;
    records
        .iter()
        .map(|r| record::read(r.key.as_deref(), &r.headers, r.value.as_ref()).unwrap())
        .collect()
}

async fn post(world: &World, header: (&str, &str), body: serde_json::Value) -> Reply {
    world.post("/v1/events", &[header], body.to_string()).await
}

#[tokio::test]
async fn an_event_is_in_the_log_when_it_is_accepted_whatever_its_mode() {
    let world = World::start().await;
    let binary = [
        ("ce-specversion", "1.0"),
        ("ce-id", "1"),
        ("ce-source", "urn:t"),
        ("ce-type", "com.example.a"),
    ];
    assert_eq!(world.post("/v1/events", &binary, "").await.status, 202);
    let event = |id: &str| json!({"specversion": "1.0", "id": id, "source": "urn:t", "type": "com.example.a"});
    assert_eq!(post(&world, STRUCTURED, event("2")).await.status, 202);
    let reply = post(&world, BATCH, json!([event("3"), event("4")])).await;
    assert_eq!(
        (reply.status.as_u16(), reply.json()["accepted"].as_u64()),
        (202, Some(2))
    );
    let mut ids: Vec<String> = kept(&world).await.iter().map(|e| e.id().to_owned()).collect();
    ids.sort();
    assert_eq!(ids, ["1", "2", "3", "4"]);
}

#[tokio::test]
async fn a_forged_extension_is_taken_off_and_the_callers_trace_goes_on() {
    let world = World::start().await;
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let event = json!({"specversion": "1.0", "id": "1", "source": "urn:t", "type": "com.example.a",
        "imageflowrun": "run-1", "imageflowwrittenby": "x", "colour": "red"});
    let headers = [STRUCTURED, ("traceparent", trace)];
    assert_eq!(world.post("/v1/events", &headers, event.to_string()).await.status, 202);
    let event = kept(&world).await.remove(0);
    assert!(event.extension("imageflowrun").is_none() && event.extension(ext::WRITTEN_BY).is_none());
    assert_eq!(ext::text(&event, "colour").unwrap(), "red");
    let carried = ext::text(&event, ext::TRACEPARENT).unwrap();
    assert!(carried.contains("0af7651916cd43dd8448eb211c80319c"), "{carried}");
}

#[tokio::test]
async fn what_only_the_platform_may_say_is_refused() {
    let world = World::start().await;
    let reserved = json!({"specversion": "1.0", "id": "1", "source": "urn:t", "type": "dev.imageflow.object.created"});
    let text = post(&world, STRUCTURED, reserved).await.problem(400, "malformed-event");
    assert!(text.contains("dev.imageflow."), "{text}");
    let fetch =
        json!({"specversion": "1.0", "id": "1", "source": "urn:t", "type": "a", "dataref": "http://127.0.0.1/"});
    post(&world, STRUCTURED, fetch).await.problem(400, "malformed-event");
    assert!(kept(&world).await.is_empty());
}

#[tokio::test]
async fn a_batch_with_one_bad_event_is_refused_whole() {
    let world = World::start().await;
    let good = json!({"specversion": "1.0", "id": "1", "source": "urn:t", "type": "a"});
    let text = post(
        &world,
        BATCH,
        json!([good, {"specversion": "1.0", "id": "2", "type": "a"}]),
    )
    .await;
    assert!(text.problem(400, "malformed-event").contains("source"));
    let reserved = json!([good, {"specversion": "1.0", "id": "2", "source": "s", "type": "dev.imageflow.x"}]);
    post(&world, BATCH, reserved).await.problem(400, "malformed-event");
    assert!(kept(&world).await.is_empty());
}

#[tokio::test]
async fn what_is_no_event_says_how_to_send_one() {
    let world = World::start().await;
    let text = post(&world, ("content-type", "application/json"), json!({"id": "1"})).await;
    assert!(text.problem(400, "malformed-event").contains("ce-specversion"));
    let headers = [("ce-specversion", "1.0"), ("ce-id", "1"), ("ce-type", "a")];
    let text = world
        .post("/v1/events", &headers, "")
        .await
        .problem(400, "malformed-event");
    assert!(text.contains("source"), "{text}");
    post(&world, STRUCTURED, json!([]))
        .await
        .problem(400, "malformed-event");
}
