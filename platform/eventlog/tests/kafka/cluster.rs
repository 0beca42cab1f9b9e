//! Three nodes, of which one is killed.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use futures::future::try_join_all;
use imageflow_eventlog::{
    Consumer, ConsumerConfig, ConsumerEvent, EventLog, Kafka, NewRecord, OffsetCommit, Record, TopicSpec, Topics,
};
use imageflow_servers::kafka::Cluster;

use super::subject::config;

const KEYS: u32 = 50;
/// A record of each key is written every so often: at this rate single records gather. For so many before and after the kill.
const EVERY: Duration = Duration::from_millis(25);
const BEFORE: u32 = 1000;
const AFTER: u32 = 3000;
/// A broker is missed after 9 s; then leaders are elected and clients find them.
const PATIENCE: Duration = Duration::from_secs(120);

/// What a reader has seen, each record once.
#[derive(Default)]
struct Seen {
    next: HashMap<(String, u32), i64>,
    by_key: HashMap<String, Vec<u32>>,
    repeated: usize,
    total: usize,
}

impl Seen {
    /// Notes a record and returns what may be committed after it.
    fn note(&mut self, record: &Record) -> OffsetCommit {
        let next = self.next.entry((record.topic.clone(), record.partition)).or_insert(0);
        if record.offset < *next {
            // At least once: after a rebalance what was not committed comes again.
            self.repeated += 1;
        } else {
            *next = record.offset + 1;
            self.total += 1;
            let key = String::from_utf8(record.key.as_deref().unwrap().to_vec()).unwrap();
            let value = String::from_utf8(record.value.as_deref().unwrap().to_vec()).unwrap();
            self.by_key.entry(key).or_default().push(value.parse().unwrap());
        }
        OffsetCommit::new(&record.topic, record.partition, *next)
    }
}

/// Writes until told to stop; returns how many were acknowledged, and the longest wait for one.
async fn produce(log: Arc<Kafka>, topic: String, written: Arc<AtomicU32>, stop: Arc<AtomicBool>) -> Duration {
    let mut longest = Duration::ZERO;
    let mut round = 0;
    // A pace and no wait: the load is spread over the time in which brokers die.
    let mut pace = tokio::time::interval(EVERY);
    pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while !stop.load(Ordering::Acquire) {
        pace.tick().await;
        let begun = Instant::now();
        let calls = (0..KEYS).map(|key| {
            let record = NewRecord::new(&topic).key(key.to_string()).value(round.to_string());
            log.produce(vec![record])
        });
        // Each by a call of its own, and all at once.
        try_join_all(calls).await.unwrap();
        longest = longest.max(begun.elapsed());
        written.fetch_add(KEYS, Ordering::AcqRel);
        round += 1;
    }
    longest
}

async fn poll(consumer: &mut Box<dyn Consumer>, seen: &mut Seen) {
    for event in consumer.poll(500).await.unwrap() {
        let ConsumerEvent::Records(records) = event else {
            continue;
        };
        let mut last = HashMap::new();
        for record in &records {
            let commit = seen.note(record);
            last.insert((commit.topic.clone(), commit.partition), commit);
        }
        // A commit may fail while a broker is away; the next one covers it.
        let _later = consumer.commit(last.into_values().collect()).await;
    }
}

async fn until(consumer: &mut Box<dyn Consumer>, seen: &mut Seen, what: &str, done: impl Fn(&Seen) -> bool) {
    let poll = async {
        while !done(seen) {
            // The condition may change without a record.
            let _ = tokio::time::timeout(Duration::from_millis(100), poll(consumer, seen)).await;
        }
    };
    let waited = tokio::time::timeout(PATIENCE, poll).await;
    assert!(
        waited.is_ok(),
        "{what}: {} records were seen in {PATIENCE:?}",
        seen.total
    );
}

/// Which broker leads is not told, so each one is killed and comes back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_or_reordered_when_brokers_are_killed() {
    let Some(cluster) = Cluster::for_test(3).await else {
        return;
    };
    let log = Kafka::open(config(&cluster, 3)).await.unwrap();
    let topic = "killed".to_owned();
    log.ensure_topics(&[TopicSpec::new(&topic, 6)]).await.unwrap();
    let member = ConsumerConfig::new("killed-group", "m", Topics::one(&topic));
    let mut consumer = log.consumer(member).await.unwrap();
    let (written, stop) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicBool::new(false)));
    let writer = tokio::spawn(produce(log.clone(), topic.clone(), written.clone(), stop.clone()));
    let mut seen = Seen::default();
    for node in 0..3 {
        let begun = written.load(Ordering::Acquire);
        until(&mut consumer, &mut seen, "before the kill", |_| {
            written.load(Ordering::Acquire) > begun + BEFORE
        })
        .await;
        cluster.kill(node).unwrap();
        until(&mut consumer, &mut seen, "after the kill", |_| {
            written.load(Ordering::Acquire) > begun + BEFORE + AFTER
        })
        .await;
        cluster.restart(node).await.unwrap();
    }
    stop.store(true, Ordering::Release);
    let longest = writer.await.unwrap();
    let total = written.load(Ordering::Acquire) as usize;
    until(&mut consumer, &mut seen, "the rest", |seen| seen.total >= total).await;
    assert_eq!(seen.total, total, "each acknowledged record is there once");
    for (key, rounds) in &seen.by_key {
        assert!(
            rounds.iter().copied().eq(0..rounds.len() as u32),
            "key {key} is out of order: {rounds:?}"
        );
    }
    println!(
        "{total} records, {} repeated, longest wait for one {longest:?}",
        seen.repeated
    );
    consumer.close().await.unwrap();
    log.close().await;
}
