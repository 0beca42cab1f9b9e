//! Who reads which partition: the assignment of one consumer group, without I/O and without a clock.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::codec::Tp;
use crate::types::Topics;

/// One member, as the group sees it.
pub struct Member {
    pub name: String,
    topics: Topics,
    session_timeout: Duration,
    pub wake: Arc<Notify>,
    /// Owned, but not yet told.
    pub to_assign: BTreeSet<Tp>,
    /// To be given up, but not yet told.
    to_revoke: BTreeSet<Tp>,
    /// Told to give up; done with the next poll.
    told: BTreeSet<Tp>,
    /// Partitions that may have records for it, each once.
    ready: VecDeque<Tp>,
    in_ready: HashSet<Tp>,
}

struct Slot {
    topic: Arc<str>,
    owner: Option<u64>,
    /// Who is to own it: differs from the owner while that one is giving it up.
    target: Option<u64>,
    since: Option<Instant>,
}

#[derive(Default)]
pub struct Group {
    members: BTreeMap<u64, Member>,
    slots: BTreeMap<Tp, Slot>,
    /// Partitions whose owner is giving them up.
    moving: BTreeSet<Tp>,
}

impl Group {
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    pub fn member(&mut self, id: u64) -> Option<&mut Member> {
        self.members.get_mut(&id)
    }

    pub fn id_of(&self, name: &str) -> Option<u64> {
        self.members.iter().find(|(_, m)| m.name == name).map(|(id, _)| *id)
    }

    pub fn owns(&self, id: u64, tp: Tp) -> bool {
        self.slots.get(&tp).is_some_and(|slot| slot.owner == Some(id))
    }

    pub fn reads(&self, topic: &str) -> bool {
        self.members.values().any(|m| m.topics.matches(topic))
    }

    /// Adds a member; one of the same name is replaced. `partitions` are those of all topics.
    pub fn join<'a>(
        &mut self,
        id: u64,
        name: &str,
        topics: Topics,
        session_timeout: Duration,
        partitions: impl Iterator<Item = (&'a str, Tp)>,
        now: Instant,
    ) -> Arc<Notify> {
        if let Some(old) = self.id_of(name) {
            self.remove(old);
        }
        let wake = Arc::new(Notify::new());
        let member = Member {
            name: name.to_owned(),
            session_timeout,
            wake: wake.clone(),
            to_assign: BTreeSet::new(),
            to_revoke: BTreeSet::new(),
            told: BTreeSet::new(),
            ready: VecDeque::new(),
            in_ready: HashSet::new(),
            topics,
        };
        let mut names: HashMap<u32, Arc<str>> = HashMap::new();
        for (topic, tp) in partitions {
            if member.topics.matches(topic) && !self.slots.contains_key(&tp) {
                let topic = names.entry(tp.topic).or_insert_with(|| topic.into()).clone();
                self.slots.insert(
                    tp,
                    Slot {
                        topic,
                        owner: None,
                        target: None,
                        since: None,
                    },
                );
            }
        }
        self.members.insert(id, member);
        self.rebalance(now);
        wake
    }

    pub fn leave(&mut self, id: u64, now: Instant) {
        if self.remove(id) {
            self.rebalance(now);
        }
    }

    fn remove(&mut self, id: u64) -> bool {
        let Some(member) = self.members.remove(&id) else {
            return false;
        };
        for (tp, slot) in &mut self.slots {
            if slot.owner == Some(id) {
                (slot.owner, slot.since) = (None, None);
                self.moving.remove(tp);
            }
            if slot.target == Some(id) {
                slot.target = None;
            }
        }
        // A replaced member may be waiting in poll; it is to find out.
        member.wake.notify_one();
        true
    }

    /// New partitions go to the members with the fewest, without moving any other.
    pub fn add_topic(&mut self, topic: &str, id: u32, partitions: u32, now: Instant) {
        if !self.reads(topic) {
            return;
        }
        let topic: Arc<str> = topic.into();
        let mut counts = self.counts();
        for partition in 0..partitions {
            let tp = Tp { topic: id, partition };
            let target = self.fewest(&topic, &counts);
            if let Some(count) = target.and_then(|id| counts.get_mut(&id)) {
                *count += 1;
            }
            self.slots.insert(
                tp,
                Slot {
                    topic: topic.clone(),
                    owner: None,
                    target,
                    since: None,
                },
            );
            self.settle(tp, now);
        }
    }

    pub fn remove_topic(&mut self, id: u32, partitions: u32, now: Instant) {
        for partition in 0..partitions {
            let tp = Tp { topic: id, partition };
            self.moving.remove(&tp);
            let Some(slot) = self.slots.remove(&tp) else { continue };
            let Some(member) = slot.owner.and_then(|id| self.members.get_mut(&id)) else {
                continue;
            };
            if !member.to_assign.remove(&tp) && !member.told.contains(&tp) {
                member.to_revoke.insert(tp);
                member.wake.notify_one();
            }
        }
        self.rebalance(now);
    }

    fn counts(&self) -> HashMap<u64, usize> {
        let mut counts: HashMap<u64, usize> = self.members.keys().map(|id| (*id, 0)).collect();
        for count in self.slots.values().filter_map(|slot| slot.target) {
            *counts.entry(count).or_default() += 1;
        }
        counts
    }

    fn fewest(&self, topic: &str, counts: &HashMap<u64, usize>) -> Option<u64> {
        let eligible = self.members.iter().filter(|(_, m)| m.topics.matches(topic));
        eligible
            .map(|(id, _)| *id)
            .min_by_key(|id| (counts.get(id).copied().unwrap_or(0), *id))
    }

    /// Sticky: a partition stays where it is unless its member left or has more than a fair share.
    fn rebalance(&mut self, now: Instant) {
        let mut counts = self.counts();
        let tps: Vec<Tp> = self.slots.keys().copied().collect();
        let mut change = |group: &mut Self, tp: Tp, only_if_fairer: bool| -> bool {
            let Some(slot) = group.slots.get(&tp) else { return false };
            let Some(to) = group.fewest(&slot.topic, &counts) else {
                return false;
            };
            let of = |id: u64| counts.get(&id).copied().unwrap_or(0);
            match slot.target {
                None => {}
                Some(from) if only_if_fairer && of(from) > of(to) + 1 => {
                    counts.entry(from).and_modify(|n| *n -= 1);
                }
                Some(_) => return false,
            }
            counts.entry(to).and_modify(|n| *n += 1);
            if let Some(slot) = group.slots.get_mut(&tp) {
                slot.target = Some(to);
            }
            true
        };
        for tp in &tps {
            change(self, *tp, false);
        }
        // Each move makes the shares fairer, so this ends.
        while tps.iter().fold(false, |any, tp| change(self, *tp, true) | any) {}
        for tp in tps {
            self.settle(tp, now);
        }
    }

    /// Brings one partition nearer to its target: hands it over, or asks the owner to give it up.
    fn settle(&mut self, tp: Tp, now: Instant) {
        let Some(slot) = self.slots.get_mut(&tp) else { return };
        if let Some(owner) = slot.owner.and_then(|id| self.members.get_mut(&id)) {
            if slot.owner == slot.target {
                if owner.to_revoke.remove(&tp) {
                    slot.since = None;
                    self.moving.remove(&tp);
                }
                return;
            }
            if owner.to_assign.remove(&tp) {
                // It never heard of it.
                slot.owner = None;
            } else {
                if !owner.told.contains(&tp) && owner.to_revoke.insert(tp) {
                    slot.since = Some(now);
                    owner.wake.notify_one();
                }
                self.moving.insert(tp);
                if let Some(next) = slot.target.and_then(|id| self.members.get(&id)) {
                    // So that it sets its timer.
                    next.wake.notify_one();
                }
                return;
            }
        }
        (slot.owner, slot.since) = (slot.target, None);
        self.moving.remove(&tp);
        if let Some(next) = slot.target.and_then(|id| self.members.get_mut(&id)) {
            next.to_assign.insert(tp);
            next.wake.notify_one();
        }
    }

    /// The member polls again: it is done with what it was told to give up.
    pub fn give_up(&mut self, id: u64, now: Instant) {
        let Some(member) = self.members.get_mut(&id) else {
            return;
        };
        for tp in std::mem::take(&mut member.told) {
            if let Some(slot) = self.slots.get_mut(&tp).filter(|slot| slot.owner == Some(id)) {
                slot.owner = None;
                self.settle(tp, now);
            }
        }
    }

    /// Takes partitions for `id` from owners that did not give them up in time; says when to look again.
    pub fn take_overdue(&mut self, id: u64, now: Instant) -> Option<Instant> {
        let mut next: Option<Instant> = None;
        for tp in self.moving.clone() {
            let Some(slot) = self.slots.get_mut(&tp).filter(|slot| slot.target == Some(id)) else {
                continue;
            };
            let timeout = slot
                .owner
                .and_then(|o| self.members.get(&o))
                .map_or(Duration::ZERO, |m| m.session_timeout);
            let deadline = slot.since.map_or(now, |since| since + timeout);
            if deadline <= now {
                // The old owner hears of it when it polls: what it was not told yet stays in its `to_revoke`.
                slot.owner = None;
                self.settle(tp, now);
            } else {
                next = Some(next.map_or(deadline, |n| n.min(deadline)));
            }
        }
        next
    }

    /// Records came in.
    pub fn mark_ready(&mut self, tp: Tp) {
        if let Some(member) = self
            .slots
            .get(&tp)
            .and_then(|s| s.owner)
            .and_then(|id| self.members.get_mut(&id))
        {
            member.mark_ready(tp);
            member.wake.notify_one();
        }
    }

    pub fn wake_assigned(&self) {
        for member in self.members.values().filter(|m| !m.to_assign.is_empty()) {
            member.wake.notify_one();
        }
    }

    pub fn wake_all(&self) {
        for member in self.members.values() {
            member.wake.notify_one();
        }
    }
}

impl Member {
    pub fn mark_ready(&mut self, tp: Tp) {
        if self.in_ready.insert(tp) {
            self.ready.push_back(tp);
        }
    }

    pub fn next_ready(&mut self) -> Option<Tp> {
        let tp = self.ready.pop_front()?;
        self.in_ready.remove(&tp);
        Some(tp)
    }

    /// What it must be told to give up; from then on its next poll gives it up.
    pub fn tell_revoked(&mut self) -> Vec<Tp> {
        let tps: Vec<Tp> = std::mem::take(&mut self.to_revoke).into_iter().collect();
        self.told.extend(&tps);
        tps
    }
}

#[cfg(test)]
mod tests;
