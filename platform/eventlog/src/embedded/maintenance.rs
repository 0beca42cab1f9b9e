//! What the writer does beside records: topics, groups, retention. Each chore is one small batch, so that records
//! never wait long for one.

use std::time::Duration;

use super::codec::{Tp, charge, record_timestamp, take_i64, take_u32};
use super::core::Core;
use super::state::{Part, Topic, deleted_key, group_key, part_key, topic_key};
use super::store::{Ops, Space, is_out_of_space};
use super::writer::decode_latest;
use crate::error::{LogError, Result};
use crate::types::{Cleanup, TopicSpec, Topics, validate_topic_name};

/// Entries that one chore touches at most.
const CHUNK: usize = 1000;
const MAX_PARTITIONS: u32 = 10_000;

/// Gets whether the database is usable; says whether it broke.
type Work = dyn FnOnce(&Core, Result<()>) -> bool + Send;

/// A piece of work for the writer.
pub struct Chore(Box<Work>);

pub struct ChoreError {
    pub error: LogError,
    broken: bool,
}

impl From<LogError> for ChoreError {
    fn from(error: LogError) -> Self {
        Self { error, broken: false }
    }
}

type ChoreResult<T> = std::result::Result<T, ChoreError>;

impl Chore {
    /// `answer` gets the result; a caller that went away is normal.
    pub fn new<T>(
        work: impl FnOnce(&Core) -> ChoreResult<T> + Send + 'static,
        answer: impl FnOnce(Result<T>) + Send + 'static,
    ) -> Self {
        Self(Box::new(move |core, ready| {
            match ready.map_err(ChoreError::from).and_then(|()| work(core)) {
                Ok(value) => {
                    answer(Ok(value));
                    false
                }
                Err(ChoreError { error, broken }) => {
                    answer(Err(error));
                    broken
                }
            }
        }))
    }

    pub fn run(self, core: &Core, ready: Result<()>) -> bool {
        (self.0)(core, ready)
    }
}

fn commit(core: &Core, ops: Ops) -> ChoreResult<()> {
    if ops.is_empty() {
        return Ok(());
    }
    let sync = core.config.sync;
    let Err(failure) = core.with_store(|store| Ok(store.commit(ops, sync)))? else {
        return Ok(());
    };
    let used = core.state().used;
    let error = if is_out_of_space(&failure.error) {
        LogError::Full { used, limit: used }
    } else {
        LogError::storage("writing", failure.error)
    };
    Err(ChoreError { error, broken: true })
}

fn encode<T: serde::Serialize>(value: &T) -> Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(|e| LogError::storage("encoding", e))
}

pub fn ensure_topics(core: &Core, specs: &[TopicSpec]) -> ChoreResult<()> {
    let mut ops = Ops::default();
    let mut changed: Vec<(u32, &TopicSpec)> = Vec::new();
    let mut next_id;
    {
        let state = core.open_state()?;
        next_id = state.next_topic;
        for spec in specs {
            validate_topic_name(&spec.name)?;
            if !(1..=MAX_PARTITIONS).contains(&spec.partitions) {
                return Err(LogError::InvalidPartitionCount {
                    topic: spec.name.clone(),
                    partitions: spec.partitions,
                }
                .into());
            }
            let earlier = changed.iter().rev().find(|(_, s)| s.name == spec.name).copied();
            let id = match earlier.or_else(|| state.find(&spec.name).map(|t| (t.id, &t.spec))) {
                Some((id, known)) => {
                    check_same(known, spec)?;
                    if known == spec {
                        continue;
                    }
                    id
                }
                None => {
                    next_id += 1;
                    next_id - 1
                }
            };
            ops.put(Space::Meta, topic_key(id), encode(spec)?);
            changed.push((id, spec));
        }
        ops_next_id(&mut ops, state.next_topic, next_id);
    }
    commit(core, ops)?;
    let now = tokio::time::Instant::now();
    let mut state = core.state();
    state.next_topic = next_id;
    for (id, spec) in changed {
        if let Some(topic) = state.topic_by_id(id) {
            topic.spec = spec.clone();
            continue;
        }
        state.insert_topic(Topic::new(id, spec.clone()));
        for group in state.groups.values_mut() {
            group.add_topic(&spec.name, id, spec.partitions, now);
        }
    }
    Ok(())
}

fn ops_next_id(ops: &mut Ops, before: u32, after: u32) {
    if before != after {
        ops.put(Space::Meta, b"n".to_vec(), after.to_be_bytes());
    }
}

fn check_same(known: &TopicSpec, wanted: &TopicSpec) -> Result<()> {
    if known.partitions != wanted.partitions {
        let (existing, wanted, topic) = (known.partitions, wanted.partitions, known.name.clone());
        return Err(LogError::PartitionCountDiffers {
            topic,
            existing,
            wanted,
        });
    }
    if (known.cleanup == Cleanup::Compact) != (wanted.cleanup == Cleanup::Compact) {
        return Err(LogError::CleanupDiffers {
            topic: known.name.clone(),
        });
    }
    Ok(())
}

/// Takes the topic out of sight; its entries are removed by [`purge`].
pub fn delete_topic(core: &Core, name: &str) -> ChoreResult<u32> {
    let id = core.open_state()?.topic(name)?.id;
    let mut ops = Ops::default();
    ops.remove(Space::Meta, topic_key(id));
    ops.put(Space::Meta, deleted_key(id), name.as_bytes());
    commit(core, ops)?;
    let mut state = core.state();
    if let Some(topic) = state.remove_topic(name) {
        for group in state.groups.values_mut() {
            group.remove_topic(topic.id, topic.spec.partitions, tokio::time::Instant::now());
        }
        topic.changed.notify_waiters();
    }
    Ok(id)
}

/// Topics whose entries are still to be removed, also after a crash.
pub fn deleted_topics(core: &Core) -> Result<Vec<u32>> {
    let keys = core.with_store(|store| store.keys(Space::Meta, b"d", usize::MAX))?;
    keys.iter().map(|key| Ok(take_u32(&key[1..])?.0)).collect()
}

/// Removes some entries of a deleted topic; says whether that were all.
pub fn purge(core: &Core, id: u32) -> ChoreResult<bool> {
    let mut ops = Ops::default();
    let prefix = id.to_be_bytes();
    let mut left = CHUNK;
    for (space, prefix) in [
        (Space::Records, prefix.to_vec()),
        (Space::Latest, prefix.to_vec()),
        (Space::Offsets, prefix.to_vec()),
        (Space::Meta, [b"p".as_slice(), &prefix].concat()),
    ] {
        let keys = core.with_store(|store| store.keys(space, &prefix, left))?;
        left -= keys.len();
        for key in keys {
            ops.remove(space, key);
        }
    }
    if left > 0 {
        ops.remove(Space::Meta, deleted_key(id));
    }
    commit(core, ops)?;
    Ok(left > 0)
}

/// Remembers what a group reads.
pub fn subscribe(core: &Core, group: &str, topics: &Topics) -> ChoreResult<()> {
    if core.open_state()?.subscriptions.get(group) == Some(topics) {
        return Ok(());
    }
    let mut ops = Ops::default();
    ops.put(Space::Meta, group_key(group), encode(topics)?);
    commit(core, ops)?;
    core.state().subscriptions.insert(group.to_owned(), topics.clone());
    Ok(())
}

pub fn delete_group(core: &Core, group: &str) -> ChoreResult<()> {
    let mut ops = Ops::default();
    {
        let state = core.open_state()?;
        if state.groups.get(group).is_some_and(|g| !g.is_empty()) {
            return Err(LogError::GroupInUse {
                group: group.to_owned(),
            }
            .into());
        }
        ops.remove(Space::Meta, group_key(group));
        for topic in state.topics().filter(|t| t.commits.contains_key(group)) {
            for partition in 0..topic.spec.partitions {
                ops.remove(Space::Offsets, topic.tp(partition).named_key(group.as_bytes()));
            }
        }
    }
    commit(core, ops)?;
    let mut state = core.state();
    state.subscriptions.remove(group);
    for topic in state.topics_mut() {
        topic.commits.remove(group);
    }
    Ok(())
}

/// A new producer for a transactional id. In the queue of the writer, so that a transaction of the older one is either
/// durable before, or refused.
pub fn fence(core: &Core, id: &str) -> ChoreResult<u64> {
    let mut state = core.open_state()?;
    let epoch = state.producers.entry(id.to_owned()).or_default();
    *epoch += 1;
    Ok(*epoch)
}

/// What a step of retention did, and whether there is more to do.
#[derive(Debug, Clone, Copy, Default)]
pub struct Step {
    pub records: u64,
    pub bytes: u64,
    pub more: bool,
}

/// Partitions that retention may shorten.
pub fn retention_candidates(core: &Core) -> Result<Vec<Tp>> {
    let state = core.open_state()?;
    let bounded = |topic: &&Topic| match topic.spec.cleanup {
        Cleanup::Delete {
            retention,
            retention_bytes,
        } => retention.is_some() || retention_bytes.is_some(),
        Cleanup::Compact => false,
    };
    let mut tps = Vec::new();
    for topic in state.topics().filter(bounded) {
        for (partition, part) in (0..).zip(&topic.parts) {
            if part.low < part.high && state.floor(topic, partition) > part.low {
                tps.push(topic.tp(partition));
            }
        }
    }
    Ok(tps)
}

/// Deletes old records of a partition, never past what a known group has not committed. When the log is nearly full,
/// what the groups have done with is old at any age.
pub fn retain(core: &Core, tp: Tp, now_ms: i64) -> ChoreResult<Step> {
    let (retention, retention_bytes, part, floor, used) = {
        let mut state = core.open_state()?;
        let Some(topic) = state.topic_by_id(tp.topic) else {
            return Ok(Step::default());
        };
        let Cleanup::Delete {
            retention,
            retention_bytes,
        } = topic.spec.cleanup
        else {
            return Ok(Step::default());
        };
        let (name, part) = (topic.spec.name.clone(), topic.part(tp.partition)?);
        let topic = state.topic(&name)?;
        let used = (retention.is_some() && !topic.commits.is_empty()).then_some(state.used);
        let floor = state.floor(topic, tp.partition);
        (retention, retention_bytes, part, floor, used)
    };
    let expired = |ms: i64| retention.is_some_and(|r| ms.saturating_add(millis(r)) <= now_ms);
    let (mut ops, mut left, mut step) = (Ops::default(), part, Step::default());
    core.with_store(|store| {
        store.each_record(tp, part.low, floor, |offset, stored| {
            let oversized = retention_bytes.is_some_and(|limit| left.bytes > limit);
            let pressed = used.is_some_and(|used| core.is_pressed(used.saturating_sub(step.bytes)));
            if !oversized && !pressed && !expired(record_timestamp(stored)?) {
                return Ok(false);
            }
            if step.records as usize >= CHUNK {
                step.more = true;
                return Ok(false);
            }
            ops.remove(Space::Records, tp.record_key(offset));
            left = Part {
                low: offset + 1,
                bytes: left.bytes.saturating_sub(charge(stored)),
                ..left
            };
            step.records += 1;
            step.bytes += charge(stored);
            Ok(true)
        })
    })?;
    if step.records > 0 {
        ops.put(Space::Meta, part_key(tp), left.encode());
        commit(core, ops)?;
        core.state().set_part(tp, left);
    }
    Ok(step)
}

/// Removes tombstones written before `before_ms` that are still the latest of their key.
pub fn drop_tombstones(core: &Core, before_ms: i64) -> ChoreResult<Step> {
    let entries = core.with_store(|store| store.scan(Space::Meta, b"x", CHUNK))?;
    let (mut ops, mut step) = (
        Ops::default(),
        Step {
            more: entries.len() == CHUNK,
            ..Step::default()
        },
    );
    let mut parts: std::collections::HashMap<Tp, Part> = std::collections::HashMap::new();
    for (entry, record_key) in entries {
        let (written_ms, rest) = take_i64(&entry[1..])?;
        if written_ms > before_ms {
            step.more = false;
            break;
        }
        let (tp, rest) = Tp::split(rest)?;
        let (offset, _) = take_i64(rest)?;
        ops.remove(Space::Meta, entry);
        let key = tp.named_key(&record_key);
        let latest = core.with_store(|store| store.get(Space::Latest, &key))?;
        let Some((latest, bytes)) = latest.as_deref().map(decode_latest).transpose()? else {
            continue;
        };
        let part = core
            .open_state()?
            .topic_by_id(tp.topic)
            .map(|topic| topic.part(tp.partition))
            .transpose()?;
        let Some(part) = part.filter(|_| latest == offset) else {
            continue;
        };
        let part = parts.entry(tp).or_insert(part);
        part.bytes = part.bytes.saturating_sub(bytes);
        ops.remove(Space::Latest, key);
        ops.remove(Space::Records, tp.record_key(offset));
        ops.put(Space::Meta, part_key(tp), part.encode());
        step.records += 1;
        step.bytes += bytes;
    }
    commit(core, ops)?;
    let mut state = core.state();
    for (tp, part) in parts {
        state.set_part(tp, part);
    }
    Ok(step)
}

pub fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}
