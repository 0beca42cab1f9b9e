//! What librdkafka tells its clients: log lines, errors, deliveries, rebalances.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::producer::{DeliveryResult, ProducerContext};
use rdkafka::topic_partition_list::TopicPartitionList;
use rdkafka::types::RDKafkaRespErr;
use tokio::sync::Notify;

use super::produce::Slot;
use crate::types::TopicPartition;

pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A change of assignment that librdkafka waits for an answer to.
#[derive(Debug)]
pub enum Rebalance {
    Assign(Vec<TopicPartition>),
    Revoke {
        partitions: Vec<TopicPartition>,
        /// The group went on without this member: nothing of them can be committed any more.
        lost: bool,
    },
}

/// What one client told, for the owner of that client to look at.
#[derive(Debug, Default)]
pub struct Told {
    /// Things that were told. A poll that returns nothing but moved this has not seen the end of its queue.
    count: AtomicU64,
    /// Where the last partition ended that was read to its end.
    end: Mutex<Option<i64>>,
    rebalances: Mutex<VecDeque<Rebalance>>,
    /// How often the group told of an assignment, be it of nothing.
    heard: AtomicU64,
    /// Set when the owner is gone: then revoked partitions are given up at once.
    leaving: AtomicBool,
    last_error: Mutex<Option<String>>,
    /// Wakes the owner.
    pub wake: Notify,
}

impl Told {
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Acquire)
    }

    pub fn take_end(&self) -> Option<i64> {
        lock(&self.end).take()
    }

    pub fn next_rebalance(&self) -> Option<Rebalance> {
        lock(&self.rebalances).pop_front()
    }

    /// Whether a revocation waits by which the group went on without this member.
    pub fn has_lost(&self) -> bool {
        let waiting = lock(&self.rebalances);
        waiting
            .iter()
            .any(|r| matches!(r, Rebalance::Revoke { lost: true, .. }))
    }

    pub fn rebalances(&self) -> u64 {
        self.heard.load(Ordering::Acquire)
    }

    pub fn leave(&self) {
        self.leaving.store(true, Ordering::Release);
    }

    pub fn last_error(&self) -> Option<String> {
        lock(&self.last_error).clone()
    }

    fn told(&self) {
        self.count.fetch_add(1, Ordering::AcqRel);
    }
}

/// The context of every client.
#[derive(Debug, Clone, Default)]
pub struct Context {
    pub told: Arc<Told>,
    /// The group in whose name the client asks.
    pub group: Option<Arc<str>>,
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.told.told();
        match level {
            RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical => {
                tracing::error!(facility, message, "kafka client");
            }
            RDKafkaLogLevel::Error | RDKafkaLogLevel::Warning => {
                *lock(&self.told.last_error) = Some(message.to_owned());
                tracing::warn!(facility, message, "kafka client");
            }
            RDKafkaLogLevel::Notice | RDKafkaLogLevel::Info => tracing::info!(facility, message, "kafka client"),
            RDKafkaLogLevel::Debug => tracing::debug!(facility, message, "kafka client"),
        }
    }

    fn stats_raw(&self, _statistics: &[u8]) {
        self.told.told();
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.told.told();
        if let Some(end) = end_of_partition(reason) {
            *lock(&self.told.end) = Some(end);
            return;
        }
        metrics::counter!("imageflow_eventlog_kafka_errors_total").increment(1);
        // That all are down says less than why each of them is.
        if error.rdkafka_error_code() != Some(RDKafkaErrorCode::AllBrokersDown) {
            *lock(&self.told.last_error) = Some(reason.to_owned());
        }
        // Brokers come and go; what a call makes of it is that call's to say.
        tracing::debug!(%error, reason, "kafka client");
    }
}

impl ConsumerContext for Context {
    /// Only noted here: the owner answers when it has finished with what is taken from it.
    fn rebalance(&self, consumer: &BaseConsumer<Self>, error: RDKafkaRespErr, list: &mut TopicPartitionList) {
        self.told.told();
        self.told.heard.fetch_add(1, Ordering::AcqRel);
        let is_assign = error == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS;
        // There is nothing to prepare for an assignment of nothing.
        if self.told.leaving.load(Ordering::Acquire) || (is_assign && list.count() == 0) {
            let answer = if is_assign {
                consumer.incremental_assign(list)
            } else {
                consumer.incremental_unassign(list)
            };
            if let Err(error) = answer {
                tracing::debug!(%error, "an assignment that nobody is told of");
            }
            return;
        }
        let mut partitions: Vec<TopicPartition> = list
            .elements()
            .iter()
            .filter_map(|e| Some(TopicPartition::new(e.topic(), u32::try_from(e.partition()).ok()?)))
            .collect();
        partitions.sort();
        let rebalance = if is_assign {
            Rebalance::Assign(partitions)
        } else {
            let lost = consumer.assignment_lost();
            Rebalance::Revoke { partitions, lost }
        };
        metrics::counter!("imageflow_eventlog_kafka_rebalances_total").increment(1);
        tracing::debug!(?rebalance, "rebalance");
        lock(&self.told.rebalances).push_back(rebalance);
        self.told.wake.notify_one();
    }

    fn commit_callback(&self, _result: KafkaResult<()>, _offsets: &TopicPartitionList) {
        self.told.told();
    }
}

impl ProducerContext for Context {
    type DeliveryOpaque = Box<Slot>;

    fn delivery(&self, result: &DeliveryResult<'_>, slot: Box<Slot>) {
        slot.fill(result);
    }
}

/// The offset in what librdkafka says at the end of a partition. rdkafka has no other way to it, and without it the
/// markers that transactions leave behind their records would stay a backlog for ever. Its text is part of the version
/// that is built in, and the conformance suite fails without it.
fn end_of_partition(reason: &str) -> Option<i64> {
    let (_, rest) = reason.split_once("reached end of partition at offset ")?;
    rest.split_once(' ')?.0.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_partition_is_read_from_what_is_said() {
        let said = "Fetch from broker 2 reached end of partition at offset 41 (HighwaterMark 43)";
        assert_eq!(end_of_partition(said), Some(41));
        assert_eq!(end_of_partition("1/3 brokers are down"), None);
    }
}
