//! Steps that are tried again later: `imageflow.delay` holds them until they are due, then they go back to the topic of their
//! function. Meanwhile they hold no offset there, and are no backlog, so their function may go to zero.
use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use imageflow_eventlog::{
    Assignment, Consumer, ConsumerConfig, ConsumerEvent, LogError, NewRecord, Record, TopicPartition, TopicSpec, Topics,
};
use imageflow_process::overdue;
use imageflow_types::work::{DeadLetter, Delayed, RunEvent, StepError};
use imageflow_types::{ErrorCode, StepRequest, topics};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::commits::Commits;
use crate::intake::DispatcherError;
use crate::outcome::plain;
use crate::tracker::Tracker;
use crate::work::Context;
use crate::{letters, report};

mod waiting;

use waiting::Waiting;

/// Steps of one partition that wait in memory; those behind them wait in the log.
const WINDOW: usize = 10_000;
const BATCH: usize = 256;
/// Longest time that something done stays uncommitted.
const COMMIT_EVERY: Duration = Duration::from_millis(500);

/// The topic of delays.
pub(crate) fn topic() -> TopicSpec {
    TopicSpec::new(topics::DELAY, topics::FEW_PARTITIONS).retention(Duration::from_secs(24 * 3600))
}

/// A step that waits.
#[derive(Debug)]
pub(crate) struct Later {
    pub(crate) delayed: Delayed,
    /// What the writer of the step said of the resources: its header goes with it, for who reads it then may be behind, too.
    pub(crate) seen: Option<Bytes>,
}

/// The record of a step that waits.
pub(crate) fn record(later: &Later) -> Option<NewRecord> {
    let Later { delayed, seen } = later;
    match serde_json::to_vec(delayed) {
        Ok(value) => {
            let mut record = NewRecord::new(topics::DELAY)
                .key(delayed.step.run.as_str().to_owned())
                .value(value);
            record.headers.extend(seen_header(seen.as_ref()));
            Some(record)
        }
        Err(error) => {
            tracing::error!(%error, run = %delayed.step.run, "a delayed step cannot be written");
            None
        }
    }
}

fn seen_header(seen: Option<&Bytes>) -> Option<(String, Bytes)> {
    seen.map(|seen| (topics::SEEN.to_owned(), seen.clone()))
}

/// What the writer of a record said of the resources.
pub(crate) fn seen_by_writer(record: &Record) -> Option<Bytes> {
    // Not a part of what was fetched, which would be kept with it.
    record.header(topics::SEEN).map(|said| Bytes::copy_from_slice(said))
}

struct Partition {
    tracker: Tracker,
    paused: bool,
    /// Which time it is here.
    stay: u64,
    /// Records that are being written.
    on_their_way: usize,
}

/// What is written when a step is due.
enum What {
    /// The step itself, for its function, with what its writer had seen.
    Step(Box<StepRequest>, Option<Bytes>),
    /// It cannot be done any more.
    Failed(Box<RunEvent>),
    /// It is no step.
    Letter(Box<DeadLetter>),
}

type Due = waiting::Due<What>;
type Written = (Due, Result<(), LogError>);

pub(crate) struct Delays<'a> {
    context: &'a Context,
    /// How long what is on its way may take when its partition goes to another one.
    drain: Duration,
    partitions: HashMap<TopicPartition, Partition>,
    commits: Commits,
    waiting: Waiting<What>,
    writes: FuturesUnordered<BoxFuture<'static, Written>>,
    /// Partitions that were here so far.
    stays: u64,
}

impl<'a> Delays<'a> {
    pub(crate) fn new(context: &'a Context, drain: Duration) -> Self {
        Self {
            context,
            drain,
            partitions: HashMap::new(),
            commits: Commits::default(),
            waiting: Waiting::default(),
            writes: FuturesUnordered::new(),
            stays: 0,
        }
    }

    /// Works until `stop`.
    pub(crate) async fn run(mut self, member: &str, stop: &CancellationToken) -> Result<(), DispatcherError> {
        let names = Topics::Names(vec![topics::DELAY.to_owned()]);
        let group = ConsumerConfig::new(topics::GROUP_DELAY, member, names);
        let mut consumer = self.context.log.consumer(group).await?;
        let mut commit = tokio::time::interval(COMMIT_EVERY);
        commit.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut dirty = false;
        loop {
            self.hand_back();
            let next = self.waiting.next();
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Some(written) = self.writes.next(), if !self.writes.is_empty() => {
                    self.settle(written);
                    while let Some(Some(written)) = self.writes.next().now_or_never() {
                        self.settle(written);
                    }
                    dirty = true;
                    self.resume(consumer.as_mut());
                }
                () = tokio::time::sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {}
                _ = commit.tick(), if dirty => dirty = !self.commit(consumer.as_mut()).await?,
                events = consumer.poll(BATCH) => {
                    for event in events? {
                        match event {
                            ConsumerEvent::Assigned(assigned) => self.assign(assigned),
                            ConsumerEvent::Revoked(revoked) => {
                                dirty |= !self.revoke(consumer.as_mut(), &revoked).await?;
                            }
                            ConsumerEvent::Records(records) => {
                                self.take(consumer.as_mut(), records);
                                dirty = true;
                            }
                        }
                    }
                }
            }
        }
        let end = async {
            while let Some(written) = self.writes.next().await {
                self.settle(written);
            }
        };
        tokio::select! {
            () = end => {}
            () = overdue(stop) => {}
        }
        tokio::select! {
            committed = self.commit(consumer.as_mut()) => drop(committed?),
            () = overdue(stop) => {}
        }
        consumer.close().await?;
        Ok(())
    }

    fn assign(&mut self, assigned: Vec<Assignment>) {
        for assignment in assigned {
            let committed = assignment.committed.map(|c| (c.offset, c.metadata));
            let (start, metadata) = committed.unwrap_or_default();
            self.stays += 1;
            let partition = Partition {
                tracker: Tracker::new(start, &metadata),
                paused: false,
                stay: self.stays,
                on_their_way: 0,
            };
            self.partitions
                .insert(TopicPartition::new(assignment.topic, assignment.partition), partition);
        }
    }

    /// Gives partitions back before the next poll: what waits is another one's to wait for, what is on its way is waited for.
    /// False when what is done in those that stay is not stored yet.
    async fn revoke(
        &mut self,
        consumer: &mut dyn Consumer,
        revoked: &[TopicPartition],
    ) -> Result<bool, DispatcherError> {
        self.waiting.forget(revoked);
        let over = tokio::time::sleep(self.drain);
        tokio::pin!(over);
        let is_on_its_way = |partitions: &HashMap<TopicPartition, Partition>| {
            let on_its_way = |at| partitions.get(at).is_some_and(|p| p.on_their_way > 0);
            revoked.iter().any(on_its_way)
        };
        while is_on_its_way(&self.partitions) {
            tokio::select! {
                Some(written) = self.writes.next() => self.settle(written),
                () = &mut over => break,
            }
        }
        // What was refused meanwhile waits again.
        self.waiting.forget(revoked);
        let stored = self.commit(consumer).await?;
        self.partitions.retain(|at, _| !revoked.contains(at));
        Ok(stored)
    }

    fn take(&mut self, consumer: &mut dyn Consumer, records: Vec<Record>) {
        let now_ms = (self.context.clock)();
        for record in records {
            let at = TopicPartition::new(record.topic.clone(), record.partition);
            let Some(partition) = self.partitions.get_mut(&at) else {
                continue;
            };
            if !partition.tracker.take(record.offset) {
                continue;
            }
            let read = match &record.value {
                None => Err("it has no value".to_owned()),
                Some(value) => serde_json::from_slice::<Delayed>(value).map_err(|e| e.to_string()),
            };
            let (wait, what) = match read {
                Ok(Delayed { due_ms, step }) => {
                    let wait = u64::try_from(due_ms.saturating_sub(now_ms)).unwrap_or(0);
                    (
                        Duration::from_millis(wait),
                        What::Step(Box::new(step), seen_by_writer(&record)),
                    )
                }
                Err(why) => {
                    let letter = letters::unreadable(&record, "-", "delayed step", why, now_ms);
                    (Duration::ZERO, What::Letter(Box::new(letter)))
                }
            };
            let due = Due {
                at: at.clone(),
                offset: record.offset,
                stay: partition.stay,
                topic: what.topic(),
                wait: None,
                what,
            };
            // A due time far beyond the longest wait is a clock gone wrong.
            self.waiting
                .add(Instant::now() + wait.min(crate::backoff::LONGEST), due);
            if partition.tracker.open() >= WINDOW && !partition.paused {
                partition.paused = true;
                consumer.pause(&at.topic, at.partition);
            }
        }
    }

    fn resume(&mut self, consumer: &mut dyn Consumer) {
        for (at, partition) in self.partitions.iter_mut().filter(|(_, p)| p.paused) {
            if partition.tracker.open() <= WINDOW / 2 {
                partition.paused = false;
                consumer.resume(&at.topic, at.partition);
            }
        }
    }

    /// Begins to put what is due back to its functions.
    fn hand_back(&mut self) {
        for mut due in self.waiting.take(Instant::now()) {
            let Some(record) = due.what.record() else {
                // It stays open, and is read again after a restart.
                self.waiting.written(&due.topic);
                continue;
            };
            due.wait.get_or_insert_with(|| self.context.waits.begin());
            if let Some(partition) = self.partitions.get_mut(&due.at) {
                partition.on_their_way += 1;
            }
            let log = self.context.log.clone();
            let write = async move {
                let produced = log.produce(vec![record]).await;
                (due, produced.map(drop))
            };
            self.writes.push(write.boxed());
        }
    }

    /// What became of a write.
    fn settle(&mut self, (mut due, written): Written) {
        let partition = self.partitions.get_mut(&due.at).filter(|p| p.stay == due.stay);
        let Some(partition) = partition else {
            // Its partition went to another dispatcher, which waits for the same step.
            return match written {
                Ok(()) => self.waiting.written(&due.topic),
                Err(_) => self.waiting.refused(&due.topic, None, Instant::now()),
            };
        };
        partition.on_their_way -= 1;
        let error = match written {
            Ok(()) => {
                partition.tracker.done(due.offset);
                return self.waiting.written(&due.topic);
            }
            Err(error) => error,
        };
        match due.what.instead(&error, (self.context.clock)()) {
            Some(what) => {
                self.waiting.written(&due.topic);
                (due.topic, due.what) = (what.topic(), what);
                self.waiting.add(Instant::now(), due);
            }
            None => {
                let topic = due.topic.clone();
                tracing::warn!(%error, topic, "a step that is due is not handed back yet");
                self.waiting.refused(&topic, Some(due), Instant::now());
            }
        }
    }

    /// False when it is to be tried again.
    async fn commit(&mut self, consumer: &mut dyn Consumer) -> Result<bool, DispatcherError> {
        let trackers = self.partitions.iter_mut().map(|(at, p)| (at, &mut p.tracker));
        Ok(self.commits.store(consumer, trackers.collect()).await?)
    }
}

impl What {
    fn topic(&self) -> String {
        match self {
            Self::Step(step, _) => topics::work(&step.function),
            Self::Failed(_) => topics::RUN_EVENTS.to_owned(),
            Self::Letter(_) => topics::DEAD_LETTERS.to_owned(),
        }
    }

    fn record(&self) -> Option<NewRecord> {
        let (step, seen) = match self {
            Self::Step(step, seen) => (step, seen),
            Self::Failed(event) => return report::record(event),
            Self::Letter(letter) => return letters::record(letter),
        };
        match serde_json::to_vec(step) {
            Ok(value) => {
                let mut record = NewRecord::new(self.topic())
                    .key(step.run.as_str().to_owned())
                    .value(value);
                record.headers = imageflow_events::work::step_headers(step);
                record.headers.extend(seen_header(seen.as_ref()));
                Some(record)
            }
            Err(error) => {
                tracing::error!(%error, run = %step.run, "a step that is due cannot be written");
                None
            }
        }
    }

    /// What is written instead of what never can be.
    fn instead(&self, error: &LogError, now_ms: i64) -> Option<Self> {
        match (self, error) {
            (Self::Step(step, _), LogError::UnknownTopic { .. }) => {
                let message = format!("function {} was deleted", step.function);
                Some(Self::failed(step, plain(ErrorCode::NotFound, message), now_ms))
            }
            (Self::Step(step, _), LogError::RecordTooLarge { .. }) => {
                let message = format!("the step with its attempts does not fit into a record: {error}");
                Some(Self::failed(step, plain(ErrorCode::TooLarge, message), now_ms))
            }
            (Self::Failed(event), LogError::RecordTooLarge { .. }) => {
                let why = plain(ErrorCode::TooLarge, error.to_string());
                let shorter = report::shortened(event, &[], why)?;
                Some(Self::Failed(Box::new(shorter)))
            }
            (Self::Letter(letter), LogError::RecordTooLarge { .. }) => {
                letters::shortened(letter).map(|letter| Self::Letter(Box::new(letter)))
            }
            _ => None,
        }
    }

    fn failed(step: &StepRequest, error: StepError, at_ms: i64) -> Self {
        let event = report::stage_failed(step, error, step.attempts.clone(), at_ms);
        Self::Failed(Box::new(event))
    }
}
