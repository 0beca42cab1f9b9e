//! The contract of an event log.

use async_trait::async_trait;

use crate::error::{LogError, Result};
use crate::types::{
    ConsumerConfig, ConsumerEvent, FollowEvent, NewRecord, OffsetCommit, Position, Record, Start, TopicSpec,
    Transaction, Usage, Watermarks,
};

/// A durable, partitioned log of records. Shared as `Arc<dyn EventLog>`.
#[async_trait]
pub trait EventLog: Send + Sync + 'static {
    /// Creates the topics that are missing. Repeating it is harmless; a changed retention is applied.
    ///
    /// # Errors
    /// `PartitionCountDiffers`, `CleanupDiffers`, `InvalidTopicName`, `InvalidPartitionCount`; then none was created.
    async fn ensure_topics(&self, specs: &[TopicSpec]) -> Result<()>;

    /// The same, but a topic that is there keeps its own number of partitions: for those whose number is nobody's concern but
    /// their readers'.
    ///
    /// # Errors
    /// As [`ensure_topics`](Self::ensure_topics), but for `PartitionCountDiffers`.
    async fn ensure_topics_of_any_count(&self, specs: &[TopicSpec]) -> Result<()> {
        let mut specs = specs.to_vec();
        loop {
            let made = self.ensure_topics(&specs).await;
            let Err(LogError::PartitionCountDiffers { topic, existing, .. }) = made else {
                return made;
            };
            for spec in specs.iter_mut().filter(|spec| spec.name == topic) {
                spec.partitions = existing;
            }
        }
    }

    /// Deletes a topic, its records and every group's commits on it. Consumers of it get `Revoked`.
    ///
    /// # Errors
    /// `UnknownTopic`.
    async fn delete_topic(&self, name: &str) -> Result<()>;

    /// All topics, by name.
    ///
    /// # Errors
    /// `Closed`, `Storage`.
    async fn topics(&self) -> Result<Vec<TopicSpec>>;

    /// Appends records; they are durable when it returns, and those of one key keep their order. The result is in the
    /// order of the input. The embedded log writes all or none; Kafka promises that only in a transaction.
    ///
    /// Not cancel-safe: records of a dropped call may still be written.
    ///
    /// # Errors
    /// `UnknownTopic`, `UnknownPartition`, `RecordTooLarge`, `KeyMissing`, `Full`, `Storage`.
    async fn produce(&self, records: Vec<NewRecord>) -> Result<Vec<Position>>;

    /// Joins a consumer group. Committed reads only: records of a transaction appear when it is committed.
    ///
    /// # Errors
    /// `InvalidTopicName`, `Closed`. Topics that do not exist yet are picked up when they are created.
    async fn consumer(&self, config: ConsumerConfig) -> Result<Box<dyn Consumer>>;

    /// Takes over the transactional id: an older producer with the same id is fenced, in this or another process.
    ///
    /// # Errors
    /// `Closed`, `Storage`.
    async fn transactional(&self, id: &str) -> Result<Box<dyn TransactionalProducer>>;

    /// What a group committed on each partition of a topic, by partition.
    ///
    /// # Errors
    /// `UnknownTopic`.
    async fn committed(&self, group: &str, topic: &str) -> Result<Vec<(u32, Option<OffsetCommit>)>>;

    /// The first and the next offset of each partition, by partition.
    ///
    /// # Errors
    /// `UnknownTopic`.
    async fn watermarks(&self, topic: &str) -> Result<Vec<Watermarks>>;

    /// Offsets between the group's commits and the ends of the partitions, summed. On Kafka that counts transaction
    /// markers too, until the consumer commits [past them](Consumer::position).
    ///
    /// # Errors
    /// `UnknownTopic`.
    async fn lag(&self, group: &str, topic: &str) -> Result<u64>;

    /// Forgets a group and what it committed, so that retention no longer waits for it.
    ///
    /// # Errors
    /// `GroupInUse` while it has members.
    async fn delete_group(&self, group: &str) -> Result<()>;

    /// Up to `max` records from offset `from` on, without a group. Offsets below the first one held are skipped, so
    /// are those that compaction removed. Empty at the end of the partition.
    ///
    /// # Errors
    /// `UnknownTopic`, `UnknownPartition`, `OffsetOutOfRange` for a negative offset or one past the end.
    async fn read(&self, topic: &str, partition: u32, from: i64, max: usize) -> Result<Vec<Record>>;

    /// Reads all partitions of a topic, without a group, and goes on as records come in: for views of compacted topics.
    ///
    /// # Errors
    /// `UnknownTopic`.
    async fn follow(&self, topic: &str, from: Start) -> Result<Box<dyn Follower>>;

    /// Bytes that the log holds and may hold.
    ///
    /// # Errors
    /// `Closed`, `Storage`.
    async fn usage(&self) -> Result<Usage>;
}

/// A member of a consumer group. Dropping it leaves the group as `close` does, without waiting.
#[async_trait]
pub trait Consumer: Send {
    /// Waits until there is something and returns it: records (at most `max`, at least 1), or a change of assignment.
    /// Records follow in the order of their partition, from the committed offset or else `ConsumerConfig::start`.
    ///
    /// Partitions in `Revoked` are still this member's until the next call of `poll` or `close`: finish or give up the
    /// work on them and commit before that, within `ConsumerConfig::session_timeout`. Cancel-safe: nothing is lost when
    /// the future is dropped.
    ///
    /// # Errors
    /// `Closed`, `Storage`.
    async fn poll(&mut self, max: usize) -> Result<Vec<ConsumerEvent>>;

    /// Stores how far the group is; durable when it returns. Works when the log is full, as tombstones do.
    ///
    /// # Errors
    /// `NotAssigned` (then none is stored), `MetadataTooLarge`, `Closed`, `Storage`.
    async fn commit(&mut self, offsets: Vec<OffsetCommit>) -> Result<()>;

    /// The next offset that `poll` will read: past all records delivered and past the transaction markers known to
    /// follow them, so committing it when all delivered records are done leaves a lag of 0. `None` when not assigned.
    fn position(&self, topic: &str, partition: u32) -> Option<i64>;

    /// Stops delivery of a partition until `resume`; unknown partitions are ignored. Ends with the assignment.
    fn pause(&mut self, topic: &str, partition: u32);

    /// Delivers a paused partition again, from where it stopped.
    fn resume(&mut self, topic: &str, partition: u32);

    /// Leaves the group; its partitions go to the other members at once.
    ///
    /// # Errors
    /// `Storage`.
    async fn close(self: Box<Self>) -> Result<()>;
}

/// Writes records and offsets together or not at all.
#[async_trait]
pub trait TransactionalProducer: Send {
    /// Commits one transaction; it is durable when it returns. The result has a position for each record, in order.
    ///
    /// Not cancel-safe: a dropped call may still be committed. Either way it is whole.
    ///
    /// # Errors
    /// `Unresolved`: it may have been committed, so the same transaction must not be given again before the id was taken over
    /// and the group's offsets were looked at. `Fenced`, `NotAssigned` (the offsets belong to another member by now) and those of
    /// `produce`: nothing of it took effect.
    async fn commit(&mut self, transaction: Transaction) -> Result<Vec<Position>>;
}

/// Reads a whole topic and then follows it.
#[async_trait]
pub trait Follower: Send {
    /// Waits for the next records, or says once that all records that were there when the follower was made have been
    /// returned. With `Start::Latest` (or an empty topic) that comes first. Cancel-safe.
    ///
    /// # Errors
    /// `UnknownTopic` when the topic was deleted, `Closed`, `Storage`.
    async fn next(&mut self) -> Result<FollowEvent>;
}
