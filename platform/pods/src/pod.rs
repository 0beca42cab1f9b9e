//! Pods as others see them.
use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;

use imageflow_types::{FunctionName, RevisionName};
use serde::Serialize;

/// Id of a pod, unique over all time.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct PodId(String);

impl PodId {
    /// An id from its text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PodId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Where a pod stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", tag = "state")]
pub enum PodState {
    /// Started, not ready yet.
    Starting,
    /// Takes requests.
    Ready,
    /// Takes no new requests and finishes what it holds.
    Draining,
    /// It ended or did not start; it is started again when the wait is over.
    BackOff {
        /// When, ms since 1970.
        until_ms: i64,
        /// How many starts in a row it did not get ready. None when it died of its work: that says nothing about the others'.
        failed_starts: u32,
        /// Why.
        reason: String,
    },
    /// It will not be started again.
    Failed {
        /// Why.
        reason: String,
    },
}

/// When the phases of a start were over, ms since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Phases {
    /// The pod was asked for.
    pub asked_ms: i64,
    /// It had a node, on a cluster.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scheduled_ms: Option<i64>,
    /// The process was there.
    pub spawned_ms: Option<i64>,
    /// It said that it is ready.
    pub ready_ms: Option<i64>,
}

/// One pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Pod {
    /// Its id.
    pub id: PodId,
    /// The function.
    pub function: FunctionName,
    /// The revision.
    pub revision: RevisionName,
    /// Where it listens.
    pub addr: SocketAddr,
    /// How many requests it takes at a time.
    pub concurrency_limit: u32,
    /// Where it stands.
    #[serde(flatten)]
    pub state: PodState,
    /// Process id.
    pub pid: Option<u32>,
    /// Restarts so far.
    pub restarts: u32,
    /// When what was over.
    pub phases: Phases,
}

impl Pod {
    /// A pod without a process yet.
    #[must_use]
    pub fn new(
        id: PodId,
        function: FunctionName,
        revision: RevisionName,
        addr: SocketAddr,
        concurrency_limit: u32,
        state: PodState,
    ) -> Self {
        Self {
            id,
            function,
            revision,
            addr,
            concurrency_limit,
            state,
            pid: None,
            restarts: 0,
            phases: Phases::default(),
        }
    }
}

/// All pods of a host.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PodTable {
    /// By id.
    pub pods: BTreeMap<PodId, Pod>,
    /// Who has requests with the pods of a revision, when that are several: each gives a pod its share only.
    pub sharers: BTreeMap<RevisionName, u32>,
    /// GPU cards that the host's nodes have for pods, used or not; `None` when it cannot tell, and then nothing is held back.
    pub gpus: Option<u32>,
}

impl PodTable {
    /// The requests that one of the sharers may give a pod. Shares are rounded up, so together they may be more than the pod
    /// takes: then it refuses, which is no attempt.
    #[must_use]
    pub fn share(&self, pod: &Pod) -> u32 {
        let sharers = self.sharers.get(&pod.revision).copied().unwrap_or(1);
        pod.concurrency_limit.max(1).div_ceil(sharers.max(1))
    }

    /// Ready and starting pods of a function; those in back-off count as starting.
    #[must_use]
    pub fn count(&self, function: &FunctionName) -> (u32, u32) {
        let mut counts = (0, 0);
        for pod in self.pods.values().filter(|p| &p.function == function) {
            match pod.state {
                PodState::Ready => counts.0 += 1,
                PodState::Starting | PodState::BackOff { .. } => counts.1 += 1,
                PodState::Draining | PodState::Failed { .. } => {}
            }
        }
        counts
    }
}
