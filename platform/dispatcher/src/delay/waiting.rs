//! What waits until it is due, and then until its topic takes it: each topic has a lane of its own, so that one that takes nothing
//! holds up no other.
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;

use imageflow_eventlog::TopicPartition;
use tokio::time::Instant;

use crate::waits::Wait;

/// Records that may be on their way to one topic.
const AT_A_TIME: usize = 32;
/// Before a topic that took nothing is tried again, with one record.
const PAUSE: Duration = Duration::from_millis(500);

/// Something of a partition of delays.
#[derive(Debug)]
pub(super) struct Due<T> {
    pub(super) at: TopicPartition,
    pub(super) offset: i64,
    /// Which time the partition was here: it may go and come back.
    pub(super) stay: u64,
    /// The topic that it goes to.
    pub(super) topic: String,
    /// From when it is tried.
    pub(super) wait: Option<Wait>,
    pub(super) what: T,
}

struct Lane<T> {
    ready: VecDeque<Due<T>>,
    on_their_way: usize,
    /// It took nothing, and is not tried before.
    rests_until: Option<Instant>,
}

impl<T> Default for Lane<T> {
    fn default() -> Self {
        Self {
            ready: VecDeque::new(),
            on_their_way: 0,
            rests_until: None,
        }
    }
}

impl<T> Lane<T> {
    fn room(&self, now: Instant) -> usize {
        match self.rests_until {
            None => AT_A_TIME.saturating_sub(self.on_their_way),
            Some(until) if until <= now => 1_usize.saturating_sub(self.on_their_way),
            Some(_) => 0,
        }
    }
}

pub(super) struct Waiting<T> {
    /// By time, and then in the order in which they came.
    later: BTreeMap<(Instant, u64), Due<T>>,
    came: u64,
    lanes: HashMap<String, Lane<T>>,
}

impl<T> Default for Waiting<T> {
    fn default() -> Self {
        Self {
            later: BTreeMap::new(),
            came: 0,
            lanes: HashMap::new(),
        }
    }
}

impl<T> Waiting<T> {
    pub(super) fn add(&mut self, time: Instant, due: Due<T>) {
        self.came += 1;
        self.later.insert((time, self.came), due);
    }

    /// When `take` has something, if nothing that is on its way comes to its end before.
    pub(super) fn next(&self) -> Option<Instant> {
        let rested = self.lanes.values().filter(|lane| !lane.ready.is_empty());
        let rested = rested.filter_map(|lane| lane.rests_until.filter(|_| lane.on_their_way == 0));
        let first = self.later.first_key_value().map(|((time, _), _)| *time);
        rested.chain(first).min()
    }

    /// What is to be written now.
    pub(super) fn take(&mut self, now: Instant) -> Vec<Due<T>> {
        while let Some(first) = self.later.first_entry().filter(|first| first.key().0 <= now) {
            let due = first.remove();
            self.lanes.entry(due.topic.clone()).or_default().ready.push_back(due);
        }
        let mut taken = Vec::new();
        for lane in self.lanes.values_mut() {
            let count = lane.room(now).min(lane.ready.len());
            lane.on_their_way += count;
            taken.extend(lane.ready.drain(..count));
        }
        taken
    }

    /// What was taken is not on its way any more: the topic took it, or it is another topic's matter.
    pub(super) fn written(&mut self, topic: &str) {
        self.ended(topic, None);
    }

    /// The topic did not take it. It is the next one there, if it still waits.
    pub(super) fn refused(&mut self, topic: &str, again: Option<Due<T>>, now: Instant) {
        if let Some(due) = again {
            let lane = self.lanes.entry(topic.to_owned()).or_default();
            lane.ready.push_front(due);
        }
        self.ended(topic, Some(now + PAUSE));
    }

    fn ended(&mut self, topic: &str, rests_until: Option<Instant>) {
        if let Some(lane) = self.lanes.get_mut(topic) {
            lane.on_their_way = lane.on_their_way.saturating_sub(1);
            lane.rests_until = rests_until;
            if lane.ready.is_empty() && lane.on_their_way == 0 {
                self.lanes.remove(topic);
            }
        }
    }

    /// Forgets what others wait for by now. What is on its way is not here.
    pub(super) fn forget(&mut self, partitions: &[TopicPartition]) {
        self.later.retain(|_, due| !partitions.contains(&due.at));
        for lane in self.lanes.values_mut() {
            lane.ready.retain(|due| !partitions.contains(&due.at));
        }
        self.lanes
            .retain(|_, lane| !lane.ready.is_empty() || lane.on_their_way > 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn due(topic: &str, partition: u32, offset: i64) -> Due<()> {
        Due {
            at: TopicPartition::new("delays", partition),
            offset,
            stay: 0,
            topic: topic.to_owned(),
            wait: None,
            what: (),
        }
    }

    fn offsets(taken: &[Due<()>]) -> Vec<i64> {
        let mut offsets: Vec<i64> = taken.iter().map(|due| due.offset).collect();
        offsets.sort_unstable();
        offsets
    }

    #[test]
    fn what_is_due_goes_and_a_topic_that_takes_nothing_holds_up_no_other() {
        let now = Instant::now();
        let mut waiting = Waiting::default();
        (0..100).for_each(|offset| waiting.add(now, due("bad", 0, offset)));
        waiting.add(now, due("good", 0, 100));
        waiting.add(now + PAUSE * 4, due("good", 0, 101));
        assert_eq!(waiting.next(), Some(now));
        let mut taken = waiting.take(now);
        assert_eq!(offsets(&taken), (0..32).chain([100]).collect::<Vec<_>>());
        taken.retain(|due| due.topic == "bad");
        for due in taken.into_iter().rev() {
            waiting.refused("bad", Some(due), now);
        }
        waiting.written("good");
        assert!(waiting.take(now).is_empty());
        assert_eq!(waiting.next(), Some(now + PAUSE));
        let one = waiting.take(now + PAUSE);
        assert_eq!(offsets(&one), [0], "one tells whether it takes something again");
        assert!(waiting.take(now + PAUSE * 2).is_empty(), "that one is not back yet");
        waiting.written("bad");
        assert_eq!(offsets(&waiting.take(now + PAUSE * 2)), (1..33).collect::<Vec<_>>());
        assert_eq!(waiting.next(), Some(now + PAUSE * 4));
    }

    #[test]
    fn what_others_wait_for_is_forgotten() {
        let now = Instant::now();
        let mut waiting = Waiting::default();
        for partition in [0, 1] {
            (0..40).for_each(|offset| waiting.add(now, due("one", partition, offset)));
            waiting.add(now + PAUSE, due("one", partition, 40));
        }
        let on_their_way = waiting.take(now);
        waiting.forget(&[TopicPartition::new("delays", 0)]);
        on_their_way.iter().for_each(|_| waiting.written("one"));
        let first = waiting.take(now + PAUSE);
        first.iter().for_each(|_| waiting.written("one"));
        let last = waiting.take(now + PAUSE);
        assert!(first.iter().chain(&last).all(|due| due.at.partition == 1));
        assert_eq!(
            (offsets(&first), offsets(&last)),
            ((0..32).collect(), (32..41).collect())
        );
        last.iter().for_each(|_| waiting.written("one"));
        assert!(waiting.lanes.is_empty() && waiting.next().is_none());
    }
}
