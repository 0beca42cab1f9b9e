//! The event log on a Kafka cluster, by librdkafka.

mod config;
mod consumer;
mod context;
mod failure;
mod group;
mod left_out;
mod offsets;
mod pace;
mod produce;
mod reading;
mod retention;
mod topics;
mod transactions;

use std::collections::HashMap;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use rdkafka::admin::AdminClient;
use rdkafka::consumer::BaseConsumer;
use rdkafka::error::KafkaError;
use rdkafka::producer::Producer as _;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use self::config::{KafkaConfig, KafkaOpenError, KafkaSasl, KafkaTls, SaslMechanism};
use self::consumer::KafkaConsumer;
use self::context::{Context, Told, lock};
use self::failure::storage;
use self::group::Members;
use self::offsets::Asker;
use self::pace::Pace;
use self::produce::{Call, Producer};
use self::reading::{Polled, Reader, take};
use self::topics::Catalog;
use self::transactions::KafkaTransactions;
use crate::error::{LogError, Result};
use crate::log::{Consumer, EventLog, Follower, TransactionalProducer};
use crate::types::{ConsumerConfig, NewRecord, OffsetCommit, Position, Record, Start, TopicSpec, Usage, Watermarks};

/// Clients that wait to be ended.
const RETIRING: usize = 256;
/// How often clients that nobody uses are looked at.
const KEEP_EVERY: Duration = Duration::from_secs(1);
/// Between two runs of retention.
const RETENTION_EVERY: Duration = Duration::from_secs(300);

type Ending = Box<dyn FnOnce() + Send>;

/// What the log, its consumers, producers and followers share.
struct Handle {
    config: KafkaConfig,
    admin: Arc<AdminClient<Context>>,
    /// Asks for offsets; in no group.
    /// And since when there is this one.
    meta: Mutex<(Asker, Instant)>,
    told: Arc<Told>,
    catalog: Mutex<Catalog>,
    /// When topics were last made or checked by us.
    ensured: Mutex<HashMap<String, std::time::Instant>>,
    producer: Mutex<Option<Arc<Producer>>>,
    pace: Arc<Pace<Arc<Call>>>,
    /// Those who write what gathered.
    departures: TaskTracker,
    askers: Mutex<Vec<(String, Asker)>>,
    readers: Mutex<Vec<Reader>>,
    members: Mutex<Members>,
    /// Ends clients on a thread of its own: that takes a while and blocks.
    endings: Mutex<Option<SyncSender<Ending>>>,
    closed: CancellationToken,
}

/// Runs a call of librdkafka that blocks; each has a time limit of its own.
async fn blocking<T: Send + 'static>(
    context: &'static str,
    call: impl FnOnce() -> std::result::Result<T, KafkaError> + Send + 'static,
) -> Result<T> {
    let done = tokio::task::spawn_blocking(call).await;
    done.map_err(|e| LogError::storage(context, e))?
        .map_err(|e| storage(context, e, None))
}

/// Ends clients, which blocks. On a thread of its own and not the runtime's, which would wait for it: without brokers a client
/// may take minutes.
async fn end(ending: impl FnOnce() + Send + 'static) {
    let (told, ended) = tokio::sync::oneshot::channel();
    let ending = std::thread::Builder::new()
        .name("eventlog-kafka-close".to_owned())
        .spawn(move || {
            ending();
            // Nobody listens any more when it took too long.
            let _late = told.send(());
        });
    if ending.is_err() || tokio::time::timeout(CLOSE_FOR, ended).await.is_err() {
        tracing::warn!("a client of Kafka did not end in {CLOSE_FOR:?}, it is left to end by itself");
    }
}

impl Handle {
    fn check_open(&self) -> Result<()> {
        if self.closed.is_cancelled() {
            return Err(LogError::Closed);
        }
        Ok(())
    }

    /// For clients that only ask or write: what goes wrong is told in one place.
    fn context(&self) -> Context {
        Context {
            told: self.told.clone(),
            group: None,
        }
    }

    /// Hands over what takes a while to end.
    fn retire(&self, ending: impl FnOnce() + Send + 'static) {
        let ending: Ending = Box::new(ending);
        let sender = lock(&self.endings).clone();
        let left = match sender {
            Some(sender) => match sender.try_send(ending) {
                Ok(()) => return,
                Err(TrySendError::Full(left) | TrySendError::Disconnected(left)) => left,
            },
            None => ending,
        };
        left();
    }

    /// Serves what clients are told while nobody uses them, so that it does not pile up.
    fn keep(&self) {
        let nothing = |client: &Asker| matches!(take(&self.told, || client.poll(Duration::ZERO)), Polled::Nothing);
        let drain = |client: &Asker| while !nothing(client) {};
        drain(&self.meta());
        let askers: Vec<Asker> = lock(&self.askers).iter().map(|(_, client)| client.clone()).collect();
        askers.iter().for_each(drain);
        lock(&self.readers).iter().for_each(Reader::idle);
    }
}

/// Longest that the end of clients is waited for.
const CLOSE_FOR: Duration = Duration::from_secs(5);

/// The event log on a Kafka cluster.
///
/// Where Kafka differs from the embedded log:
/// - Retention is [run](Self::keep_retention) by a role of the platform, not by the brokers; a topic that no group has
///   committed on keeps everything. A bound in bytes is the brokers' own and passes what was not read.
/// - `produce` of several records is not one write: some may be there when another failed.
/// - [`Watermarks::high`] is past the last record that can be read, so records of an open transaction are not in it.
/// - [`usage`](EventLog::usage) knows no bytes and no limit; brokers are watched by their own metrics.
/// - A member that ends without `close` or drop keeps its partitions until its session is over, so that it can come
///   back by its name without a rebalance.
pub struct Kafka {
    handle: Arc<Handle>,
    tasks: Mutex<Option<Tasks>>,
}

struct Tasks {
    keeper: JoinHandle<()>,
    endings: std::thread::JoinHandle<()>,
}

impl Kafka {
    /// Connects to a cluster. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// [`KafkaOpenError`]: a setting that cannot be, or no broker that answers.
    pub async fn open(config: KafkaConfig) -> std::result::Result<Arc<Self>, KafkaOpenError> {
        config.check()?;
        let told = Arc::new(Told::default());
        let context = || Context {
            told: told.clone(),
            group: None,
        };
        let admin = config.admin().create_with_context(context());
        let admin: Arc<AdminClient<Context>> = Arc::new(admin.map_err(KafkaOpenError::client)?);
        let meta: BaseConsumer<Context> = config
            .asking()
            .create_with_context(context())
            .map_err(KafkaOpenError::client)?;
        // Made here so that a setting which only producers have is refused now and not at the first record. Its thread also hears
        // first why no broker answers. It ends when one does: many write nothing, and its threads never rest.
        let producer: Producer = config
            .producer(None)
            .create_with_context(context())
            .map_err(KafkaOpenError::client)?;
        let (asked, timeout) = (admin.clone(), config.request_timeout);
        let answer = tokio::task::spawn_blocking(move || asked.inner().fetch_metadata(Some("__"), timeout).map(drop));
        let unreachable = |source: Option<KafkaError>, why: String| KafkaOpenError::Unreachable {
            bootstrap: config.bootstrap.clone(),
            why: told.last_error().unwrap_or(why),
            source: source.map(Into::into),
        };
        match answer.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(unreachable(Some(error.clone()), error.to_string())),
            Err(error) => return Err(unreachable(None, error.to_string())),
        }
        let (endings, queue) = sync_channel::<Ending>(RETIRING);
        let ender = std::thread::Builder::new()
            .name("eventlog-kafka-end".to_owned())
            .spawn(move || queue.into_iter().for_each(|ending| ending()))
            .map_err(|e| unreachable(None, e.to_string()))?;
        let handle = Arc::new(Handle {
            config,
            admin,
            meta: Mutex::new((Arc::new(meta), Instant::now())),
            told,
            catalog: Mutex::default(),
            ensured: Mutex::default(),
            producer: Mutex::default(),
            pace: Pace::new(tokio::time::Instant::now()),
            departures: TaskTracker::new(),
            askers: Mutex::default(),
            readers: Mutex::default(),
            members: Mutex::default(),
            endings: Mutex::new(Some(endings)),
            closed: CancellationToken::new(),
        });
        handle.retire(move || drop(producer));
        let kept = Arc::downgrade(&handle);
        let keeper = tokio::spawn(async move {
            let mut tick = tokio::time::interval(KEEP_EVERY);
            tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                tick.tick().await;
                let Some(handle) = kept.upgrade() else { return };
                handle.keep();
            }
        });
        Ok(Arc::new(Self {
            handle,
            tasks: Mutex::new(Some(Tasks { keeper, endings: ender })),
        }))
    }

    /// Deletes what is older than its topic's retention and below the commits of every group. Returns how many partitions
    /// were shortened. `now_ms` is the time, ms since 1970.
    ///
    /// # Errors
    /// `Storage`, `Closed`.
    pub async fn run_retention(&self, now_ms: i64) -> Result<usize> {
        self.handle.check_open()?;
        self.handle.run_retention(now_ms).await
    }

    /// Does so again and again, until it is dropped or the log is closed. One process of a cluster is enough; several do
    /// no harm.
    pub async fn keep_retention(&self, clock: fn() -> i64) {
        let mut ticks = tokio::time::interval(RETENTION_EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        // The first one is at once.
        ticks.tick().await;
        loop {
            ticks.tick().await;
            match self.run_retention(clock()).await {
                Ok(0) => {}
                Ok(partitions) => tracing::debug!(partitions, "old records were deleted"),
                Err(LogError::Closed) => return,
                Err(error) => tracing::warn!(%error, "old records are not deleted yet"),
            }
        }
    }

    /// Ends all clients; those of consumers and followers end when they are dropped. All later calls fail with
    /// `Closed`. Records that were given to [`produce`](EventLog::produce) are written first, whether or not anybody still waits
    /// for them, but for those that the brokers do not take within a few seconds.
    pub async fn close(&self) {
        self.handle.closed.cancel();
        let Some(tasks) = lock(&self.tasks).take() else { return };
        tasks.keeper.abort();
        self.handle.departures.close();
        if tokio::time::timeout(CLOSE_FOR, self.handle.departures.wait())
            .await
            .is_err()
        {
            tracing::warn!("Kafka did not take what gathered within {CLOSE_FOR:?}");
        }
        let endings = lock(&self.handle.endings).take();
        let producer = lock(&self.handle.producer).take();
        let askers = std::mem::take(&mut *lock(&self.handle.askers));
        let readers = std::mem::take(&mut *lock(&self.handle.readers));
        end(move || {
            // The end of a producer gives up what the brokers have not confirmed.
            if let Some(Err(error)) = producer.as_ref().map(|producer| producer.flush(CLOSE_FOR)) {
                tracing::warn!(%error, "Kafka did not confirm all records before the log was closed");
            }
            drop((producer, askers, readers, endings));
            // It ends when all that was handed over has ended. A panic in there was reported by its own thread.
            let _ended = tasks.endings.join();
        })
        .await;
    }
}

impl Drop for Kafka {
    fn drop(&mut self) {
        // The rest ends with the last of what was made from this log.
        if let Some(tasks) = lock(&self.tasks).take() {
            tasks.keeper.abort();
        }
    }
}

#[async_trait]
impl EventLog for Kafka {
    async fn ensure_topics(&self, specs: &[TopicSpec]) -> Result<()> {
        self.handle.check_open()?;
        self.handle.ensure(specs).await
    }

    async fn delete_topic(&self, name: &str) -> Result<()> {
        self.handle.check_open()?;
        self.handle.delete(name).await
    }

    async fn topics(&self) -> Result<Vec<TopicSpec>> {
        self.handle.check_open()?;
        self.handle.list().await
    }

    async fn produce(&self, records: Vec<NewRecord>) -> Result<Vec<Position>> {
        self.handle.check_open()?;
        self.handle.produce(records).await
    }

    async fn consumer(&self, config: ConsumerConfig) -> Result<Box<dyn Consumer>> {
        self.handle.check_open()?;
        Ok(Box::new(KafkaConsumer::join(self.handle.clone(), config)?))
    }

    async fn transactional(&self, id: &str) -> Result<Box<dyn TransactionalProducer>> {
        self.handle.check_open()?;
        Ok(Box::new(KafkaTransactions::take_over(self.handle.clone(), id).await?))
    }

    async fn committed(&self, group: &str, topic: &str) -> Result<Vec<(u32, Option<OffsetCommit>)>> {
        self.handle.check_open()?;
        self.handle.commits_of(group, topic).await
    }

    async fn watermarks(&self, topic: &str) -> Result<Vec<Watermarks>> {
        self.handle.check_open()?;
        self.handle.marks(topic).await
    }

    async fn lag(&self, group: &str, topic: &str) -> Result<u64> {
        self.handle.check_open()?;
        self.handle.lag_of(group, topic).await
    }

    async fn delete_group(&self, group: &str) -> Result<()> {
        self.handle.check_open()?;
        self.handle.delete_group(group).await
    }

    async fn read(&self, topic: &str, partition: u32, from: i64, max: usize) -> Result<Vec<Record>> {
        self.handle.check_open()?;
        self.handle.read_some(topic, partition, from, max).await
    }

    async fn follow(&self, topic: &str, from: Start) -> Result<Box<dyn Follower>> {
        self.handle.check_open()?;
        Ok(Box::new(self.handle.follower(topic, from).await?))
    }

    async fn usage(&self) -> Result<Usage> {
        self.handle.check_open()?;
        // Its disks are the brokers', and so is what happens when they fill.
        Ok(Usage {
            bytes: None,
            limit: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use rdkafka::mocking::MockCluster;

    use super::*;

    /// People would read 0 as an empty log.
    #[tokio::test]
    async fn what_is_not_measured_is_not_told_as_nothing() {
        let cluster = MockCluster::new(1).unwrap();
        let log = Kafka::open(KafkaConfig::new(cluster.bootstrap_servers()))
            .await
            .unwrap();
        let usage = log.usage().await.unwrap();
        assert_eq!((usage.bytes, usage.limit), (None, None));
        log.close().await;
        assert!(matches!(log.usage().await, Err(LogError::Closed)));
    }
}
