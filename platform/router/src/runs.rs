//! The runs that a router knows: of each partition that it has, live ones whole, ended ones by id, so that a repeated cause
//! makes no second run.
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use imageflow_eventlog::{EventLog, LogError, Record, partition_for_key};
use imageflow_types::run::RUN_STATE_SCHEMA;
use imageflow_types::{RunId, RunState, topics};

/// Runs by partition of `imageflow.runs`, which is also that of their events.
#[derive(Debug, Default)]
pub struct Runs {
    partitions: BTreeMap<u32, Part>,
}

/// Live runs of a partition, and the ids of ended ones in the order in which they ended.
#[derive(Debug, Default)]
struct Part {
    live: HashMap<RunId, RunState>,
    ended: HashSet<RunId>,
    order: VecDeque<RunId>,
}

fn partition(run: &RunId) -> u32 {
    partition_for_key(run.as_str().as_bytes(), topics::PARTITIONS)
}

impl Runs {
    /// Reads what the changelog says of a partition that is ours from now on.
    ///
    /// # Errors
    /// When the log fails.
    pub async fn load(&mut self, log: &dyn EventLog, partition: u32) -> Result<(), LogError> {
        const PAGE: usize = 1000;
        let mut part = Part::default();
        let mut ended: HashMap<RunId, i64> = HashMap::new();
        let mut from = 0;
        loop {
            let records = log.read(topics::RUNS, partition, from, PAGE).await?;
            let Some(last) = records.last() else { break };
            from = last.offset + 1;
            for record in records {
                match read(&record) {
                    Read::State(state) if state.status.is_final() => {
                        part.live.remove(&state.run);
                        ended.insert(state.run, state.updated_ms);
                    }
                    Read::State(state) => {
                        part.live.insert(state.run.clone(), *state);
                    }
                    Read::Deleted(run) => {
                        part.live.remove(&run);
                        ended.remove(&run);
                    }
                    Read::Nothing => {}
                }
            }
        }
        let mut ended: Vec<(i64, RunId)> = ended.into_iter().map(|(run, at)| (at, run)).collect();
        ended.sort_unstable();
        for (_, run) in ended {
            part.remember(run);
        }
        self.partitions.insert(partition, part);
        Ok(())
    }

    /// Forgets a partition that is another's from now on.
    pub fn give_up(&mut self, partition: u32) {
        self.partitions.remove(&partition);
    }

    /// Whether the run's partition is ours.
    #[must_use]
    pub fn owns(&self, run: &RunId) -> bool {
        self.part(run).is_some()
    }

    /// A run of ours that has not ended.
    #[must_use]
    pub fn live(&self, run: &RunId) -> Option<&RunState> {
        self.part(run)?.live.get(run)
    }

    /// Whether the run exists or has existed.
    #[must_use]
    pub fn knows(&self, run: &RunId) -> bool {
        self.part(run)
            .is_some_and(|part| part.live.contains_key(run) || part.ended.contains(run))
    }

    /// How many have not ended.
    #[must_use]
    pub fn live_count(&self) -> usize {
        self.partitions.values().map(|part| part.live.len()).sum()
    }

    /// Takes a state that is durable now.
    pub fn put(&mut self, state: RunState) {
        let Some(part) = self.partitions.get_mut(&partition(&state.run)) else {
            return;
        };
        if state.status.is_final() {
            part.live.remove(&state.run);
            part.remember(state.run);
        } else {
            part.live.insert(state.run.clone(), state);
        }
    }

    /// Ended runs beyond `keep` of all partitions together, the oldest of each first, at most `max`: they are to be deleted
    /// from the changelog.
    #[must_use]
    pub fn surplus(&self, keep: usize, max: usize) -> Vec<RunId> {
        let keep = keep.div_ceil(topics::PARTITIONS as usize);
        let oldest = |part: &Part| {
            let count = part.order.len().saturating_sub(keep);
            part.order.iter().take(count).cloned().collect::<Vec<_>>()
        };
        self.partitions.values().flat_map(oldest).take(max).collect()
    }

    /// Forgets ended runs whose deletion is durable.
    pub fn forget(&mut self, runs: &[RunId]) {
        for run in runs {
            if let Some(part) = self.partitions.get_mut(&partition(run)) {
                part.forget(run);
            }
        }
    }

    fn part(&self, run: &RunId) -> Option<&Part> {
        self.partitions.get(&partition(run))
    }
}

impl Part {
    fn remember(&mut self, run: RunId) {
        if self.ended.insert(run.clone()) {
            self.order.push_back(run);
        }
    }

    fn forget(&mut self, run: &RunId) {
        self.ended.remove(run);
        // They were the oldest, so what is to go stands in front.
        while self.order.front().is_some_and(|run| !self.ended.contains(run)) {
            self.order.pop_front();
        }
    }
}

enum Read {
    State(Box<RunState>),
    Deleted(RunId),
    Nothing,
}

fn read(record: &Record) -> Read {
    let Some(value) = record.value.as_ref() else {
        let key = record.key.as_deref().and_then(|key| std::str::from_utf8(key).ok());
        return key
            .and_then(|key| RunId::parse(key).ok())
            .map_or(Read::Nothing, Read::Deleted);
    };
    match serde_json::from_slice::<RunState>(value) {
        Ok(state) if state.schema <= RUN_STATE_SCHEMA => return Read::State(Box::new(state)),
        Ok(state) => tracing::error!(run = %state.run, schema = state.schema, "a run was written by a newer version"),
        Err(error) => {
            tracing::error!(offset = record.offset, partition = record.partition, %error, "a run cannot be read");
        }
    }
    Read::Nothing
}
