//! What a function's owner wants, and the law that says how many pods the work asks for.
use serde::{Deserialize, Serialize};

use crate::reason::Reason;

pub mod imageflow;
pub mod kpa;
pub mod lag;

/// Which law.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum PolicyKind {
    /// Backlog, held requests, arrivals and service time in one law.
    #[default]
    Imageflow,
    /// Knative's.
    Kpa(kpa::KpaConfig),
    /// KEDA's for Kafka.
    Lag(lag::LagConfig),
}

/// What the owner of a function wants.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PolicyConfig {
    /// The law.
    pub policy: PolicyKind,
    /// Never fewer pods.
    pub min: u32,
    /// Never more pods.
    pub max: u32,
    /// Exactly so many pods.
    pub pinned: Option<u32>,
    /// Requests that one pod should work on at a time.
    pub target: u32,
    /// In what time a backlog should be worked off, ms.
    pub drain_target_ms: u64,
    /// The last pod is kept at least so long without work, ms.
    pub keep_warm_min_ms: u64,
    /// And at most so long, ms.
    pub keep_warm_max_ms: u64,
    /// The answer is the largest of so long a time, ms.
    pub window_ms: u64,
}

impl Default for PolicyConfig {
    fn default() -> Self {
        Self {
            policy: PolicyKind::Imageflow,
            min: 0,
            max: 20,
            pinned: None,
            target: 2,
            drain_target_ms: 10_000,
            keep_warm_min_ms: 1_000,
            keep_warm_max_ms: 600_000,
            window_ms: 30_000,
        }
    }
}

/// What a law asks for, before bounds and patience.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Wanted {
    /// Pods.
    pub pods: u32,
    /// Slots, unrounded.
    pub slots: f64,
    /// Why.
    pub reasons: Vec<Reason>,
}
