//! Which events of objects the log holds, so that the reconcile raises none again. Runs do not tell: those that have ended are
//! forgotten, sooner the more of them there are.
use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};

use imageflow_eventlog::{EventLog, LogError, Record};
use imageflow_events::ext;
use imageflow_types::topics;

/// Offsets that are looked at in one go, from the end of a partition backwards.
const AT_ONCE: i64 = 1000;

/// The events of new objects since some time. Read when somebody asks for the first time: mostly nobody does.
pub(crate) struct Told {
    since_ms: i64,
    /// Hashes, of 8 bytes: it may be millions.
    ids: Option<HashSet<u64>>,
    hasher: RandomState,
}

impl Told {
    /// Those whose record is not older than this, ms since 1970.
    pub(crate) fn since(since_ms: i64) -> Self {
        Self {
            since_ms,
            ids: None,
            hasher: RandomState::new(),
        }
    }

    /// Whether the event of this id is one of them.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub(crate) async fn holds(&mut self, log: &dyn EventLog, id: &str) -> Result<bool, LogError> {
        let ids = match &mut self.ids {
            Some(ids) => ids,
            none => none.insert(read(log, self.since_ms, &self.hasher).await?),
        };
        Ok(ids.contains(&self.hasher.hash_one(id.as_bytes())))
    }
}

async fn read(log: &dyn EventLog, since_ms: i64, hasher: &RandomState) -> Result<HashSet<u64>, LogError> {
    let mut ids = HashSet::new();
    for partition in log.watermarks(topics::EVENTS).await? {
        let mut end = partition.high;
        while end > partition.low {
            let begin = (end - AT_ONCE).max(partition.low);
            let mut newest_ms = None;
            let mut from = begin;
            while from < end {
                let records = log
                    .read(topics::EVENTS, partition.partition, from, AT_ONCE as usize)
                    .await?;
                let Some(last) = records.last() else { break };
                from = last.offset + 1;
                for record in records.iter().filter(|r| r.offset < end) {
                    newest_ms = newest_ms.max(Some(record.timestamp_ms));
                    ids.extend(of_new_object(record).map(|id| hasher.hash_one(id)));
                }
            }
            // Whoever writes there says when, so one record that claims to be old ends nothing.
            if newest_ms.is_some_and(|newest| newest < since_ms) {
                break;
            }
            end = begin;
        }
    }
    Ok(ids)
}

/// The id of the event, as [`crate::listener::tell`] writes it.
fn of_new_object(record: &Record) -> Option<&[u8]> {
    let header = |wanted: &str| {
        let (_, value) = record.headers.iter().find(|(name, _)| name == wanted)?;
        Some(value.as_ref())
    };
    (header("ce_type")? == ext::TYPE_OBJECT_CREATED.as_bytes()).then(|| header("ce_id"))?
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use imageflow_eventlog::{Embedded, EmbeddedConfig, NewRecord, TopicSpec};

    use super::*;

    #[tokio::test]
    async fn events_of_new_objects_are_found_as_far_back_as_is_asked() {
        let folder = tempfile::tempdir().unwrap();
        let log: Arc<dyn EventLog> = Embedded::open(EmbeddedConfig::new(folder.path())).await.unwrap();
        log.ensure_topics(&[TopicSpec::new(topics::EVENTS, 2)]).await.unwrap();
        let event = |partition, id: usize, ty: &str| {
            NewRecord::new(topics::EVENTS)
                .partition(partition)
                .header("ce_type", ty.to_owned())
                .header("ce_id", id.to_string())
        };
        // More than are looked at in one go, in one of two partitions.
        let many = (0..2500).map(|id| event(1, id, ext::TYPE_OBJECT_CREATED)).collect();
        log.produce(many).await.unwrap();
        log.produce(vec![event(0, 9999, "com.example.other")]).await.unwrap();
        let mut told = Told::since(0);
        for (id, there) in [
            ("0", true),
            ("1700", true),
            ("2499", true),
            ("2500", false),
            ("9999", false),
        ] {
            assert_eq!(told.holds(log.as_ref(), id).await.unwrap(), there, "{id}");
        }
        // All are older: the last ones are looked at, to see that.
        let mut later = Told::since(i64::MAX);
        assert!(!later.holds(log.as_ref(), "0").await.unwrap());
    }
}
