//! The event log with a journal of what was reported and committed, in the order in which it happened.
use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use imageflow_eventlog::{
    Consumer, ConsumerConfig, ConsumerEvent, Embedded, EventLog, Follower, LogError, NewRecord, OffsetCommit, Position,
    Record, Result, Start, TopicPartition, TopicSpec, TransactionalProducer, Usage, Watermarks,
};
use imageflow_types::{RunEvent, RunId, topics};
use tokio::sync::watch;

use super::within;

/// What happened to the log.
#[derive(Debug, Clone)]
pub enum Entry {
    /// A report waits because the test holds it.
    Holding(RunId),
    /// A report is durable.
    Reported(Box<RunEvent>),
    /// Something was to be written into a topic that takes nothing.
    Shut,
    /// So many records were read of the topic of delays.
    Delays(usize),
    /// The report of a step's end panicked.
    Panicked(RunId),
    /// A member of the dispatchers was told that it loses these.
    Revoked(Vec<TopicPartition>),
    /// Somebody asked what a topic holds, and was told or not.
    Counted(bool),
    /// Offsets are about to be stored.
    Committing(Vec<OffsetCommit>),
    /// Offsets are stored.
    Committed(Vec<OffsetCommit>),
}

type Journal = watch::Sender<Vec<Entry>>;

pub struct Spy {
    pub inner: Arc<Embedded>,
    journal: Arc<Journal>,
    held: watch::Sender<HashSet<RunId>>,
    panics: Mutex<HashSet<RunId>>,
    refusals: AtomicU32,
    faults: Arc<Faults>,
}

/// What fails, and how often yet.
#[derive(Default)]
struct Faults {
    topics: AtomicU32,
    watermarks: AtomicU32,
    polls: AtomicU32,
    lost: AtomicBool,
    /// Longest metadata of a commit, when that is limited.
    metadata: Mutex<Option<usize>>,
    /// Topic that takes nothing.
    shut: Mutex<Option<String>>,
    /// Topics of which it is never told what they hold.
    silent: Mutex<HashSet<String>>,
}

/// An error while there are some left.
fn fail(left: &AtomicU32) -> Result<()> {
    let taken = left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
    match taken {
        Ok(_) => Err(LogError::Storage {
            context: "a test",
            source: "refused by the test".into(),
        }),
        Err(_) => Ok(()),
    }
}

impl Spy {
    pub fn new(inner: Arc<Embedded>) -> Arc<Self> {
        Arc::new(Self {
            inner,
            journal: Arc::new(watch::channel(Vec::new()).0),
            held: watch::channel(HashSet::new()).0,
            panics: Mutex::default(),
            refusals: AtomicU32::new(0),
            faults: Arc::default(),
        })
    }

    /// Reports of this run wait until they are released.
    pub fn hold(&self, run: &RunId) {
        self.held.send_modify(|held| {
            held.insert(run.clone());
        });
    }

    pub fn release(&self, run: &RunId) {
        self.held.send_modify(|held| {
            held.remove(run);
        });
    }

    /// Reports of how a step of this run ended panic.
    pub fn panic_at(&self, run: &RunId) {
        self.panics.lock().unwrap().insert(run.clone());
    }

    /// The next so many writes of reports of how a step ended fail.
    pub fn refuse(&self, times: u32) {
        self.refusals.store(times, Ordering::SeqCst);
    }

    /// The next so many checks of topics, counts of what topics hold, and looks for records fail.
    pub fn fail(&self, topics: u32, watermarks: u32, polls: u32) {
        self.faults.topics.store(topics, Ordering::SeqCst);
        self.faults.watermarks.store(watermarks, Ordering::SeqCst);
        self.faults.polls.store(polls, Ordering::SeqCst);
    }

    /// This topic takes nothing.
    pub fn shut(&self, topic: Option<&str>) {
        *self.faults.shut.lock().unwrap() = topic.map(str::to_owned);
    }

    /// Nobody is told what this topic holds.
    pub fn silence(&self, topic: String) {
        self.faults.silent.lock().unwrap().insert(topic);
    }

    /// Commits take no longer metadata.
    pub fn limit_metadata(&self, bytes: usize) {
        *self.faults.metadata.lock().unwrap() = Some(bytes);
    }

    /// Commits are refused, as when all partitions went to others.
    pub fn lose(&self, lost: bool) {
        self.faults.lost.store(lost, Ordering::SeqCst);
    }

    /// Waits until so many partitions of a topic were revoked.
    pub async fn revoked(&self, topic: &str, count: usize) -> Vec<u32> {
        self.until("partitions are revoked", |journal| {
            let revoked = journal.iter().filter_map(|entry| match entry {
                Entry::Revoked(revoked) => Some(revoked),
                _ => None,
            });
            let revoked: Vec<u32> = revoked
                .flatten()
                .filter(|at| at.topic == topic)
                .map(|at| at.partition)
                .collect();
            (revoked.len() >= count).then_some(revoked)
        })
        .await
    }

    pub fn journal(&self) -> Vec<Entry> {
        self.journal.borrow().clone()
    }

    /// Waits until `find` finds it in the journal.
    pub async fn until<T>(&self, what: &str, find: impl Fn(&[Entry]) -> Option<T>) -> T {
        let mut journal = self.journal.subscribe();
        within(what, async {
            loop {
                let found = find(&journal.borrow_and_update());
                match found {
                    Some(found) => return found,
                    None => journal.changed().await.unwrap(),
                }
            }
        })
        .await
    }

    /// All reports of a run so far but that steps were started, which any may be that takes long on a machine that is busy.
    pub fn reports(&self, run: &RunId) -> Vec<RunEvent> {
        let mut reports = self.all_reports(run);
        reports.retain(|event| !matches!(event, RunEvent::StageStarted { .. }));
        reports
    }

    /// All reports of a run so far.
    pub fn all_reports(&self, run: &RunId) -> Vec<RunEvent> {
        reports(&self.journal.borrow(), run)
    }

    /// Waits for the report that ends the run's stage.
    pub async fn end(&self, run: &RunId) -> RunEvent {
        self.until(&format!("the end of {run}"), |journal| {
            reports(journal, run).into_iter().find(ends)
        })
        .await
    }

    /// Waits until the group has committed this offset of the partition.
    pub async fn committed(&self, topic: &str, partition: u32, offset: i64) -> OffsetCommit {
        self.until(&format!("commit of offset {offset}"), |journal| {
            commits(journal, topic, partition)
                .into_iter()
                .find(|c| c.offset >= offset)
        })
        .await
    }

    /// What the group has committed of a partition, as the log keeps it.
    pub async fn kept(&self, topic: &str, partition: u32) -> Option<OffsetCommit> {
        let all = self.inner.committed(topics::GROUP_DISPATCHER, topic).await.unwrap();
        all.into_iter()
            .find(|(p, _)| *p == partition)
            .and_then(|(_, commit)| commit)
    }
}

/// Whether it says how a step ended.
fn ends(event: &RunEvent) -> bool {
    matches!(event, RunEvent::StageCompleted { .. } | RunEvent::StageFailed { .. })
}

pub fn reports(journal: &[Entry], run: &RunId) -> Vec<RunEvent> {
    let reported = journal.iter().filter_map(|entry| match entry {
        Entry::Reported(event) if event.run() == run => Some(RunEvent::clone(event)),
        _ => None,
    });
    reported.collect()
}

/// Stored offsets of a partition, in their order.
pub fn commits(journal: &[Entry], topic: &str, partition: u32) -> Vec<OffsetCommit> {
    let committed = journal.iter().filter_map(|entry| match entry {
        Entry::Committed(offsets) => offsets
            .iter()
            .find(|o| o.topic == topic && o.partition == partition)
            .cloned(),
        _ => None,
    });
    committed.collect()
}

#[async_trait]
impl EventLog for Spy {
    async fn ensure_topics(&self, specs: &[TopicSpec]) -> Result<()> {
        fail(&self.faults.topics)?;
        self.inner.ensure_topics(specs).await
    }
    async fn delete_topic(&self, name: &str) -> Result<()> {
        self.inner.delete_topic(name).await
    }
    async fn topics(&self) -> Result<Vec<TopicSpec>> {
        self.inner.topics().await
    }
    async fn produce(&self, records: Vec<NewRecord>) -> Result<Vec<Position>> {
        let shut = self.faults.shut.lock().unwrap().clone();
        if records.iter().any(|r| Some(&r.topic) == shut.as_ref()) {
            self.journal.send_modify(|journal| journal.push(Entry::Shut));
            fail(&AtomicU32::new(1))?;
        }
        let events: Vec<RunEvent> = records
            .iter()
            .filter(|r| r.topic == topics::RUN_EVENTS)
            .filter_map(|r| serde_json::from_slice(r.value.as_ref()?).ok())
            .collect();
        for event in &events {
            let panics = ends(event) && self.panics.lock().unwrap().contains(event.run());
            if panics {
                let panicked = Entry::Panicked(event.run().clone());
                self.journal.send_modify(|journal| journal.push(panicked));
                panic!("the test has the report panic");
            }
            let mut held = self.held.subscribe();
            if held.borrow_and_update().contains(event.run()) {
                let holding = Entry::Holding(event.run().clone());
                self.journal.send_modify(|journal| journal.push(holding));
                let released = held.wait_for(|held| !held.contains(event.run())).await;
                released.map_err(|_| LogError::Closed)?;
            }
        }
        if events.iter().any(ends) {
            fail(&self.refusals)?;
        }
        let positions = self.inner.produce(records).await?;
        self.journal
            .send_modify(|journal| journal.extend(events.into_iter().map(|event| Entry::Reported(Box::new(event)))));
        Ok(positions)
    }
    async fn consumer(&self, config: ConsumerConfig) -> Result<Box<dyn Consumer>> {
        let inner = self.inner.consumer(config).await?;
        let (journal, faults) = (self.journal.clone(), self.faults.clone());
        Ok(Box::new(SpyConsumer { inner, journal, faults }))
    }
    async fn transactional(&self, id: &str) -> Result<Box<dyn TransactionalProducer>> {
        self.inner.transactional(id).await
    }
    async fn committed(&self, group: &str, topic: &str) -> Result<Vec<(u32, Option<OffsetCommit>)>> {
        self.inner.committed(group, topic).await
    }
    async fn watermarks(&self, topic: &str) -> Result<Vec<Watermarks>> {
        let counts = fail(&self.faults.watermarks);
        self.journal
            .send_modify(|journal| journal.push(Entry::Counted(counts.is_ok())));
        counts?;
        let silent = self.faults.silent.lock().unwrap().contains(topic);
        if silent {
            std::future::pending::<()>().await;
        }
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
    inner: Box<dyn Consumer>,
    journal: Arc<Journal>,
    faults: Arc<Faults>,
}

#[async_trait]
impl Consumer for SpyConsumer {
    async fn poll(&mut self, max: usize) -> Result<Vec<ConsumerEvent>> {
        fail(&self.faults.polls)?;
        let events = self.inner.poll(max).await?;
        for event in &events {
            let entry = match event {
                ConsumerEvent::Revoked(revoked) => Entry::Revoked(revoked.clone()),
                ConsumerEvent::Records(records) if records[0].topic == topics::DELAY => Entry::Delays(records.len()),
                _ => continue,
            };
            self.journal.send_modify(|journal| journal.push(entry));
        }
        Ok(events)
    }
    async fn commit(&mut self, offsets: Vec<OffsetCommit>) -> Result<()> {
        self.journal
            .send_modify(|journal| journal.push(Entry::Committing(offsets.clone())));
        let limit = *self.faults.metadata.lock().unwrap();
        let size = offsets.iter().map(|o| o.metadata.len()).max().unwrap_or_default();
        if let Some(limit) = limit.filter(|limit| size > *limit) {
            return Err(LogError::MetadataTooLarge { size, limit });
        }
        if self.faults.lost.load(Ordering::SeqCst) {
            return Err(LogError::NotAssigned {
                group: topics::GROUP_DISPATCHER.to_owned(),
                topic: offsets[0].topic.clone(),
                partition: offsets[0].partition,
            });
        }
        self.inner.commit(offsets.clone()).await?;
        self.journal
            .send_modify(|journal| journal.push(Entry::Committed(offsets)));
        Ok(())
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
