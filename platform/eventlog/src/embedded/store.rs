//! The store under the embedded log: one fjall database with four keyspaces, whatever the number of topics.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};

use super::codec::{Tp, decode_record, take_i64};
use crate::error::{LogError, Result};
use crate::types::Record;

// Small, because the whole idle platform is to fit in 80 MB; a burst costs up to four record buffers for a moment.
const CACHE_BYTES: u64 = 4 * 1024 * 1024;
const RECORDS_BUFFER_BYTES: u64 = 8 * 1024 * 1024;
const OTHER_BUFFER_BYTES: u64 = 2 * 1024 * 1024;
/// The least that fjall takes; what a restart has to replay.
const JOURNAL_BYTES: u64 = 64 * 1024 * 1024;
/// Bytes after which one read stops, so that it stays short.
pub const READ_BYTES: usize = 1024 * 1024;

/// Where an entry lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Space {
    /// partition, offset -> record
    Records,
    /// partition, record key -> latest offset, its charge (compacted topics)
    Latest,
    /// partition, group -> offset, metadata
    Offsets,
    /// a tag and its key, see `state`
    Meta,
}

/// Changes that take effect together. Within one fjall batch a key may occur once only: the last change wins here.
#[derive(Default)]
pub struct Ops(BTreeMap<(Space, Vec<u8>), Option<Vec<u8>>>);

impl Ops {
    pub fn put(&mut self, space: Space, key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) {
        self.0.insert((space, key.into()), Some(value.into()));
    }

    pub fn remove(&mut self, space: Space, key: impl Into<Vec<u8>>) {
        self.0.insert((space, key.into()), None);
    }

    /// The pending change of a key, if there is one.
    pub fn get(&self, space: Space, key: &[u8]) -> Option<Option<&[u8]>> {
        // A tuple key cannot be looked up by a borrowed part; the copy is a few dozen bytes.
        self.0.get(&(space, key.to_vec())).map(|change| change.as_deref())
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

pub struct Store {
    db: Database,
    records: Keyspace,
    latest: Keyspace,
    offsets: Keyspace,
    meta: Keyspace,
    /// Whether the next commit is to be one that is in the journal and of which the disk does not say that it has it.
    #[cfg(test)]
    pub sync_fails: std::sync::atomic::AtomicBool,
}

/// Why a commit failed, and whether the database must be opened again.
pub struct CommitError {
    pub error: fjall::Error,
    /// Nothing was written: the same commit may be tried on a fresh database.
    pub untouched: bool,
}

impl Store {
    pub fn open(path: &Path) -> Result<Self> {
        std::fs::create_dir_all(path).map_err(|e| LogError::storage("creating the folder", e))?;
        let db = Database::builder(path)
            .cache_size(CACHE_BYTES)
            .max_journaling_size(JOURNAL_BYTES)
            .worker_threads(2)
            .open()
            .map_err(|e| match e {
                fjall::Error::Locked => LogError::InUse { path: path.to_owned() },
                e => LogError::storage("opening the database", e),
            })?;
        let keyspace = |name: &str, buffer: u64| {
            db.keyspace(name, || KeyspaceCreateOptions::default().max_memtable_size(buffer))
                .map_err(|e| LogError::storage("opening a keyspace", e))
        };
        Ok(Self {
            records: keyspace("records", RECORDS_BUFFER_BYTES)?,
            latest: keyspace("latest", OTHER_BUFFER_BYTES)?,
            offsets: keyspace("offsets", OTHER_BUFFER_BYTES)?,
            meta: keyspace("meta", OTHER_BUFFER_BYTES)?,
            db,
            #[cfg(test)]
            sync_fails: Default::default(),
        })
    }

    fn space(&self, space: Space) -> &Keyspace {
        match space {
            Space::Records => &self.records,
            Space::Latest => &self.latest,
            Space::Offsets => &self.offsets,
            Space::Meta => &self.meta,
        }
    }

    /// Writes all changes or none; with `sync` they are on the disk when it returns.
    pub fn commit(&self, ops: Ops, sync: bool) -> std::result::Result<(), CommitError> {
        let mode = if sync {
            PersistMode::SyncAll
        } else {
            PersistMode::Buffer
        };
        let mut batch = self.db.batch().durability(Some(mode));
        for ((space, key), change) in ops.0 {
            match change {
                Some(value) => batch.insert(self.space(space), key, value),
                None => batch.remove(self.space(space), key),
            }
        }
        let written = batch.commit();
        #[cfg(test)]
        let written = written.and_then(
            |()| match self.sync_fails.swap(false, std::sync::atomic::Ordering::AcqRel) {
                true => Err(std::io::Error::other("the disk failed").into()),
                false => Ok(()),
            },
        );
        written.map_err(|error| CommitError {
            untouched: matches!(error, fjall::Error::Poisoned),
            error,
        })
    }

    /// Everything written is on the disk when it returns.
    pub fn persist(&self) -> Result<()> {
        self.db
            .persist(PersistMode::SyncAll)
            .map_err(|e| LogError::storage("syncing", e))
    }

    pub fn get(&self, space: Space, key: &[u8]) -> Result<Option<Vec<u8>>> {
        let found = self
            .space(space)
            .get(key)
            .map_err(|e| LogError::storage("reading", e))?;
        Ok(found.map(|value| value.to_vec()))
    }

    /// Up to `max` entries whose key starts with `prefix`.
    pub fn scan(&self, space: Space, prefix: &[u8], max: usize) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        self.space(space)
            .prefix(prefix)
            .take(max)
            .map(|entry| {
                let (key, value) = entry.into_inner().map_err(|e| LogError::storage("scanning", e))?;
                Ok((key.to_vec(), value.to_vec()))
            })
            .collect()
    }

    /// Up to `max` keys that start with `prefix`.
    pub fn keys(&self, space: Space, prefix: &[u8], max: usize) -> Result<Vec<Vec<u8>>> {
        let keys = self.space(space).prefix(prefix).take(max);
        keys.map(|entry| Ok(entry.key().map_err(|e| LogError::storage("scanning", e))?.to_vec()))
            .collect()
    }

    /// Calls `each` with the offset and bytes of the records in `from..to`, until it says stop.
    pub fn each_record(
        &self,
        tp: Tp,
        from: i64,
        to: i64,
        mut each: impl FnMut(i64, &[u8]) -> Result<bool>,
    ) -> Result<()> {
        if from >= to {
            return Ok(());
        }
        for entry in self.records.range(tp.record_key(from)..tp.record_key(to)) {
            let (key, value) = entry
                .into_inner()
                .map_err(|e| LogError::storage("reading records", e))?;
            let (offset, _) = take_i64(key.get(8..).unwrap_or_default())?;
            if !each(offset, &value)? {
                break;
            }
        }
        Ok(())
    }

    /// Up to `max` records of `from..to`, and the offset to go on from. Stops early when `budget` bytes are read, but
    /// reads at least one record.
    pub fn read(
        &self,
        topic: &str,
        tp: Tp,
        range: Range<i64>,
        max: usize,
        budget: &mut usize,
    ) -> Result<(Vec<Record>, i64)> {
        let (mut records, mut next) = (Vec::new(), range.end.max(range.start));
        self.each_record(tp, range.start, range.end, |offset, stored| {
            if records.len() >= max.max(1) || (!records.is_empty() && *budget < stored.len()) {
                next = offset;
                return Ok(false);
            }
            *budget = budget.saturating_sub(stored.len());
            records.push(decode_record(topic, tp.partition, offset, stored)?);
            Ok(true)
        })?;
        Ok((records, next))
    }
}

/// Whether the disk had no room.
pub fn is_out_of_space(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(e) = cause {
        if let Some(io) = e.downcast_ref::<std::io::Error>() {
            return matches!(
                io.kind(),
                std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded
            );
        }
        cause = e.source();
    }
    false
}

/// Free bytes for this user on the disk of `path`; unknown is taken as enough, since the write itself will tell.
pub fn free_bytes(path: &Path) -> u64 {
    rustix::fs::statvfs(path).map_or(u64::MAX, |stats| stats.f_bavail.saturating_mul(stats.f_frsize))
}
