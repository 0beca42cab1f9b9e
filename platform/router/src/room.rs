//! What a router does when the log fills: it must be able to end what it began, so it begins nothing new for a while.
use std::collections::VecDeque;

use imageflow_eventlog::{Consumer, ConsumerEvent, Record, TopicPartition, Usage};
use imageflow_types::topics;

/// Above this share ended runs are forgotten before their time.
const TIGHT: f64 = 0.65;
/// Above this share no run begins: what is left is for those under way.
const SHORT: f64 = 0.85;

/// How much room the log has.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Room {
    /// No limit.
    Plenty,
    /// There is a limit to think of.
    Limited {
        /// Bytes until no run may begin.
        spare: u64,
        /// Whether ended runs should make room.
        tight: bool,
    },
}

impl Room {
    /// By what the log holds.
    #[must_use]
    pub fn of(usage: Usage) -> Self {
        match (usage.bytes, usage.limit) {
            (Some(bytes), Some(limit)) => Self::Limited {
                spare: ((limit as f64 * SHORT) as u64).saturating_sub(bytes),
                tight: bytes as f64 > limit as f64 * TIGHT,
            },
            _ => Self::Plenty,
        }
    }

    /// Whether ended runs should make room.
    #[must_use]
    pub const fn is_tight(self) -> bool {
        matches!(self, Self::Limited { tight: true, .. })
    }

    /// Whether this much may still begin.
    const fn takes(self, bytes: u64) -> bool {
        match self {
            Self::Plenty => true,
            Self::Limited { spare, .. } => bytes <= spare,
        }
    }
}

/// What the records of an event's run take until its first step is done: the event stands in the run's state, twice
/// while the older one is not compacted, and in its work; plan, steps and report come on top.
fn growth(event: &Record) -> u64 {
    let bytes = event.value.as_ref().map_or(0, |value| value.len()) as u64;
    bytes * 4 + 8 * 1024
}

/// Events from outside that were read, and wait while room is short.
#[derive(Debug, Default)]
pub struct Intake {
    partitions: Vec<u32>,
    resting: bool,
    held: VecDeque<Record>,
}

impl Intake {
    /// Takes what a poll gave; gives back what is to be worked out now: all of ours, and of outside as much as there is
    /// room for.
    pub fn take(&mut self, consumer: &mut dyn Consumer, polled: Vec<ConsumerEvent>, room: Room) -> Vec<Record> {
        let mut ready = Vec::new();
        for event in polled {
            match event {
                ConsumerEvent::Assigned(assigned) => {
                    let outside = assigned.iter().filter(|a| a.topic == topics::EVENTS);
                    for assignment in outside {
                        self.partitions.push(assignment.partition);
                        if self.resting {
                            consumer.pause(topics::EVENTS, assignment.partition);
                        }
                    }
                }
                ConsumerEvent::Revoked(revoked) => {
                    let gone = |p: u32| revoked.iter().any(|r| r.topic == topics::EVENTS && r.partition == p);
                    self.partitions.retain(|p| !gone(*p));
                    // Not committed, so who has the partition next reads them again.
                    self.held.retain(|record| !gone(record.partition));
                }
                ConsumerEvent::Records(records) => {
                    let (outside, ours): (Vec<_>, Vec<_>) =
                        records.into_iter().partition(|r| r.topic == topics::EVENTS);
                    self.held.extend(outside);
                    ready.extend(ours);
                }
            }
        }
        let mut sum = 0;
        while let Some(event) = self.held.front() {
            sum += growth(event);
            if !room.takes(sum) {
                break;
            }
            ready.extend(self.held.pop_front());
        }
        self.rest(consumer, !self.held.is_empty());
        ready
    }

    /// Whether a partition has records that were read and not given out: then its position is past them.
    #[must_use]
    pub fn holds(&self, at: &TopicPartition) -> bool {
        at.topic == topics::EVENTS && self.held.iter().any(|r| r.partition == at.partition)
    }

    /// Whether anything waits for room.
    #[must_use]
    pub const fn is_resting(&self) -> bool {
        self.resting
    }

    fn rest(&mut self, consumer: &mut dyn Consumer, rest: bool) {
        if rest == self.resting {
            return;
        }
        tracing::warn!(rest, "the log is nearly full: new events wait while runs under way end");
        self.resting = rest;
        for partition in &self.partitions {
            if rest {
                consumer.pause(topics::EVENTS, *partition);
            } else {
                consumer.resume(topics::EVENTS, *partition);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_by_share_of_the_limit_and_endless_without_one() {
        let limit = 1_000_000_000;
        let room = |bytes, limit| {
            Room::of(Usage {
                bytes: Some(bytes),
                limit,
            })
        };
        assert_eq!(room(u64::MAX, None), Room::Plenty);
        let half = room(limit / 2, Some(limit));
        assert!(half.takes(350_000_000) && !half.takes(350_000_001) && !half.is_tight());
        assert!(room(limit / 4 * 3, Some(limit)).is_tight());
        assert!(!room(900_000_000, Some(limit)).takes(1));
    }
}
