//! A reconcile that somebody asks for, and what is wrong with single objects and buckets.
use std::time::Duration;

use bytes::Bytes;
use imageflow_eventlog::{NewRecord, TopicSpec};
use imageflow_events::{AttributesReader, Event, ext};
use imageflow_gateway::{ObjectEvents, Pass, Reconciler};
use imageflow_objects::{ChangeKind, ObjectChange, ObjectError, ObjectInfo, ObjectListener, ObjectStore, PutOptions};
use imageflow_types::{Kind, topics};
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::support::{PNG, SAMPLE, Setup, World};

const RECONCILE: &str = "/v1/buckets/raw-images/reconcile";
const SOON: Duration = Duration::from_secs(10);
/// More than passes while the clock of a test runs ahead.
const LONG: Duration = Duration::from_secs(100);
const HOUR_MS: i64 = 3_600_000;

async fn put(world: &World, key: &str) {
    put_to(world, "raw-images", key, None).await;
}

/// Puts an object, as `run` did it.
async fn put_to(world: &World, bucket: &str, key: &str, run: Option<&str>) -> ObjectInfo {
    let written_by = run.map(|run| ("imageflow-run".to_owned(), run.to_owned()));
    let options = PutOptions {
        content_type: Some("image/png".into()),
        metadata: written_by.into_iter().collect(),
        ..PutOptions::default()
    };
    let put = world.objects.put(bucket, key, Bytes::from_static(PNG), options);
    put.await.unwrap()
}

/// Writes that everything up to far in the future is told.
async fn told(world: &World) {
    told_until(world, 4_102_444_800_000).await;
}

async fn told_until(world: &World, told_ms: i64) {
    let topic = TopicSpec::compacted(topics::MARKS, 1);
    world.log.ensure_topics(&[topic]).await.unwrap();
    let mark = json!({"schema": 1, "toldMs": told_ms}).to_string();
    let record = NewRecord::new(topics::MARKS).key("raw-images").value(mark);
    world.log.produce(vec![record]).await.unwrap();
}

async fn ask(world: &World, query: &str) -> Value {
    let reply = world.post(&format!("{RECONCILE}{query}"), &[], "").await;
    assert_eq!(reply.status, 200, "{:?}", reply.body);
    reply.json()
}

fn answer(looked_at: usize, raised: usize) -> Value {
    json!({"bucket": "raw-images", "lookedAt": looked_at, "raised": raised, "skipped": 0})
}

async fn events(world: &World) -> Vec<Event> {
    let records = world.records(topics::EVENTS).await;
    let read = records
        .iter()
        .map(|r| imageflow_events::record::read(r.key.as_deref(), &r.headers, r.value.as_ref()).unwrap());
    read.collect()
}

async fn ids(world: &World) -> Vec<String> {
    let events = events(world).await;
    events.iter().map(|event| event.id().to_owned()).collect()
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

fn unavailable() -> ObjectError {
    ObjectError::Unavailable { source: "test".into() }
}

fn no_bucket() -> ObjectError {
    ObjectError::NoSuchBucket {
        bucket: "a-gone".to_owned(),
    }
}

fn denied() -> ObjectError {
    ObjectError::AccessDenied {
        bucket: "b-denied".to_owned(),
    }
}

/// A trigger for all objects of these buckets.
async fn trigger(world: &World, buckets: &[&str]) {
    let filters = json!([{"exact": {"type": "dev.imageflow.object.created"}}]);
    apply(world, json!({"filters": filters, "flow": "thumbs", "buckets": buckets})).await;
}

async fn apply(world: &World, spec: Value) {
    let trigger =
        json!({"apiVersion": "imageflow.dev/v1alpha1", "kind": "Trigger", "metadata": {"name": "all"}, "spec": spec});
    world.apply(&trigger.to_string()).await;
}

/// The marks that were written, as bucket and time: 0 is the platform's start, 1000 what its clock shows.
async fn marked(world: &World) -> Vec<String> {
    let records = world.log.read(topics::MARKS, 0, 0, 100).await.unwrap();
    let marks = records.iter().map(|r| {
        let bucket = String::from_utf8_lossy(r.key.as_ref().unwrap()).into_owned();
        let Some(value) = &r.value else {
            return format!("{bucket} none");
        };
        let mark: Value = serde_json::from_slice(value).unwrap();
        format!("{bucket} {}", mark["toldMs"])
    });
    marks.collect()
}

#[tokio::test]
async fn an_object_that_cannot_be_looked_at_hides_no_other() {
    let world = World::sample().await;
    for key in ["a/../b.png", "a\nb.png"] {
        world.objects.others_put("raw-images", key);
    }
    put(&world, "z.png").await;
    let mut reconciler = Reconciler::open(&world.gateway).await.unwrap();
    let pass = reconciler.run(&world.gateway).await;
    assert_eq!(pass, Pass { raised: 1, behind: 0 });
    assert_eq!(marked(&world).await, ["raw-images 1000"], "waiting would not help");
    let answer = ask(&world, "?all=true").await;
    assert_eq!((&answer["lookedAt"], &answer["skipped"]), (&json!(3), &json!(2)));
}

#[tokio::test]
async fn a_bucket_that_is_not_there_or_denied_keeps_no_other_from_its_turn() {
    let world = World::sample().await;
    trigger(&world, &["a-gone", "b-denied", "c-fails", "raw-images"]).await;
    world.objects.fail("a-gone", "", no_bucket);
    world.objects.fail("b-denied", "", denied);
    world.objects.fail("c-fails", "", unavailable);
    put(&world, "z.png").await;
    let mut reconciler = Reconciler::open(&world.gateway).await.unwrap();
    let pass = reconciler.run(&world.gateway).await;
    assert_eq!(pass, Pass { raised: 1, behind: 3 });
    let marks = ["a-gone 1000", "b-denied 1000", "c-fails 1000", "raw-images 1000"];
    assert_eq!(marked(&world).await, marks, "from where a restart goes on");
    world.objects.heal();
    world.objects.others_put("a-gone", "x.png");
    let pass = reconciler.run(&world.gateway).await;
    assert_eq!(
        pass,
        Pass { raised: 1, behind: 0 },
        "what came before the bucket was to be had is told"
    );
}

#[tokio::test]
async fn what_cannot_be_looked_at_now_is_looked_at_by_the_next_pass() {
    let world = World::sample().await;
    put(&world, "a.png").await;
    put(&world, "b.png").await;
    world.objects.fail("raw-images", "a.png", unavailable);
    let mut reconciler = Reconciler::open(&world.gateway).await.unwrap();
    let pass = reconciler.run(&world.gateway).await;
    assert_eq!(pass, Pass { raised: 1, behind: 1 }, "it hides no other");
    assert_eq!(marked(&world).await, ["raw-images 0"]);
    world.post(RECONCILE, &[], "").await.problem(503, "unavailable");
    world.objects.heal();
    let pass = reconciler.run(&world.gateway).await;
    assert_eq!(
        pass,
        Pass { raised: 1, behind: 0 },
        "and what was told is not told again"
    );
    assert_eq!(marked(&world).await, ["raw-images 1000"]);
}

/// Its run is not known here: it has ended and was forgotten, or another gateway told it.
#[tokio::test]
async fn what_the_log_holds_an_event_of_is_not_told_by_another_reconciler() {
    let world = World::sample().await;
    put(&world, "a.png").await;
    let mut first = Reconciler::open(&world.gateway).await.unwrap();
    assert_eq!(first.run(&world.gateway).await, Pass { raised: 1, behind: 0 });
    put(&world, "b.png").await;
    let mut other = Reconciler::open(&world.gateway).await.unwrap();
    assert_eq!(other.run(&world.gateway).await, Pass { raised: 1, behind: 0 });
    assert_eq!(ids(&world).await.len(), 2, "each once");
}

#[tokio::test]
async fn an_object_that_we_may_not_look_at_yet_is_told_when_we_may() {
    let world = World::sample().await;
    put(&world, "a.png").await;
    put(&world, "b.png").await;
    world.objects.fail("raw-images", "a.png", denied);
    let mut reconciler = Reconciler::open(&world.gateway).await.unwrap();
    assert_eq!(reconciler.run(&world.gateway).await, Pass { raised: 1, behind: 1 });
    world.objects.heal();
    assert_eq!(reconciler.run(&world.gateway).await, Pass { raised: 1, behind: 0 });
}

#[tokio::test]
async fn an_object_that_we_shall_never_look_at_keeps_the_mark_for_a_day() {
    let world = World::sample().await;
    put(&world, "a.png").await;
    world.objects.fail("raw-images", "a.png", denied);
    told_until(&world, 1000 - 24 * 3600 * 1000).await;
    let mut reconciler = Reconciler::open(&world.gateway).await.unwrap();
    assert_eq!(reconciler.run(&world.gateway).await, Pass { raised: 0, behind: 0 });
    assert_eq!(marked(&world).await.last().unwrap(), "raw-images 1000");
}

#[tokio::test]
async fn a_store_that_lists_the_same_again_and_again_does_not_hold_up_a_pass() {
    let world = World::sample().await;
    world.objects.others_put("raw-images", "a\u{fffe}.png");
    put(&world, "Z.png").await;
    let mut reconciler = Reconciler::open(&world.gateway).await.unwrap();
    assert_eq!(reconciler.run(&world.gateway).await, Pass { raised: 1, behind: 1 });
}

#[tokio::test]
async fn a_store_that_fails_is_not_asked_for_every_object() {
    let world = World::sample().await;
    for n in 0..30 {
        let key = format!("{n:02}.png");
        put(&world, &key).await;
        if n < 29 {
            world.objects.fail("raw-images", &key, unavailable);
        }
    }
    let mut reconciler = Reconciler::open(&world.gateway).await.unwrap();
    let pass = reconciler.run(&world.gateway).await;
    assert_eq!(pass, Pass { raised: 0, behind: 1 });
}

#[tokio::test]
async fn results_are_told_to_a_trigger_that_wants_them() {
    let world = World::sample().await;
    let created = json!({"exact": {"type": "dev.imageflow.object.created"}});
    let result = put_to(&world, "processed-images", "thumbs/small/a.png", Some("run-1")).await;
    put_to(&world, "processed-images", "thumbs/small/a.png.json", Some("run-1")).await;
    put_to(&world, "processed-images", "thumbs/small/b.png", Some("run-2")).await;
    let mut reconciler = Reconciler::open(&world.gateway).await.unwrap();
    let buckets = ["processed-images"];
    apply(
        &world,
        json!({"filters": [created], "flow": "thumbs", "buckets": buckets}),
    )
    .await;
    let pass = reconciler.run(&world.gateway).await;
    assert_eq!(pass, Pass { raised: 0, behind: 0 }, "unasked they start nothing");
    for run in ["run-1", "run-"] {
        let by = json!({"prefix": {"imageflowwrittenby": run}});
        let spec = json!({"filters": [by, created], "flow": "thumbs", "buckets": buckets, "platformObjects": true});
        apply(&world, spec).await;
        let pass = reconciler.run(&world.gateway).await;
        assert_eq!(pass, Pass { raised: 1, behind: 0 }, "each once");
    }
    let raised = events(&world).await.remove(0);
    let change = ObjectChange {
        kind: ChangeKind::Created,
        info: result,
        sequence: 1,
    };
    ObjectEvents::new(world.log.clone(), world.resources.clone())
        .on_durable(change)
        .await
        .unwrap();
    let by_the_put = events(&world)
        .await
        .into_iter()
        .filter(|e| e.subject() == raised.subject());
    for event in by_the_put {
        let facts = |e: &Event| (e.id().to_owned(), ext::text(e, ext::WRITTEN_BY), e.data().cloned());
        assert_eq!(
            facts(&event),
            facts(&raised),
            "as the put of an embedded store tells it"
        );
        assert!(event.extension(ext::TRACEPARENT).is_some());
    }
}

/// A world that is an hour old, with these resources from its begin.
async fn old(resources: &'static str) -> World {
    let setup = Setup {
        started_ms: -HOUR_MS,
        resources,
        ..Setup::default()
    };
    World::with(setup).await
}

#[tokio::test]
async fn a_new_trigger_is_not_told_what_was_put_before_it() {
    for (resources, raised) in [("", 0), (SAMPLE, 1)] {
        let world = old(resources).await;
        put(&world, "a.png").await;
        world.objects.put_at("raw-images", "a.png", -HOUR_MS / 2);
        world.apply(SAMPLE).await;
        let mut reconciler = Reconciler::open(&world.gateway).await.unwrap();
        let pass = reconciler.run(&world.gateway).await;
        assert_eq!(pass, Pass { raised, behind: 0 }, "{resources}");
        assert_eq!(marked(&world).await.last().unwrap(), "raw-images 1000");
        assert_eq!(ask(&world, "?all=true").await["lookedAt"], 1);
    }
}

#[tokio::test]
async fn a_trigger_that_comes_back_is_not_told_what_was_put_meanwhile() {
    let world = old(SAMPLE).await;
    told_until(&world, -HOUR_MS).await;
    let mut reconciler = Reconciler::open(&world.gateway).await.unwrap();
    world.resources.delete(Kind::Trigger, "on-upload").await.unwrap();
    reconciler.run(&world.gateway).await;
    assert_eq!(marked(&world).await.last().unwrap(), "raw-images none");
    put(&world, "a.png").await;
    world.objects.put_at("raw-images", "a.png", -HOUR_MS / 2);
    world.apply(SAMPLE).await;
    let told_nothing = Pass { raised: 0, behind: 0 };
    assert_eq!(reconciler.run(&world.gateway).await, told_nothing);
    assert_eq!(marked(&world).await.last().unwrap(), "raw-images 1000");
    let mut after_a_restart = Reconciler::open(&world.gateway).await.unwrap();
    assert_eq!(after_a_restart.run(&world.gateway).await, told_nothing);
}

#[tokio::test]
async fn a_bucket_is_marked_when_its_trigger_comes_not_when_the_next_pass_does() {
    let setup = Setup {
        reconcile_every: Duration::from_secs(3600),
        ..Setup::default()
    };
    let world = World::with(setup).await;
    let topic = TopicSpec::compacted(topics::MARKS, 1);
    world.log.ensure_topics(&[topic]).await.unwrap();
    // The first pass is over, and finds nothing to do.
    timeout(SOON, async {
        while world.post(RECONCILE, &[], "").await.status != 404 {
            tokio::task::yield_now().await;
        }
        world.apply(SAMPLE).await;
        while marked(&world).await.is_empty() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn a_reconcile_by_hand_waits_neither_for_a_long_one_nor_for_its_own_end_at_shutdown() {
    let mut world = World::sample().await;
    world.objects.stick();
    let (long, busy) = tokio::join!(timeout(LONG, world.post(RECONCILE, &[], "")), async {
        world.objects.is_stuck().await;
        tokio::time::pause();
        let busy = timeout(Duration::from_secs(60), world.post(RECONCILE, &[], ""))
            .await
            .unwrap();
        tokio::time::resume();
        world.stop.cancel();
        busy
    });
    assert!(busy.problem(503, "unavailable").contains("another reconcile"));
    assert_eq!(busy.header("retry-after"), "60");
    assert!(long.unwrap().problem(503, "unavailable").contains("stops"));
    timeout(SOON, &mut world.server).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn only_the_time_of_the_lists_counts_for_the_rest_after_a_pass() {
    let world = World::sample().await;
    put(&world, "a.png").await;
    let mut reconciler = Reconciler::open(&world.gateway).await.unwrap();
    let (list, look) = (Duration::from_secs(2), Duration::from_secs(30));
    tokio::time::pause();
    world.objects.take(list, look);
    let begun = tokio::time::Instant::now();
    assert_eq!(reconciler.run(&world.gateway).await, Pass { raised: 1, behind: 0 });
    assert!(begun.elapsed() >= list + look, "the object was looked at");
    let listed = reconciler.listed();
    assert!(listed >= list && listed < look, "{listed:?}");
}
