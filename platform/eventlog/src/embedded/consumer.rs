//! A member of a group in this process.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::Handle;
use super::codec::{Tp, take_i64};
use super::store::{READ_BYTES, Space};
use super::writer::Committer;
use crate::error::{LogError, Result};
use crate::log::Consumer;
use crate::types::{Assignment, ConsumerConfig, ConsumerEvent, OffsetCommit, Record, Start, TopicPartition};

/// Partitions told in one event: with thousands of topics their commits are read bit by bit.
const ASSIGN_AT_ONCE: usize = 1000;

struct Place {
    topic: Arc<str>,
    next: i64,
    paused: bool,
}

pub struct EmbeddedConsumer {
    handle: Arc<Handle>,
    config: ConsumerConfig,
    id: u64,
    wake: Arc<Notify>,
    places: HashMap<Tp, Place>,
    topics: HashMap<String, u32>,
}

/// What one look at the state says to do.
enum Look {
    Event(ConsumerEvent),
    Assign(Vec<(Tp, Arc<str>)>),
    Read(Vec<(Tp, i64)>),
    Wait(Option<Instant>),
}

impl EmbeddedConsumer {
    pub fn join(handle: Arc<Handle>, config: ConsumerConfig) -> Result<Self> {
        let id = handle.next_id();
        let wake = {
            let mut state = handle.core.open_state()?;
            let partitions: Vec<(String, Tp)> = state
                .topics()
                .filter(|t| config.topics.matches(&t.spec.name))
                .flat_map(|t| (0..t.spec.partitions).map(|p| (t.spec.name.clone(), t.tp(p))))
                .collect();
            state.groups.entry(config.group.clone()).or_default().join(
                id,
                &config.member,
                config.topics.clone(),
                config.session_timeout,
                partitions.iter().map(|(name, tp)| (name.as_str(), *tp)),
                Instant::now(),
            )
        };
        Ok(Self {
            handle,
            config,
            id,
            wake,
            places: HashMap::new(),
            topics: HashMap::new(),
        })
    }

    fn tp(&self, topic: &str, partition: u32) -> Option<Tp> {
        self.topics.get(topic).map(|id| Tp { topic: *id, partition })
    }

    /// Decides what to do next; everything taken from the state here is handled before the next await.
    fn look(&mut self) -> Result<Look> {
        let now = Instant::now();
        let mut state = self.handle.core.open_state()?;
        let state = &mut *state;
        let Some(group) = state.groups.get_mut(&self.config.group) else {
            return Err(LogError::Closed);
        };
        let deadline = group.take_overdue(self.id, now);
        let Some(member) = group.member(self.id) else {
            return Err(LogError::Fenced {
                id: self.config.member.clone(),
            });
        };
        let revoked = member.tell_revoked();
        if !revoked.is_empty() {
            let places = &mut self.places;
            let lost = revoked.iter().filter_map(|tp| {
                let place = places.remove(tp)?;
                Some(TopicPartition::new(&*place.topic, tp.partition))
            });
            return Ok(Look::Event(ConsumerEvent::Revoked(lost.collect())));
        }
        let mut assigned: Vec<Tp> = Vec::new();
        for tp in &member.to_assign {
            let busy = !state.committing.is_empty() && state.committing.contains(&(self.config.group.clone(), *tp));
            if !busy && assigned.len() < ASSIGN_AT_ONCE {
                assigned.push(*tp);
            }
        }
        if !assigned.is_empty() {
            for tp in &assigned {
                member.to_assign.remove(tp);
            }
            let mut names: HashMap<u32, Arc<str>> = HashMap::new();
            let named = assigned.into_iter().filter_map(|tp| {
                if let Some(name) = names.get(&tp.topic) {
                    return Some((tp, name.clone()));
                }
                let name: Arc<str> = state.topic_by_id(tp.topic)?.spec.name.as_str().into();
                names.insert(tp.topic, name.clone());
                Some((tp, name))
            });
            return Ok(Look::Assign(named.collect()));
        }
        let mut reads = Vec::new();
        let mut ready = Vec::new();
        while let Some(tp) = member.next_ready() {
            ready.push(tp);
        }
        for tp in ready {
            let Some(place) = self.places.get_mut(&tp).filter(|place| !place.paused) else {
                continue;
            };
            let Some(part) = state.topic_by_id(tp.topic).and_then(|t| t.part(tp.partition).ok()) else {
                continue;
            };
            place.next = place.next.max(part.low);
            if place.next < part.high {
                reads.push((tp, part.high));
            }
        }
        Ok(if reads.is_empty() {
            Look::Wait(deadline)
        } else {
            Look::Read(reads)
        })
    }

    fn with_member(&self, work: impl FnOnce(&mut super::groups::Member)) {
        let mut state = self.handle.core.state();
        if let Some(member) = state.groups.get_mut(&self.config.group).and_then(|g| g.member(self.id)) {
            work(member);
        }
    }

    fn assign(&mut self, tps: Vec<(Tp, Arc<str>)>) -> Result<ConsumerEvent> {
        let assignments = tps
            .iter()
            .map(|(tp, topic)| self.assignment(*tp, topic))
            .collect::<Result<Vec<_>>>();
        let assignments = match assignments {
            Ok(assignments) => assignments,
            Err(error) => {
                // Nothing was told: the next poll tries again.
                self.with_member(|member| member.to_assign.extend(tps.iter().map(|(tp, _)| *tp)));
                return Err(error);
            }
        };
        for ((tp, topic), (_, next)) in tps.iter().zip(&assignments) {
            self.topics.insert(topic.to_string(), tp.topic);
            self.places.insert(
                *tp,
                Place {
                    topic: topic.clone(),
                    next: *next,
                    paused: false,
                },
            );
        }
        self.with_member(|member| tps.iter().for_each(|(tp, _)| member.mark_ready(*tp)));
        Ok(ConsumerEvent::Assigned(
            assignments.into_iter().map(|(assignment, _)| assignment).collect(),
        ))
    }

    fn assignment(&self, tp: Tp, topic: &Arc<str>) -> Result<(Assignment, i64)> {
        let (part, has_commit) = {
            let state = self.handle.core.state();
            match state.find(topic).filter(|t| t.id == tp.topic) {
                Some(t) => (
                    t.part(tp.partition)?,
                    t.committed(&self.config.group, tp.partition).is_some(),
                ),
                // Deleted a moment ago: `Revoked` follows.
                None => Default::default(),
            }
        };
        let committed = if has_commit {
            self.handle.commit_of(&self.config.group, topic, tp)?
        } else {
            None
        };
        let next = match (&committed, self.config.start) {
            (Some(commit), _) => commit.offset.max(part.low),
            (None, Start::Earliest) => part.low,
            (None, Start::Latest) => part.high,
        };
        let assignment = Assignment {
            topic: topic.to_string(),
            partition: tp.partition,
            committed,
        };
        Ok((assignment, next))
    }

    /// Reads from the partitions in turn; those not read to the end go to the back of the queue.
    fn read(&mut self, parts: &[(Tp, i64)], max: usize) -> Result<Vec<Record>> {
        let mut records = Vec::new();
        let mut budget = READ_BYTES;
        let mut again: Vec<Tp> = Vec::new();
        let mut failure = None;
        for (i, (tp, high)) in parts.iter().enumerate() {
            let Some(place) = self.places.get_mut(tp) else { continue };
            let (range, left) = (place.next..*high, max - records.len());
            let got = self
                .handle
                .core
                .with_store(|s| s.read(&place.topic, *tp, range, left, &mut budget));
            match got {
                Ok((batch, next)) => {
                    place.next = next;
                    records.extend(batch);
                    if records.len() >= max || budget == 0 || next < *high {
                        again.extend(parts[i + 1..].iter().map(|(tp, _)| *tp));
                        again.extend((next < *high).then_some(*tp));
                        break;
                    }
                }
                Err(error) => {
                    again.extend(parts[i..].iter().map(|(tp, _)| *tp));
                    failure = Some(error);
                    break;
                }
            }
        }
        self.with_member(|member| again.iter().for_each(|tp| member.mark_ready(*tp)));
        match failure {
            Some(error) if records.is_empty() => Err(error),
            _ => Ok(records),
        }
    }
}

#[async_trait]
impl Consumer for EmbeddedConsumer {
    async fn poll(&mut self, max: usize) -> Result<Vec<ConsumerEvent>> {
        if let Some(group) = self.handle.core.open_state()?.groups.get_mut(&self.config.group) {
            group.give_up(self.id, Instant::now());
        }
        loop {
            match self.look()? {
                Look::Event(ConsumerEvent::Revoked(lost)) if lost.is_empty() => {
                    // Only of partitions it had not been told of.
                    if let Some(group) = self.handle.core.state().groups.get_mut(&self.config.group) {
                        group.give_up(self.id, Instant::now());
                    }
                }
                Look::Event(event) => return Ok(vec![event]),
                Look::Assign(tps) => {
                    if !tps.is_empty() {
                        return Ok(vec![self.assign(tps)?]);
                    }
                }
                Look::Read(parts) => {
                    let records = self.read(&parts, max.max(1))?;
                    if !records.is_empty() {
                        return Ok(vec![ConsumerEvent::Records(records)]);
                    }
                }
                Look::Wait(None) => self.wake.notified().await,
                Look::Wait(Some(deadline)) => {
                    let _ = tokio::time::timeout_at(deadline, self.wake.notified()).await;
                }
            }
        }
    }

    async fn commit(&mut self, offsets: Vec<OffsetCommit>) -> Result<()> {
        let committer = Committer::Member(self.id);
        self.handle
            .write(Vec::new(), offsets, self.config.group.clone(), committer, None)
            .await
            .map(drop)
    }

    fn position(&self, topic: &str, partition: u32) -> Option<i64> {
        self.tp(topic, partition)
            .and_then(|tp| self.places.get(&tp))
            .map(|place| place.next)
    }

    fn pause(&mut self, topic: &str, partition: u32) {
        if let Some(place) = self.tp(topic, partition).and_then(|tp| self.places.get_mut(&tp)) {
            place.paused = true;
        }
    }

    fn resume(&mut self, topic: &str, partition: u32) {
        let Some(tp) = self.tp(topic, partition) else { return };
        if let Some(place) = self.places.get_mut(&tp) {
            place.paused = false;
            self.with_member(|member| member.mark_ready(tp));
        }
    }

    async fn close(self: Box<Self>) -> Result<()> {
        // Leaving is what drop does; it needs no I/O.
        Ok(())
    }
}

impl Drop for EmbeddedConsumer {
    fn drop(&mut self) {
        let mut state = self.handle.core.state();
        if let Some(group) = state.groups.get_mut(&self.config.group) {
            group.leave(self.id, Instant::now());
            if group.is_empty() {
                state.groups.remove(&self.config.group);
            }
        }
    }
}

impl Handle {
    /// A commit with its metadata, from the store.
    pub fn commit_of(&self, group: &str, topic: &str, tp: Tp) -> Result<Option<OffsetCommit>> {
        let stored = self
            .core
            .with_store(|s| s.get(Space::Offsets, &tp.named_key(group.as_bytes())))?;
        let Some(stored) = stored else { return Ok(None) };
        let (offset, metadata) = take_i64(&stored)?;
        let metadata = String::from_utf8(metadata.to_vec()).map_err(|_| LogError::Corrupt { what: "a commit" })?;
        Ok(Some(OffsetCommit {
            topic: topic.to_owned(),
            partition: tp.partition,
            offset,
            metadata,
        }))
    }
}
