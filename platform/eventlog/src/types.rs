//! The values that go in and out of an event log.

use std::time::Duration;

use bytes::Bytes;

use crate::error::{LogError, Result};

/// A topic as it is asked for and as it is kept.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct TopicSpec {
    /// Name: 1 to 249 of `a-z A-Z 0-9 . _ -`.
    pub name: String,
    /// Number of partitions, at least 1; fixed once the topic exists.
    pub partitions: u32,
    /// When records go away.
    pub cleanup: Cleanup,
}

impl TopicSpec {
    /// A topic that keeps its records until the log's own limit.
    pub fn new(name: impl Into<String>, partitions: u32) -> Self {
        Self {
            name: name.into(),
            partitions,
            cleanup: Cleanup::Delete {
                retention: None,
                retention_bytes: None,
            },
        }
    }

    /// A topic that keeps the latest record of each key.
    pub fn compacted(name: impl Into<String>, partitions: u32) -> Self {
        Self {
            name: name.into(),
            partitions,
            cleanup: Cleanup::Compact,
        }
    }

    /// The same topic with records deleted after `retention`, unless a known group has not committed past them.
    #[must_use]
    pub fn retention(self, retention: Duration) -> Self {
        let bytes = match self.cleanup {
            Cleanup::Delete { retention_bytes, .. } => retention_bytes,
            Cleanup::Compact => None,
        };
        Self {
            cleanup: Cleanup::Delete {
                retention: Some(retention),
                retention_bytes: bytes,
            },
            ..self
        }
    }
}

/// When the records of a topic go away.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Cleanup {
    /// By age, but never past the lowest commit of a known group. By size likewise on the embedded log; on Kafka the brokers do
    /// that, and delete also what no group has read.
    Delete {
        /// Age after which a record may be deleted; `None` is never.
        retention: Option<Duration>,
        /// Bytes of one partition above which its oldest records may be deleted; `None` is no bound.
        retention_bytes: Option<u64>,
    },
    /// When a newer record has the same key. A record without a value deletes its key.
    Compact,
}

/// Checks a topic name.
///
/// # Errors
/// `InvalidTopicName`.
pub fn validate_topic_name(name: &str) -> Result<()> {
    let fits = (1..=249).contains(&name.len()) && name != "." && name != "..";
    if fits
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
    {
        Ok(())
    } else {
        Err(LogError::InvalidTopicName { name: name.to_owned() })
    }
}

/// One partition of one topic.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TopicPartition {
    /// The topic.
    pub topic: String,
    /// The partition, from 0.
    pub partition: u32,
}

impl TopicPartition {
    /// A partition of a topic.
    pub fn new(topic: impl Into<String>, partition: u32) -> Self {
        Self {
            topic: topic.into(),
            partition,
        }
    }
}

/// A record as it is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The topic.
    pub topic: String,
    /// The partition.
    pub partition: u32,
    /// The place in the partition, from 0.
    pub offset: i64,
    /// When it was appended: milliseconds since 1970.
    pub timestamp_ms: i64,
    /// Key that decided the partition.
    pub key: Option<Bytes>,
    /// Headers in their order; names may repeat.
    pub headers: Vec<(String, Bytes)>,
    /// The content; `None` is a tombstone.
    pub value: Option<Bytes>,
}

impl Record {
    /// The first header of that name.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&Bytes> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v)
    }

    /// Where the record is.
    #[must_use]
    pub fn position(&self) -> Position {
        Position {
            topic: self.topic.clone(),
            partition: self.partition,
            offset: self.offset,
        }
    }
}

/// A record to be appended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewRecord {
    /// The topic; it must exist.
    pub topic: String,
    /// Records of one key keep their order. Without a key the record goes to any partition.
    pub key: Option<Bytes>,
    /// Headers in their order; names may repeat.
    pub headers: Vec<(String, Bytes)>,
    /// The content; `None` is a tombstone.
    pub value: Option<Bytes>,
    /// The partition, when it is not to be taken from the key (murmur2, as Kafka's own clients do).
    pub partition: Option<u32>,
}

impl NewRecord {
    /// An empty record for a topic.
    pub fn new(topic: impl Into<String>) -> Self {
        Self {
            topic: topic.into(),
            key: None,
            headers: Vec::new(),
            value: None,
            partition: None,
        }
    }

    /// A record that deletes a key of a compacted topic.
    pub fn tombstone(topic: impl Into<String>, key: impl Into<Bytes>) -> Self {
        Self::new(topic).key(key)
    }

    /// The same record with a key.
    #[must_use]
    pub fn key(mut self, key: impl Into<Bytes>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// The same record with a value.
    #[must_use]
    pub fn value(mut self, value: impl Into<Bytes>) -> Self {
        self.value = Some(value.into());
        self
    }

    /// The same record with one more header.
    #[must_use]
    pub fn header(mut self, name: impl Into<String>, value: impl Into<Bytes>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// The same record for a fixed partition.
    #[must_use]
    pub fn partition(mut self, partition: u32) -> Self {
        self.partition = Some(partition);
        self
    }

    /// Bytes of key, value and headers: what is held against [`MAX_RECORD_BYTES`](crate::MAX_RECORD_BYTES).
    #[must_use]
    pub fn size(&self) -> usize {
        let headers: usize = self.headers.iter().map(|(name, value)| name.len() + value.len()).sum();
        headers + self.key.as_ref().map_or(0, Bytes::len) + self.value.as_ref().map_or(0, Bytes::len)
    }
}

/// Where a record is.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Position {
    /// The topic.
    pub topic: String,
    /// The partition.
    pub partition: u32,
    /// The offset.
    pub offset: i64,
}

/// How far a group is in a partition.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct OffsetCommit {
    /// The topic.
    pub topic: String,
    /// The partition.
    pub partition: u32,
    /// The next offset to read.
    pub offset: i64,
    /// Anything the group wants to find again, up to [`MAX_COMMIT_METADATA_BYTES`](crate::MAX_COMMIT_METADATA_BYTES).
    pub metadata: String,
}

impl OffsetCommit {
    /// A commit without metadata.
    pub fn new(topic: impl Into<String>, partition: u32, offset: i64) -> Self {
        Self {
            topic: topic.into(),
            partition,
            offset,
            metadata: String::new(),
        }
    }

    /// The same commit with metadata.
    #[must_use]
    pub fn metadata(mut self, metadata: impl Into<String>) -> Self {
        self.metadata = metadata.into();
        self
    }
}

/// The ends of a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Watermarks {
    /// The partition.
    pub partition: u32,
    /// The first offset held.
    pub low: i64,
    /// The offset that the next record gets.
    pub high: i64,
}

/// Bytes of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Bytes of the records held; `None` when the log does not measure them.
    pub bytes: Option<u64>,
    /// Bytes above which produce fails; `None` when the log has no limit of its own.
    pub limit: Option<u64>,
}

/// Where to start without a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Start {
    /// At the first record held.
    #[default]
    Earliest,
    /// At the records that come after.
    Latest,
}

/// Which topics a consumer reads.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Topics {
    /// These.
    Names(Vec<String>),
    /// All whose name starts with this, also those created later.
    Pattern(String),
}

impl Topics {
    /// One topic.
    pub fn one(name: impl Into<String>) -> Self {
        Self::Names(vec![name.into()])
    }

    /// Whether a topic is one of them.
    #[must_use]
    pub fn matches(&self, topic: &str) -> bool {
        match self {
            Self::Names(names) => names.iter().any(|name| name == topic),
            Self::Pattern(prefix) => topic.starts_with(prefix),
        }
    }
}

/// How a consumer joins its group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConsumerConfig {
    /// The group: its members share the partitions.
    pub group: String,
    /// Name of this member, stable over a restart. A member that joins by the name of another one replaces it.
    pub member: String,
    /// What to read.
    pub topics: Topics,
    /// Where to start in a partition that the group has not committed.
    pub start: Start,
    /// How long a member may hold on to a revoked partition before it is given to another one.
    pub session_timeout: Duration,
}

impl ConsumerConfig {
    /// A member that starts at the earliest record and has 15 s to give up a partition: who is silent for so long is taken for
    /// dead, and while its work waits for another, people wait (Kafka's default is 45 s).
    pub fn new(group: impl Into<String>, member: impl Into<String>, topics: Topics) -> Self {
        Self {
            group: group.into(),
            member: member.into(),
            topics,
            start: Start::Earliest,
            session_timeout: Duration::from_secs(15),
        }
    }
}

/// A partition that a member got.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assignment {
    /// The topic.
    pub topic: String,
    /// The partition.
    pub partition: u32,
    /// What the group committed last; reading starts there.
    pub committed: Option<OffsetCommit>,
}

/// What a consumer is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConsumerEvent {
    /// These partitions are this member's from now on.
    Assigned(Vec<Assignment>),
    /// These partitions are lost with the next poll: commit what is done now.
    Revoked(Vec<TopicPartition>),
    /// Records, in the order of their partition.
    Records(Vec<Record>),
}

/// What a follower is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FollowEvent {
    /// Records, in the order of their partition.
    Records(Vec<Record>),
    /// All that was there when the follower was made has been returned. Said once.
    CaughtUp,
}

/// Records and commits that take effect together.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Transaction {
    /// Records to append.
    pub records: Vec<NewRecord>,
    /// How far the group is once this took effect.
    pub offsets: Vec<OffsetCommit>,
    /// The group of the offsets; empty when there are none.
    pub group: String,
    /// The member of the group, whose consumer is in this process: offsets of partitions that it lost are refused.
    /// Empty for no such check.
    pub member: String,
}
