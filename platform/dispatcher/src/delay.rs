//! Steps that are tried again later: `imageflow.delay` holds them until they are due, then they go back to the topic of their
//! function. Meanwhile they hold no offset there, and are no backlog, so their function may go to zero.
use std::collections::HashMap;
use std::time::Duration;

use futures::StreamExt;
use imageflow_eventlog::{
    Assignment, Consumer, ConsumerConfig, ConsumerEvent, LogError, NewRecord, Record, TopicPartition, TopicSpec, Topics,
};
use imageflow_process::overdue;
use imageflow_types::ErrorCode;
use imageflow_types::topics;
use imageflow_types::work::{Delayed, RunEvent};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::time::DelayQueue;

use crate::commits::Commits;
use crate::intake::DispatcherError;
use crate::tracker::Tracker;
use crate::work::{self, Context, plain};

/// Steps of one partition that wait in memory; those behind them wait in the log.
const WINDOW: usize = 10_000;
const BATCH: usize = 256;
/// Pause before the log is asked again.
const PAUSE: Duration = Duration::from_millis(500);
/// Longest time that something done stays uncommitted.
const COMMIT_EVERY: Duration = Duration::from_millis(500);

/// The topic of delays.
pub(crate) fn topic() -> TopicSpec {
    TopicSpec::new(topics::DELAY, topics::FEW_PARTITIONS).retention(Duration::from_secs(24 * 3600))
}

/// The record of a step that waits.
pub(crate) fn record(delayed: &Delayed) -> Option<NewRecord> {
    match serde_json::to_vec(delayed) {
        Ok(value) => Some(
            NewRecord::new(topics::DELAY)
                .key(delayed.step.run.as_str().to_owned())
                .value(value),
        ),
        Err(error) => {
            tracing::error!(%error, run = %delayed.step.run, "a delayed step cannot be written");
            None
        }
    }
}

struct Partition {
    tracker: Tracker,
    paused: bool,
}

struct Due {
    at: TopicPartition,
    offset: i64,
    delayed: Delayed,
}

pub(crate) struct Delays<'a> {
    context: &'a Context,
    partitions: HashMap<TopicPartition, Partition>,
    commits: Commits,
    waiting: DelayQueue<Due>,
}

impl<'a> Delays<'a> {
    pub(crate) fn new(context: &'a Context) -> Self {
        Self {
            context,
            partitions: HashMap::new(),
            commits: Commits::default(),
            waiting: DelayQueue::new(),
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
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Some(first) = self.waiting.next(), if !self.waiting.is_empty() => {
                    let mut due = vec![first.into_inner()];
                    while due.len() < BATCH
                        && let Some(Some(next)) = futures::FutureExt::now_or_never(self.waiting.next())
                    {
                        due.push(next.into_inner());
                    }
                    if !self.hand_back(&due, stop).await {
                        break;
                    }
                    dirty = true;
                    self.resume(consumer.as_mut());
                }
                _ = commit.tick(), if dirty => {
                    dirty = !self.commit(consumer.as_mut()).await?;
                }
                events = consumer.poll(BATCH) => {
                    for event in events? {
                        match event {
                            ConsumerEvent::Assigned(assigned) => self.assign(assigned),
                            ConsumerEvent::Revoked(revoked) => {
                                self.commit(consumer.as_mut()).await?;
                                self.partitions.retain(|at, _| !revoked.contains(at));
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
            let partition = Partition {
                tracker: Tracker::new(start, &metadata),
                paused: false,
            };
            self.partitions
                .insert(TopicPartition::new(assignment.topic, assignment.partition), partition);
        }
    }

    fn take(&mut self, consumer: &mut dyn Consumer, records: Vec<Record>) {
        let now_ms = (self.context.clock)();
        for record in records {
            let at = TopicPartition::new(record.topic, record.partition);
            let Some(partition) = self.partitions.get_mut(&at) else {
                continue;
            };
            if !partition.tracker.take(record.offset) {
                continue;
            }
            let delayed = record.value.as_deref().map(serde_json::from_slice::<Delayed>);
            let Some(Ok(delayed)) = delayed else {
                tracing::error!(offset = record.offset, "a delayed step cannot be read");
                metrics::counter!("imageflow_function_unreadable_total").increment(1);
                partition.tracker.done(record.offset);
                continue;
            };
            let wait = u64::try_from(delayed.due_ms.saturating_sub(now_ms)).unwrap_or(0);
            let due = Due {
                at: at.clone(),
                offset: record.offset,
                delayed,
            };
            // A due time far beyond the longest wait is a clock gone wrong, and more than the queue takes.
            let wait = Duration::from_millis(wait).min(crate::backoff::LONGEST);
            self.waiting.insert_at(due, Instant::now() + wait);
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

    /// Puts steps that are due back to their functions. False when it was stopped before that was durable.
    async fn hand_back(&mut self, due: &[Due], stop: &CancellationToken) -> bool {
        for one in due {
            // Its partition went to another dispatcher, which waits for the same step.
            if !self.partitions.contains_key(&one.at) {
                continue;
            }
            let Ok(value) = serde_json::to_vec(&one.delayed.step) else {
                continue;
            };
            let step = &one.delayed.step;
            let mut record = NewRecord::new(topics::work(&step.function))
                .key(step.run.as_str().to_owned())
                .value(value);
            record.headers = imageflow_events::work::step_headers(step);
            loop {
                let produced = tokio::select! {
                    produced = self.context.log.produce(vec![record.clone()]) => produced,
                    () = overdue(stop) => return false,
                };
                match produced {
                    Ok(_) => break,
                    Err(LogError::UnknownTopic { .. }) if record.topic != topics::RUN_EVENTS => {
                        let error = plain(ErrorCode::NotFound, format!("function {} was deleted", step.function));
                        let event = RunEvent::StageFailed {
                            run: step.run.clone(),
                            stage: step.stage,
                            error,
                            attempts: step.attempts.clone(),
                            at_ms: (self.context.clock)(),
                        };
                        match work::record(&event) {
                            Some(event) => record = event,
                            None => break,
                        }
                    }
                    Err(error) => {
                        tracing::warn!(%error, run = %step.run, "a step that is due is not handed back yet");
                        tokio::select! {
                            () = stop.cancelled() => return false,
                            () = tokio::time::sleep(PAUSE) => {}
                        }
                    }
                }
            }
            if let Some(partition) = self.partitions.get_mut(&one.at) {
                partition.tracker.done(one.offset);
            }
        }
        true
    }

    /// False when it is to be tried again.
    async fn commit(&mut self, consumer: &mut dyn Consumer) -> Result<bool, DispatcherError> {
        let trackers = self.partitions.iter_mut().map(|(at, p)| (at, &mut p.tracker));
        Ok(self.commits.store(consumer, trackers.collect()).await?)
    }
}
