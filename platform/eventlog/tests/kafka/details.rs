//! What the suite of every event log leaves to each one, on one node.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::join_all;
use futures::poll;
use imageflow_eventlog::{
    Cleanup, Consumer, ConsumerConfig, ConsumerEvent, EventLog, FollowEvent, Kafka, KafkaConfig, KafkaOpenError,
    LogError, MAX_RECORD_BYTES, NewRecord, OffsetCommit, Start, TopicSpec, Topics,
};
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::producer::{BaseProducer, Producer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::subject::{config, shared};

const PATIENCE: Duration = Duration::from_secs(60);
/// Work on a revoked partition: shorter than the session in which it is to be given back, longer than any look at the group.
const WORKED_ON: Duration = Duration::from_secs(9);

async fn within<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, work).await.unwrap()
}

async fn open() -> Option<Arc<Kafka>> {
    let cluster = shared().await?;
    Some(Kafka::open(config(&cluster, 1)).await.unwrap())
}

async fn topic(log: &Kafka, name: &str, partitions: u32) -> String {
    log.ensure_topics(&[TopicSpec::new(name, partitions)]).await.unwrap();
    name.to_owned()
}

pub(super) async fn join(log: &Kafka, group: &str, member: &str, topics: Topics) -> Box<dyn Consumer> {
    log.consumer(ConsumerConfig::new(group, member, topics)).await.unwrap()
}

/// Partitions of the next assignment.
pub(super) async fn assigned(consumer: &mut Box<dyn Consumer>) -> usize {
    within(async {
        loop {
            for event in consumer.poll(100).await.unwrap() {
                if let ConsumerEvent::Assigned(assigned) = event {
                    return assigned.len();
                }
            }
        }
    })
    .await
}

#[tokio::test]
async fn a_new_topic_is_seen() {
    let Some(log) = open().await else { return };
    topic(&log, "soon.first", 1).await;
    let mut consumer = join(&log, "soon", "m", Topics::Pattern("soon.".to_owned())).await;
    assert_eq!(assigned(&mut consumer).await, 1);
    let second = topic(&log, "soon.second", 3).await;
    let begun = Instant::now();
    assert_eq!(assigned(&mut consumer).await, 3);
    // Within 2 s on a machine that has nothing else to do; `who_reads_looks_for_new_topics_every_second` holds it to that.
    println!("a new topic was seen after {:?}", begun.elapsed());
    log.delete_topic(&second).await.unwrap();
}

#[tokio::test]
async fn a_partition_that_was_paused_for_a_moment_or_for_long_goes_on_where_it_stopped() {
    let Some(log) = open().await else { return };
    let topic = topic(&log, "paused-long", 1).await;
    let mut consumer = join(&log, "paused-long-group", "m", Topics::one(&topic)).await;
    assert_eq!(assigned(&mut consumer).await, 1);
    let records = (0..300).map(|n| NewRecord::new(&topic).partition(0).value(n.to_string()));
    log.produce(records.collect()).await.unwrap();
    let mut read = Vec::new();
    for (until, pause) in [
        (100, Duration::from_millis(100)),
        (200, Duration::from_millis(2500)),
        (300, Duration::ZERO),
    ] {
        within(async {
            while read.len() < until {
                for event in consumer.poll(10).await.unwrap() {
                    if let ConsumerEvent::Records(records) = event {
                        read.extend(records.into_iter().map(|r| r.offset));
                    }
                }
            }
        })
        .await;
        // The longer pause is long enough for what was read ahead to be dropped.
        consumer.pause(&topic, 0);
        let silence = tokio::time::timeout(pause, consumer.poll(10)).await;
        assert!(silence.is_err(), "{silence:?}");
        consumer.resume(&topic, 0);
    }
    assert_eq!(read, (0..300).collect::<Vec<i64>>());
}

#[tokio::test]
async fn a_member_of_the_same_name_replaces_the_older_one() {
    let Some(log) = open().await else { return };
    let topic = topic(&log, "same-name", 2).await;
    let mut older = join(&log, "same-name-group", "m", Topics::one(&topic)).await;
    assert_eq!(assigned(&mut older).await, 2);
    let mut newer = join(&log, "same-name-group", "m", Topics::one(&topic)).await;
    assert_eq!(assigned(&mut newer).await, 2);
    let fenced = within(async {
        loop {
            match older.poll(100).await {
                Ok(_) => {}
                Err(error) => return error,
            }
        }
    })
    .await;
    assert!(matches!(&fenced, LogError::Fenced { id } if id == "m"), "{fenced:?}");
    assert!(!fenced.is_retryable());
    let refused = older.commit(vec![OffsetCommit::new(&topic, 0, 0)]).await;
    assert!(matches!(refused, Err(LogError::NotAssigned { .. })), "{refused:?}");
    // The end of the older one takes nothing from the newer one.
    within(older.close()).await.unwrap();
    newer.commit(vec![OffsetCommit::new(&topic, 0, 0)]).await.unwrap();
}

#[tokio::test]
async fn a_revoked_partition_that_nobody_gives_back_is_taken() {
    let Some(log) = open().await else { return };
    let topic = topic(&log, "kept-back", 2).await;
    let short = |member: &str| ConsumerConfig {
        session_timeout: Duration::from_secs(6),
        ..ConsumerConfig::new("kept-back-group", member, Topics::one(&topic))
    };
    let mut a = log.consumer(short("a")).await.unwrap();
    assert_eq!(assigned(&mut a).await, 2);
    let mut b = log.consumer(short("b")).await.unwrap();
    let lost = within(async {
        loop {
            tokio::select! {
                events = a.poll(100) => {
                    if let Some(ConsumerEvent::Revoked(lost)) = events.unwrap().first() {
                        return lost[0].clone();
                    }
                }
                _ = b.poll(100) => {}
            }
        }
    })
    .await;
    // `a` is stuck with it from here on.
    assert_eq!(assigned(&mut b).await, 1);
    let late = a.commit(vec![OffsetCommit::new(&topic, lost.partition, 0)]).await;
    assert!(matches!(late, Err(LogError::NotAssigned { .. })), "{late:?}");
}

/// Who is to get a topic that another one still works on looks at the group meanwhile, and must not take it for forgotten.
#[tokio::test]
async fn a_topic_that_is_handed_over_slowly_goes_from_one_to_the_other_once() {
    let Some(log) = open().await else { return };
    let names = [topic(&log, "handed.a", 1).await, topic(&log, "handed.b", 1).await];
    let member = async |member: &str| {
        let config = ConsumerConfig {
            session_timeout: Duration::from_secs(30),
            ..ConsumerConfig::new("handed", member, Topics::Names(names.to_vec()))
        };
        log.consumer(config).await.unwrap()
    };
    let mut owner = member("owner").await;
    assert_eq!(assigned(&mut owner).await, 2);
    let mut heir = member("heir").await;
    let told = within(async {
        tokio::select! {
            told = owner.poll(100) => told.unwrap(),
            early = heir.poll(100) => panic!("{early:?}"),
        }
    })
    .await;
    assert!(
        matches!(&told[..], [ConsumerEvent::Revoked(lost)] if lost.len() == 1),
        "{told:?}"
    );
    let early = tokio::time::timeout(WORKED_ON, heir.poll(100)).await;
    assert!(early.is_err(), "{early:?}");
    let got = within(async {
        tokio::select! {
            events = owner.poll(100) => panic!("it is disturbed once more: {events:?}"),
            got = assigned(&mut heir) => got,
        }
    })
    .await;
    assert_eq!(got, 1);
}

#[tokio::test]
async fn a_follower_ends_with_its_topic() {
    let Some(log) = open().await else { return };
    let topic = topic(&log, "followed-to-the-end", 1).await;
    let mut follower = log.follow(&topic, Start::Earliest).await.unwrap();
    assert_eq!(within(follower.next()).await.unwrap(), FollowEvent::CaughtUp);
    log.delete_topic(&topic).await.unwrap();
    let ended = within(follower.next()).await;
    assert!(matches!(ended, Err(LogError::UnknownTopic { .. })), "{ended:?}");
}

#[tokio::test]
async fn retention_deletes_what_is_old_and_read_by_all_and_nothing_else() {
    const HOUR: Duration = Duration::from_secs(3600);
    let Some(log) = open().await else { return };
    let spec = |name: &str| TopicSpec::new(name, 1).retention(HOUR);
    let (topic, unread) = (spec("imageflow.kept-until-read"), spec("imageflow.never-read"));
    let foreign = spec("not-of-the-platform");
    let all = [topic.clone(), unread.clone(), foreign.clone()];
    log.ensure_topics(&all).await.unwrap();
    for spec in &all {
        let records = (0..10).map(|i| NewRecord::new(&spec.name).partition(0).value(format!("{i}")));
        log.produce(records.collect()).await.unwrap();
    }
    let names = Topics::Names(vec![topic.name.clone(), foreign.name.clone()]);
    let mut fast = join(&log, "retention-fast", "m", names.clone()).await;
    let mut slow = join(&log, "retention-slow", "m", names).await;
    let commit = async |reader: &mut Box<dyn Consumer>, offset: i64| {
        reader
            .commit(vec![
                OffsetCommit::new(&topic.name, 0, offset),
                OffsetCommit::new(&foreign.name, 0, 10),
            ])
            .await
            .unwrap();
    };
    for (reader, offset) in [(&mut fast, 10), (&mut slow, 4)] {
        assert_eq!(assigned(reader).await, 2);
        commit(reader, offset).await;
    }
    let low = async |name: &str| log.watermarks(name).await.unwrap()[0].low;
    let now_ms = imageflow_eventlog::system_clock()();
    log.run_retention(now_ms).await.unwrap();
    assert_eq!(low(&topic.name).await, 0, "all are young");
    let later = now_ms + 2 * i64::try_from(HOUR.as_millis()).unwrap();
    log.run_retention(later).await.unwrap();
    assert_eq!(low(&topic.name).await, 4, "the slow group has not read the fifth");
    assert_eq!(low(&unread.name).await, 0, "its reader may not have begun");
    commit(&mut slow, 10).await;
    log.run_retention(later).await.unwrap();
    assert_eq!(low(&topic.name).await, 10);
    assert_eq!(low(&foreign.name).await, 0);
}

#[tokio::test]
async fn a_changed_retention_is_applied() {
    let Some(log) = open().await else { return };
    let spec = TopicSpec::new("retained", 1);
    log.ensure_topics(std::slice::from_ref(&spec)).await.unwrap();
    let changed = spec.retention(Duration::from_secs(3600));
    log.ensure_topics(std::slice::from_ref(&changed)).await.unwrap();
    let kept = Cleanup::Delete {
        retention: Some(Duration::from_secs(3600)),
        retention_bytes: None,
    };
    let mut ticks = tokio::time::interval(Duration::from_millis(50));
    within(async {
        // The answer may come from before the change.
        loop {
            ticks.tick().await;
            let topics = log.topics().await.unwrap();
            if topics.iter().any(|t| t.name == "retained" && t.cleanup == kept) {
                return;
            }
        }
    })
    .await;
    // What is not about retention stayed: a record of the greatest size is more than a broker takes by default.
    let mut state = 1u32;
    let noise: Vec<u8> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    })
    .take(MAX_RECORD_BYTES)
    .collect();
    let largest = NewRecord::new("retained").value(noise);
    let at = log.produce(vec![largest.clone()]).await.unwrap();
    let read = log.read("retained", at[0].partition, at[0].offset, 1).await.unwrap();
    assert_eq!(read[0].value, largest.value);
}

#[tokio::test]
async fn offsets_of_an_open_transaction_are_waited_for_and_then_explained() {
    let Some(cluster) = shared().await else { return };
    let log = Kafka::open(config(&cluster, 1)).await.unwrap();
    let topic = topic(&log, "held", 1).await;
    let bootstrap = cluster.bootstrap();
    let client = |key: &str, value: &str| {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &bootstrap).set(key, value);
        config
    };
    let member: BaseConsumer = client("group.id", "holders").create().unwrap();
    // It does not end by itself before the test ends it.
    let producer: BaseProducer = client("transactional.id", "held")
        .set("transaction.timeout.ms", "300000")
        .create()
        .unwrap();
    let open = tokio::task::spawn_blocking(move || {
        producer.init_transactions(PATIENCE).unwrap();
        producer.begin_transaction().unwrap();
        let mut offsets = TopicPartitionList::new();
        offsets.add_partition_offset("held", 0, Offset::Offset(0)).unwrap();
        let group = member.group_metadata().unwrap();
        producer
            .send_offsets_to_transaction(&offsets, &group, PATIENCE)
            .unwrap();
        producer
    });
    let producer = open.await.unwrap();
    // Who waits only so long may get no answer at all from a broker that is busy; but never one without the offsets.
    let impatient = KafkaConfig {
        request_timeout: Duration::from_secs(3),
        ..config(&cluster, 1)
    };
    within(async {
        loop {
            let Ok(asking) = Kafka::open(impatient.clone()).await else {
                continue;
            };
            let error = asking.committed("holders", &topic).await.unwrap_err();
            asking.close().await;
            let told = std::error::Error::source(&error).map(ToString::to_string);
            println!("{error}: {told:?}");
            if told.is_some_and(|told| told.contains("with offsets of the group holders has not ended")) {
                return;
            }
        }
    })
    .await;
    // The one who waits is told when it ends.
    let end = tokio::task::spawn_blocking(move || producer.commit_transaction(PATIENCE).unwrap());
    let (found, ended) = tokio::join!(within(log.committed("holders", &topic)), end);
    ended.unwrap();
    assert_eq!(found.unwrap(), vec![(0, Some(OffsetCommit::new(&topic, 0, 0)))]);
    log.close().await;
}

/// Single records that come fast leave together, by a hand of their own.
#[tokio::test(flavor = "multi_thread")]
async fn what_gathers_is_written_whoever_waits_for_it() {
    const CALLS: usize = 200;
    let Some(log) = open().await else { return };
    let topic = topic(&log, "gathers", 3).await;
    let one = |n: usize| vec![NewRecord::new(&topic).key(n.to_string()).value("x")];
    // The topic is known from here on: a call waits for nothing before it gathers.
    log.produce(one(0)).await.unwrap();
    let begin = async || {
        let mut calls: Vec<_> = (0..CALLS).map(|n| log.produce(one(n))).collect();
        for call in &mut calls {
            assert!(poll!(call).is_pending());
        }
        calls
    };
    let written = async |log: &Kafka| {
        let marks = log.watermarks(&topic).await.unwrap();
        marks.iter().map(|m| usize::try_from(m.high).unwrap()).sum::<usize>()
    };
    let mut calls = begin().await;
    drop(calls.split_off(CALLS / 2));
    let done = within(join_all(calls)).await;
    assert!(done.iter().all(Result::is_ok), "{done:?}");
    // Nobody is told when those arrive that were left alone.
    within(async { while written(&log).await < CALLS + 1 {} }).await;
    let calls = begin().await;
    let (done, ()) = tokio::join!(within(join_all(calls)), within(log.close()));
    assert!(done.iter().all(Result::is_ok), "{done:?}");
    let again = open().await.unwrap();
    assert_eq!(written(&again).await, 2 * CALLS + 1);
    again.close().await;
}

#[tokio::test]
async fn what_was_handed_over_is_written_before_the_log_is_closed() {
    let Some(cluster) = shared().await else { return };
    // Long enough for a record to be still with the client when the log is closed.
    let slow = config(&cluster, 1).setting("producer.linger.ms", "5000");
    let log = Kafka::open(slow).await.unwrap();
    let topic = topic(&log, "handed-over", 1).await;
    let mut call = log.produce(vec![NewRecord::new(&topic).value("v")]);
    assert!(poll!(&mut call).is_pending());
    // Nobody waits for it any more.
    drop(call);
    within(log.close()).await;
    let again = open().await.unwrap();
    assert_eq!(again.watermarks(&topic).await.unwrap()[0].high, 1);
    again.close().await;
}

#[tokio::test]
async fn nothing_works_after_close() {
    let Some(log) = open().await else { return };
    let topic = topic(&log, "closed-log", 1).await;
    let mut consumer = join(&log, "closed-log-group", "m", Topics::one(&topic)).await;
    let mut producer = log.transactional("closed-log").await.unwrap();
    let waits = async { consumer.poll(1).await.map(drop).and(consumer.poll(1).await.map(drop)) };
    let (closed, ()) = tokio::join!(within(waits), within(log.close()));
    assert!(matches!(closed, Err(LogError::Closed)), "{closed:?}");
    assert!(matches!(log.topics().await, Err(LogError::Closed)));
    assert!(matches!(log.produce(Vec::new()).await, Err(LogError::Closed)));
    let refused = producer.commit(imageflow_eventlog::Transaction::default()).await;
    assert!(matches!(refused, Err(LogError::Closed)));
    log.close().await;
}

#[tokio::test]
async fn what_cannot_be_opened_says_why() {
    let unknown = Kafka::open(KafkaConfig::new("127.0.0.1:1").setting("no.such.setting", "1")).await;
    assert!(
        matches!(&unknown, Err(KafkaOpenError::Client(error)) if error.to_string().contains("no.such.setting")),
        "{:?}",
        unknown.err()
    );
    let nobody = KafkaConfig {
        request_timeout: Duration::from_secs(10),
        ..KafkaConfig::new("127.0.0.1:1")
    };
    match Kafka::open(nobody).await {
        Err(error @ KafkaOpenError::Unreachable { .. }) => {
            let said = error.to_string();
            assert!(said.contains("127.0.0.1:1") && said.contains("refused"), "{said}");
        }
        other => panic!("{:?}", other.err()),
    }
}
