//! The event log on a local disk: one database, one writer with group commit, readers woken by it.

mod codec;
mod consumer;
mod core;
mod follower;
mod groups;
mod maintenance;
mod state;
mod store;
mod writer;

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use self::consumer::EmbeddedConsumer;
use self::core::Core;
use self::follower::EmbeddedFollower;
use self::maintenance::{Chore, ChoreError, millis};
use self::writer::{Committer, Request, Write, Writer};
use crate::error::{LogError, Result};
use crate::log::{Consumer, EventLog, Follower, TransactionalProducer};
use crate::types::{
    ConsumerConfig, NewRecord, OffsetCommit, Position, Record, Start, TopicSpec, Topics, Transaction, Usage,
    Watermarks, validate_topic_name,
};

const RETENTION_PERIOD: Duration = Duration::from_secs(60);
/// Between two runs of retention while the log is nearly full.
const PRESSED_PAUSE: Duration = Duration::from_millis(250);

/// Milliseconds since 1970.
pub type Clock = Arc<dyn Fn() -> i64 + Send + Sync>;

/// The clock of the machine.
#[must_use]
pub fn system_clock() -> Clock {
    Arc::new(|| {
        let since = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap_or_default();
        millis(since)
    })
}

/// How the embedded log is opened.
#[derive(Clone)]
pub struct EmbeddedConfig {
    /// The folder; it is created.
    pub path: PathBuf,
    /// Bytes of records above which produce fails; `None` for no limit of its own. Above three fifths of it, records
    /// that every group has committed past go before their retention is over.
    pub limit_bytes: Option<u64>,
    /// Free bytes on the disk below which produce fails, so that commits and clean-up still work.
    pub reserve_bytes: u64,
    /// Whether writes are synced to the disk before they are acknowledged. `false` is for benchmarks only.
    pub sync: bool,
    /// How long a tombstone stays for followers that are behind.
    pub tombstone_retention: Duration,
    /// Where timestamps come from.
    pub clock: Clock,
}

impl EmbeddedConfig {
    /// The configuration that is right for everything but tests and benchmarks.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            limit_bytes: None,
            // What the store itself may still write: a journal, and record buffers on their way to tables.
            reserve_bytes: 128 * 1024 * 1024,
            sync: true,
            tombstone_retention: Duration::from_secs(24 * 3600),
            clock: system_clock(),
        }
    }
}

/// What a retention run did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RetentionReport {
    /// Records deleted.
    pub records: u64,
    /// Bytes they held.
    pub bytes: u64,
}

/// What the log, its consumers and its followers share.
struct Handle {
    core: Arc<Core>,
    queue: mpsc::Sender<Request>,
    ids: AtomicU64,
}

impl Handle {
    fn next_id(&self) -> u64 {
        self.ids.fetch_add(1, Ordering::Relaxed)
    }

    async fn write(
        &self,
        records: Vec<NewRecord>,
        offsets: Vec<OffsetCommit>,
        group: String,
        committer: Committer,
        producer: Option<(String, u64)>,
    ) -> Result<Vec<Position>> {
        let (reply, answer) = oneshot::channel();
        let write = Write {
            records,
            offsets,
            group,
            committer,
            producer,
            reply,
        };
        self.queue
            .send(Request::Write(write))
            .await
            .map_err(|_| LogError::Closed)?;
        answer.await.map_err(|_| LogError::Closed)?
    }

    async fn chore<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Core) -> std::result::Result<T, ChoreError> + Send + 'static,
    ) -> Result<T> {
        let (reply, answer) = oneshot::channel();
        let chore = Chore::new(work, move |result| drop(reply.send(result)));
        self.queue
            .send(Request::Chore(chore))
            .await
            .map_err(|_| LogError::Closed)?;
        answer.await.map_err(|_| LogError::Closed)?
    }

    async fn run_retention(&self, now_ms: i64) -> Result<RetentionReport> {
        let mut report = RetentionReport::default();
        let mut add = |step: maintenance::Step| {
            report.records += step.records;
            report.bytes += step.bytes;
            step.more
        };
        for tp in maintenance::retention_candidates(&self.core)? {
            while add(self.chore(move |core| maintenance::retain(core, tp, now_ms)).await?) {}
        }
        let before = now_ms.saturating_sub(millis(self.core.config.tombstone_retention));
        while add(self
            .chore(move |core| maintenance::drop_tombstones(core, before))
            .await?)
        {}
        for id in maintenance::deleted_topics(&self.core)? {
            self.purge(id).await?;
        }
        Ok(report)
    }

    async fn purge(&self, id: u32) -> Result<()> {
        while !self.chore(move |core| maintenance::purge(core, id)).await? {}
        Ok(())
    }
}

/// The event log on a local disk.
pub struct Embedded {
    handle: Arc<Handle>,
    stop: CancellationToken,
    tasks: Mutex<Option<(std::thread::JoinHandle<()>, JoinHandle<()>)>>,
}

impl Embedded {
    /// Opens or creates the log. Must be called within a tokio runtime, where its retention runs.
    ///
    /// # Errors
    /// `InUse` when another log, in this or another process, has the folder; `Storage`, `Corrupt`.
    pub async fn open(config: EmbeddedConfig) -> Result<Arc<Self>> {
        let core = tokio::task::spawn_blocking(move || Core::open(config))
            .await
            .map_err(|e| LogError::storage("opening", e))??;
        let core = Arc::new(core);
        let (queue, requests) = mpsc::channel(writer::QUEUE);
        let writer = Writer::new(core.clone(), requests);
        let thread = std::thread::Builder::new()
            .name("eventlog-writer".to_owned())
            .spawn(move || writer.run())
            .map_err(|e| LogError::storage("starting the writer", e))?;
        let handle = Arc::new(Handle {
            core,
            queue,
            ids: AtomicU64::new(1),
        });
        let stop = CancellationToken::new();
        let (stopped, shared) = (stop.clone(), handle.clone());
        let retention = tokio::spawn(async move {
            stopped.run_until_cancelled_owned(keep_retention(shared)).await;
        });
        Ok(Arc::new(Self {
            handle,
            stop,
            tasks: Mutex::new(Some((thread, retention))),
        }))
    }

    /// Writes what is queued, stops the tasks and releases the folder. All later calls fail with `Closed`.
    ///
    /// # Errors
    /// `Storage` when the last sync failed.
    pub async fn close(&self) -> Result<()> {
        let tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some((thread, retention)) = tasks else {
            return Ok(());
        };
        self.stop.cancel();
        let _ = retention.await;
        let (reply, answer) = oneshot::channel();
        self.handle
            .queue
            .send(Request::Close(reply))
            .await
            .map_err(|_| LogError::Closed)?;
        let result = answer.await.map_err(|_| LogError::Closed)?;
        // The thread has answered as its last act.
        let _ = tokio::task::spawn_blocking(move || thread.join()).await;
        result
    }

    /// Deletes what may go by age and size at `now_ms`. Called every minute by itself.
    ///
    /// # Errors
    /// `Closed`, `Storage`.
    pub async fn run_retention(&self, now_ms: i64) -> Result<RetentionReport> {
        self.handle.run_retention(now_ms).await
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        // Without `close` the retention task would keep the log open for ever. The writer ends with the last handle.
        self.stop.cancel();
    }
}

async fn keep_retention(handle: Arc<Handle>) {
    let mut tick = tokio::time::interval(RETENTION_PERIOD);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            () = handle.core.pressed.notified() => {
                // Every write says so while it lasts; what was not consumed yet needs a moment.
                tokio::time::sleep(PRESSED_PAUSE).await;
            }
        }
        match handle.run_retention((handle.core.config.clock)()).await {
            Ok(report) if report.records > 0 => tracing::debug!(?report, "event log retention"),
            Ok(_) => {}
            Err(LogError::Closed) => return,
            Err(error) => tracing::warn!(%error, "event log retention failed"),
        }
    }
}

#[async_trait]
impl EventLog for Embedded {
    async fn ensure_topics(&self, specs: &[TopicSpec]) -> Result<()> {
        let specs = specs.to_vec();
        self.handle
            .chore(move |core| maintenance::ensure_topics(core, &specs))
            .await
    }

    async fn delete_topic(&self, name: &str) -> Result<()> {
        let name = name.to_owned();
        let id = self
            .handle
            .chore(move |core| maintenance::delete_topic(core, &name))
            .await?;
        self.handle.purge(id).await
    }

    async fn topics(&self) -> Result<Vec<TopicSpec>> {
        let mut specs: Vec<_> = self
            .handle
            .core
            .open_state()?
            .topics()
            .map(|t| t.spec.clone())
            .collect();
        specs.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(specs)
    }

    async fn produce(&self, records: Vec<NewRecord>) -> Result<Vec<Position>> {
        self.handle
            .write(records, Vec::new(), String::new(), Committer::Anyone, None)
            .await
    }

    async fn consumer(&self, config: ConsumerConfig) -> Result<Box<dyn Consumer>> {
        if let Topics::Names(names) = &config.topics {
            names.iter().try_for_each(|name| validate_topic_name(name))?;
        }
        let (group, topics) = (config.group.clone(), config.topics.clone());
        self.handle
            .chore(move |core| maintenance::subscribe(core, &group, &topics))
            .await?;
        Ok(Box::new(EmbeddedConsumer::join(self.handle.clone(), config)?))
    }

    async fn transactional(&self, id: &str) -> Result<Box<dyn TransactionalProducer>> {
        let id = id.to_owned();
        let name = id.clone();
        let epoch = self.handle.chore(move |core| maintenance::fence(core, &name)).await?;
        Ok(Box::new(EmbeddedTransactions {
            handle: self.handle.clone(),
            id,
            epoch,
        }))
    }

    async fn committed(&self, group: &str, topic: &str) -> Result<Vec<(u32, Option<OffsetCommit>)>> {
        let partitions: Vec<_> = {
            let state = self.handle.core.open_state()?;
            let topic = state.topic(topic)?;
            (0..topic.spec.partitions)
                .map(|p| (topic.tp(p), topic.committed(group, p).is_some()))
                .collect()
        };
        let read = |(tp, has): (codec::Tp, bool)| {
            let commit = if has {
                self.handle.commit_of(group, topic, tp)?
            } else {
                None
            };
            Ok((tp.partition, commit))
        };
        partitions.into_iter().map(read).collect()
    }

    async fn watermarks(&self, topic: &str) -> Result<Vec<Watermarks>> {
        let state = self.handle.core.open_state()?;
        let parts = &state.topic(topic)?.parts;
        Ok((0..)
            .zip(parts)
            .map(|(partition, p)| Watermarks {
                partition,
                low: p.low,
                high: p.high,
            })
            .collect())
    }

    async fn lag(&self, group: &str, topic: &str) -> Result<u64> {
        let state = self.handle.core.open_state()?;
        let topic = state.topic(topic)?;
        let lag = (0..).zip(&topic.parts).map(|(partition, part)| {
            let from = topic.committed(group, partition).unwrap_or(part.low).max(part.low);
            u64::try_from(part.high - from).unwrap_or(0)
        });
        Ok(lag.sum())
    }

    async fn delete_group(&self, group: &str) -> Result<()> {
        let group = group.to_owned();
        self.handle
            .chore(move |core| maintenance::delete_group(core, &group))
            .await
    }

    async fn read(&self, topic: &str, partition: u32, from: i64, max: usize) -> Result<Vec<Record>> {
        let (tp, part) = {
            let state = self.handle.core.open_state()?;
            let topic = state.topic(topic)?;
            (topic.tp(partition), topic.part(partition)?)
        };
        if !(0..=part.high).contains(&from) {
            let (topic, low, high) = (topic.to_owned(), part.low, part.high);
            return Err(LogError::OffsetOutOfRange {
                topic,
                partition,
                offset: from,
                low,
                high,
            });
        }
        let (range, mut budget) = (from.max(part.low)..part.high, store::READ_BYTES);
        Ok(self
            .handle
            .core
            .with_store(|s| s.read(topic, tp, range, max, &mut budget))?
            .0)
    }

    async fn follow(&self, topic: &str, from: Start) -> Result<Box<dyn Follower>> {
        Ok(Box::new(EmbeddedFollower::new(self.handle.clone(), topic, from)?))
    }

    async fn usage(&self) -> Result<Usage> {
        Ok(Usage {
            bytes: Some(self.handle.core.open_state()?.used),
            limit: self.handle.core.config.limit_bytes,
        })
    }
}

struct EmbeddedTransactions {
    handle: Arc<Handle>,
    id: String,
    epoch: u64,
}

#[async_trait]
impl TransactionalProducer for EmbeddedTransactions {
    async fn commit(&mut self, transaction: Transaction) -> Result<Vec<Position>> {
        let Transaction {
            records,
            offsets,
            group,
            member,
        } = transaction;
        let committer = if member.is_empty() {
            Committer::Anyone
        } else {
            Committer::Named(member)
        };
        self.handle
            .write(records, offsets, group, committer, Some((self.id.clone(), self.epoch)))
            .await
    }
}
