//! What ties the autoscaler to the other services of this process.
use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use imageflow_autoscaler::{
    Autoscaler, DecisionSink, FunctionLoad, PodStart, Replicas, RevisionPods, ScaleError, StatsSource, StoreError,
    StoredDecision,
};
use imageflow_decider::Memory;
use imageflow_delivery::Delivery;
use imageflow_dispatcher::Backlogs;
use imageflow_eventlog::{EventLog, FollowEvent, LogError, NewRecord, Record, Start, TopicSpec};
use imageflow_gateway::{BacklogView, Scaling, ScalingView};
use imageflow_pods::{LocalHost, PodHost, PodState};
use imageflow_types::{FunctionName, RevisionName, topics};

/// The topic of decisions.
pub fn topic() -> TopicSpec {
    TopicSpec::compacted(topics::SCALING, topics::FEW_PARTITIONS)
}

/// What was learned before the last stop.
pub async fn learned(log: &Arc<dyn EventLog>) -> Result<HashMap<FunctionName, Memory>, LogError> {
    let mut learned = HashMap::new();
    let mut follower = log.follow(topics::SCALING, Start::Earliest).await?;
    while let FollowEvent::Records(records) = follower.next().await? {
        for record in records {
            match record
                .value
                .as_ref()
                .map(|v| serde_json::from_slice::<StoredDecision>(v))
            {
                Some(Ok(stored)) => drop(learned.insert(stored.record.function, stored.memory)),
                Some(Err(error)) => tracing::warn!(%error, "a stored scale decision cannot be read"),
                None => drop(deleted(&record).and_then(|function| learned.remove(&function))),
            }
        }
    }
    Ok(learned)
}

/// The function of a record that removes what was stored of it.
pub fn deleted(record: &Record) -> Option<FunctionName> {
    let key = std::str::from_utf8(record.key.as_ref()?).ok()?;
    FunctionName::new(key).ok()
}

/// Loads: slots and callers from the delivery, backlog from the dispatcher.
pub struct Stats {
    delivery: Arc<Delivery>,
    backlogs: Arc<Backlogs>,
    clock: fn() -> i64,
}

impl Stats {
    pub const fn new(delivery: Arc<Delivery>, backlogs: Arc<Backlogs>, clock: fn() -> i64) -> Self {
        Self {
            delivery,
            backlogs,
            clock,
        }
    }
}

impl StatsSource for Stats {
    fn collect(&self) -> Vec<FunctionLoad> {
        let mut loads: Vec<FunctionLoad> = self
            .delivery
            .collect()
            .into_iter()
            .map(|stats| FunctionLoad {
                revision: Some(stats.revision),
                held: stats.held,
                held_batch: stats.held_batch,
                lent: stats.lent,
                in_flight: stats.in_flight,
                completed_since: stats.completed,
                calls_since: stats.calls,
                service_ms_sum: u64::try_from(stats.service.as_millis()).unwrap_or(u64::MAX),
                ..FunctionLoad::of(stats.function)
            })
            .collect();
        let now_ms = (self.clock)();
        let expected = self.backlogs.expected().into_iter();
        loads.extend(expected.map(|(function, expected)| FunctionLoad {
            expected,
            ..FunctionLoad::of(function)
        }));
        let mut seen: Vec<FunctionName> = Vec::new();
        for (function, backlog) in self.backlogs.all() {
            let age = backlog
                .oldest_ms
                .map(|since| u64::try_from(now_ms - since).unwrap_or(0));
            loads.push(FunctionLoad {
                backlog: Some(backlog.waiting),
                oldest_ms: age,
                ..FunctionLoad::of(function.clone())
            });
            seen.push(function);
        }
        // The dispatcher reads every work topic to its end: a function that it does not list has no backlog.
        for load in loads.iter_mut().filter(|l| !seen.contains(&l.function)) {
            load.backlog = Some(0);
        }
        loads
    }
}

/// The pods as the autoscaler needs them.
pub struct Pods(pub Arc<dyn PodHost>);

#[async_trait]
impl Replicas for Pods {
    async fn scale(&self, _: &FunctionName, revision: &RevisionName, replicas: u32) -> Result<(), ScaleError> {
        let scaled = self.0.scale(revision, replicas).await;
        scaled.map_err(|e| ScaleError {
            revision: revision.clone(),
            replicas,
            source: Box::new(e),
        })
    }

    fn gpus(&self) -> Option<u32> {
        self.0.watch().borrow().gpus
    }

    fn pods(&self) -> Vec<RevisionPods> {
        let table = self.0.watch().borrow().clone();
        let mut counts: HashMap<RevisionName, RevisionPods> = HashMap::new();
        for pod in table.pods.values() {
            let (ready, starting) = match pod.state {
                PodState::Ready => (1, 0),
                PodState::Starting | PodState::BackOff { .. } => (0, 1),
                PodState::Draining | PodState::Failed { .. } => continue,
            };
            let count = counts.entry(pod.revision.clone()).or_insert_with(|| RevisionPods {
                function: pod.function.clone(),
                revision: pod.revision.clone(),
                ready: 0,
                starting: 0,
                starts: Vec::new(),
            });
            if let (1, Some(at)) = (ready, pod.phases.ready_ms) {
                let since = |at: i64| u64::try_from(at - pod.phases.asked_ms).unwrap_or(0);
                count.starts.push(PodStart {
                    ready_ms: at,
                    took_ms: since(at),
                    // A node may be told of later than the pod tells of itself.
                    scheduling_ms: pod.phases.scheduled_ms.map(|scheduled| since(scheduled.min(at))),
                });
            }
            count.ready += ready;
            count.starting += starting;
        }
        counts.into_values().collect()
    }
}

/// The pods as they are, which nobody scales from here.
pub struct Untouched(pub Pods);

#[async_trait]
impl Replicas for Untouched {
    async fn scale(&self, _: &FunctionName, revision: &RevisionName, replicas: u32) -> Result<(), ScaleError> {
        tracing::debug!(%revision, replicas, "would be scaled");
        Ok(())
    }

    fn gpus(&self) -> Option<u32> {
        self.0.gpus()
    }

    fn pods(&self) -> Vec<RevisionPods> {
        self.0.pods()
    }
}

/// Keeps decisions in the log.
pub struct Sink(pub Arc<dyn EventLog>);

#[async_trait]
impl DecisionSink for Sink {
    async fn store(&self, decision: StoredDecision) -> Result<(), StoreError> {
        let value = serde_json::to_vec(&decision).map_err(|e| StoreError(Box::new(e)))?;
        let key = decision.record.function.to_string();
        self.produce(NewRecord::new(topics::SCALING).key(key).value(value))
            .await
    }

    async fn forget(&self, function: &FunctionName) -> Result<(), StoreError> {
        self.produce(NewRecord::new(topics::SCALING).key(function.to_string()))
            .await
    }
}

impl Sink {
    async fn produce(&self, record: NewRecord) -> Result<(), StoreError> {
        let produced = self.0.produce(vec![record]).await;
        produced.map(drop).map_err(|e| StoreError(Box::new(e)))
    }
}

/// Explains scaling to the gateway.
pub struct Explained {
    pub autoscaler: Autoscaler,
    pub host: Arc<LocalHost>,
}

impl ScalingView for Explained {
    fn explain(&self, function: &FunctionName) -> Scaling {
        let (ready, _) = self.host.watch().borrow().count(function);
        Scaling {
            function: function.clone(),
            desired: self.autoscaler.desired(function),
            ready,
            decisions: self.autoscaler.decisions(function),
        }
    }
}

/// Tells the gateway how much waits.
pub struct Waiting(pub Arc<Backlogs>);

impl BacklogView for Waiting {
    fn backlog(&self, function: &FunctionName) -> u64 {
        self.0.get(function).waiting
    }
}

#[cfg(test)]
mod tests {
    use imageflow_eventlog::{Embedded, EmbeddedConfig};
    use imageflow_types::scaling::DecisionRecord;

    use super::*;

    #[tokio::test]
    async fn what_is_forgotten_is_not_learned_again() {
        let folder = tempfile::tempdir().unwrap();
        let log = Embedded::open(EmbeddedConfig::new(folder.path().join("log"))).await;
        let log: Arc<dyn EventLog> = log.unwrap();
        log.ensure_topics(&[topic()]).await.unwrap();
        let (gone, stays) = (FunctionName::new("gone").unwrap(), FunctionName::new("stays").unwrap());
        let sink = Sink(log.clone());
        for function in [&gone, &stays] {
            let decision = StoredDecision {
                record: DecisionRecord::of(function.clone()),
                memory: Memory::default(),
            };
            sink.store(decision).await.unwrap();
        }
        sink.forget(&gone).await.unwrap();
        let learned: Vec<_> = learned(&log).await.unwrap().into_keys().collect();
        assert_eq!(learned, [stays]);
    }
}
