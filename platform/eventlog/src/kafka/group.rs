//! What is shared about a member of a group: what it holds, and what it is about to lose.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tokio::task::AbortHandle;

use super::Handle;
use super::context::{Context, Rebalance, Told, lock};
use super::failure::{code, is_not_member, is_unknown_topic, storage};
use super::offsets::list;
use crate::MAX_COMMIT_METADATA_BYTES;
use crate::error::{LogError, Result};
use crate::types::{ConsumerConfig, OffsetCommit, TopicPartition};

/// Longest that a commit is tried while the group rebalances or its coordinator moves.
const COMMIT_FOR: Duration = Duration::from_secs(10);
const COMMIT_PAUSE: Duration = Duration::from_millis(50);
/// Looks at a member that leaves: each passes the queues of librdkafka's thread once, and leaving takes four.
const LEAVE_LOOKS: usize = 200;
const SETTLED_LOOKS: usize = 6;
/// How often the client of a member that is stuck is served.
const SERVE_EVERY: Duration = Duration::from_millis(100);
const LEAVE_POLL: Duration = Duration::from_millis(5);

/// A member of a group in this process.
pub struct Membership {
    pub group: String,
    pub member: String,
    pub told: Arc<Told>,
    pub consumer: Arc<BaseConsumer<Context>>,
    session: Duration,
    state: Mutex<State>,
    /// Whether partitions were given up that the consumer has not forgotten yet.
    given_up: AtomicBool,
}

#[derive(Default)]
struct State {
    held: HashSet<TopicPartition>,
    revoking: Option<Revoking>,
    /// Gives up what is revoked when its time is over.
    watch: Option<AbortHandle>,
}

/// Partitions whose end was told, and which librdkafka still holds for us.
struct Revoking {
    partitions: Vec<TopicPartition>,
    lost: bool,
}

impl Membership {
    pub fn new(config: &ConsumerConfig, told: Arc<Told>, consumer: Arc<BaseConsumer<Context>>) -> Arc<Self> {
        Arc::new(Self {
            group: config.group.clone(),
            member: config.member.clone(),
            told,
            consumer,
            session: config.session_timeout,
            state: Mutex::default(),
            given_up: AtomicBool::new(false),
        })
    }

    /// Whether partitions were given up since this was asked last.
    pub fn has_given_up(&self) -> bool {
        self.given_up.swap(false, Ordering::AcqRel)
    }

    pub fn hold(&self, partitions: impl IntoIterator<Item = TopicPartition>) {
        lock(&self.state).held.extend(partitions);
    }

    pub fn holds(&self, at: &TopicPartition) -> bool {
        lock(&self.state).held.contains(at)
    }

    /// Notes that the end of these was told, and gives them up by itself when nobody does within the session timeout.
    pub fn revoke(self: &Arc<Self>, partitions: Vec<TopicPartition>, lost: bool) {
        let (member, session) = (Arc::downgrade(self), self.session);
        let watch = tokio::spawn(async move {
            tokio::time::sleep(session).await;
            if let Some(member) = member.upgrade() {
                tracing::warn!(member.group, member.member, "partitions were not given back in time");
                member.give_up();
            }
            // librdkafka asks once more before it tells the group, and only a poll lets the answer through.
            let until = Instant::now() + session;
            while Instant::now() < until {
                let Some(member) = member.upgrade() else { return };
                drop(member.consumer.poll(Duration::ZERO));
                drop(member);
                tokio::time::sleep(SERVE_EVERY).await;
            }
        });
        let mut state = lock(&self.state);
        state.revoking = Some(Revoking { partitions, lost });
        state.watch = Some(watch.abort_handle());
    }

    /// Gives up what was told to be revoked.
    pub fn release(&self) {
        if let Some(watch) = lock(&self.state).watch.take() {
            watch.abort();
        }
        self.give_up();
    }

    fn give_up(&self) {
        let revoking = {
            let mut state = lock(&self.state);
            let Some(revoking) = state.revoking.take() else { return };
            for at in &revoking.partitions {
                state.held.remove(at);
            }
            revoking
        };
        self.given_up.store(true, Ordering::Release);
        self.unassign(&revoking.partitions);
    }

    /// Answers librdkafka, which waits for it. Short: its thread only takes note.
    pub fn unassign(&self, partitions: &[TopicPartition]) {
        let given_up = list(partitions, Offset::Invalid).and_then(|list| self.consumer.incremental_unassign(&list));
        if let Err(error) = given_up {
            tracing::warn!(%error, self.group, "partitions could not be given up");
        }
    }

    /// Answers an assignment of a member that leaves. What is taken here is revoked by the leaving.
    pub fn assign_none(&self, partitions: &[TopicPartition]) {
        let taken = list(partitions, Offset::Invalid).and_then(|list| self.consumer.incremental_assign(&list));
        if let Err(error) = taken {
            tracing::debug!(%error, "an assignment while leaving");
        }
    }

    fn check(&self, offsets: &[OffsetCommit]) -> Result<()> {
        check_metadata(offsets)?;
        let state = lock(&self.state);
        let lost = self.told.has_lost() || state.revoking.as_ref().is_some_and(|r| r.lost);
        let not_ours = |c: &&OffsetCommit| lost || !state.held.contains(&TopicPartition::new(&c.topic, c.partition));
        match offsets.iter().find(not_ours) {
            Some(offset) => Err(self.not_assigned(offset)),
            None => Ok(()),
        }
    }

    fn not_assigned(&self, offset: &OffsetCommit) -> LogError {
        not_assigned(&self.group, offset)
    }

    pub async fn commit(self: &Arc<Self>, offsets: Vec<OffsetCommit>) -> Result<()> {
        let Some(first) = offsets.first().cloned() else {
            return Ok(());
        };
        let deadline = Instant::now() + COMMIT_FOR.min(self.session);
        loop {
            // Looked at again each time: what is lost meanwhile is not ours to commit.
            self.check(&offsets)?;
            let commits = commit_list(&offsets).map_err(|e| storage("committing", e, None))?;
            let member = self.clone();
            let done = tokio::task::spawn_blocking(move || member.consumer.commit(&commits, CommitMode::Sync));
            let done = done.await.map_err(|e| LogError::storage("committing", e))?;
            let Err(error) = done else { return Ok(()) };
            match code(&error) {
                Some(code) if is_not_member(code) || is_unknown_topic(code) => return Err(self.not_assigned(&first)),
                Some(RDKafkaErrorCode::OffsetMetadataTooLarge) => {
                    let size = offsets.iter().map(|o| o.metadata.len()).max().unwrap_or_default();
                    let limit = MAX_COMMIT_METADATA_BYTES;
                    return Err(LogError::MetadataTooLarge { size, limit });
                }
                _ if Instant::now() > deadline => return Err(storage("committing", error, self.told.last_error())),
                // The group rebalances, or its coordinator moves.
                _ => tokio::time::sleep(COMMIT_PAUSE).await,
            }
        }
    }

    /// Leaves the group; blocks until it has. The caller drops the queues of the partitions before.
    pub fn leave(&self) {
        self.told.leave();
        while let Some(rebalance) = self.told.next_rebalance() {
            match rebalance {
                Rebalance::Assign(partitions) => self.assign_none(&partitions),
                Rebalance::Revoke { partitions, .. } => self.unassign(&partitions),
            }
        }
        self.release();
        // A static member that only ends keeps its place until its session is over: so it says that it goes.
        self.consumer.unsubscribe();
        let mut settled = 0;
        for _ in 0..LEAVE_LOOKS {
            drop(self.consumer.poll(LEAVE_POLL));
            let is_empty = self.consumer.assignment().map_or(true, |list| list.count() == 0);
            settled = if is_empty { settled + 1 } else { 0 };
            if settled >= SETTLED_LOOKS {
                break;
            }
        }
    }
}

pub fn not_assigned(group: &str, offset: &OffsetCommit) -> LogError {
    LogError::NotAssigned {
        group: group.to_owned(),
        topic: offset.topic.clone(),
        partition: offset.partition,
    }
}

pub fn check_metadata(offsets: &[OffsetCommit]) -> Result<()> {
    match offsets.iter().map(|o| o.metadata.len()).max() {
        Some(size) if size > MAX_COMMIT_METADATA_BYTES => Err(LogError::MetadataTooLarge {
            size,
            limit: MAX_COMMIT_METADATA_BYTES,
        }),
        _ => Ok(()),
    }
}

pub fn commit_list(offsets: &[OffsetCommit]) -> Result<TopicPartitionList, KafkaError> {
    let mut list = TopicPartitionList::with_capacity(offsets.len());
    for commit in offsets {
        let mut element = list.add_partition(&commit.topic, commit.partition.cast_signed());
        element.set_offset(Offset::Offset(commit.offset))?;
        if !commit.metadata.is_empty() {
            element.set_metadata(&commit.metadata);
        }
    }
    Ok(list)
}

/// The members of groups in this process, for the transactions that commit in their names.
#[derive(Default)]
pub struct Members(HashMap<(String, String), Weak<Membership>>);

impl Handle {
    pub fn register(&self, member: &Arc<Membership>) {
        let mut members = lock(&self.members);
        members.0.retain(|_, member| member.strong_count() > 0);
        let name = (member.group.clone(), member.member.clone());
        members.0.insert(name, Arc::downgrade(member));
    }

    /// The member in whose name offsets are committed, if it holds all of them.
    pub fn member_of(&self, group: &str, member: &str, offsets: &[OffsetCommit]) -> Result<Option<Arc<Membership>>> {
        check_metadata(offsets)?;
        let Some(first) = offsets.first() else {
            return Ok(None);
        };
        let name = (group.to_owned(), member.to_owned());
        let found = lock(&self.members).0.get(&name).and_then(Weak::upgrade);
        let found = found.ok_or_else(|| not_assigned(group, first))?;
        found.check(offsets)?;
        Ok(Some(found))
    }
}
