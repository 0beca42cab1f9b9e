//! The scaling decision: learn, ask the law, be patient on the way down, keep within bounds.
use serde::{Deserialize, Serialize};

use crate::memory::{Memory, Peer};
use crate::policy::imageflow::{self, service_time};
use crate::policy::kpa::{self, KpaConfig};
use crate::policy::lag::{self, LagConfig, Partition};
use crate::policy::{PolicyConfig, PolicyKind, Wanted};
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
    /// Records that wait for a slot: part of `backlog`, and no stuck ones, since all they need is a pod.
    #[serde(skip_serializing_if = "is_zero")]
    pub held_batch: u32,
    /// Requests with a pod.
    pub in_flight: u32,
    /// Records that no pod has yet; `None` when it is not known, which is never taken for 0.
    pub backlog: Option<u64>,
    /// More than `backlog` may wait: it is of some that know their part, while others do not tell theirs.
    #[serde(skip_serializing_if = "is_false")]
    pub partial: bool,
    /// Age of the oldest of them, ms.
    pub oldest_ms: Option<u64>,
    /// Completions since the last observation.
    pub completed: u64,
    /// Sum of their service times, ms.
    pub service_ms_sum: u64,
    /// How many of the completions a caller waited for; the others are records of the work topic.
    pub calls: u64,
    /// Pods that became ready since the last observation.
    pub started: u64,
    /// Sum of their times from being asked for to being ready, ms.
    pub start_ms_sum: u64,
    /// How much of that until they had nodes, ms.
    pub scheduling_ms_sum: u64,
    /// Steps of flows under way whose results this function will work on: its next work.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub expected: u32,
    /// The partitions of the work topic, where they are told; only the `lag` law looks at them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub partitions: Vec<Partition>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde wants it so")]
const fn is_zero(number: &u32) -> bool {
    *number == 0
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde wants it so")]
const fn is_false(flag: &bool) -> bool {
    !*flag
}

impl Observation {
    /// The backlog, when all of it is known.
    #[must_use]
    pub fn whole_backlog(&self) -> Option<u64> {
        self.backlog.filter(|_| !self.partial)
    }

    /// All pieces of work, when the backlog is known.
    #[must_use]
    pub fn items(&self) -> Option<u64> {
        self.whole_backlog().map(|_| self.known_items())
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
    /// When it should be decided again although no work comes until then, ms since 1970: a pod is to be there before its work.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub look_again_ms: Option<i64>,
}

impl Decision {
    /// What it gets of the GPU cards, of so many pods that it asked cards for.
    pub fn grant(&mut self, granted: u32, wanted: u32, cards: u32) {
        self.desired = granted;
        if granted < wanted {
            self.reasons.push(Reason::Cards { wanted, granted, cards });
        }
    }
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
    /// How long a cold start takes, ms.
    pub start_ms: f64,
    /// How much of that until there is a node, ms.
    #[serde(default)]
    pub scheduling_ms: f64,
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
    if config.policy == PolicyKind::Imageflow {
        // Another law's past says nothing to this one, nor the other way round.
        memory.peer = None;
    }
    if let Some(replicas) = config.pinned {
        memory.desired = Some(replicas);
        let decision = Decision {
            desired: replicas,
            valid: true,
            reasons: vec![Reason::Pinned { replicas }],
            figures: figures(config, &memory, seen, &Wanted::default()),
            look_again_ms: None,
        };
        return (memory, decision);
    }
    let asked = match &config.policy {
        PolicyKind::Imageflow => own(config, &mut memory, seen),
        // What was measured before stays as it is until something is known again.
        _ if seen.whole_backlog().is_none() && !seen.has_work() => Asked {
            desired: 0,
            wanted: Wanted::default(),
            reasons: Vec::new(),
            look_again_ms: None,
        },
        PolicyKind::Kpa(settings) => as_knative(config, settings, &mut memory, seen),
        PolicyKind::Lag(settings) => as_keda(config, settings, &mut memory, seen),
    };
    let figures = figures(config, &memory, seen, &asked.wanted);
    let Asked {
        desired,
        mut reasons,
        look_again_ms,
        ..
    } = asked;
    let (mut desired, mut valid) = (bounded(config, desired, &mut reasons), true);
    if seen.whole_backlog().is_none() {
        let max = config.max.max(config.min);
        let there = memory
            .desired
            .unwrap_or_else(|| seen.ready.saturating_add(seen.starting));
        let kept = there.clamp(config.min, max);
        if desired <= kept {
            (desired, valid) = (kept, false);
            // Of thousands at zero that is no news.
            if kept > 0 {
                reasons.push(Reason::BacklogUnknown { kept });
            }
        }
    }
    memory.desired = Some(desired);
    let decision = Decision {
        desired,
        valid,
        reasons,
        figures,
        look_again_ms,
    };
    (memory, decision)
}

fn idle_ms(memory: &Memory, seen: &Observation) -> u64 {
    if seen.has_work() {
        0
    } else {
        memory.idle_for(seen.now_ms)
    }
}

fn figures(config: &PolicyConfig, memory: &Memory, seen: &Observation, wanted: &Wanted) -> Figures {
    Figures {
        service_ms: service_time(memory, seen, &mut Vec::new()),
        arrivals_per_second: memory.load.rate(),
        slots: wanted.slots,
        wanted_now: wanted.pods,
        start_ms: memory.load.start_estimate_ms(),
        scheduling_ms: memory.load.scheduling_ms,
        keep_warm_ms: memory.plan(config).keep_ms,
        idle_ms: idle_ms(memory, seen),
    }
}

/// What is decided before the bounds.
struct Asked {
    desired: u32,
    /// What the law asked for at this moment.
    wanted: Wanted,
    reasons: Vec<Reason>,
    look_again_ms: Option<i64>,
}

/// Our law, patience on the way down, and pods for work that is not there yet.
fn own(config: &PolicyConfig, memory: &mut Memory, seen: &Observation) -> Asked {
    let mut wanted = imageflow::wanted(config, memory, seen);
    memory.peak = memory.peak.max(wanted.pods);
    let mut reasons = std::mem::take(&mut wanted.reasons);
    // First what asks for pods, then how well it is known.
    reasons.sort_by_key(Reason::is_doubt);
    let window_ms = memory.patience_ms(config);
    let mut desired = memory.most_within(window_ms, seen.now_ms, wanted.pods);
    let mut look_again_ms = None;
    if seen.has_work() {
        if desired > wanted.pods {
            reasons.push(Reason::Patience {
                wanted: wanted.pods,
                pods: desired,
                window_ms,
            });
        }
    } else if seen.expected > 0 {
        reasons.push(Reason::Announced { steps: seen.expected });
        desired = desired.max(1);
    } else if seen.whole_backlog().is_some() {
        (desired, look_again_ms) = without_work(config, memory, seen, desired, &mut reasons);
    }
    Asked {
        desired,
        wanted,
        reasons,
        look_again_ms,
    }
}

/// Without work: the last pod is kept for a while, and one comes back for work that is expected.
fn without_work(
    config: &PolicyConfig,
    memory: &Memory,
    seen: &Observation,
    patient: u32,
    reasons: &mut Vec<Reason>,
) -> (u32, Option<i64>) {
    let plan = memory.plan(config);
    let idle_ms = idle_ms(memory, seen);
    let there = seen.ready > 0 || seen.starting > 0 || memory.desired.is_some_and(|d| d > 0);
    if idle_ms < plan.keep_ms || memory.idle_ms.is_none() {
        if !there {
            return (patient, None);
        }
        reasons.push(Reason::KeptWarm {
            idle_ms,
            keep_ms: plan.keep_ms,
            pauses: plan.pauses,
        });
        return (patient.max(1), None);
    }
    // The pause outlasts what is worth waiting for: patience with noise has no say any more.
    let at = |after_ms: u64| memory.idle_ms.map(|since| since.saturating_add_unsigned(after_ms));
    match plan.back_ms {
        Some((from, until)) if (from..until).contains(&idle_ms) => {
            let pods = imageflow::rounded(memory.peaks).max(1);
            reasons.push(Reason::Expected {
                idle_ms,
                until_ms: until,
                pauses: plan.pauses,
            });
            (pods, at(until))
        }
        back => {
            reasons.push(Reason::Idle {
                idle_ms,
                keep_ms: plan.keep_ms,
            });
            (
                0,
                back.filter(|(from, _)| idle_ms < *from).and_then(|(from, _)| at(from)),
            )
        }
    }
}

fn as_knative(config: &PolicyConfig, settings: &KpaConfig, memory: &mut Memory, seen: &Observation) -> Asked {
    let mut state = match memory.peer.take() {
        Some(Peer::Kpa(state)) => state,
        _ => Box::default(),
    };
    let outcome = kpa::look(settings, (config.min, config.max), &mut state, seen);
    memory.peer = Some(Peer::Kpa(state));
    let reason = Reason::Kpa {
        stable: outcome.stable,
        panic: outcome.panic,
        target: outcome.target,
        panicking: outcome.panicking,
    };
    let mut reasons = vec![reason];
    if outcome.holding {
        reasons.push(Reason::KpaHolds);
    }
    if outcome.begins {
        reasons.push(Reason::KpaBegins {
            pods: settings.initial_scale,
        });
    }
    let wanted = Wanted {
        pods: outcome.asked,
        slots: outcome.stable,
        ..Wanted::default()
    };
    Asked {
        desired: outcome.pods,
        wanted,
        reasons,
        look_again_ms: None,
    }
}

fn as_keda(config: &PolicyConfig, settings: &LagConfig, memory: &mut Memory, seen: &Observation) -> Asked {
    let mut state = match memory.peer.take() {
        Some(Peer::Lag(state)) => state,
        _ => Box::default(),
    };
    let outcome = lag::look(settings, (config.min, config.max), &mut state, seen);
    memory.peer = Some(Peer::Lag(state));
    let mut reasons = vec![Reason::Lag {
        lag: outcome.lag,
        threshold: settings.lag_threshold,
    }];
    if outcome.cooling {
        reasons.push(Reason::LagCooling {
            cooldown_s: settings.cooldown_period_s,
        });
    }
    let wanted = Wanted {
        pods: outcome.pods,
        slots: outcome.lag as f64,
        ..Wanted::default()
    };
    Asked {
        desired: outcome.pods,
        wanted,
        reasons,
        look_again_ms: None,
    }
}

fn bounded(config: &PolicyConfig, desired: u32, reasons: &mut Vec<Reason>) -> u32 {
    let max = config.max.max(config.min);
    if desired > max {
        reasons.push(Reason::Max { wanted: desired, max });
        return max;
    }
    if desired < config.min {
        reasons.push(Reason::Min { min: config.min });
        return config.min;
    }
    desired
}

#[cfg(test)]
mod laws;
#[cfg(test)]
mod tests;
