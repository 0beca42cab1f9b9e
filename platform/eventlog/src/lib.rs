//! The event log: topics with partitions, keyed records, consumer groups, transactions.
//!
//! [`EventLog`] is the contract; [`Embedded`] keeps it on a local disk, the Kafka implementation on a cluster. One
//! conformance suite (feature `test-util`) runs over both. Everything above is at-least-once: what is
//! [committed](Consumer::commit) is not delivered to the group again, everything else may be.

#[cfg(feature = "test-util")]
pub mod conformance;
mod embedded;
mod error;
#[cfg(feature = "kafka")]
mod kafka;
mod log;
mod partition;
mod rejoin;
mod types;

pub use embedded::{Clock, Embedded, EmbeddedConfig, RetentionReport, system_clock};
pub use error::{LogError, Result};
#[cfg(feature = "kafka")]
pub use kafka::{Kafka, KafkaConfig, KafkaOpenError, KafkaSasl, KafkaTls, SaslMechanism};
pub use log::{Consumer, EventLog, Follower, TransactionalProducer};
pub use partition::{murmur2, partition_for_key};
pub use rejoin::Rejoin;
pub use types::{
    Assignment, Cleanup, ConsumerConfig, ConsumerEvent, FollowEvent, NewRecord, OffsetCommit, Position, Record, Start,
    TopicPartition, TopicSpec, Topics, Transaction, Usage, Watermarks, validate_topic_name,
};

/// Most bytes of one record: key, value and headers together (Kafka's default of 1 MiB).
pub const MAX_RECORD_BYTES: usize = 1024 * 1024;

/// Most bytes of the metadata of one commit (Kafka's default `offset.metadata.max.bytes`).
pub const MAX_COMMIT_METADATA_BYTES: usize = 4096;
