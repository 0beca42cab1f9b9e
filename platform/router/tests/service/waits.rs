//! What the router waits for, and what it goes on without.
use imageflow_eventlog::{EventLog, NewRecord, partition_for_key};
use imageflow_types::topics;
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusRecorder};
use serde_json::json;

use crate::support::{World, uploaded};

#[tokio::test]
async fn a_work_topic_that_somebody_took_away_is_made_anew_and_no_router_ends() {
    let world = World::new().await;
    world.objects.add("cat.png", "e1");
    world
        .log
        .delete_topic(&format!("{}outline", topics::WORK_PREFIX))
        .await
        .unwrap();
    let mut running = world.route();
    world.events(&[&uploaded("1", "cat.png")]).await;
    running.during(world.log.settled()).await;
    assert_eq!(world.log.work("outline").await.len(), 1);
    running.stop().await;
}

#[tokio::test]
async fn brokers_that_are_away_for_a_moment_end_no_router() {
    let world = World::new().await;
    world.objects.add("cat.png", "e1");
    let calls = ["ensure_topics", "transactional", "consumer", "poll"];
    world.log.fail(&calls);
    let mut running = world.route();
    world.events(&[&uploaded("1", "cat.png")]).await;
    running.during(world.log.settled()).await;
    assert_eq!(world.log.failing(), 0, "each has failed once");
    assert_eq!(world.log.work("outline").await.len(), 1);
    running.stop().await;
}

#[tokio::test]
async fn a_batch_that_was_written_unheard_is_not_written_again() {
    let world = World::new().await;
    world.objects.add("cat.png", "e1");
    world.objects.add("dog.png", "e1");
    world.log.keep_from(1);
    let mut running = world.route();
    world.events(&[&uploaded("1", "cat.png")]).await;
    running.during(world.log.settled()).await;
    world.events(&[&uploaded("2", "dog.png")]).await;
    running.during(world.log.settled()).await;
    assert_eq!(world.log.work("outline").await.len(), 2, "one of each");
    assert_eq!(world.log.runs().await.len(), 2);
    running.stop().await;
}

/// Its view of the resources may be behind that of the gateway, which told somebody that the trigger is there.
#[tokio::test]
async fn an_event_waits_for_the_resources_that_its_writer_had_seen() {
    let world = World::new().await;
    let mut running = world.route();
    let partition = partition_for_key(b"Trigger/late", topics::FEW_PARTITIONS);
    let seen = world.resources.seen().to_string();
    let next = |text: &str| text.strip_prefix(&format!("{partition}:")).and_then(|n| n.parse().ok());
    let next: i64 = seen.split(' ').find_map(next).unwrap_or(0);
    let late = NewRecord::new(topics::EVENTS)
        .partition(0)
        .header("content-type", "application/cloudevents+json")
        .header(topics::SEEN, format!("{partition}:{}", next + 1))
        .value(r#"{"specversion":"1.0","id":"1","source":"urn:test","type":"test.late"}"#);
    world.log.produce(vec![late]).await.unwrap();
    // It has the event before there is a trigger: without the wait it would be done with it by now.
    running.during(world.log.given(1)).await;
    let filters = json!([{"exact": {"type": "test.late"}}]);
    let applied = world.apply("Trigger", "late", json!({"filters": filters, "function": "outline"}));
    running.during(applied).await;
    assert!(world.resources.seen().to_string() != seen, "it is in that partition");
    running.during(world.log.settled()).await;
    assert_eq!(world.log.work("outline").await.len(), 1);
    let written = world.log.all(&format!("{}outline", topics::WORK_PREFIX)).await;
    let stamped = written[0].headers.iter().any(|(name, _)| name == topics::SEEN);
    assert!(stamped, "{:?}", written[0].headers);
    running.stop().await;
}

#[tokio::test]
async fn while_the_object_store_is_down_an_event_waits_and_is_not_lost() {
    let world = World::new().await;
    world.objects.add("cat.png", "e1");
    world.objects.down(true);
    let running = world.route();
    world.events(&[&uploaded("1", "cat.png")]).await;
    world.objects.refused(2).await;
    assert_eq!(
        world.log.inner.lag(topics::GROUP_ROUTER, topics::EVENTS).await.unwrap(),
        1
    );
    // Stopped while it waits, it leaves the event to the next one.
    running.stop().await;
    let world = world.reopen().await;
    world.objects.down(false);
    let running = world.route();
    world.log.settled().await;
    assert_eq!(world.log.work("outline").await.len(), 1);
    assert!(world.log.dead_letters().await.is_empty());
    running.stop().await;
}

/// What the alert RouterWaits looks at.
fn waits(recorder: &PrometheusRecorder) -> f64 {
    let text = recorder.handle().render();
    let mut values = text
        .lines()
        .filter_map(|line| line.strip_prefix("imageflow_flow_batch_waits_seconds "));
    values.next().unwrap().parse().unwrap()
}

#[tokio::test]
async fn a_dead_letter_topic_that_fails_stops_the_partition_and_is_told_until_it_works_again() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let _here = metrics::set_default_local_recorder(&recorder);
    let world = World::new().await;
    for key in ["cat.png", "dog.png"] {
        world.objects.add(key, "e1");
    }
    world.log.breaks(Some(topics::DEAD_LETTERS));
    let mut running = world.route();
    let events = async || world.log.inner.lag(topics::GROUP_ROUTER, topics::EVENTS).await.unwrap();
    // What makes no dead letter is taken.
    world.events(&[&uploaded("1", "cat.png")]).await;
    running.during(world.log.settled()).await;
    assert_eq!((world.log.work("outline").await.len(), events().await), (1, 0));
    let garbage = NewRecord::new(topics::EVENTS)
        .partition(0)
        .header("content-type", "application/cloudevents+json")
        .value("{no event");
    world.log.produce(vec![garbage]).await.unwrap();
    running.during(world.log.refused(2)).await;
    let first = waits(&recorder);
    world.events(&[&uploaded("2", "dog.png")]).await;
    running.during(world.log.refused(4)).await;
    let later = waits(&recorder);
    assert!(0.0 < first && first < later, "{first} s, then {later} s");
    assert_eq!(events().await, 2, "nothing overtakes it");
    assert_eq!(world.log.runs().await.len(), 1);
    assert!(world.log.dead_letters().await.is_empty());
    world.log.breaks(None);
    running.during(world.log.settled()).await;
    assert_eq!(world.log.dead_letters().await.len(), 1);
    assert_eq!((world.log.runs().await.len(), events().await), (2, 0));
    running.stop().await;
    assert!(waits(&recorder).abs() < f64::EPSILON, "it waits no more");
}
