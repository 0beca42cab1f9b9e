//! The one writer: takes all that is queued, writes it as one batch with one sync, then answers everyone.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};

use super::codec::{Tp, charge, encode_record};
use super::core::Core;
use super::maintenance::Chore;
use super::state::{Part, State, part_key, tombstone_key};
use super::store::{Ops, Space, free_bytes, is_out_of_space};
use crate::error::{LogError, Result};
use crate::partition::partition_for_key;
use crate::types::{Cleanup, NewRecord, OffsetCommit, Position};
use crate::{MAX_COMMIT_METADATA_BYTES, MAX_RECORD_BYTES};

/// Requests that may wait; producers wait for a place after that.
pub const QUEUE: usize = 1024;
/// What one batch takes at most, so that the first of it does not wait long.
const BATCH_REQUESTS: usize = 1024;
const BATCH_BYTES: usize = 4 * 1024 * 1024;
/// Keys of a compacted topic are part of a store key, which is at most 64 KiB.
const MAX_COMPACTED_KEY_BYTES: usize = 60 * 1024;

/// Free bytes without which the database is not opened again: it would fail, and what can still be read would be lost.
const REOPEN_BYTES: u64 = 16 * 1024 * 1024;

/// On whose behalf offsets are committed.
pub enum Committer {
    Anyone,
    Member(u64),
    Named(String),
}

type Answer = Result<Vec<Position>>;

pub struct Write {
    pub records: Vec<NewRecord>,
    pub offsets: Vec<OffsetCommit>,
    pub group: String,
    pub committer: Committer,
    pub producer: Option<(String, u64)>,
    pub reply: oneshot::Sender<Answer>,
}

pub enum Request {
    Write(Write),
    Chore(Chore),
    Close(oneshot::Sender<Result<()>>),
}

/// A batch being put together.
#[derive(Default)]
struct Pending {
    ops: Ops,
    parts: HashMap<Tp, Part>,
    /// Partitions with new records. Their ends are written once a batch, not once a record.
    grown: HashSet<Tp>,
    commits: Vec<(String, Tp, i64)>,
    added_bytes: u64,
    /// Free bytes of the disk when the batch began. To ask for them for each request would be a system call for each record.
    free_bytes: Option<u64>,
}

pub struct Writer {
    core: Arc<Core>,
    queue: mpsc::Receiver<Request>,
    /// The database refused a write: it has to be opened again before the next one.
    broken: bool,
    round_robin: u32,
}

impl Writer {
    pub fn new(core: Arc<Core>, queue: mpsc::Receiver<Request>) -> Self {
        Self {
            core,
            queue,
            broken: false,
            round_robin: 0,
        }
    }

    /// Runs until `Close`, or until the last handle of the log is gone.
    pub fn run(mut self) {
        let mut next = None;
        loop {
            let request = match next.take() {
                Some(request) => request,
                None => match self.queue.blocking_recv() {
                    Some(request) => request,
                    None => return,
                },
            };
            match request {
                Request::Write(first) => next = self.write_batch(first),
                Request::Chore(chore) => {
                    let ready = self.repair();
                    self.broken |= chore.run(&self.core, ready);
                }
                Request::Close(reply) => {
                    // Whoever still waits in the queue gets `Closed` by their reply being dropped.
                    let _ = reply.send(self.core.close());
                    return;
                }
            }
        }
    }

    fn repair(&mut self) -> Result<()> {
        if self.broken {
            if free_bytes(&self.core.config.path) < REOPEN_BYTES {
                return Err(self.disk_full());
            }
            self.core.reopen().map_err(|e| self.no_space(e))?;
            tracing::warn!("event log opened again after a failed write");
            self.broken = false;
        }
        Ok(())
    }

    fn no_space(&self, error: LogError) -> LogError {
        let out_of_space = matches!(&error, LogError::Storage { source, .. } if is_out_of_space(source.as_ref()));
        if out_of_space { self.disk_full() } else { error }
    }

    fn disk_full(&self) -> LogError {
        let used = self.core.state().used;
        LogError::Full { used, limit: used }
    }

    /// Writes `first` and what else is queued; returns the request that ended the batch.
    fn write_batch(&mut self, first: Write) -> Option<Request> {
        let size = |write: &Write| write.records.iter().map(NewRecord::size).sum::<usize>();
        let mut bytes = size(&first);
        let mut writes = vec![first];
        let mut next = None;
        while writes.len() < BATCH_REQUESTS && bytes < BATCH_BYTES {
            match self.queue.try_recv() {
                Ok(Request::Write(write)) => {
                    bytes += size(&write);
                    writes.push(write);
                }
                Ok(other) => {
                    next = Some(other);
                    break;
                }
                Err(_) => break,
            }
        }
        let started = std::time::Instant::now();
        let results = self.write_all(&writes);
        metrics::histogram!("imageflow_storage_log_commit_seconds").record(started.elapsed().as_secs_f64());
        metrics::histogram!("imageflow_storage_log_batch_requests").record(writes.len() as f64);
        for (write, result) in writes.into_iter().zip(results) {
            if matches!(result, Err(LogError::Full { .. })) {
                metrics::counter!("imageflow_storage_log_full_total").increment(1);
            }
            // A caller that went away is normal.
            let _ = write.reply.send(result);
        }
        next
    }

    fn write_all(&mut self, writes: &[Write]) -> Vec<Result<Vec<Position>>> {
        let mut attempts = 2;
        loop {
            if let Err(e) = self.repair() {
                let mut errors = Vec::from([Err(e)]);
                errors.resize_with(writes.len(), || Err(LogError::Closed));
                return self.same_error(errors, writes.len());
            }
            let mut pending = Pending::default();
            let results: Vec<_> = writes.iter().map(|write| self.admit(&mut pending, write)).collect();
            let Pending {
                mut ops,
                parts,
                grown,
                commits,
                ..
            } = pending;
            for (tp, part) in parts.iter().filter(|(tp, _)| grown.contains(tp)) {
                ops.put(Space::Meta, part_key(*tp), part.encode());
            }
            if ops.is_empty() {
                self.core.state().committing.clear();
                return results;
            }
            let sync = self.core.config.sync;
            let outcome = self.core.with_store(|store| Ok(store.commit(ops, sync)));
            attempts -= 1;
            match outcome {
                Ok(Ok(())) => {
                    self.publish(&parts, &commits);
                    return results;
                }
                Ok(Err(failure)) => {
                    self.core.state().committing.clear();
                    self.broken = true;
                    if failure.untouched && attempts > 0 {
                        continue;
                    }
                    let error = if is_out_of_space(&failure.error) {
                        self.disk_full()
                    } else {
                        LogError::storage("writing", failure.error)
                    };
                    tracing::error!(%error, "event log write failed");
                    let errors = self.same_error(vec![Err(error)], writes.len());
                    return answers(writes, results, errors, failure.untouched);
                }
                Err(error) => return self.same_error(vec![Err(error)], writes.len()),
            }
        }
    }

    /// The first error for the first caller, the same kind for the others (an error cannot be cloned).
    fn same_error(&self, mut first: Vec<Result<Vec<Position>>>, count: usize) -> Vec<Result<Vec<Position>>> {
        first.truncate(1);
        while first.len() < count {
            let next = match &first[0] {
                Err(LogError::Full { used, limit }) => LogError::Full {
                    used: *used,
                    limit: *limit,
                },
                Err(LogError::Storage { context, source }) => LogError::storage(context, source.to_string()),
                _ => LogError::Closed,
            };
            first.push(Err(next));
        }
        first
    }

    /// Checks one request against the state and what is pending, and adds it when it is right.
    fn admit(&mut self, pending: &mut Pending, write: &Write) -> Result<Vec<Position>> {
        let now_ms = (self.core.config.clock)();
        let core = self.core.clone();
        let mut state = core.open_state()?;
        if let Some((id, epoch)) = &write.producer
            && state.producers.get(id) != Some(epoch)
        {
            return Err(LogError::Fenced { id: id.clone() });
        }
        let mut placed = Vec::with_capacity(write.records.len());
        let mut added = 0;
        for record in &write.records {
            let (tp, part, compacted) = self.place(&state, record)?;
            pending.parts.entry(tp).or_insert(part);
            let stored = encode_record(record, now_ms);
            added += charge(&stored);
            placed.push((tp, compacted, stored));
        }
        // Tombstones make room, so a full log takes them, as it takes commits.
        let frees = write.records.iter().all(|record| record.value.is_none());
        if !placed.is_empty() && !frees {
            check_room(&core, &state, pending, added)?;
        }
        // Commits may point at records of the same transaction.
        let mut highs: HashMap<Tp, i64> = HashMap::new();
        for (tp, ..) in &placed {
            *highs.entry(*tp).or_default() += 1;
        }
        let offsets = check_offsets(&state, pending, &highs, write)?;
        for (tp, _) in &offsets {
            state.committing.insert((write.group.clone(), *tp));
        }
        drop(state);

        core.with_store(|store| {
            // Everything that can fail comes before the first change of `pending`.
            let mut superseded = Vec::with_capacity(placed.len());
            for ((tp, compacted, _), record) in placed.iter().zip(&write.records) {
                let key = record.key.as_ref().filter(|_| *compacted).map(|key| tp.named_key(key));
                superseded.push(match key {
                    Some(key) => Some((store.get(Space::Latest, &key)?, key)),
                    None => None,
                });
            }
            let mut positions = Vec::with_capacity(placed.len());
            for (((tp, _, stored), record), latest) in placed.into_iter().zip(&write.records).zip(superseded) {
                let part = pending.parts.entry(tp).or_default();
                let offset = part.high;
                part.high += 1;
                part.bytes += charge(&stored);
                if let Some((on_disk, key)) = latest {
                    let current = pending
                        .ops
                        .get(Space::Latest, &key)
                        .map(|v| v.map(<[u8]>::to_vec))
                        .unwrap_or(on_disk);
                    if let Some((old, bytes)) = current.as_deref().map(decode_latest).transpose()? {
                        part.bytes = part.bytes.saturating_sub(bytes);
                        pending.ops.remove(Space::Records, tp.record_key(old));
                    }
                    if record.value.is_none() {
                        pending
                            .ops
                            .put(Space::Meta, tombstone_key(now_ms, tp, offset), key[8..].to_vec());
                    }
                    pending
                        .ops
                        .put(Space::Latest, key, encode_latest(offset, charge(&stored)));
                }
                pending.ops.put(Space::Records, tp.record_key(offset), stored);
                pending.grown.insert(tp);
                positions.push(Position {
                    topic: record.topic.clone(),
                    partition: tp.partition,
                    offset,
                });
            }
            for (tp, commit) in offsets {
                let value = [&commit.offset.to_be_bytes()[..], commit.metadata.as_bytes()].concat();
                pending
                    .ops
                    .put(Space::Offsets, tp.named_key(write.group.as_bytes()), value);
                pending.commits.push((write.group.clone(), tp, commit.offset));
            }
            pending.added_bytes += added;
            Ok(positions)
        })
    }

    fn place(&mut self, state: &State, record: &NewRecord) -> Result<(Tp, Part, bool)> {
        let topic = state.topic(&record.topic)?;
        let too_large = |size, limit| LogError::RecordTooLarge {
            topic: record.topic.clone(),
            size,
            limit,
        };
        if record.size() > MAX_RECORD_BYTES {
            return Err(too_large(record.size(), MAX_RECORD_BYTES));
        }
        let compacted = topic.spec.cleanup == Cleanup::Compact;
        let partition = match (record.partition, &record.key) {
            (_, None) if compacted => {
                return Err(LogError::KeyMissing {
                    topic: record.topic.clone(),
                });
            }
            (_, Some(key)) if compacted && key.len() > MAX_COMPACTED_KEY_BYTES => {
                return Err(too_large(key.len(), MAX_COMPACTED_KEY_BYTES));
            }
            (Some(partition), _) => partition,
            (None, Some(key)) => partition_for_key(key, topic.spec.partitions),
            (None, None) => {
                self.round_robin = self.round_robin.wrapping_add(1);
                self.round_robin % topic.spec.partitions
            }
        };
        Ok((topic.tp(partition), topic.part(partition)?, compacted))
    }

    /// The batch is durable: shows it to readers.
    fn publish(&self, parts: &HashMap<Tp, Part>, commits: &[(String, Tp, i64)]) {
        let mut state = self.core.state();
        for (tp, part) in parts {
            state.set_part(*tp, *part);
            if let Some(topic) = state.topic_by_id(tp.topic) {
                topic.changed.notify_waiters();
            }
            for group in state.groups.values_mut() {
                group.mark_ready(*tp);
            }
        }
        for (group, tp, offset) in commits {
            if let Some(topic) = state.topic_by_id(tp.topic) {
                topic.set_committed(group, tp.partition, *offset);
            }
        }
        state.committing.clear();
        for group in state.groups.values() {
            group.wake_assigned();
        }
        metrics::gauge!("imageflow_storage_log_used_bytes").set(state.used as f64);
        if self.core.is_pressed(state.used) {
            self.core.pressed.notify_one();
        }
    }
}

/// What each is answered when the batch of all of them failed. Who was refused before that stays refused. And a batch that was
/// begun may be found in the journal when the database is opened again: a transaction of it that is written anew may be there
/// twice, so its producer is not told to try again.
fn answers(writes: &[Write], admitted: Vec<Answer>, errors: Vec<Answer>, untouched: bool) -> Vec<Answer> {
    let answer = |((write, admitted), failed): ((&Write, Answer), Answer)| match (admitted, failed, &write.producer) {
        (Err(refused), ..) => Err(refused),
        (Ok(_), Err(error), Some((id, _))) if !untouched => Err(LogError::Unresolved {
            id: id.clone(),
            source: error.into(),
        }),
        (Ok(_), failed, _) => failed,
    };
    writes.iter().zip(admitted).zip(errors).map(answer).collect()
}

fn check_room(core: &Core, state: &State, pending: &mut Pending, added: u64) -> Result<()> {
    let (used, added) = (state.used, pending.added_bytes + added);
    if let Some(limit) = core.config.limit_bytes.filter(|limit| used + added > *limit) {
        return Err(LogError::Full { used, limit });
    }
    let free = *pending.free_bytes.get_or_insert_with(|| free_bytes(&core.config.path));
    if free < core.config.reserve_bytes.saturating_add(added) {
        return Err(LogError::Full { used, limit: used });
    }
    Ok(())
}

fn check_offsets<'a>(
    state: &State,
    pending: &Pending,
    own: &HashMap<Tp, i64>,
    write: &'a Write,
) -> Result<Vec<(Tp, &'a OffsetCommit)>> {
    let group = state.groups.get(&write.group);
    let member = match &write.committer {
        Committer::Anyone => None,
        Committer::Member(id) => Some(*id),
        // 0 is no member's number.
        Committer::Named(name) => Some(group.and_then(|g| g.id_of(name)).unwrap_or(0)),
    };
    let mut checked = Vec::with_capacity(write.offsets.len());
    for commit in &write.offsets {
        let topic = state.topic(&commit.topic)?;
        let part = topic.part(commit.partition)?;
        let tp = topic.tp(commit.partition);
        let high = pending.parts.get(&tp).map_or(part.high, |p| p.high) + own.get(&tp).copied().unwrap_or(0);
        if !(0..=high).contains(&commit.offset) {
            return Err(LogError::OffsetOutOfRange {
                topic: commit.topic.clone(),
                partition: commit.partition,
                offset: commit.offset,
                low: part.low,
                high,
            });
        }
        let size = commit.metadata.len();
        if size > MAX_COMMIT_METADATA_BYTES {
            return Err(LogError::MetadataTooLarge {
                size,
                limit: MAX_COMMIT_METADATA_BYTES,
            });
        }
        if member.is_some_and(|id| !group.is_some_and(|g| g.owns(id, tp))) {
            return Err(LogError::NotAssigned {
                group: write.group.clone(),
                topic: commit.topic.clone(),
                partition: commit.partition,
            });
        }
        checked.push((tp, commit));
    }
    Ok(checked)
}

fn encode_latest(offset: i64, bytes: u64) -> Vec<u8> {
    [offset.to_be_bytes(), bytes.to_be_bytes()].concat()
}

/// Offset and charge of the latest record of a key.
pub fn decode_latest(stored: &[u8]) -> Result<(i64, u64)> {
    let (offset, rest) = super::codec::take_i64(stored)?;
    let (bytes, _) = super::codec::take_i64(rest)?;
    Ok((offset, bytes as u64))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;
    use crate::embedded::store::Store;
    use crate::embedded::{Embedded, EmbeddedConfig};
    use crate::{EventLog, TopicSpec, Transaction};

    fn step(n: i64) -> Transaction {
        Transaction {
            records: vec![NewRecord::new("t").value(n.to_string())],
            offsets: vec![OffsetCommit::new("t", 0, n)],
            group: "g".to_owned(),
            ..Transaction::default()
        }
    }

    #[tokio::test]
    async fn a_transaction_that_the_disk_did_not_confirm_is_not_offered_to_be_written_again() {
        let folder = tempfile::tempdir().unwrap();
        let config = EmbeddedConfig {
            reserve_bytes: 0,
            ..EmbeddedConfig::new(folder.path())
        };
        let log = Embedded::open(config).await.unwrap();
        log.ensure_topics(&[TopicSpec::new("t", 1)]).await.unwrap();
        let fail_next = || {
            let fail = |store: &Store| Ok(store.sync_fails.swap(true, Ordering::AcqRel));
            assert!(!log.handle.core.with_store(fail).unwrap());
        };
        let mut producer = log.transactional("id").await.unwrap();
        fail_next();
        let unheard = producer.commit(step(1)).await.unwrap_err();
        assert!(
            matches!(&unheard, LogError::Unresolved { id, .. } if id == "id"),
            "{unheard:?}"
        );
        assert!(!unheard.is_retryable());
        // Who takes the id over is told what became of it.
        let mut producer = log.transactional("id").await.unwrap();
        let committed = async || log.committed("g", "t").await.unwrap()[0].1.as_ref().map(|c| c.offset);
        assert_eq!(committed().await, Some(1));
        producer.commit(step(2)).await.unwrap();
        assert_eq!(
            (committed().await, log.watermarks("t").await.unwrap()[0].high),
            (Some(2), 2)
        );
        // Records without a transaction may be there twice, so they are written again.
        fail_next();
        let refused = log.produce(vec![NewRecord::new("t").value("3")]).await.unwrap_err();
        assert!(refused.is_retryable(), "{refused:?}");
        // One that was refused before anything was written took no effect, whatever happened to the others.
        let mut newer = log.transactional("id").await.unwrap();
        fail_next();
        let (fenced, unheard) = tokio::join!(producer.commit(step(3)), newer.commit(step(3)));
        assert!(matches!(fenced, Err(LogError::Fenced { .. })), "{fenced:?}");
        assert!(matches!(unheard, Err(LogError::Unresolved { .. })), "{unheard:?}");
        log.close().await.unwrap();
    }
}
