//! What the embedded log keeps in memory: only what is durable, so that a restart finds the same.
//!
//! Entries in `Space::Meta`, by their first byte:
//! `t` topic number -> its spec; `n` -> the next topic number; `p` partition -> low, high, bytes;
//! `g` group -> its subscription; `d` topic number -> its name, while its records are being removed;
//! `x` time, partition, offset -> the record key of a tombstone.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use tokio::sync::Notify;

use super::codec::{Tp, take_i64, take_u32};
use super::groups::Group;
use super::store::{Space, Store};
use crate::error::{LogError, Result};
use crate::types::{TopicSpec, Topics};

/// The ends and the size of a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Part {
    pub low: i64,
    pub high: i64,
    pub bytes: u64,
}

impl Part {
    pub fn encode(self) -> Vec<u8> {
        [
            self.low.to_be_bytes(),
            self.high.to_be_bytes(),
            self.bytes.to_be_bytes(),
        ]
        .concat()
    }

    fn decode(stored: &[u8]) -> Result<Self> {
        let (low, rest) = take_i64(stored)?;
        let (high, rest) = take_i64(rest)?;
        let (bytes, _) = take_i64(rest)?;
        Ok(Self {
            low,
            high,
            bytes: bytes as u64,
        })
    }
}

pub struct Topic {
    pub id: u32,
    pub spec: TopicSpec,
    pub parts: Vec<Part>,
    /// Committed offset of each partition, by group; -1 is none.
    pub commits: HashMap<String, Vec<i64>>,
    /// Records came in, or the topic was deleted.
    pub changed: Arc<Notify>,
}

impl Topic {
    pub fn new(id: u32, spec: TopicSpec) -> Self {
        let parts = vec![Part::default(); spec.partitions as usize];
        Self {
            id,
            spec,
            parts,
            commits: HashMap::new(),
            changed: Arc::default(),
        }
    }

    pub fn tp(&self, partition: u32) -> Tp {
        Tp {
            topic: self.id,
            partition,
        }
    }

    pub fn part(&self, partition: u32) -> Result<Part> {
        self.parts
            .get(partition as usize)
            .copied()
            .ok_or_else(|| LogError::UnknownPartition {
                topic: self.spec.name.clone(),
                partition,
                partitions: self.spec.partitions,
            })
    }

    pub fn committed(&self, group: &str, partition: u32) -> Option<i64> {
        self.commits
            .get(group)?
            .get(partition as usize)
            .copied()
            .filter(|offset| *offset >= 0)
    }

    pub fn set_committed(&mut self, group: &str, partition: u32, offset: i64) {
        if !self.commits.contains_key(group) {
            self.commits.insert(group.to_owned(), vec![-1; self.parts.len()]);
        }
        if let Some(slot) = self.commits.get_mut(group).and_then(|c| c.get_mut(partition as usize)) {
            *slot = offset;
        }
    }
}

#[derive(Default)]
pub struct State {
    topics: HashMap<String, Topic>,
    names: HashMap<u32, String>,
    pub next_topic: u32,
    /// Bytes of all records.
    pub used: u64,
    pub groups: HashMap<String, Group>,
    /// What each known group reads, so that retention waits for it also when it has not committed yet.
    pub subscriptions: HashMap<String, Topics>,
    /// The newest producer of each transactional id.
    pub producers: HashMap<String, u64>,
    /// Commits on their way to the disk: such a partition is not handed over, or its next owner would do work again
    /// that a transaction is just finishing.
    pub committing: HashSet<(String, Tp)>,
    pub closed: bool,
}

impl State {
    /// Reads topics, ends, commits and subscriptions from the store; the members of groups stay as they are.
    pub fn load(&mut self, store: &Store) -> Result<()> {
        let mut loaded = Self::default();
        for (key, value) in store.scan(Space::Meta, b"t", usize::MAX)? {
            let (id, _) = take_u32(&key[1..])?;
            let spec: TopicSpec = serde_json::from_slice(&value).map_err(|_| LogError::Corrupt { what: "a topic" })?;
            loaded.insert_topic(Topic::new(id, spec));
        }
        for (key, value) in store.scan(Space::Meta, b"p", usize::MAX)? {
            let (tp, _) = Tp::split(&key[1..])?;
            loaded.set_part(tp, Part::decode(&value)?);
        }
        for (key, value) in store.scan(Space::Offsets, b"", usize::MAX)? {
            let (tp, group) = Tp::split(&key)?;
            let group = std::str::from_utf8(group).map_err(|_| LogError::Corrupt { what: "a group" })?;
            let (offset, _) = take_i64(&value)?;
            if let Some(topic) = loaded.topic_by_id(tp.topic) {
                topic.set_committed(group, tp.partition, offset);
            }
        }
        for (key, value) in store.scan(Space::Meta, b"g", usize::MAX)? {
            let group = String::from_utf8(key[1..].to_vec()).map_err(|_| LogError::Corrupt { what: "a group" })?;
            let topics = serde_json::from_slice(&value).map_err(|_| LogError::Corrupt { what: "a subscription" })?;
            loaded.subscriptions.insert(group, topics);
        }
        if let Some(next) = store.get(Space::Meta, b"n")? {
            loaded.next_topic = take_u32(&next)?.0;
        }
        for (name, topic) in &mut loaded.topics {
            if let Some(known) = self.topics.get(name).filter(|known| known.id == topic.id) {
                topic.changed = known.changed.clone();
            }
        }
        (self.topics, self.names, self.subscriptions) = (loaded.topics, loaded.names, loaded.subscriptions);
        (self.next_topic, self.used) = (loaded.next_topic, loaded.used);
        Ok(())
    }

    pub fn insert_topic(&mut self, topic: Topic) {
        self.names.insert(topic.id, topic.spec.name.clone());
        self.topics.insert(topic.spec.name.clone(), topic);
    }

    pub fn remove_topic(&mut self, name: &str) -> Option<Topic> {
        let topic = self.topics.remove(name)?;
        self.names.remove(&topic.id);
        self.used -= topic.parts.iter().map(|p| p.bytes).sum::<u64>();
        Some(topic)
    }

    pub fn topic(&self, name: &str) -> Result<&Topic> {
        self.topics
            .get(name)
            .ok_or_else(|| LogError::UnknownTopic { topic: name.to_owned() })
    }

    pub fn find(&self, name: &str) -> Option<&Topic> {
        self.topics.get(name)
    }

    pub fn topics(&self) -> impl Iterator<Item = &Topic> {
        self.topics.values()
    }

    pub fn topics_mut(&mut self) -> impl Iterator<Item = &mut Topic> {
        self.topics.values_mut()
    }

    pub fn topic_by_id(&mut self, id: u32) -> Option<&mut Topic> {
        self.topics.get_mut(self.names.get(&id)?)
    }

    pub fn set_part(&mut self, tp: Tp, part: Part) {
        let Some(slot) = self
            .topic_by_id(tp.topic)
            .and_then(|t| t.parts.get_mut(tp.partition as usize))
        else {
            return;
        };
        let before = std::mem::replace(slot, part).bytes;
        self.used = self.used + part.bytes - before;
    }

    /// The first offset that retention must keep: a known group has not committed past it.
    pub fn floor(&self, topic: &Topic, partition: u32) -> i64 {
        let part = topic.parts.get(partition as usize).copied().unwrap_or_default();
        let name = &topic.spec.name;
        let committed = topic
            .commits
            .keys()
            .map(|group| topic.committed(group, partition).unwrap_or(part.low));
        let uncommitted = self
            .subscriptions
            .iter()
            .any(|(group, topics)| topics.matches(name) && topic.committed(group, partition).is_none())
            || self
                .groups
                .iter()
                .any(|(group, g)| g.reads(name) && topic.committed(group, partition).is_none());
        let floor = committed.min().unwrap_or(part.high);
        if uncommitted { part.low } else { floor }
    }
}

pub fn topic_key(id: u32) -> Vec<u8> {
    [b"t".as_slice(), &id.to_be_bytes()].concat()
}

pub fn deleted_key(id: u32) -> Vec<u8> {
    [b"d".as_slice(), &id.to_be_bytes()].concat()
}

pub fn part_key(tp: Tp) -> Vec<u8> {
    [b"p".as_slice(), &tp.prefix()].concat()
}

pub fn group_key(group: &str) -> Vec<u8> {
    [b"g", group.as_bytes()].concat()
}

pub fn tombstone_key(timestamp_ms: i64, tp: Tp, offset: i64) -> Vec<u8> {
    [b"x".as_slice(), &timestamp_ms.to_be_bytes(), &tp.record_key(offset)].concat()
}
