//! What can go wrong in the event log.

use std::path::PathBuf;

/// Result of every call on the event log.
pub type Result<T, E = LogError> = std::result::Result<T, E>;

/// Why a call on the event log failed. Unless a variant says otherwise, nothing of the call took effect.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The topic does not exist: topics are made by `ensure_topics`, never by using them.
    #[error("topic {topic} does not exist")]
    UnknownTopic {
        /// The name asked for.
        topic: String,
    },
    /// The topic has fewer partitions than the one asked for.
    #[error("topic {topic} has {partitions} partitions, there is no partition {partition}")]
    UnknownPartition {
        /// The topic.
        topic: String,
        /// The partition asked for.
        partition: u32,
        /// How many there are.
        partitions: u32,
    },
    /// The topic exists with another number of partitions; changing it would break the order of keys.
    #[error("topic {topic} has {existing} partitions, {wanted} were asked for")]
    PartitionCountDiffers {
        /// The topic.
        topic: String,
        /// Partitions it has.
        existing: u32,
        /// Partitions asked for.
        wanted: u32,
    },
    /// The topic exists, but compacted where a deleting one is asked for, or the other way round.
    #[error("topic {topic} exists with another cleanup policy")]
    CleanupDiffers {
        /// The topic.
        topic: String,
    },
    /// A topic name must be 1 to 249 of `a-z A-Z 0-9 . _ -`, and not `.` or `..`.
    #[error("topic name {name:?} is not 1 to 249 of a-z A-Z 0-9 . _ -")]
    InvalidTopicName {
        /// The name as given.
        name: String,
    },
    /// A topic needs 1 to 10,000 partitions.
    #[error("topic {topic} cannot have {partitions} partitions (1 to 10000)")]
    InvalidPartitionCount {
        /// The topic.
        topic: String,
        /// The number as given.
        partitions: u32,
    },
    /// A record of a compacted topic has no key.
    #[error("a record for the compacted topic {topic} has no key")]
    KeyMissing {
        /// The topic.
        topic: String,
    },
    /// One record is larger than the log takes.
    #[error("a record for topic {topic} has {size} bytes, the limit is {limit}")]
    RecordTooLarge {
        /// The topic.
        topic: String,
        /// Bytes of key, value and headers.
        size: usize,
        /// Most bytes allowed.
        limit: usize,
    },
    /// The metadata of a commit is larger than the log takes: commit without it.
    #[error("commit metadata has {size} bytes, the limit is {limit}")]
    MetadataTooLarge {
        /// Bytes as given.
        size: usize,
        /// Most bytes allowed.
        limit: usize,
    },
    /// The log has no room for the records. Commits still work, so that consumers can drain it.
    #[error("the event log is full: {used} of {limit} bytes used")]
    Full {
        /// Bytes in use.
        used: u64,
        /// Bytes it may use; equal to `used` when the disk itself is full.
        limit: u64,
    },
    /// A newer producer with the same transactional id, or a newer member of that name, took over: this one must not be
    /// used any more.
    #[error("{id} was replaced by a newer one")]
    Fenced {
        /// The transactional id or the member.
        id: String,
    },
    /// It is not known whether the transaction was committed, and it will not be heard of here. The group's committed offsets tell, to
    /// who joins anew after taking over the transactional id; to write the same again may write it twice.
    #[error("it is not known whether a transaction of {id} was committed: {source}")]
    Unresolved {
        /// The transactional id.
        id: String,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The partition belongs to another member of the group by now; the work on it is not this member's to commit.
    #[error("partition {partition} of topic {topic} is not assigned to this member of group {group}")]
    NotAssigned {
        /// The consumer group.
        group: String,
        /// The topic.
        topic: String,
        /// The partition.
        partition: u32,
    },
    /// The group has members, so it cannot be deleted.
    #[error("group {group} has members")]
    GroupInUse {
        /// The consumer group.
        group: String,
    },
    /// An offset outside of the partition.
    #[error("offset {offset} is outside of {low}..={high} in partition {partition} of topic {topic}")]
    OffsetOutOfRange {
        /// The topic.
        topic: String,
        /// The partition.
        partition: u32,
        /// The offset as given.
        offset: i64,
        /// First offset held.
        low: i64,
        /// Next offset to be written.
        high: i64,
    },
    /// The log, or this handle of it, was closed.
    #[error("the event log is closed")]
    Closed,
    /// Another process has the folder open.
    #[error("the event log at {} is in use by another process", path.display())]
    InUse {
        /// The folder.
        path: PathBuf,
    },
    /// The store or the broker failed; a write may or may not have taken effect.
    #[error("event log storage failed: {context}")]
    Storage {
        /// What was being done.
        context: &'static str,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// What the store holds cannot be read: written by a newer version, or damaged.
    #[error("event log data cannot be read: {what}")]
    Corrupt {
        /// What was being read.
        what: &'static str,
    },
}

impl LogError {
    /// Whether the same call can succeed later without a change by the caller.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Full { .. } | Self::Storage { .. })
    }

    pub(crate) fn storage(context: &'static str, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Storage {
            context,
            source: source.into(),
        }
    }
}
