//! Writing records: checked first, then given to librdkafka, whose deliveries fill the places of a batch.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, Message, OwnedHeaders};
use rdkafka::producer::{BaseRecord, DeliveryResult, Producer as _, ThreadedProducer};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::Handle;
use super::context::{Context, lock};
use super::failure::{code, is_unknown_topic, storage};
use super::pace::{Flight, Turn};
use crate::MAX_RECORD_BYTES;
use crate::error::{LogError, Result};
use crate::types::{NewRecord, Position};

/// Pause while librdkafka's own queue is full.
const FULL_PAUSE: Duration = Duration::from_millis(2);

pub type Producer = ThreadedProducer<Context>;

/// What became of one record.
type Outcome = Result<(u32, i64), KafkaError>;

/// Records that are waited for together.
#[derive(Debug)]
pub struct Batch {
    outcomes: Mutex<Vec<Option<Outcome>>>,
    left: AtomicUsize,
    done: Notify,
    /// Over when the last of them is.
    flight: Mutex<Option<Arc<Flight<Arc<Call>>>>>,
}

/// Records of one call, and what becomes of them.
#[derive(Debug)]
pub struct Call {
    records: Vec<NewRecord>,
    batch: Arc<Batch>,
}

/// The place of one record in its batch.
#[derive(Debug)]
pub struct Slot {
    batch: Arc<Batch>,
    index: usize,
}

impl Slot {
    pub fn fill(&self, result: &DeliveryResult<'_>) {
        let outcome = match result {
            Ok(message) => Ok((u32::try_from(message.partition()).unwrap_or_default(), message.offset())),
            Err((error, _)) => Err(error.clone()),
        };
        self.batch.fill(self.index, outcome);
    }
}

impl Batch {
    pub fn new(size: usize) -> Arc<Self> {
        Arc::new(Self {
            outcomes: Mutex::new(std::iter::repeat_with(|| None).take(size).collect()),
            left: AtomicUsize::new(size),
            done: Notify::new(),
            flight: Mutex::default(),
        })
    }

    fn fly(&self, flight: Arc<Flight<Arc<Call>>>) {
        *lock(&self.flight) = Some(flight);
    }

    fn fill(&self, index: usize, outcome: Outcome) {
        if let Some(place) = lock(&self.outcomes).get_mut(index) {
            *place = Some(outcome);
        }
        if self.left.fetch_sub(1, Ordering::AcqRel) == 1 {
            lock(&self.flight).take();
            self.done.notify_one();
        }
    }

    /// Marks what was never sent.
    fn give_up(&self, from: usize, error: &KafkaError) {
        let size = lock(&self.outcomes).len();
        for index in from..size {
            self.fill(index, Err(error.clone()));
        }
    }

    /// Waits until each record was delivered or failed.
    pub async fn wait(&self) {
        while self.left.load(Ordering::Acquire) > 0 {
            self.done.notified().await;
        }
    }

    /// The first failure, with the index of its record.
    fn failure(&self) -> Option<(usize, KafkaError)> {
        let outcomes = lock(&self.outcomes);
        let mut failed = outcomes.iter().enumerate();
        failed.find_map(|(i, outcome)| match outcome {
            Some(Err(error)) => Some((i, error.clone())),
            _ => None,
        })
    }

    /// Where the records are, or what happened to the first one that is nowhere.
    pub fn positions(&self, handle: &Handle, records: &[NewRecord]) -> Result<Vec<Position>> {
        if let Some((index, error)) = self.failure() {
            return Err(handle.undelivered(&records[index], error));
        }
        let outcomes = lock(&self.outcomes);
        let positions = records.iter().zip(outcomes.iter()).filter_map(|(record, outcome)| {
            let (partition, offset) = *outcome.as_ref()?.as_ref().ok()?;
            Some(Position {
                topic: record.topic.clone(),
                partition,
                offset,
            })
        });
        Ok(positions.collect())
    }
}

/// Gives one record to librdkafka. False when its queue is full.
fn offer(producer: &Producer, record: &NewRecord, batch: &Arc<Batch>, index: usize) -> Result<bool, KafkaError> {
    let slot = Box::new(Slot {
        batch: batch.clone(),
        index,
    });
    let mut new: BaseRecord<'_, [u8], [u8], Box<Slot>> = BaseRecord::with_opaque_to(&record.topic, slot);
    if let Some(key) = &record.key {
        new = new.key(key);
    }
    if let Some(value) = &record.value {
        new = new.payload(value);
    }
    if let Some(partition) = record.partition {
        new = new.partition(i32::try_from(partition).unwrap_or(i32::MAX));
    }
    if !record.headers.is_empty() {
        let headers = OwnedHeaders::new_with_capacity(record.headers.len());
        new = new.headers(record.headers.iter().fold(headers, |headers, (name, value)| {
            headers.insert(Header {
                key: name,
                value: Some(value.as_ref()),
            })
        }));
    }
    match producer.send(new) {
        Ok(()) => Ok(true),
        Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), _)) => Ok(false),
        Err((error, _)) => Err(error),
    }
}

/// Gives all records to librdkafka and waits for its queue where it is full.
pub async fn send(producer: &Producer, records: &[NewRecord], batch: &Arc<Batch>) {
    for (index, record) in records.iter().enumerate() {
        loop {
            match offer(producer, record, batch, index) {
                Ok(true) => break,
                Ok(false) => tokio::time::sleep(FULL_PAUSE).await,
                Err(error) => return batch.give_up(index, &error),
            }
        }
    }
}

/// The same on a thread that may block.
pub fn send_blocking(producer: &Producer, records: &[NewRecord], batch: &Arc<Batch>) -> Result<(), KafkaError> {
    for (index, record) in records.iter().enumerate() {
        loop {
            match offer(producer, record, batch, index) {
                Ok(true) => break,
                Ok(false) => producer.poll(FULL_PAUSE),
                Err(error) => {
                    batch.give_up(index, &error);
                    return Err(error);
                }
            }
        }
    }
    Ok(())
}

impl Handle {
    /// Refuses what cannot be written, before any of it is.
    pub async fn check_records(&self, records: &[NewRecord]) -> Result<()> {
        let mut known = HashMap::new();
        for record in records {
            let size = record.size();
            if size > MAX_RECORD_BYTES {
                return Err(LogError::RecordTooLarge {
                    topic: record.topic.clone(),
                    size,
                    limit: MAX_RECORD_BYTES,
                });
            }
            let topic = match known.get(&record.topic) {
                Some(topic) => *topic,
                None => {
                    let topic = self.topic(&record.topic).await?;
                    known.insert(&record.topic, topic);
                    topic
                }
            };
            if topic.compacted && record.key.is_none() {
                return Err(LogError::KeyMissing {
                    topic: record.topic.clone(),
                });
            }
            if let Some(partition) = record.partition {
                topic.check(&record.topic, partition)?;
            }
        }
        Ok(())
    }

    pub async fn produce(self: &Arc<Self>, records: Vec<NewRecord>) -> Result<Vec<Position>> {
        self.check_records(&records).await?;
        let producer = self.producer()?;
        let (count, batch) = (records.len(), Batch::new(records.len()));
        let call = Arc::new(Call { records, batch });
        let Call { records, batch } = &*call;
        match self.pace.turn(call.clone(), count, Instant::now()) {
            Turn::Now(flight) => {
                if let Some(flight) = flight {
                    batch.fly(Arc::new(flight));
                }
                send(&producer, records, batch).await;
            }
            Turn::First => self.see_off(producer.clone()),
            Turn::Later => {}
        }
        batch.wait().await;
        let result = batch.positions(self, records);
        if result.is_err() {
            self.let_go(producer);
        }
        result
    }

    /// An idempotent producer that lost its sequence writes nothing any more; the next call makes a new one. Who has it last ends
    /// it, which waits for its threads and so is nothing for a thread of the runtime.
    fn let_go(&self, producer: Arc<Producer>) {
        if producer.client().fatal_error().is_none() {
            return;
        }
        let current = lock(&self.producer).take_if(|current| Arc::ptr_eq(current, &producer));
        self.retire(move || drop((current, producer)));
    }

    /// Writes what gathers when it may leave, whether or not its callers still wait.
    fn see_off(self: &Arc<Self>, producer: Arc<Producer>) {
        let handle = self.clone();
        self.departures.spawn(async move {
            tokio::select! {
                () = handle.pace.gather() => {}
                () = handle.closed.cancelled() => {}
            }
            let (calls, flight) = handle.pace.depart();
            let flight = Arc::new(flight);
            // All of them before the first can arrive, else the last of them would not know that they fly.
            calls.iter().for_each(|call| call.batch.fly(flight.clone()));
            for call in &calls {
                send(&producer, &call.records, &call.batch).await;
            }
            handle.let_go(producer);
        });
    }

    /// The producer of all records without a transaction.
    fn producer(&self) -> Result<Arc<Producer>> {
        let mut producer = lock(&self.producer);
        if let Some(producer) = &*producer {
            return Ok(producer.clone());
        }
        let made = self.config.producer(None).create_with_context(self.context());
        let made: Producer = made.map_err(|e| storage("making a producer", e, None))?;
        Ok(producer.insert(Arc::new(made)).clone())
    }

    fn undelivered(&self, record: &NewRecord, error: KafkaError) -> LogError {
        let topic = record.topic.clone();
        match code(&error) {
            Some(code) if is_unknown_topic(code) => {
                self.forget(&topic);
                LogError::UnknownTopic { topic }
            }
            Some(RDKafkaErrorCode::MessageSizeTooLarge) => LogError::RecordTooLarge {
                topic,
                size: record.size(),
                limit: MAX_RECORD_BYTES,
            },
            Some(RDKafkaErrorCode::InvalidRecord) if record.key.is_none() => LogError::KeyMissing { topic },
            _ => storage("writing records", error, self.told.last_error()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::sync_channel;

    use rdkafka::mocking::MockCluster;
    use rdkafka::types::RDKafkaApiKey;
    use rdkafka::types::RDKafkaRespErr::RD_KAFKA_RESP_ERR_CLUSTER_AUTHORIZATION_FAILED;

    use super::*;
    use crate::kafka::topics::Topic;
    use crate::{EventLog, Kafka, KafkaConfig};

    #[tokio::test]
    async fn a_producer_that_writes_nothing_any_more_is_replaced_and_ends_elsewhere() {
        let cluster = MockCluster::new(1).unwrap();
        cluster.create_topic("t", 1, 1).unwrap();
        let log = Kafka::open(KafkaConfig::new(cluster.bootstrap_servers()))
            .await
            .unwrap();
        let handle = &log.handle;
        // The cluster is a mock that knows no settings.
        handle.remember(
            "t",
            Topic {
                partitions: 1,
                compacted: false,
            },
        );
        let (endings, ended) = sync_channel(1);
        let before = lock(&handle.endings).replace(endings);
        // Before there is a producer, which asks at once; and for more than one question, for the log asked when it was opened.
        cluster.request_errors(
            RDKafkaApiKey::InitProducerId,
            &[RD_KAFKA_RESP_ERR_CLUSTER_AUTHORIZATION_FAILED; 20],
        );
        let producer = Arc::downgrade(&handle.producer().unwrap());
        let refused = log.produce(vec![NewRecord::new("t").value("v")]).await;
        cluster.clear_request_errors(RDKafkaApiKey::InitProducerId);
        assert!(refused.is_err(), "{refused:?}");
        assert!(lock(&handle.producer).is_none(), "the next call makes a new one");
        let ending = ended.try_recv().unwrap();
        assert_eq!(producer.strong_count(), 2, "nothing of it ended here");
        ending();
        assert_eq!(producer.strong_count(), 0);
        log.produce(vec![NewRecord::new("t").value("v")]).await.unwrap();
        *lock(&handle.endings) = before;
        log.close().await;
    }
}
