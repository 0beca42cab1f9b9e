//! The scaling decision: learn, ask the law, be patient on the way down, keep within bounds.
use serde::{Deserialize, Serialize};

use crate::memory::Memory;
use crate::policy::PolicyConfig;
use crate::policy::imageflow::service_time;
use crate::reason::Reason;

/// What is seen of a function at one moment.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Observation {
    /// The moment, ms since 1970. Must not go back; a moment seen before teaches nothing.
    pub now_ms: i64,
    /// Pods that take work.
    pub ready: u32,
    /// Pods on their way.
    pub starting: u32,
    /// Callers that wait for a slot. Each wants one now; what may wait belongs to `backlog`, or it would be counted twice.
    pub held: u32,
    /// Requests with a pod.
    pub in_flight: u32,
    /// Records that no pod has yet; `None` when it is not known, which is never taken for 0.
    pub backlog: Option<u64>,
    /// Age of the oldest of them, ms.
    pub oldest_ms: Option<u64>,
    /// Completions since the last observation.
    pub completed: u64,
    /// Sum of their service times, ms.
    pub service_ms_sum: u64,
    /// How many pods the machine carries, when it tells.
    pub capacity_pods: Option<u32>,
}

impl Observation {
    /// All pieces of work, when the backlog is known.
    #[must_use]
    pub fn items(&self) -> Option<u64> {
        self.backlog.map(|_| self.known_items())
    }

    /// All pieces of work that are known of.
    #[must_use]
    pub fn known_items(&self) -> u64 {
        u64::from(self.held)
            .saturating_add(u64::from(self.in_flight))
            .saturating_add(self.backlog.unwrap_or(0))
    }

    /// Whether there is any work that is known of.
    #[must_use]
    pub fn has_work(&self) -> bool {
        self.known_items() > 0
    }
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Decision {
    /// Pods wanted.
    pub desired: u32,
    /// False when data is missing and `desired` is what was wanted before.
    pub valid: bool,
    /// Why, in the order of the argument.
    pub reasons: Vec<Reason>,
    /// The numbers behind it.
    pub figures: Figures,
}

/// What the decision was computed with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Figures {
    /// Service time used, ms.
    pub service_ms: f64,
    /// Arrivals per second, smoothed.
    pub arrivals_per_second: f64,
    /// Slots that the work asks for.
    pub slots: f64,
    /// Pods that the law asked for at this moment.
    pub wanted_now: u32,
    /// How long the last pod is kept without work, ms.
    pub keep_warm_ms: u64,
    /// How long there has been no work, ms.
    pub idle_ms: u64,
}

/// Decides how many pods a function should have. Gives back the memory to be kept for the next decision.
#[must_use]
pub fn decide(config: &PolicyConfig, memory: &Memory, seen: &Observation) -> (Memory, Decision) {
    let mut memory = memory.clone();
    memory.learn(config, seen);
    let wanted = config.wanted(&memory, seen);
    let warm = memory.pauses.keep_warm(config);
    let idle_ms = if seen.has_work() {
        0
    } else {
        memory.idle_for(seen.now_ms)
    };
    let figures = Figures {
        service_ms: service_time(&memory, seen, &mut Vec::new()),
        arrivals_per_second: memory.rate.max(0.0),
        slots: wanted.slots,
        wanted_now: wanted.pods,
        keep_warm_ms: warm.keep_ms,
        idle_ms,
    };
    if let Some(replicas) = config.pinned {
        memory.desired = Some(replicas);
        let reasons = vec![Reason::Pinned { replicas }];
        return (
            memory,
            Decision {
                desired: replicas,
                valid: true,
                reasons,
                figures,
            },
        );
    }

    let mut reasons = wanted.reasons;
    let mut desired = memory.most_within(config.window_ms, seen.now_ms, wanted.pods);
    if seen.has_work() {
        if desired > wanted.pods {
            reasons.push(Reason::Patience {
                wanted: wanted.pods,
                pods: desired,
                window_ms: config.window_ms,
            });
        }
    } else if seen.backlog.is_none() {
        // Not known to be idle: what is there is kept, below.
    } else if idle_ms >= warm.keep_ms && memory.idle_ms.is_some() {
        // The pause outlasts what is worth waiting for: patience with noise has no say any more.
        desired = 0;
        reasons.push(Reason::Idle {
            idle_ms,
            keep_ms: warm.keep_ms,
        });
    } else if seen.ready > 0 || seen.starting > 0 || memory.desired.is_some_and(|d| d > 0) {
        desired = desired.max(1);
        reasons.push(Reason::KeptWarm {
            idle_ms,
            keep_ms: warm.keep_ms,
            usual_pause_ms: warm.usual_pause_ms,
        });
    }
    let max = config.max.max(config.min);
    if desired > max {
        reasons.push(Reason::Max { wanted: desired, max });
        desired = max;
    }
    if desired < config.min {
        reasons.push(Reason::Min { min: config.min });
        desired = config.min;
    }
    let mut valid = true;
    if seen.backlog.is_none() {
        let there = memory
            .desired
            .unwrap_or_else(|| seen.ready.saturating_add(seen.starting));
        let kept = there.clamp(config.min, max);
        if desired <= kept {
            (desired, valid) = (kept, false);
            reasons.push(Reason::BacklogUnknown { kept });
        }
    }
    memory.desired = Some(desired);
    (
        memory,
        Decision {
            desired,
            valid,
            reasons,
            figures,
        },
    )
}

#[cfg(test)]
mod laws;
#[cfg(test)]
mod tests;
