//! Reading without a group: a piece of a partition, or a whole topic and what follows.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Headers, Message};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::Handle;
use super::context::{Context, Told, lock};
use super::failure::{code, failed, is_unknown_topic, storage};
use crate::error::{LogError, Result};
use crate::log::Follower;
use crate::types::{FollowEvent, Record, Start, TopicPartition};

/// Most bytes of the records of one answer, but for a first one that is larger.
pub const READ_BYTES: usize = 4 * 1024 * 1024;
/// Records in one event of a follower.
const AT_ONCE: usize = 1000;
/// Readers kept for the next call.
const READERS: usize = 4;
/// A look at the queue although nothing woke us: what is told there besides records is served then.
pub const TICK: Duration = Duration::from_secs(1);

pub fn record(message: &BorrowedMessage<'_>) -> Record {
    let headers = message.headers().map_or_else(Vec::new, |headers| {
        headers
            .iter()
            .map(|h| {
                (
                    h.key.to_owned(),
                    h.value.map_or_else(Bytes::new, Bytes::copy_from_slice),
                )
            })
            .collect()
    });
    Record {
        topic: message.topic().to_owned(),
        partition: u32::try_from(message.partition()).unwrap_or_default(),
        offset: message.offset(),
        timestamp_ms: message.timestamp().to_millis().unwrap_or_default(),
        key: message.key().map(Bytes::copy_from_slice),
        headers,
        value: message.payload().map(Bytes::copy_from_slice),
    }
}

pub fn record_bytes(record: &Record) -> usize {
    let headers: usize = record
        .headers
        .iter()
        .map(|(name, value)| name.len() + value.len())
        .sum();
    headers + record.key.as_ref().map_or(0, Bytes::len) + record.value.as_ref().map_or(0, Bytes::len)
}

/// What one look at a queue gave.
pub enum Polled {
    Record(Record),
    /// The partition was read up to here; behind its last record are markers only.
    End(u32, i64),
    Failed(KafkaError),
    /// The queue is empty.
    Nothing,
}

/// Takes the next thing off a queue. What is told besides records does not count as its end.
pub fn take<'m>(told: &Told, poll: impl Fn() -> Option<Result<BorrowedMessage<'m>, KafkaError>>) -> Polled {
    loop {
        let before = told.count();
        match poll() {
            Some(Ok(message)) => return Polled::Record(record(&message)),
            Some(Err(KafkaError::PartitionEOF(partition))) => {
                if let (Some(end), Ok(partition)) = (told.take_end(), u32::try_from(partition)) {
                    return Polled::End(partition, end);
                }
            }
            Some(Err(error)) => return Polled::Failed(error),
            None if told.count() == before => return Polled::Nothing,
            None => {}
        }
    }
}

/// A client that reads partitions given to it.
pub struct Reader {
    pub consumer: BaseConsumer<Context>,
    told: Arc<Told>,
}

impl Handle {
    fn make_reader(&self) -> Result<Reader> {
        let context = Context::default();
        let told = context.told.clone();
        // librdkafka reads only in the name of a group; nothing is ever committed for this one.
        let group = format!("{}-reader", self.config.client_id);
        let consumer = self.config.consumer(&group).create_with_context(context);
        let consumer = consumer.map_err(|e| storage("making a reader", e, None))?;
        Ok(Reader { consumer, told })
    }

    pub async fn read_some(&self, topic: &str, partition: u32, from: i64, max: usize) -> Result<Vec<Record>> {
        let at = TopicPartition::new(topic, partition);
        let timeout = self.config.request_timeout;
        let (low, high) = self.ends_of(&at).await?;
        if !(0..=high).contains(&from) {
            return Err(LogError::OffsetOutOfRange {
                topic: topic.to_owned(),
                partition,
                offset: from,
                low,
                high,
            });
        }
        let range = from.max(low)..high;
        if range.is_empty() || max == 0 {
            return Ok(Vec::new());
        }
        let reader = lock(&self.readers).pop();
        let reader = reader.map_or_else(|| self.make_reader(), Ok)?;
        let done = tokio::task::spawn_blocking(move || {
            let records = reader.read(&at, range, max, timeout);
            (reader, records)
        });
        let (reader, records) = done.await.map_err(|e| LogError::storage("reading", e))?;
        let mut readers = lock(&self.readers);
        if records.is_ok() && readers.len() < READERS && !self.closed.is_cancelled() {
            readers.push(reader);
        } else {
            drop(readers);
            self.retire(move || drop(reader));
        }
        records
    }

    pub async fn follower(self: &Arc<Self>, topic: &str, from: Start) -> Result<KafkaFollower> {
        let marks = self.marks(topic).await?;
        let goal: Vec<i64> = marks.iter().map(|m| m.high).collect();
        let next = match from {
            Start::Earliest => marks.iter().map(|m| m.low).collect(),
            Start::Latest => goal.clone(),
        };
        let has_caught_up = reached(&goal, &next);
        let (consumer, told) = self.follow(topic, &next, has_caught_up)?;
        Ok(KafkaFollower {
            handle: self.clone(),
            topic: topic.to_owned(),
            consumer: Some(consumer),
            told,
            next,
            goal: Some(goal),
            has_caught_up,
            failed: None,
        })
    }

    /// A client that reads all partitions from these offsets on.
    fn follow(&self, topic: &str, next: &[i64], caught_up: bool) -> Result<(BaseConsumer<Context>, Arc<Told>)> {
        let context = Context::default();
        let told = context.told.clone();
        let group = format!("{}-reader", self.config.client_id);
        let consumer = self.config.follower(&group, caught_up).create_with_context(context);
        let mut consumer: BaseConsumer<Context> = consumer.map_err(|e| storage("making a follower", e, None))?;
        let woken = told.clone();
        consumer.set_nonempty_callback(move || woken.wake.notify_one());
        let mut list = TopicPartitionList::new();
        for (partition, offset) in (0..).zip(next) {
            let added = list.add_partition_offset(topic, partition, Offset::Offset(*offset));
            added.map_err(|e| storage("following", e, None))?;
        }
        consumer.assign(&list).map_err(|e| storage("following", e, None))?;
        Ok((consumer, told))
    }
}

fn reached(goal: &[i64], next: &[i64]) -> bool {
    goal.iter().zip(next).all(|(goal, next)| next >= goal)
}

impl Reader {
    /// Serves what is told while nobody reads.
    pub fn idle(&self) {
        while !matches!(take(&self.told, || self.consumer.poll(Duration::ZERO)), Polled::Nothing) {}
    }

    fn read(
        &self,
        at: &TopicPartition,
        range: std::ops::Range<i64>,
        max: usize,
        timeout: Duration,
    ) -> Result<Vec<Record>> {
        let fail = |e| storage("reading", e, self.told.last_error());
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(&at.topic, at.partition.cast_signed(), Offset::Offset(range.start))
            .map_err(fail)?;
        self.consumer.assign(&list).map_err(fail)?;
        let deadline = Instant::now() + timeout;
        let (mut records, mut bytes) = (Vec::new(), 0);
        let result = loop {
            match take(&self.told, || self.consumer.poll(Duration::from_millis(100))) {
                Polled::Record(record) if record.topic == at.topic && record.partition == at.partition => {
                    bytes += record_bytes(&record);
                    let last = record.offset + 1 >= range.end;
                    if record.offset < range.end {
                        records.push(record);
                    }
                    if last || records.len() >= max || bytes >= READ_BYTES {
                        break Ok(records);
                    }
                }
                // Of an earlier call.
                Polled::Record(_) => {}
                Polled::End(partition, end) if partition == at.partition && end >= range.end => break Ok(records),
                Polled::Failed(error) if code(&error).is_some_and(is_unknown_topic) => {
                    break Err(LogError::UnknownTopic {
                        topic: at.topic.clone(),
                    });
                }
                Polled::End(..) | Polled::Failed(_) | Polled::Nothing => {}
            }
            if Instant::now() > deadline {
                break Err(failed("reading", format!("no answer in {timeout:?}")));
            }
        };
        self.consumer.unassign().map_err(fail)?;
        result
    }
}

pub struct KafkaFollower {
    handle: Arc<Handle>,
    topic: String,
    /// There until the drop.
    consumer: Option<BaseConsumer<Context>>,
    told: Arc<Told>,
    next: Vec<i64>,
    /// The ends when it was made, until they were reached and that was said.
    goal: Option<Vec<i64>>,
    /// Whether the client is one of those that wait.
    has_caught_up: bool,
    /// What went wrong behind the records that were returned.
    failed: Option<KafkaError>,
}

impl KafkaFollower {
    /// Goes on with a client that waits. What the other one has read ahead is read again.
    fn settle(&mut self) -> Result<()> {
        if self.has_caught_up {
            return Ok(());
        }
        let (consumer, told) = self.handle.follow(&self.topic, &self.next, true)?;
        let eager = self.consumer.replace(consumer);
        (self.told, self.has_caught_up) = (told, true);
        self.handle.retire(move || drop(eager));
        Ok(())
    }

    /// What is there without waiting.
    fn drain(&mut self) -> Vec<Record> {
        let (mut records, mut bytes) = (Vec::new(), 0);
        let Some(consumer) = &self.consumer else {
            return records;
        };
        while records.len() < AT_ONCE && bytes < READ_BYTES {
            match take(&self.told, || consumer.poll(Duration::ZERO)) {
                Polled::Record(record) => {
                    bytes += record_bytes(&record);
                    if let Some(next) = self.next.get_mut(record.partition as usize) {
                        *next = record.offset + 1;
                    }
                    records.push(record);
                }
                Polled::End(partition, end) => {
                    if let Some(next) = self.next.get_mut(partition as usize) {
                        *next = end.max(*next);
                    }
                }
                Polled::Failed(error) => {
                    self.failed = Some(error);
                    break;
                }
                Polled::Nothing => break,
            }
        }
        records
    }

    /// Whether the topic is still there, after something failed.
    async fn look_after(&self, error: &KafkaError) -> Result<()> {
        match code(error) {
            Some(code) if is_unknown_topic(code) => {
                self.handle.forget(&self.topic);
                self.handle.topic(&self.topic).await.map(drop)
            }
            Some(RDKafkaErrorCode::TopicAuthorizationFailed | RDKafkaErrorCode::GroupAuthorizationFailed) => {
                Err(storage("following", error.clone(), self.told.last_error()))
            }
            // Brokers come and go, librdkafka goes on by itself.
            _ => Ok(()),
        }
    }
}

#[async_trait]
impl Follower for KafkaFollower {
    async fn next(&mut self) -> Result<FollowEvent> {
        loop {
            self.handle.check_open()?;
            if self.goal.as_ref().is_some_and(|goal| reached(goal, &self.next)) {
                self.settle()?;
                self.goal = None;
                return Ok(FollowEvent::CaughtUp);
            }
            // Kept until it was looked after: this future may be dropped meanwhile.
            if let Some(error) = self.failed.clone() {
                self.look_after(&error).await?;
                self.failed = None;
            }
            let before = self.next.clone();
            let records = self.drain();
            if !records.is_empty() {
                return Ok(FollowEvent::Records(records));
            }
            if self.failed.is_none() && before != self.next {
                // An end was reached, which may be the last one that is waited for.
                continue;
            }
            tokio::select! {
                () = self.told.wake.notified() => {}
                () = tokio::time::sleep(TICK) => {}
                () = self.handle.closed.cancelled() => {}
            }
        }
    }
}

impl Drop for KafkaFollower {
    fn drop(&mut self) {
        if let Some(consumer) = self.consumer.take() {
            self.handle.retire(move || drop(consumer));
        }
    }
}
