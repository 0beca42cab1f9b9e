//! What a run came to.
use serde::Serialize;

use crate::workload::{Kind, LATER, Ms, Workload};

/// Two changes in opposite directions within this time are a reversal.
pub const REVERSAL_MS: Ms = 60_000;

/// What is counted while a world goes on.
#[derive(Debug, Clone)]
pub struct Counted {
    /// When each request came, by its number; `None` for a step of a flow that was never reached.
    pub came: Vec<Option<Ms>>,
    /// End of each request, by its number; `None` when it did not end well in time.
    pub ended: Vec<Option<Ms>>,
    /// Time of pods on nodes, ms.
    pub pod_ms: u64,
    /// The same times their cards, ms.
    pub gpu_ms: u64,
    /// Pods that were started.
    pub starts: u64,
    /// Changes of the number that was asked for.
    pub changes: u64,
    /// Changes soon after one in the other direction.
    pub reversals: u64,
}

/// The figures of one run.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Figures {
    /// From arrival to answer, ms.
    pub p50_ms: u64,
    /// The same.
    pub p95_ms: u64,
    /// The same.
    pub p99_ms: u64,
    /// Requests that waited for longer than they may, or have no answer.
    pub misses: u64,
    /// Time of pods, s.
    pub pod_seconds: f64,
    /// Time of cards, s.
    pub gpu_seconds: f64,
    /// Pods that were started.
    pub starts: u64,
    /// Changes of the number of pods asked for.
    pub changes: u64,
    /// Those soon after one in the other direction.
    pub reversals: u64,
    /// What waiting costs, in pod-seconds: of callers each second, of records those over their time.
    pub waiting: f64,
}

impl Counted {
    /// Nothing was counted yet.
    #[must_use]
    pub fn new(load: &Workload) -> Self {
        Self {
            came: load.requests.iter().map(|r| (r.at != LATER).then_some(r.at)).collect(),
            ended: vec![None; load.requests.len()],
            pod_ms: 0,
            gpu_ms: 0,
            starts: 0,
            changes: 0,
            reversals: 0,
        }
    }
}

impl Figures {
    /// Pods and waiting together, in pod-seconds.
    #[must_use]
    pub fn cost(&self) -> f64 {
        self.pod_seconds + self.waiting
    }

    /// The figures of what was counted.
    #[must_use]
    pub fn of(load: &Workload, counted: &Counted) -> Self {
        let (mut latencies, mut misses, mut waiting) = (Vec::with_capacity(load.requests.len()), 0, 0.0);
        let all = load.requests.iter().zip(&counted.came).zip(&counted.ended);
        for ((request, came), ended) in all {
            if request.fails == u32::MAX {
                // It can only become a dead letter.
                continue;
            }
            let Some(came) = *came else {
                misses += 1;
                continue;
            };
            let function = &load.functions[request.function as usize];
            let latency = ended.unwrap_or(load.duration).saturating_sub(came);
            latencies.push(latency);
            let waited = latency.saturating_sub(request.service);
            if ended.is_none() || waited > function.patience {
                misses += 1;
            }
            let counts = match function.kind {
                Kind::Interactive => waited,
                Kind::Batch => waited.saturating_sub(function.patience),
            };
            waiting += counts as f64 / 1_000.0;
        }
        latencies.sort_unstable();
        let quantile = |q: f64| {
            let rank = (latencies.len() as f64 * q).ceil() as usize;
            latencies.get(rank.saturating_sub(1)).copied().unwrap_or(0)
        };
        Self {
            p50_ms: quantile(0.5),
            p95_ms: quantile(0.95),
            p99_ms: quantile(0.99),
            misses,
            pod_seconds: counted.pod_ms as f64 / 1_000.0,
            gpu_seconds: counted.gpu_ms as f64 / 1_000.0,
            starts: counted.starts,
            changes: counted.changes,
            reversals: counted.reversals,
            waiting,
        }
    }
}
