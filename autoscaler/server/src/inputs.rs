//! What the autoscaler needs of others, as traits: in one process they are called directly, else over gRPC.
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use async_trait::async_trait;
use imageflow_decider::policy::kpa::{Aggregation, KpaConfig, Metric};
use imageflow_decider::policy::lag::LagConfig;
use imageflow_decider::{Memory, PolicyConfig, PolicyKind};
use imageflow_types::duration::HumanDuration;
use imageflow_types::function::{Concurrency, Lag, Policy, Resources, Scale};
use imageflow_types::knative::{self, Annotations};
use imageflow_types::scaling::DecisionRecord;
use imageflow_types::{FunctionName, RevisionName};
use serde::{Deserialize, Serialize};

/// What is known of a function's work, for one of its revisions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FunctionLoad {
    /// The function.
    pub function: FunctionName,
    /// The revision; `None` for what is known of the function as a whole, such as its backlog.
    pub revision: Option<RevisionName>,
    /// Interactive callers that wait for a slot. Records of the work topic that wait for one are `backlog`, not this:
    /// a caller wants a slot now, a record within the drain target.
    pub held: u32,
    /// Records that wait for a slot of this revision, and of no other. They are part of the function's `backlog`.
    pub held_batch: u32,
    /// Callers whom another function serves while this one has no pod: it wants one for them all the same.
    pub lent: u32,
    /// Requests with a pod.
    pub in_flight: u32,
    /// Completions since the last [`StatsSource::collect`].
    pub completed_since: u64,
    /// Those of them for which a caller waited.
    pub calls_since: u64,
    /// Sum of their service times, ms.
    pub service_ms_sum: u64,
    /// Records of the function's work topic that no pod has yet. Set it on any one entry of the function; when no entry of
    /// a listed function has it, the backlog is not known and no pod is taken away.
    pub backlog: Option<u64>,
    /// `backlog` is what some know while others do not tell: at least so much waits, and no pod is taken away.
    pub partial: bool,
    /// Age of the oldest of them, ms.
    pub oldest_ms: Option<u64>,
    /// Steps of flows under way whose results the function will work on.
    pub expected: u32,
}

impl FunctionLoad {
    /// One of a function that has nothing to do, whose backlog is not told.
    #[must_use]
    pub const fn of(function: FunctionName) -> Self {
        Self {
            function,
            revision: None,
            held: 0,
            held_batch: 0,
            lent: 0,
            in_flight: 0,
            completed_since: 0,
            calls_since: 0,
            service_ms_sum: 0,
            backlog: None,
            partial: false,
            oldest_ms: None,
            expected: 0,
        }
    }
}

/// Where loads come from: delivery and dispatcher.
pub trait StatsSource: Send + Sync + 'static {
    /// Every function that has work, or had completions since the last call, or whose backlog cannot be told (listed with
    /// `backlog: None`). A function that is not listed has no work. Called about once a second and at each poke: cheap.
    fn collect(&self) -> Vec<FunctionLoad>;
}

/// Pods of one revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RevisionPods {
    /// The function.
    pub function: FunctionName,
    /// The revision.
    pub revision: RevisionName,
    /// Pods that take work.
    pub ready: u32,
    /// Pods on their way, backing off included; draining ones are not counted.
    pub starting: u32,
    /// How each of the ready ones started.
    pub starts: Vec<PodStart>,
}

/// How a pod started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PodStart {
    /// When it became ready, ms since 1970.
    pub ready_ms: i64,
    /// From being asked for until then, ms.
    pub took_ms: u64,
    /// How much of that until it had a node, ms; `None` where there are no nodes.
    pub scheduling_ms: Option<u64>,
}

/// The pods as the autoscaler needs them: a narrow view of the pod host.
#[async_trait]
pub trait Replicas: Send + Sync + 'static {
    /// Sets how many pods a revision should have. Idempotent; returns when it is noted, not when the pods are there.
    ///
    /// # Errors
    /// [`ScaleError`]; it is tried again at the next look.
    async fn scale(&self, function: &FunctionName, revision: &RevisionName, replicas: u32) -> Result<(), ScaleError>;
    /// Returns when [`pods`](Self::pods) tells what there is: before that nothing is decided, since pods that are not seen would be
    /// forgotten.
    async fn seen(&self) {}
    /// The revisions that have pods now. Cheap.
    fn pods(&self) -> Vec<RevisionPods>;
    /// GPU cards there are, used or not; `None` when that is not known. Cheap.
    fn gpus(&self) -> Option<u32>;
}

/// The pod host did not take a number of pods.
#[derive(Debug, thiserror::Error)]
#[error("revision {revision} could not be scaled to {replicas}")]
pub struct ScaleError {
    /// The revision.
    pub revision: RevisionName,
    /// The pods wanted.
    pub replicas: u32,
    /// Why.
    #[source]
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

/// A revision and its share of the traffic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RevisionShare {
    /// The revision.
    pub revision: RevisionName,
    /// Its share in percent; shares of 0 (reached by tag only) may be listed or not.
    pub percent: u32,
}

/// What the autoscaler knows of a function.
#[derive(Debug, Clone, PartialEq)]
pub struct FunctionScaling {
    /// How many pods its owner allows.
    pub scale: Scale,
    /// Requests for one pod.
    pub concurrency: Concurrency,
    /// Largest batch that one pod works on as one; 1 means none.
    pub batch: u32,
    /// What one pod may use.
    pub resources: Resources,
    /// The revisions in the traffic.
    pub revisions: Vec<RevisionShare>,
    /// Its annotations: Knative's set the law `kpa`.
    pub annotations: BTreeMap<String, String>,
}

/// All functions. Entries are shared, so that a change of one costs little with thousands.
pub type Functions = HashMap<FunctionName, Arc<FunctionScaling>>;

impl FunctionScaling {
    /// Its settings as the decider takes them; `window_ms` is the longest patience of the loop.
    #[must_use]
    pub fn policy(&self, window_ms: u64) -> PolicyConfig {
        let scale = &self.scale;
        let mut config = PolicyConfig {
            policy: PolicyKind::Imageflow,
            min: scale.min,
            max: scale.max,
            pinned: scale.replicas,
            target: self.target(),
            drain_target_ms: scale.drain_target.as_millis(),
            keep_warm_min_ms: scale.keep_warm.min.as_millis(),
            keep_warm_max_ms: scale.keep_warm.max.as_millis(),
            window_ms,
        };
        match scale.policy {
            Policy::Imageflow => {}
            Policy::Lag => config.policy = PolicyKind::Lag(lag(scale.lag.unwrap_or_default())),
            Policy::Kpa => {
                // They were read when the function was applied; what cannot be read is as if it were not there.
                let said = Annotations::read(&self.annotations).unwrap_or_default();
                config.min = said.min_scale.unwrap_or(scale.min);
                config.max = said
                    .max_scale
                    .map_or(scale.max, |max| if max == 0 { u32::MAX } else { max });
                config.policy = PolicyKind::Kpa(KpaConfig {
                    revision: self.revisions.iter().map(number).max().unwrap_or(0),
                    ..kpa(&said, self.concurrency.limit)
                });
            }
        }
        config
    }

    /// Requests that one pod is to have: with batches a whole one, since half a batch takes as long and costs the same card.
    fn target(&self) -> u32 {
        let Concurrency { target, limit } = self.concurrency;
        target.max(self.batch.min(limit))
    }

    /// Whether it has pods even without any work, or may have with a new revision.
    pub(crate) fn always_on(&self) -> bool {
        self.scale.replicas.unwrap_or_else(|| {
            let config = self.policy(0);
            match &config.policy {
                PolicyKind::Kpa(kpa) => config.min.max(kpa.initial_scale),
                _ => config.min,
            }
        }) > 0
    }
}

/// Number of a revision: the end of its name.
fn number(share: &RevisionShare) -> u32 {
    let number = share.revision.as_str().rsplit('-').next();
    number.and_then(|n| n.parse().ok()).unwrap_or(0)
}

fn seconds(time: HumanDuration) -> u32 {
    u32::try_from(time.0.as_secs()).unwrap_or(u32::MAX)
}

fn lag(said: Lag) -> LagConfig {
    LagConfig {
        lag_threshold: said.lag_threshold,
        activation_lag_threshold: said.activation_lag_threshold,
        polling_interval_s: seconds(said.polling_interval),
        cooldown_period_s: seconds(said.cooldown_period),
        stabilization_window_s: seconds(said.stabilization_window),
        // Work is pushed: every pod has some, however few partitions there are.
        allow_idle_consumers: true,
        ..LagConfig::default()
    }
}

fn kpa(said: &Annotations, limit: u32) -> KpaConfig {
    let base = KpaConfig::default();
    KpaConfig {
        metric: match said.metric {
            Some(knative::Metric::Rps) => Metric::Rps,
            Some(knative::Metric::Concurrency) | None => Metric::Concurrency,
        },
        target: said.target,
        container_concurrency: limit,
        target_utilization: said
            .target_utilization_percentage
            .map_or(base.target_utilization, |percent| percent / 100.0),
        target_burst_capacity: said.target_burst_capacity.unwrap_or(base.target_burst_capacity),
        stable_window_s: said.window.map_or(base.stable_window_s, seconds),
        panic_window_percentage: said.panic_window_percentage.unwrap_or(base.panic_window_percentage),
        panic_threshold_percentage: said
            .panic_threshold_percentage
            .unwrap_or(base.panic_threshold_percentage),
        scale_down_delay_s: said.scale_down_delay.map_or(base.scale_down_delay_s, seconds),
        initial_scale: said.initial_scale.unwrap_or(base.initial_scale),
        activation_scale: said.activation_scale.unwrap_or(base.activation_scale),
        scale_to_zero_pod_retention_s: said.pod_retention.map_or(base.scale_to_zero_pod_retention_s, seconds),
        aggregation: match said.aggregation {
            Some(knative::Aggregation::WeightedExponential) => Aggregation::WeightedExponential,
            Some(knative::Aggregation::Linear) | None => Aggregation::Linear,
        },
        ..base
    }
}

/// A decision with what was learned until then: the value of a record in the compacted topic `imageflow.scaling`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StoredDecision {
    /// The decision.
    pub record: DecisionRecord,
    /// What was learned; versioned by its own `schema`.
    pub memory: Memory,
}

/// Where decisions are kept.
#[async_trait]
pub trait DecisionSink: Send + Sync + 'static {
    /// Stores one; the newest of a function replaces what was stored of it before.
    ///
    /// # Errors
    /// [`StoreError`]: the decision stands all the same, and the next change stores what was learned again.
    async fn store(&self, decision: StoredDecision) -> Result<(), StoreError>;
    /// Removes what is stored of a function that was deleted.
    ///
    /// # Errors
    /// [`StoreError`]: it is removed after the next start.
    async fn forget(&self, function: &FunctionName) -> Result<(), StoreError>;
}

/// A decision could not be stored.
#[derive(Debug, thiserror::Error)]
#[error("the decision could not be stored")]
pub struct StoreError(#[source] pub Box<dyn std::error::Error + Send + Sync>);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_that_works_in_batches_is_to_have_whole_ones() {
        let with = |target, limit, batch| {
            let scaling = FunctionScaling {
                scale: Scale::default(),
                concurrency: Concurrency { target, limit },
                batch,
                resources: Resources::default(),
                revisions: Vec::new(),
                annotations: BTreeMap::new(),
            };
            scaling.policy(30_000).target
        };
        assert_eq!(
            [with(2, 4, 1), with(2, 32, 16), with(2, 8, 16), with(20, 32, 16)],
            [2, 16, 8, 20]
        );
    }
}
