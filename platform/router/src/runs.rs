//! The runs that a router knows: live ones whole, ended ones by id, so that a repeated cause makes no second run.
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use imageflow_eventlog::{EventLog, FollowEvent, LogError, Record, Start};
use imageflow_types::run::RUN_STATE_SCHEMA;
use imageflow_types::{RunId, RunState, topics};

/// Live runs, and the ids of ended ones in the order in which they ended.
#[derive(Debug, Default)]
pub struct Runs {
    live: HashMap<RunId, RunState>,
    ended: HashSet<RunId>,
    order: VecDeque<RunId>,
}

impl Runs {
    /// Reads the changelog to its end.
    ///
    /// # Errors
    /// When the log fails.
    pub async fn load(log: &Arc<dyn EventLog>) -> Result<Self, LogError> {
        let mut runs = Self::default();
        let mut ended: Vec<(i64, RunId)> = Vec::new();
        let mut follower = log.follow(topics::RUNS, Start::Earliest).await?;
        while let FollowEvent::Records(records) = follower.next().await? {
            for record in records {
                match read(&record) {
                    Some(state) if state.status.is_final() => {
                        runs.live.remove(&state.run);
                        ended.push((state.updated_ms, state.run));
                    }
                    Some(state) => {
                        runs.live.insert(state.run.clone(), state);
                    }
                    None => {}
                }
            }
        }
        ended.sort_unstable();
        for (_, run) in ended {
            runs.remember(run);
        }
        Ok(runs)
    }

    /// A run that has not ended.
    #[must_use]
    pub fn live(&self, run: &RunId) -> Option<&RunState> {
        self.live.get(run)
    }

    /// Whether the run exists or has existed.
    #[must_use]
    pub fn knows(&self, run: &RunId) -> bool {
        self.live.contains_key(run) || self.ended.contains(run)
    }

    /// How many have not ended.
    #[must_use]
    pub fn live_count(&self) -> usize {
        self.live.len()
    }

    /// Takes a state that is durable now.
    pub fn put(&mut self, state: RunState) {
        if state.status.is_final() {
            self.live.remove(&state.run);
            self.remember(state.run);
        } else {
            self.live.insert(state.run.clone(), state);
        }
    }

    /// Ended runs beyond `keep`, the oldest first, at most `max`: they are to be deleted from the changelog.
    #[must_use]
    pub fn surplus(&self, keep: usize, max: usize) -> Vec<RunId> {
        let count = self.order.len().saturating_sub(keep).min(max);
        self.order.iter().take(count).cloned().collect()
    }

    /// Forgets ended runs whose deletion is durable.
    pub fn forget(&mut self, runs: &[RunId]) {
        for run in runs {
            self.ended.remove(run);
        }
        // They were the oldest, so what is to go stands in front.
        while self.order.front().is_some_and(|run| !self.ended.contains(run)) {
            self.order.pop_front();
        }
    }

    fn remember(&mut self, run: RunId) {
        if self.ended.insert(run.clone()) {
            self.order.push_back(run);
        }
    }
}

fn read(record: &Record) -> Option<RunState> {
    let value = record.value.as_ref()?;
    match serde_json::from_slice::<RunState>(value) {
        Ok(state) if state.schema <= RUN_STATE_SCHEMA => Some(state),
        Ok(state) => {
            tracing::error!(run = %state.run, schema = state.schema, "a run was written by a newer version");
            None
        }
        Err(error) => {
            tracing::error!(offset = record.offset, partition = record.partition, %error, "a run cannot be read");
            None
        }
    }
}
