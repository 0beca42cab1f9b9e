//! What the autoscaler needs of others, as traits: in one process they are called directly, else over gRPC.
use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use imageflow_decider::{Memory, PolicyConfig, PolicyKind};
use imageflow_types::function::{Concurrency, Policy, Resources, Scale};
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
    /// Requests with a pod.
    pub in_flight: u32,
    /// Completions since the last [`StatsSource::collect`].
    pub completed_since: u64,
    /// Sum of their service times, ms.
    pub service_ms_sum: u64,
    /// Records of the function's work topic that no pod has yet. Set it on any one entry of the function; when no entry of
    /// a listed function has it, the backlog is not known and no pod is taken away.
    pub backlog: Option<u64>,
    /// Age of the oldest of them, ms.
    pub oldest_ms: Option<u64>,
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
}

/// The pods as the autoscaler needs them: a narrow view of the pod host.
#[async_trait]
pub trait Replicas: Send + Sync + 'static {
    /// Sets how many pods a revision should have. Idempotent; returns when it is noted, not when the pods are there.
    ///
    /// # Errors
    /// [`ScaleError`]; it is tried again at the next look.
    async fn scale(&self, function: &FunctionName, revision: &RevisionName, replicas: u32) -> Result<(), ScaleError>;
    /// The revisions that have pods now. Cheap.
    fn pods(&self) -> Vec<RevisionPods>;
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
    /// What one pod may use.
    pub resources: Resources,
    /// The revisions in the traffic.
    pub revisions: Vec<RevisionShare>,
}

/// All functions. Entries are shared, so that a change of one costs little with thousands.
pub type Functions = HashMap<FunctionName, Arc<FunctionScaling>>;

impl FunctionScaling {
    pub(crate) fn policy(&self, window_ms: u64) -> PolicyConfig {
        PolicyConfig {
            policy: match self.scale.policy {
                Policy::Imageflow => PolicyKind::Imageflow,
            },
            min: self.scale.min,
            max: self.scale.max,
            pinned: self.scale.replicas,
            target: self.concurrency.target,
            drain_target_ms: self.scale.drain_target.as_millis(),
            keep_warm_min_ms: self.scale.keep_warm.min.as_millis(),
            keep_warm_max_ms: self.scale.keep_warm.max.as_millis(),
            window_ms,
        }
    }

    /// Whether it has pods even without any work.
    pub(crate) fn always_on(&self) -> bool {
        self.scale.replicas.unwrap_or(self.scale.min) > 0
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
}

/// A decision could not be stored.
#[derive(Debug, thiserror::Error)]
#[error("the decision could not be stored")]
pub struct StoreError(#[source] pub Box<dyn std::error::Error + Send + Sync>);
