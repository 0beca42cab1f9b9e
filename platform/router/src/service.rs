//! The loop: poll, work out, one transaction, go on.
use std::any::Any;
use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::FutureExt;
use imageflow_eventlog::{
    Consumer, ConsumerConfig, ConsumerEvent, EventLog, LogError, OffsetCommit, Record, Rejoin, TopicPartition,
    TopicSpec, Topics, Transaction, TransactionalProducer,
};
use imageflow_events::work::{Raw, unreadable};
use imageflow_objects::ObjectStore;
use imageflow_process::overdue;
use imageflow_resources::{Catalog, ResourceStore, Seen};
use imageflow_types::run::KEPT_RUNS;
use imageflow_types::work::{DeadLetter, RunEvent};
use imageflow_types::{ErrorCode, FunctionName, topics};
use tokio_util::sync::CancellationToken;

use crate::batch::{Batch, read_run_event};
use crate::room::{Intake, Room};
use crate::runs::Runs;
use crate::triggers::{self, Match};

/// Settings of a router.
#[derive(Debug, Clone)]
pub struct RouterConfig {
    /// Name in the consumer group, of which the transactional id is made, stable over a restart.
    pub member: String,
    /// Whether adjacent catalogue steps become one stage.
    pub fuse: bool,
    /// Ended runs kept in the changelog; older ones are deleted from it.
    pub keep_runs: usize,
    /// Most records of one transaction.
    pub batch: usize,
}

impl Default for RouterConfig {
    fn default() -> Self {
        Self {
            member: "router-0".to_owned(),
            fuse: true,
            keep_runs: KEPT_RUNS,
            batch: 1_000,
        }
    }
}

/// What a router is made of.
pub struct Router {
    /// Settings.
    pub config: RouterConfig,
    /// The event log.
    pub log: Arc<dyn EventLog>,
    /// The object store, to pin what outside events refer to.
    pub objects: Arc<dyn ObjectStore>,
    /// The resources.
    pub resources: Arc<ResourceStore>,
    /// Now, ms since 1970.
    pub clock: fn() -> i64,
    /// Is told of each function that is about to get work, before that is durable: its pod starts meanwhile.
    pub announce: Option<Announce>,
}

/// Hears of a function that is about to get work. Called for each batch: cheap.
pub type Announce = Arc<dyn Fn(&FunctionName) + Send + Sync>;

/// Why a router ended.
#[derive(Debug, thiserror::Error)]
pub enum RouterError {
    /// The log failed in a way that does not pass, or another router took over.
    #[error("the router cannot go on: {0}")]
    Log(#[from] LogError),
}

/// Pause before a batch that could not be written is written again.
const PAUSE: Duration = Duration::from_millis(500);

/// Longest pause before it joins anew, however often that was in vain.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// After so long without an error a router has joined: longer than an answer is waited for.
const JOINED: Duration = Duration::from_secs(30);

/// How often it is told how long a batch waits already.
const TELL_EVERY: Duration = Duration::from_secs(5);

type Transactions = Box<dyn TransactionalProducer>;

/// Why a session in the group ended.
enum SessionError {
    /// Another member has the name.
    Displaced(LogError),
    Router(RouterError),
}

impl SessionError {
    fn of_member(error: LogError) -> Self {
        match error {
            LogError::Fenced { .. } => Self::Displaced(error),
            error => Self::Router(error.into()),
        }
    }
}

impl<E: Into<RouterError>> From<E> for SessionError {
    fn from(error: E) -> Self {
        Self::Router(error.into())
    }
}

impl Router {
    /// Topics that a router reads and writes.
    #[must_use]
    pub fn topics() -> Vec<TopicSpec> {
        vec![
            TopicSpec::new(topics::EVENTS, topics::PARTITIONS).retention(Duration::from_secs(7 * 24 * 3600)),
            TopicSpec::new(topics::RUN_EVENTS, topics::PARTITIONS).retention(Duration::from_secs(24 * 3600)),
            TopicSpec::compacted(topics::RUNS, topics::PARTITIONS),
            TopicSpec::new(topics::DEAD_LETTERS, topics::PARTITIONS),
        ]
    }

    /// Works until `stop`. Several routers of different names share the partitions.
    ///
    /// # Errors
    /// [`RouterError`] when the log fails for good or another router of the same name took over.
    pub async fn run(self, stop: CancellationToken) -> Result<(), RouterError> {
        let (mut topics, mut producer, mut waiting) = (Self::topics(), None, None);
        let (mut rejoin, mut pause) = (Rejoin::default(), PAUSE);
        loop {
            let (mut consumer, taken) = match stop.run_until_cancelled(self.begin(&mut topics, &mut producer)).await {
                None => return Ok(()),
                Some(Ok(both)) => both,
                Some(Err(error)) => {
                    waiting.get_or_insert_with(Waiting::new).tell();
                    if !again(&stop, error).await? {
                        return Ok(());
                    }
                    continue;
                }
            };
            let begun = Instant::now();
            let session = self.session(consumer.as_mut(), taken.as_mut(), &mut waiting, &stop);
            let ended = session.await;
            if begun.elapsed() > LONGEST_PAUSE {
                pause = PAUSE;
            }
            // In order, also after an error: a member that just vanishes holds its partitions, and those it was to give back.
            let closed = consumer.close().await;
            let mut rest = PAUSE;
            match ended {
                Ok(()) => return Ok(closed?),
                // A new generation of the group, or it was away for too long: what it held is done again, by whoever has it.
                Err(SessionError::Router(RouterError::Log(LogError::NotAssigned { .. }))) => {
                    tracing::warn!("the group of routers went on without this one; it joins anew");
                }
                // The offsets that the group has tell what of the last batch was written.
                Err(SessionError::Router(RouterError::Log(error @ LogError::Unresolved { .. }))) => {
                    tracing::warn!(%error, "the router takes its transactions over and joins anew");
                    producer = None;
                }
                // Brokers may be away when it asks where its partitions are.
                Err(SessionError::Router(RouterError::Log(error))) if error.is_retryable() => {
                    tracing::warn!(%error, "the router cannot go on yet; it joins anew");
                    waiting.get_or_insert_with(Waiting::new).tell();
                    rest = pause;
                    pause = LONGEST_PAUSE.min(pause * 2);
                }
                // Only its transactions prove that a newer router has the name.
                Err(SessionError::Displaced(error)) if rejoin.may(&error, Instant::now()) => {
                    tracing::warn!(%error, "the router was displaced in its group; it joins anew");
                }
                Err(SessionError::Displaced(error)) => return Err(error.into()),
                Err(SessionError::Router(error)) => return Err(error),
            }
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = tokio::time::sleep(rest) => {}
            }
        }
    }

    /// Makes the topics that are missing, takes the transactional id over, if that is not done, and joins the group.
    async fn begin<'a>(
        &self,
        missing: &mut Vec<TopicSpec>,
        producer: &'a mut Option<Transactions>,
    ) -> Result<(Box<dyn Consumer>, &'a mut Transactions), LogError> {
        if !missing.is_empty() {
            self.log.ensure_topics(missing).await?;
            missing.clear();
        }
        let taken = match producer.take() {
            Some(taken) => taken,
            // First, which ends an older router's transactions before any state is read. Without brokers it takes long.
            None => self.log.transactional(&transactional_id(&self.config.member)).await?,
        };
        let taken = producer.insert(taken);
        let names = vec![topics::EVENTS.to_owned(), topics::RUN_EVENTS.to_owned()];
        let group = ConsumerConfig::new(topics::GROUP_ROUTER, self.config.member.clone(), Topics::Names(names));
        Ok((self.log.consumer(group).await?, taken))
    }

    /// As one member of the group, until `stop` or until the group has gone on without it.
    async fn session(
        &self,
        consumer: &mut dyn Consumer,
        producer: &mut dyn TransactionalProducer,
        waiting: &mut Option<Waiting>,
        stop: &CancellationToken,
    ) -> Result<(), SessionError> {
        let mut runs = Runs::default();
        let mut intake = Intake::default();
        loop {
            let room = Room::of(self.log.usage().await?);
            // Callers are refused while the log is this full, so it may be that no record comes any more.
            let forgets = room.is_tight() && !runs.surplus(0, 1).is_empty();
            let events = tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                events = consumer.poll(self.config.batch) => events.map_err(SessionError::of_member)?,
                // Room comes without a record: look again.
                () = tokio::time::sleep(PAUSE), if forgets || intake.is_resting() => Vec::new(),
                // A router without partitions hears nothing, and waits for nobody.
                () = tokio::time::sleep(JOINED), if waiting.is_some() => Vec::new(),
            };
            *waiting = None;
            for event in &events {
                if !self.follow(&mut runs, event, stop).await? {
                    return Ok(());
                }
            }
            // What is given out is committed before the next poll, so a revoked partition has nothing open.
            let records = intake.take(consumer, events, room);
            if room.is_tight() {
                self.make_room(&mut runs, producer).await?;
            }
            if records.is_empty() {
                continue;
            }
            let offsets = offsets(&records, consumer, &intake);
            if !self.process(&mut runs, producer, &records, offsets, stop).await? {
                return Ok(());
            }
        }
    }

    /// The runs of a partition come and go with its events. False when it was stopped before they were read.
    async fn follow(
        &self,
        runs: &mut Runs,
        event: &ConsumerEvent,
        stop: &CancellationToken,
    ) -> Result<bool, RouterError> {
        match event {
            ConsumerEvent::Assigned(assigned) => {
                let waiting = Waiting::new();
                for at in assigned.iter().filter(|a| a.topic == topics::RUN_EVENTS) {
                    while let Err(error) = runs.load(self.log.as_ref(), at.partition).await {
                        waiting.tell();
                        if !again(stop, error).await? {
                            return Ok(false);
                        }
                    }
                }
                tracing::debug!(
                    live = runs.live_count(),
                    "the router has read the runs of its partitions"
                );
            }
            ConsumerEvent::Revoked(revoked) => {
                for at in revoked.iter().filter(|r| r.topic == topics::RUN_EVENTS) {
                    runs.give_up(at.partition);
                }
            }
            ConsumerEvent::Records(_) => {}
        }
        Ok(true)
    }

    /// Forgets the oldest ended runs before their time. A full log takes that.
    async fn make_room(&self, runs: &mut Runs, producer: &mut dyn TransactionalProducer) -> Result<(), RouterError> {
        let mut batch = Batch::default();
        let oldest = runs.surplus(0, self.config.batch);
        if oldest.is_empty() {
            return Ok(());
        }
        batch.delete(&oldest);
        match producer.commit(self.transaction(&mut batch, Vec::new())).await {
            Ok(_) => runs.forget(&oldest),
            Err(error) if error.is_retryable() => tracing::warn!(%error, "no room can be made yet"),
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    fn transaction(&self, batch: &mut Batch, offsets: Vec<OffsetCommit>) -> Transaction {
        let mut records = batch.take_records();
        let seen = Bytes::from(self.resources.seen().to_string());
        for record in &mut records {
            if record.topic == topics::RUN_EVENTS || record.topic.starts_with(topics::WORK_PREFIX) {
                record.headers.push((topics::SEEN.to_owned(), seen.clone()));
            }
        }
        Transaction {
            records,
            offsets,
            group: topics::GROUP_ROUTER.to_owned(),
            member: self.config.member.clone(),
        }
    }

    /// Writes what the records change, with their offsets. False when it was stopped before that.
    async fn process(
        &self,
        runs: &mut Runs,
        producer: &mut dyn TransactionalProducer,
        records: &[Record],
        offsets: Vec<OffsetCommit>,
        stop: &CancellationToken,
    ) -> Result<bool, RouterError> {
        let mut told = false;
        let waiting = Waiting::new();
        loop {
            let worked_out = {
                let mut working_out = pin!(self.work_out(runs, records));
                let mut too_late = pin!(overdue(stop));
                loop {
                    // It may wait for resources, or for the object store.
                    tokio::select! {
                        worked_out = &mut working_out => break worked_out,
                        () = tokio::time::sleep(TELL_EVERY) => waiting.tell(),
                        () = &mut too_late => return Ok(false),
                    }
                }
            };
            match worked_out {
                Ok((mut batch, surplus)) => {
                    // Once: while it cannot be written no pod is to come and go.
                    if let Some(announce) = self.announce.as_ref().filter(|_| !std::mem::replace(&mut told, true)) {
                        batch.functions().iter().for_each(|function| announce(function));
                    }
                    let written = producer.commit(self.transaction(&mut batch, offsets.clone()));
                    let written = tokio::select! {
                        written = written => written,
                        // What is not known to be written is worked out again by the next router, and written once.
                        () = overdue(stop) => return Ok(false),
                    };
                    match written {
                        Ok(_) => {
                            batch.apply(runs);
                            runs.forget(&surplus);
                            metrics::gauge!("imageflow_flow_runs_live").set(runs.live_count() as f64);
                            return Ok(true);
                        }
                        Err(error @ LogError::Full { .. }) => {
                            tracing::warn!(%error, "a batch waits for room");
                            self.make_room(runs, producer).await?;
                        }
                        // Taken away while a step of its function was still to come: whose dispatcher finds that it is gone.
                        Err(LogError::UnknownTopic { topic }) if topic.starts_with(topics::WORK_PREFIX) => {
                            tracing::warn!(topic, "a batch waits for a topic that is not there any more");
                            self.make_topics(&batch).await?;
                        }
                        Err(error) if error.is_retryable() => {
                            tracing::warn!(%error, "a batch cannot be written yet");
                        }
                        Err(error) => return Err(error.into()),
                    }
                }
                Err(error) => tracing::warn!(%error, "a batch cannot be worked out yet"),
            }
            waiting.tell();
            tokio::select! {
                () = stop.cancelled() => return Ok(false),
                () = tokio::time::sleep(PAUSE) => {}
            }
        }
    }

    /// Makes the work topics of the functions that a batch has work for.
    async fn make_topics(&self, batch: &Batch) -> Result<(), RouterError> {
        for function in batch.functions() {
            match self.resources.make_topic(function).await {
                Ok(()) => {}
                Err(error) if error.is_retryable() => tracing::warn!(%function, %error, "no topic can be made yet"),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    async fn work_out(
        &self,
        runs: &Runs,
        records: &[Record],
    ) -> Result<(Batch, Vec<imageflow_types::RunId>), triggers::LookupFailed> {
        self.resources.catch_up(&seen_by_writers(records)).await;
        let catalog = self.resources.snapshot();
        let now_ms = (self.clock)();
        // The records at which the router itself fails, and how. They would fail whoever has the partition next as well.
        let mut poisonous: HashMap<usize, String> = HashMap::new();
        'anew: loop {
            let mut batch = Batch::default();
            for (at, record) in records.iter().enumerate() {
                if let Some(said) = poisonous.get(&at) {
                    failed_at(&mut batch, record, said, now_ms);
                    continue;
                }
                let taken = AssertUnwindSafe(self.take(&mut batch, runs, &catalog, record, now_ms)).catch_unwind();
                match taken.await {
                    Ok(taken) => taken?,
                    // What it had changed by then is not to be told from what others changed: all of it anew, without it.
                    Err(panic) => {
                        poisonous.insert(at, said(&*panic));
                        continue 'anew;
                    }
                }
            }
            let surplus = runs.surplus(self.config.keep_runs, self.config.batch);
            batch.delete(&surplus);
            return Ok((batch, surplus));
        }
    }

    /// Takes one record into a batch.
    async fn take(
        &self,
        batch: &mut Batch,
        runs: &Runs,
        catalog: &Catalog,
        record: &Record,
        now_ms: i64,
    ) -> Result<(), triggers::LookupFailed> {
        if record.topic == topics::RUN_EVENTS {
            match read_run_event(record) {
                Ok(RunEvent::Requested(request)) => batch.request(runs, catalog, &request, self.config.fuse, now_ms),
                Ok(event) => batch.advance(runs, &event, now_ms),
                Err(error) => cannot_be_read(batch, record, &error, now_ms),
            }
            return Ok(());
        }
        let read = imageflow_events::record::read(record.key.as_deref(), &record.headers, record.value.as_ref());
        let event = match read {
            Ok(event) => event,
            Err(error) => {
                cannot_be_read(batch, record, &error, now_ms);
                return Ok(());
            }
        };
        for found in triggers::matches(catalog, self.objects.as_ref(), &event, now_ms).await? {
            match found {
                Match::Run(request) if runs.owns(&request.run) => {
                    batch.request(runs, catalog, &request, self.config.fuse, now_ms);
                }
                Match::Run(request) => batch.pass_on(*request, now_ms),
                Match::Refused(letter) => batch.dead_letter(&letter),
            }
        }
        Ok(())
    }
}

/// For how long the router has been at one thing that waits for others, as the alert RouterWaits sees it.
struct Waiting {
    begun: Instant,
    gauge: metrics::Gauge,
}

impl Waiting {
    fn new() -> Self {
        Self {
            begun: Instant::now(),
            gauge: metrics::gauge!("imageflow_flow_batch_waits_seconds"),
        }
    }

    fn tell(&self) {
        self.gauge.set(self.begun.elapsed().as_secs_f64());
    }
}

/// However it ends: nothing comes after it that would say so.
impl Drop for Waiting {
    fn drop(&mut self) {
        self.gauge.set(0.0);
    }
}

/// What the writers of the records had seen of the resources.
fn seen_by_writers(records: &[Record]) -> Seen {
    let mut all = Seen::default();
    for seen in records.iter().filter_map(|record| Seen::by_writer(&record.headers)) {
        all.merge(&seen);
    }
    all
}

/// After an error of the log, when it is time to ask again: what fails for a while is no reason to end. False when it was stopped.
async fn again(stop: &CancellationToken, error: LogError) -> Result<bool, LogError> {
    if !error.is_retryable() {
        return Err(error);
    }
    tracing::warn!(%error, "the router waits for the event log");
    tokio::select! {
        () = stop.cancelled() => Ok(false),
        () = tokio::time::sleep(PAUSE) => Ok(true),
    }
}

fn cannot_be_read(batch: &mut Batch, record: &Record, error: &dyn std::error::Error, now_ms: i64) {
    let (topic, partition, offset) = (&record.topic, record.partition, record.offset);
    tracing::error!(topic, partition, offset, %error, "a record cannot be read");
    batch.dead_letter(&kept(record, &format!("cannot be read: {error}"), now_ms));
}

fn failed_at(batch: &mut Batch, record: &Record, said: &str, now_ms: i64) {
    let (topic, partition, offset) = (&record.topic, record.partition, record.offset);
    tracing::error!(topic, partition, offset, said, "the work on a record panicked");
    let mut letter = kept(record, &format!("is what the router itself failed at: {said}"), now_ms);
    letter.error.code = ErrorCode::Internal;
    batch.dead_letter(&letter);
}

/// What somebody wrote is kept to the byte as far as a record takes it, so that nothing is lost.
fn kept(record: &Record, why: &str, now_ms: i64) -> DeadLetter {
    metrics::counter!("imageflow_flow_unreadable_total").increment(1);
    let raw = Raw {
        topic: &record.topic,
        partition: record.partition,
        offset: record.offset,
        key: record.key.as_deref(),
        headers: &record.headers,
        value: record.value.as_deref(),
    };
    unreadable(raw, "-", why, now_ms)
}

fn said(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("no reason was given").to_owned()
}

/// The next offset of each partition of a batch; the last records of what was polled commit past trailing markers.
fn offsets(records: &[Record], consumer: &dyn Consumer, intake: &Intake) -> Vec<OffsetCommit> {
    let mut next: HashMap<TopicPartition, i64> = HashMap::new();
    for record in records {
        let at = TopicPartition::new(record.topic.clone(), record.partition);
        let offset = next.entry(at).or_insert(0);
        *offset = (*offset).max(record.offset + 1);
    }
    next.into_iter()
        .map(|(at, offset)| {
            let position = match intake.holds(&at) {
                true => offset,
                false => consumer.position(&at.topic, at.partition).unwrap_or(offset),
            };
            OffsetCommit::new(&at.topic, at.partition, offset.max(position))
        })
        .collect()
}

/// What the rights of `manifests/kafka/users.sh` begin with.
fn transactional_id(member: &str) -> String {
    match member.starts_with("imageflow") {
        true => member.to_owned(),
        false => format!("imageflow-{member}"),
    }
}
