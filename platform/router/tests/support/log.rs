//! The event log with a journal of the transactions that became durable.
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use async_trait::async_trait;
use imageflow_eventlog::{
    Consumer, ConsumerConfig, ConsumerEvent, Embedded, EventLog, Follower, LogError, NewRecord, OffsetCommit, Position,
    Record, Result, Start, TopicSpec, Transaction, TransactionalProducer, Usage, Watermarks,
};
use imageflow_types::work::DeadLetter;
use imageflow_types::{RunState, StepRequest, topics};
use serde::de::DeserializeOwned;
use tokio::sync::{Mutex, watch};

use super::within;

type Journal = watch::Sender<Vec<Transaction>>;

pub struct Spy {
    pub inner: Arc<Embedded>,
    journal: Arc<Journal>,
    /// Held while a transaction is committed and not in the journal yet.
    noting: Arc<Mutex<()>>,
    refusals: Arc<AtomicU32>,
    refused: Arc<watch::Sender<u32>>,
    broken: Arc<std::sync::Mutex<Option<&'static str>>>,
    unheard: Arc<AtomicU32>,
    /// Calls that fail at their next turn.
    failing: Arc<std::sync::Mutex<Vec<&'static str>>>,
    /// Records handed out to consumers.
    given: Arc<watch::Sender<usize>>,
}

impl Spy {
    pub fn new(inner: Arc<Embedded>) -> Arc<Self> {
        Arc::new(Self {
            inner,
            journal: Arc::new(watch::channel(Vec::new()).0),
            noting: Arc::default(),
            refusals: Arc::default(),
            refused: Arc::new(watch::channel(0).0),
            broken: Arc::default(),
            unheard: Arc::default(),
            failing: Arc::default(),
            given: Arc::new(watch::channel(0).0),
        })
    }

    /// Waits until so many records were handed out.
    pub async fn given(&self, count: usize) {
        let mut given = self.given.subscribe();
        let seen = within("a record is read", given.wait_for(|n| *n >= count)).await;
        drop(seen.unwrap());
    }

    /// Of the next so many transactions it is not heard that they were committed.
    pub fn keep_from(&self, times: u32) {
        self.unheard.store(times, Ordering::SeqCst);
    }

    /// Each of these calls fails once.
    pub fn fail(&self, calls: &[&'static str]) {
        self.failing.lock().unwrap().extend(calls);
    }

    /// Calls that are still to fail.
    pub fn failing(&self) -> usize {
        self.failing.lock().unwrap().len()
    }

    /// The next so many transactions fail.
    pub fn refuse(&self, times: u32) {
        self.refusals.store(times, Ordering::SeqCst);
    }

    /// From now on this topic takes nothing; none takes all again.
    pub fn breaks(&self, topic: Option<&'static str>) {
        *self.broken.lock().unwrap() = topic;
    }

    /// Waits until so many transactions have failed.
    pub async fn refused(&self, times: u32) {
        let mut refused = self.refused.subscribe();
        let seen = within("a transaction that fails", refused.wait_for(|n| *n >= times)).await;
        drop(seen.unwrap());
    }

    pub fn transactions(&self) -> Vec<Transaction> {
        self.journal.borrow().clone()
    }

    /// Waits for a transaction.
    pub async fn until(&self, what: &str, wanted: impl Fn(&Transaction) -> bool) -> Transaction {
        let mut journal = self.journal.subscribe();
        within(what, async {
            loop {
                let found = journal.borrow_and_update().iter().find(|t| wanted(t)).cloned();
                match found {
                    Some(found) => return found,
                    None => journal.changed().await.unwrap(),
                }
            }
        })
        .await
    }

    /// Waits until all that was given is taken in: committed to the ends of both topics that the router reads.
    pub async fn settled(&self) {
        let mut journal = self.journal.subscribe();
        within("the router catches up", async {
            loop {
                journal.borrow_and_update();
                let noted = self.noting.lock().await;
                let mut lag = 0;
                for topic in [topics::EVENTS, topics::RUN_EVENTS] {
                    lag += self.inner.lag(topics::GROUP_ROUTER, topic).await.unwrap();
                }
                if lag == 0 {
                    return;
                }
                drop(noted);
                journal.changed().await.unwrap();
            }
        })
        .await;
    }

    /// Everything in a topic, by partition and offset.
    pub async fn all(&self, topic: &str) -> Vec<Record> {
        let mut all = Vec::new();
        for marks in self.inner.watermarks(topic).await.unwrap() {
            all.extend(self.inner.read(topic, marks.partition, marks.low, 1_000).await.unwrap());
        }
        all
    }

    /// All work for a function.
    pub async fn work(&self, function: &str) -> Vec<StepRequest> {
        let records = self.all(&format!("{}{function}", topics::WORK_PREFIX)).await;
        records.iter().map(|r| parse(r.value.as_ref())).collect()
    }

    /// The last state of each run; the topic may still hold older ones.
    pub async fn runs(&self) -> Vec<RunState> {
        let mut last = std::collections::BTreeMap::new();
        for record in self.all(topics::RUNS).await {
            let state: RunState = parse(record.value.as_ref());
            last.insert(state.run.clone(), state);
        }
        last.into_values().collect()
    }

    pub async fn dead_letters(&self) -> Vec<DeadLetter> {
        let records = self.all(topics::DEAD_LETTERS).await;
        records.iter().map(|r| parse(r.value.as_ref())).collect()
    }
}

/// Fails when it is the turn of this call.
fn check(failing: &std::sync::Mutex<Vec<&'static str>>, call: &'static str) -> Result<()> {
    let mut failing = failing.lock().unwrap();
    let Some(turn) = failing.iter().position(|one| *one == call) else {
        return Ok(());
    };
    failing.remove(turn);
    let source = "the brokers are away".into();
    Err(LogError::Storage { context: call, source })
}

/// The value of a record.
pub fn parse<T: DeserializeOwned>(value: Option<&bytes::Bytes>) -> T {
    serde_json::from_slice(value.unwrap()).unwrap()
}

/// The values that a transaction writes to a topic.
pub fn written<T: DeserializeOwned>(transaction: &Transaction, topic: &str) -> Vec<T> {
    let records = transaction.records.iter().filter(|r| r.topic == topic);
    records.map(|r| parse(r.value.as_ref())).collect()
}

#[async_trait]
impl EventLog for Spy {
    async fn ensure_topics(&self, specs: &[TopicSpec]) -> Result<()> {
        check(&self.failing, "ensure_topics")?;
        self.inner.ensure_topics(specs).await
    }
    async fn delete_topic(&self, name: &str) -> Result<()> {
        self.inner.delete_topic(name).await
    }
    async fn topics(&self) -> Result<Vec<TopicSpec>> {
        self.inner.topics().await
    }
    async fn produce(&self, records: Vec<NewRecord>) -> Result<Vec<Position>> {
        self.inner.produce(records).await
    }
    async fn consumer(&self, config: ConsumerConfig) -> Result<Box<dyn Consumer>> {
        check(&self.failing, "consumer")?;
        Ok(Box::new(SpyConsumer {
            failing: self.failing.clone(),
            inner: self.inner.consumer(config).await?,
            given: self.given.clone(),
        }))
    }
    async fn transactional(&self, id: &str) -> Result<Box<dyn TransactionalProducer>> {
        check(&self.failing, "transactional")?;
        Ok(Box::new(SpyProducer {
            inner: self.inner.transactional(id).await?,
            journal: self.journal.clone(),
            noting: self.noting.clone(),
            refusals: self.refusals.clone(),
            refused: self.refused.clone(),
            broken: self.broken.clone(),
            unheard: self.unheard.clone(),
        }))
    }
    async fn committed(&self, group: &str, topic: &str) -> Result<Vec<(u32, Option<OffsetCommit>)>> {
        self.inner.committed(group, topic).await
    }
    async fn watermarks(&self, topic: &str) -> Result<Vec<Watermarks>> {
        self.inner.watermarks(topic).await
    }
    async fn lag(&self, group: &str, topic: &str) -> Result<u64> {
        self.inner.lag(group, topic).await
    }
    async fn delete_group(&self, group: &str) -> Result<()> {
        self.inner.delete_group(group).await
    }
    async fn read(&self, topic: &str, partition: u32, from: i64, max: usize) -> Result<Vec<Record>> {
        self.inner.read(topic, partition, from, max).await
    }
    async fn follow(&self, topic: &str, from: Start) -> Result<Box<dyn Follower>> {
        self.inner.follow(topic, from).await
    }
    async fn usage(&self) -> Result<Usage> {
        self.inner.usage().await
    }
}

struct SpyConsumer {
    failing: Arc<std::sync::Mutex<Vec<&'static str>>>,
    inner: Box<dyn Consumer>,
    given: Arc<watch::Sender<usize>>,
}

#[async_trait]
impl Consumer for SpyConsumer {
    async fn poll(&mut self, max: usize) -> Result<Vec<ConsumerEvent>> {
        check(&self.failing, "poll")?;
        let events = self.inner.poll(max).await?;
        for event in &events {
            if let ConsumerEvent::Records(records) = event {
                self.given.send_modify(|n| *n += records.len());
            }
        }
        Ok(events)
    }
    async fn commit(&mut self, offsets: Vec<OffsetCommit>) -> Result<()> {
        self.inner.commit(offsets).await
    }
    fn position(&self, topic: &str, partition: u32) -> Option<i64> {
        self.inner.position(topic, partition)
    }
    fn pause(&mut self, topic: &str, partition: u32) {
        self.inner.pause(topic, partition);
    }
    fn resume(&mut self, topic: &str, partition: u32) {
        self.inner.resume(topic, partition);
    }
    async fn close(self: Box<Self>) -> Result<()> {
        self.inner.close().await
    }
}

struct SpyProducer {
    inner: Box<dyn TransactionalProducer>,
    journal: Arc<Journal>,
    noting: Arc<Mutex<()>>,
    refusals: Arc<AtomicU32>,
    refused: Arc<watch::Sender<u32>>,
    broken: Arc<std::sync::Mutex<Option<&'static str>>>,
    unheard: Arc<AtomicU32>,
}

/// Whether one of those that were asked for was left, which is one less now.
fn one_of(count: &AtomicU32) -> bool {
    let left = |left: u32| left.checked_sub(1);
    count.fetch_update(Ordering::SeqCst, Ordering::SeqCst, left).is_ok()
}

#[async_trait]
impl TransactionalProducer for SpyProducer {
    async fn commit(&mut self, transaction: Transaction) -> Result<Vec<Position>> {
        let broken = *self.broken.lock().unwrap();
        let breaks = |topic| transaction.records.iter().any(|r| r.topic == topic);
        if one_of(&self.refusals) || broken.is_some_and(breaks) {
            self.refused.send_modify(|n| *n += 1);
            return Err(LogError::Storage {
                context: "a test",
                source: "refused by the test".into(),
            });
        }
        let noting = self.noting.lock().await;
        let positions = self.inner.commit(transaction.clone()).await?;
        self.journal.send_modify(|journal| journal.push(transaction));
        drop(noting);
        if one_of(&self.unheard) {
            return Err(LogError::Unresolved {
                id: "router".to_owned(),
                source: "kept from it by the test".into(),
            });
        }
        Ok(positions)
    }
}
