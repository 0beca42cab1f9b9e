//! Reads all partitions of one topic and then waits for more.

use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::Notify;

use super::Handle;
use super::codec::Tp;
use super::store::{READ_BYTES, Store};
use crate::error::{LogError, Result};
use crate::log::Follower;
use crate::types::{FollowEvent, Start};

/// Records in one event.
const AT_ONCE: usize = 1000;

pub struct EmbeddedFollower {
    handle: Arc<Handle>,
    topic: String,
    id: u32,
    changed: Arc<Notify>,
    next: Vec<i64>,
    /// The ends when it was made, until they were reached and that was said.
    goal: Option<Vec<i64>>,
    /// Where the last round stopped, so that a busy partition does not starve the others.
    turn: usize,
}

impl EmbeddedFollower {
    pub fn new(handle: Arc<Handle>, topic: &str, from: Start) -> Result<Self> {
        let (id, changed, next, goal) = {
            let state = handle.core.open_state()?;
            let topic = state.topic(topic)?;
            let ends: Vec<i64> = topic.parts.iter().map(|p| p.high).collect();
            let next = match from {
                Start::Earliest => topic.parts.iter().map(|p| p.low).collect(),
                Start::Latest => ends.clone(),
            };
            (topic.id, topic.changed.clone(), next, ends)
        };
        Ok(Self {
            handle,
            topic: topic.to_owned(),
            id,
            changed,
            next,
            goal: Some(goal),
            turn: 0,
        })
    }
}

#[async_trait]
impl Follower for EmbeddedFollower {
    async fn next(&mut self) -> Result<FollowEvent> {
        loop {
            if self
                .goal
                .as_ref()
                .is_some_and(|goal| goal.iter().zip(&self.next).all(|(goal, next)| next >= goal))
            {
                self.goal = None;
                return Ok(FollowEvent::CaughtUp);
            }
            let changed = self.changed.clone();
            // Registered before the look at the ends, so that what comes in after the look wakes it.
            let wait = changed.notified();
            let parts = {
                let state = self.handle.core.open_state()?;
                let topic = state.topic(&self.topic)?;
                if topic.id != self.id {
                    return Err(LogError::UnknownTopic {
                        topic: self.topic.clone(),
                    });
                }
                topic.parts.clone()
            };
            let mut moved = false;
            for i in 0..parts.len() {
                let at = (self.turn + i) % parts.len();
                let from = self.next[at].max(parts[at].low);
                self.next[at] = from;
                if from >= parts[at].high {
                    continue;
                }
                let tp = Tp {
                    topic: self.id,
                    partition: at as u32,
                };
                let read = |s: &Store| s.read(&self.topic, tp, from..parts[at].high, AT_ONCE, &mut READ_BYTES.clone());
                let (records, next) = self.handle.core.with_store(read)?;
                self.next[at] = next;
                if !records.is_empty() {
                    self.turn = at + 1;
                    return Ok(FollowEvent::Records(records));
                }
                // Only holes of compaction: that may have been the last step to the goal.
                moved = true;
            }
            if !moved {
                wait.await;
            }
        }
    }
}
