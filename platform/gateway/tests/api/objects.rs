//! Objects, their events, and the events that were missing.
use std::sync::Arc;

use bytes::Bytes;
use http::Method;
use imageflow_events::object::own_object;
use imageflow_events::{AttributesReader, ext, record};
use imageflow_gateway::{ObjectEvents, Reconciler};
use imageflow_objects::{ChangeKind, ObjectChange, ObjectInfo, ObjectListener, ObjectStore, PutOptions};
use imageflow_resources::Seen;
use imageflow_types::work::RunRequest;
use imageflow_types::{RunId, topics};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::store::PIECE;
use crate::support::{PNG, World, state};

async fn put(world: &World, key: &str, run: Option<&str>) -> ObjectInfo {
    let metadata = run
        .map(|r| ("imageflow-run".to_owned(), r.to_owned()))
        .into_iter()
        .collect();
    let options = PutOptions {
        content_type: Some("image/png".into()),
        metadata,
        if_none_match: false,
    };
    world
        .objects
        .put("raw-images", key, Bytes::from_static(PNG), options)
        .await
        .unwrap()
}

async fn subjects(world: &World) -> Vec<String> {
    let records = world.records(topics::EVENTS).await;
    let mut all: Vec<String> = records
        .iter()
        .map(|r| {
            record::read(r.key.as_deref(), &r.headers, r.value.as_ref())
                .unwrap()
                .subject()
                .unwrap()
                .to_owned()
        })
        .collect();
    all.sort();
    all
}

#[tokio::test]
async fn a_durable_change_becomes_an_event_in_the_log() {
    let world = World::start().await;
    let listener: Arc<dyn ObjectListener> = Arc::new(ObjectEvents::new(world.log.clone(), world.resources.clone()));
    for (i, (key, run)) in [
        ("a b.png", None),
        ("out.png", Some("run-1")),
        ("out.png.json", Some("run-1")),
        (".inputs/x.png", None),
    ]
    .into_iter()
    .enumerate()
    {
        let info = put(&world, key, run).await;
        listener
            .on_durable(ObjectChange {
                kind: ChangeKind::Created,
                info,
                sequence: i as u64,
            })
            .await
            .unwrap();
    }
    assert_eq!(subjects(&world).await, ["raw-images/a b.png", "raw-images/out.png"]);
    for stored in world.records(topics::EVENTS).await {
        let event = record::read(stored.key.as_deref(), &stored.headers, stored.value.as_ref()).unwrap();
        let object = own_object(&event).unwrap();
        assert_eq!(object.size, PNG.len() as u64);
        assert_eq!(event.extension(ext::WRITTEN_BY).is_some(), object.key == "out.png");
        assert!(event.extension(ext::TRACEPARENT).is_some());
    }
}

#[tokio::test]
async fn the_event_of_an_object_says_how_much_of_the_resources_was_known() {
    let world = World::sample().await;
    let listener = ObjectEvents::new(world.log.clone(), world.resources.clone());
    let info = put(&world, "a.png", None).await;
    let change = ObjectChange {
        kind: ChangeKind::Created,
        info,
        sequence: 1,
    };
    listener.on_durable(change).await.unwrap();
    put(&world, "missed.png", None).await;
    let mut reconciler = Reconciler::open(&world.gateway).await.unwrap();
    reconciler.run(&world.gateway).await;
    let told = world.records(topics::EVENTS).await;
    assert_eq!(told.len(), 2, "one by the put, one by the reconcile");
    for record in told {
        assert_eq!(Seen::by_writer(&record.headers), Some(world.resources.seen()));
    }
    assert_ne!(world.resources.seen().to_string(), "");
}

#[tokio::test]
async fn a_reconcile_raises_what_no_run_knows_and_nothing_else() {
    let world = World::sample().await;
    let known = put(&world, "known.png", None).await;
    put(&world, "missed.png", None).await;
    put(&world, "result.png", Some("run-1")).await;
    put(&world, ".inputs/own.png", None).await;
    let run = RunId::derive(&["trigger", "on-upload", "raw-images", "known.png", &known.etag]);
    let request: RunRequest = serde_json::from_value(json!({
        "run": run, "target": {"flow": "thumbs"}, "requestedMs": 1,
        "input": {"object": {"bucket": "raw-images", "key": "known.png", "etag": known.etag}},
    }))
    .unwrap();
    world.write_run(&state(&request, "succeeded", 1)).await;
    let path = format!("/v1/runs/{run}?watch=true&wait=60");
    world.send(Method::GET, &path, &[], "").await;
    let mut reconciler = Reconciler::open(&world.gateway).await.unwrap();
    assert_eq!(reconciler.run(&world.gateway).await.raised, 1);
    assert_eq!(subjects(&world).await, ["raw-images/missed.png"]);
    assert_eq!(
        reconciler.run(&world.gateway).await.raised,
        0,
        "also when no run came of it"
    );
    let mut reconciler = Reconciler::open(&world.gateway).await.unwrap();
    assert_eq!(reconciler.run(&world.gateway).await.raised, 0, "nor after a restart");
    assert_eq!(subjects(&world).await.len(), 1);
}

#[tokio::test]
async fn what_is_older_than_the_mark_is_not_told_to_a_new_trigger() {
    let world = World::sample().await;
    put(&world, "old.png", None).await;
    let topic = imageflow_eventlog::TopicSpec::compacted(topics::MARKS, 1);
    world.log.ensure_topics(&[topic]).await.unwrap();
    let mark = json!({"schema": 1, "toldMs": 4_102_444_800_000_i64}).to_string();
    let record = imageflow_eventlog::NewRecord::new(topics::MARKS)
        .key("raw-images")
        .value(mark);
    world.log.produce(vec![record]).await.unwrap();
    let mut reconciler = Reconciler::open(&world.gateway).await.unwrap();
    assert_eq!(reconciler.run(&world.gateway).await.raised, 0);
}

#[tokio::test]
async fn a_list_of_images_says_where_the_next_page_begins() {
    let world = World::start().await;
    for number in 0..1002 {
        world.objects.others_put("raw-images", &format!("{number:04}"));
    }
    for (limit, expected) in [(501, vec![501, 501]), (1000, vec![1000, 2]), (400, vec![400, 400, 202])] {
        let (mut sizes, mut after) = (Vec::new(), String::new());
        loop {
            let page = world.get(&format!("/v1/images?limit={limit}{after}")).await.json();
            sizes.push(page["items"].as_array().unwrap().len());
            let Some(next) = page["next"].as_str() else { break };
            after = format!("&after={next}");
        }
        assert_eq!(sizes, expected);
    }
}

#[tokio::test]
async fn images_are_put_listed_read_and_deleted() {
    let world = World::start().await;
    for key in ["b.png", "a/1.png", "a/2.png"] {
        assert_eq!(world.post(&format!("/v1/images?key={key}"), &[], PNG).await.status, 201);
    }
    let keys = async |query: &str| -> Vec<String> {
        let items = world.get(&format!("/v1/images?{query}")).await.json()["items"].clone();
        items
            .as_array()
            .unwrap()
            .iter()
            .map(|i| i["key"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(keys("prefix=a/").await, ["a/1.png", "a/2.png"]);
    assert_eq!(keys("limit=1&after=a/1.png").await, ["a/2.png"]);
    let reply = world.get("/v1/images/raw-images/a/1.png").await;
    assert_eq!((&reply.body[..], reply.header("content-type")), (PNG, "image/png"));
    assert_eq!(
        world
            .send(Method::DELETE, "/v1/images/raw-images/a/1.png", &[], "")
            .await
            .status,
        204
    );
    world
        .get("/v1/images/raw-images/a/1.png")
        .await
        .problem(404, "not-found");
    world
        .post("/v1/images?key=.inputs/x.png", &[], PNG)
        .await
        .problem(400, "invalid-argument");
    world
        .post("/v1/images?key=a/../b.png", &[], PNG)
        .await
        .problem(400, "invalid-argument");
}

/// Bytes of the body that a client gets until the gateway closes the connection, which it does not do after a whole answer.
async fn broken_off(world: &World, path: &str) -> usize {
    let mut stream = TcpStream::connect(world.addr).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut said = Vec::new();
    let _ = stream.read_to_end(&mut said).await;
    let head = said.windows(4).position(|w| w == b"\r\n\r\n");
    head.map_or(0, |at| said.len() - at - 4)
}

#[tokio::test]
async fn an_image_is_served_piece_by_piece_and_what_breaks_off_is_not_taken_for_whole() {
    let world = World::start().await;
    let image: Bytes = (0..PIECE * 5 / 2).map(|at| at as u8).collect();
    let options = PutOptions {
        content_type: Some("image/webp".into()),
        ..PutOptions::default()
    };
    let put = world.objects.put("processed-images", "a.webp", image.clone(), options);
    let etag = format!("\"{}\"", put.await.unwrap().etag);
    let path = "/v1/images/processed-images/a.webp";
    let whole = world.get(path).await;
    assert_eq!(whole.body, image);
    assert_eq!(whole.header("content-length"), image.len().to_string());
    assert_eq!(
        (whole.header("content-type"), whole.header("etag")),
        ("image/webp", &*etag)
    );
    world.objects.cut(2 * PIECE);
    assert!(broken_off(&world, path).await < image.len());
    // All bytes came, and then it turned out that they are not the right ones.
    world.objects.cut(image.len());
    assert!(broken_off(&world, path).await < image.len());
    // Nothing was sent yet.
    for nothing in [0, PIECE] {
        world.objects.cut(nothing);
        world.get(path).await.problem(503, "unavailable");
    }
}

#[tokio::test]
async fn an_empty_object_is_served() {
    let world = World::start().await;
    let put = world
        .objects
        .put("raw-images", "empty", Bytes::new(), PutOptions::default());
    put.await.unwrap();
    let reply = world.get("/v1/images/raw-images/empty").await;
    assert_eq!((reply.status.as_u16(), reply.header("content-length")), (200, "0"));
}

#[tokio::test]
async fn an_object_that_is_a_page_runs_nothing_in_a_browser() {
    let world = World::sample().await;
    let options = PutOptions {
        content_type: Some("image/svg+xml".into()),
        ..PutOptions::default()
    };
    let body = Bytes::from_static(b"<svg onload='fetch(1)'/>");
    world.objects.put("raw-images", "a.svg", body, options).await.unwrap();
    let reply = world.get("/v1/images/raw-images/a.svg").await;
    assert_eq!(reply.header("content-type"), "image/svg+xml");
    assert_eq!(reply.header("x-content-type-options"), "nosniff");
    assert_eq!(reply.header("content-security-policy"), "sandbox; default-src 'none'");
}
