//! What a gateway shows of the autoscaler and the dispatchers when they are other processes: both are read off the log.
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use imageflow_autoscaler::StoredDecision;
use imageflow_eventlog::{EventLog, Record};
use imageflow_gateway::{BacklogView, Scaling, ScalingView};
use imageflow_pods::PodHost;
use imageflow_resources::{Table, TableView};
use imageflow_types::scaling::DecisionRecord;
use imageflow_types::{FunctionName, topics};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::up::scaling::deleted;

/// Decisions kept of a function.
const KEPT: usize = 50;
/// Between two looks at a backlog.
const EVERY: Duration = Duration::from_secs(1);
/// So long after somebody asked for it a backlog is looked at again.
const ASKED_FOR: Duration = Duration::from_secs(10);

/// Decisions by function, newest first. A start finds the last of each in the compacted topic.
#[derive(Default)]
pub struct Decisions(HashMap<FunctionName, Kept>);

/// What is kept of one function.
#[derive(Default)]
struct Kept {
    /// Where the newest of them is: all of a function are in one partition.
    offset: Option<i64>,
    decisions: VecDeque<DecisionRecord>,
}

impl Table for Decisions {
    fn apply(&mut self, record: &Record) {
        let Some(value) = &record.value else {
            if let Some(function) = deleted(record) {
                self.0.remove(&function);
            }
            return;
        };
        match serde_json::from_slice::<StoredDecision>(value) {
            Ok(StoredDecision { record: decision, .. }) => {
                let kept = self.0.entry(decision.function.clone()).or_default();
                // A view that is followed anew reads them again. Their times tell nothing: autoscalers have clocks of their own.
                if kept.offset < Some(record.offset) {
                    kept.offset = Some(record.offset);
                    kept.decisions.push_front(decision);
                    kept.decisions.truncate(KEPT);
                }
            }
            Err(error) => tracing::warn!(%error, "a stored scale decision cannot be read"),
        }
    }
}

/// Explains scaling by the topic of decisions.
pub struct Explained {
    pub decisions: TableView<Decisions>,
    pub host: Arc<dyn PodHost>,
}

impl ScalingView for Explained {
    fn explain(&self, function: &FunctionName) -> Scaling {
        let (ready, _) = self.host.watch().borrow().count(function);
        let all = self
            .decisions
            .read(|table| table.0.get(function).map(|kept| kept.decisions.clone()));
        let decisions: Vec<_> = all.unwrap_or_default().into();
        Scaling {
            function: function.clone(),
            desired: decisions.first().map_or(0, |newest| newest.to),
            ready,
            decisions,
        }
    }
}

struct Asked {
    waiting: u64,
    last: Instant,
}

/// Backlogs by what the dispatchers have not committed yet. A function that is asked for the first time has none until the
/// next look, a second later at most.
pub struct Lags {
    log: Arc<dyn EventLog>,
    asked: Mutex<HashMap<FunctionName, Asked>>,
}

impl Lags {
    pub fn new(log: Arc<dyn EventLog>) -> Arc<Self> {
        Arc::new(Self {
            log,
            asked: Mutex::default(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<FunctionName, Asked>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks again and again until `stop`, at what was asked for lately.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        let mut every = tokio::time::interval(EVERY);
        every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = every.tick() => {}
            }
            let wanted: Vec<FunctionName> = {
                let mut asked = self.lock();
                asked.retain(|_, a| a.last.elapsed() < ASKED_FOR);
                asked.keys().cloned().collect()
            };
            for function in wanted {
                let topic = topics::work(&function);
                let lag = tokio::select! {
                    () = stop.cancelled() => return,
                    lag = self.log.lag(topics::GROUP_DISPATCHER, &topic) => lag,
                };
                match lag {
                    Ok(lag) => {
                        if let Some(asked) = self.lock().get_mut(&function) {
                            asked.waiting = lag;
                        }
                    }
                    Err(error) => tracing::debug!(%function, %error, "its backlog is not known"),
                }
            }
        }
    }
}

impl BacklogView for Lags {
    fn backlog(&self, function: &FunctionName) -> u64 {
        let mut all = self.lock();
        let asked = all.entry(function.clone()).or_insert(Asked {
            waiting: 0,
            last: Instant::now(),
        });
        asked.last = Instant::now();
        asked.waiting
    }
}

#[cfg(test)]
mod tests {
    use imageflow_decider::Memory;

    use super::*;

    #[test]
    fn decisions_are_kept_newest_first_and_once() {
        let function = FunctionName::new("resize").unwrap();
        let mut table = Decisions::default();
        let record = |offset: i64, (at_ms, to): (i64, u32)| {
            let record = DecisionRecord {
                at_ms,
                to,
                ..DecisionRecord::of(function.clone())
            };
            let stored = StoredDecision {
                record,
                memory: Memory::default(),
            };
            Record {
                topic: topics::SCALING.to_owned(),
                partition: 0,
                offset,
                timestamp_ms: at_ms,
                key: Some(function.to_string().into()),
                headers: Vec::new(),
                value: Some(serde_json::to_vec(&stored).unwrap().into()),
            }
        };
        for (offset, decision) in [(1, (10, 1)), (2, (20, 4)), (1, (10, 1)), (2, (20, 4)), (3, (15, 0))] {
            table.apply(&record(offset, decision));
        }
        let kept: Vec<_> = table.0[&function].decisions.iter().map(|d| (d.at_ms, d.to)).collect();
        // The last one is of an autoscaler whose clock is late.
        assert_eq!(kept, [(15, 0), (20, 4), (10, 1)]);
        table.apply(&Record {
            value: None,
            ..record(4, (0, 0))
        });
        assert!(table.0.is_empty(), "the function was deleted");
    }
}
