//! Members and views that the cases share.

use std::collections::BTreeMap;
use std::future::Future;
use std::time::Duration;

use super::Subject;
use crate::{
    Assignment, Consumer, ConsumerConfig, ConsumerEvent, FollowEvent, Follower, NewRecord, OffsetCommit, Record,
    TopicPartition, TopicSpec, Topics,
};

/// Longer than a rebalance of a broker takes, shorter than anyone's patience.
const PATIENCE: Duration = Duration::from_secs(60);

pub async fn within<T>(what: &str, work: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, work).await {
        Ok(value) => value,
        Err(_) => fail(&format!("{what}: nothing happened in {PATIENCE:?}")),
    }
}

#[expect(clippy::panic, reason = "this module is test code: a failed case ends its test")]
pub fn fail(message: &str) -> ! {
    panic!("{message}")
}

/// A test's `unwrap`, for code that is compiled as a library.
pub trait Must<T> {
    fn must(self, what: &str) -> T;
}

impl<T, E: std::fmt::Debug> Must<T> for Result<T, E> {
    fn must(self, what: &str) -> T {
        self.unwrap_or_else(|e| fail(&format!("{what}: {e:?}")))
    }
}

pub fn name(subject: &dyn Subject, name: &str) -> String {
    format!("{}{name}", subject.prefix())
}

/// Creates a topic and returns its full name.
pub async fn topic(subject: &dyn Subject, short: &str, partitions: u32) -> String {
    let name = name(subject, short);
    subject
        .log()
        .ensure_topics(&[TopicSpec::new(&name, partitions)])
        .await
        .must("ensure_topics");
    name
}

pub fn record(topic: &str, key: &str, value: &str) -> NewRecord {
    NewRecord::new(topic).key(key.to_owned()).value(value.to_owned())
}

pub fn value(record: &Record) -> String {
    String::from_utf8_lossy(record.value.as_deref().unwrap_or_default()).into_owned()
}

pub fn values(records: &[Record]) -> Vec<String> {
    records.iter().map(value).collect()
}

/// A member of a group that remembers what it was told.
pub struct Member {
    pub consumer: Box<dyn Consumer>,
    pub held: BTreeMap<TopicPartition, Option<OffsetCommit>>,
    pub records: Vec<Record>,
    pub revoked: Vec<TopicPartition>,
}

impl Member {
    pub async fn join(subject: &dyn Subject, group: &str, member: &str, topics: Topics) -> Self {
        Self::join_as(subject, ConsumerConfig::new(name(subject, group), member, topics)).await
    }

    pub async fn join_as(subject: &dyn Subject, config: ConsumerConfig) -> Self {
        let consumer = subject.log().consumer(config).await.must("consumer");
        Self {
            consumer,
            held: BTreeMap::new(),
            records: Vec::new(),
            revoked: Vec::new(),
        }
    }

    pub fn note(&mut self, events: Vec<ConsumerEvent>) {
        for event in events {
            match event {
                ConsumerEvent::Assigned(assigned) => {
                    for Assignment {
                        topic,
                        partition,
                        committed,
                    } in assigned
                    {
                        self.held.insert(TopicPartition { topic, partition }, committed);
                    }
                }
                ConsumerEvent::Revoked(lost) => {
                    for tp in lost {
                        self.held.remove(&tp);
                        self.revoked.push(tp);
                    }
                }
                ConsumerEvent::Records(records) => {
                    for record in &records {
                        let tp = TopicPartition::new(&record.topic, record.partition);
                        assert!(
                            self.held.contains_key(&tp),
                            "a record of {tp:?}, which it does not hold"
                        );
                    }
                    self.records.extend(records);
                }
            }
        }
    }

    pub async fn poll(&mut self) {
        let events = self.consumer.poll(100).await.must("poll");
        assert!(!events.is_empty(), "poll returned without an event");
        self.note(events);
    }

    pub async fn until(&mut self, what: &str, done: impl Fn(&Self) -> bool) {
        within(what, async {
            while !done(self) {
                self.poll().await;
            }
        })
        .await;
    }

    pub async fn commit(&mut self, commit: OffsetCommit) {
        self.consumer.commit(vec![commit]).await.must("commit");
    }
}

/// Polls both, as two processes would, until it is done.
pub async fn until_both(a: &mut Member, b: &mut Member, what: &str, done: impl Fn(&Member, &Member) -> bool) {
    within(what, async {
        while !done(a, b) {
            tokio::select! {
                events = a.consumer.poll(100) => a.note(events.must("poll of a")),
                events = b.consumer.poll(100) => b.note(events.must("poll of b")),
            }
        }
    })
    .await;
}

/// The next records of a follower up to `CaughtUp`.
pub async fn catch_up(follower: &mut dyn Follower) -> Vec<Record> {
    let mut all = Vec::new();
    within("catching up", async {
        loop {
            match follower.next().await.must("next") {
                FollowEvent::Records(records) => all.extend(records),
                FollowEvent::CaughtUp => return,
            }
        }
    })
    .await;
    all
}

/// The next `count` records of a follower that has caught up.
pub async fn follow(follower: &mut dyn Follower, count: usize) -> Vec<Record> {
    let mut all = Vec::new();
    within("following", async {
        while all.len() < count {
            match follower.next().await.must("next") {
                FollowEvent::Records(records) => all.extend(records),
                FollowEvent::CaughtUp => fail("caught up twice"),
            }
        }
    })
    .await;
    all
}
