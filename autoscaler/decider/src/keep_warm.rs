//! How long the last pod is kept without work, and when one comes back before its work does: the plan whose expected cost is least,
//! by the pauses so far. After the hybrid-histogram policy of Shahrad et al., *Serverless in the Wild*, USENIX ATC 2020, with the
//! pauses themselves instead of a histogram, since 32 of them are enough to choose from and exact to the millisecond.
use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::policy::PolicyConfig;

/// So many pauses are remembered.
const KEPT: usize = 32;
/// From so many on they are relied upon.
const ENOUGH: usize = 5;
/// Shorter pauses are only the time between two looks, ms.
const SHORTEST_MS: u64 = 1_000;
/// Longer pauses than this are alike, ms: a day.
const LONGEST_MS: u64 = 86_400_000;
/// Looks are a second apart, so a moment is met at best within this, ms.
const LOOK_MS: u64 = 1_000;
/// Longest that a pod which came back waits for its work, ms: longer is guessing.
const LONGEST_WAIT_MS: u64 = 120_000;

/// What is to be done without work, each time since it began, ms.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Plan {
    /// The last pod is kept until then.
    pub keep_ms: u64,
    /// A pod comes back from then until then, for work that is expected.
    pub back_ms: Option<(u64, u64)>,
    /// How many pauses speak for it; 0 while too few are known.
    pub pauses: usize,
}

/// What a cold start costs, in pod-milliseconds: of the pod itself, and of those who wait for it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cost {
    /// From being asked for to being ready.
    pub start_ms: f64,
    /// What the waiting costs.
    pub waiting_ms: f64,
}

/// The last pauses, ms, oldest first, and the plan for the next.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Pauses {
    last_ms: VecDeque<u64>,
    plan: Option<Plan>,
}

impl Pauses {
    /// Adds a pause, ms. The plan for the next is made with it.
    pub fn add(&mut self, pause_ms: u64, cost: Cost, config: &PolicyConfig) {
        if pause_ms < SHORTEST_MS {
            return;
        }
        if self.last_ms.len() >= KEPT {
            self.last_ms.pop_front();
        }
        self.last_ms.push_back(pause_ms.min(LONGEST_MS));
        self.plan = (self.last_ms.len() >= ENOUGH).then(|| self.cheapest(cost, config));
    }

    /// What to do in this pause, within the owner's bounds.
    #[must_use]
    pub fn plan(&self, cost: Cost, config: &PolicyConfig) -> Plan {
        let (least, most) = bounds(config);
        // Nothing is known: as long as a cold start costs, which is never more than twice the best (the rent or buy problem).
        let plan = self.plan.unwrap_or(Plan {
            keep_ms: (cost.start_ms + cost.waiting_ms).max(0.0) as u64,
            ..Plan::default()
        });
        Plan {
            keep_ms: plan.keep_ms.clamp(least, most),
            // A single value fixes the time: then nothing is learned.
            back_ms: plan.back_ms.filter(|_| least < most),
            ..plan
        }
    }

    /// Tries every time to keep that a pause suggests, and every time to come back that two of them do.
    fn cheapest(&self, cost: Cost, config: &PolicyConfig) -> Plan {
        let (least, most) = bounds(config);
        let mut pauses: Vec<u64> = self.last_ms.iter().copied().collect();
        pauses.sort_unstable();
        // A little longer than the pause, or the pod would go in the very moment in which the work comes.
        let outlasts = |pause: u64| pause.saturating_add(pause / 20).saturating_add(LOOK_MS);
        let keeps = std::iter::once(least).chain(
            pauses
                .iter()
                .map(|p| outlasts(*p))
                .filter(|k| (least..=most).contains(k)),
        );
        let mut best = (f64::INFINITY, Plan::default());
        for keep_ms in keeps {
            let plan = Plan {
                keep_ms,
                back_ms: None,
                pauses: pauses.len(),
            };
            best = cheaper(best, (expected(&plan, &pauses, cost), plan));
            for (i, first) in pauses.iter().enumerate() {
                let lead = cost.start_ms.max(0.0) as u64 + LOOK_MS + first / 500;
                let from = first.saturating_sub(lead);
                if from <= keep_ms {
                    continue;
                }
                for last in &pauses[i..] {
                    let until = outlasts(*last);
                    if until - from > LONGEST_WAIT_MS {
                        break;
                    }
                    let plan = Plan {
                        back_ms: Some((from, until)),
                        ..plan
                    };
                    best = cheaper(best, (expected(&plan, &pauses, cost), plan));
                }
            }
        }
        best.1
    }
}

fn bounds(config: &PolicyConfig) -> (u64, u64) {
    let most = config.keep_warm_max_ms;
    (config.keep_warm_min_ms.min(most), most)
}

fn cheaper(a: (f64, Plan), b: (f64, Plan)) -> (f64, Plan) {
    if b.0 < a.0 { b } else { a }
}

/// What a plan costs in all, in pod-milliseconds, if the pauses come again and one more that is longer than all.
fn expected(plan: &Plan, pauses: &[u64], cost: Cost) -> f64 {
    let cold = cost.start_ms + cost.waiting_ms;
    let one = |pause: u64| {
        if pause <= plan.keep_ms {
            return pause as f64;
        }
        let kept = plan.keep_ms as f64;
        match plan.back_ms {
            Some((from, until)) if pause > until => kept + cost.start_ms + (until - from) as f64 + cold,
            Some((from, _)) if pause > from => kept + cost.start_ms + (pause - from) as f64,
            _ => kept + cold,
        }
    };
    pauses.iter().map(|p| one(*p)).sum::<f64>() + one(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WAITED_FOR: Cost = Cost {
        start_ms: 600.0,
        waiting_ms: 6_000.0,
    };

    fn learned(pauses: &[u64], cost: Cost) -> Plan {
        let config = PolicyConfig {
            keep_warm_min_ms: 1_000,
            ..PolicyConfig::default()
        };
        let mut memory = Pauses::default();
        pauses.iter().for_each(|p| memory.add(*p, cost, &config));
        memory.plan(cost, &config)
    }

    #[test]
    fn a_pod_outlasts_pauses_that_cost_less_than_a_cold_start() {
        assert_eq!(learned(&[3_000; 4], WAITED_FOR).keep_ms, 6_600, "too few to rely on");
        assert_eq!(learned(&[3_000; 20], WAITED_FOR).keep_ms, 4_150);
        let far = learned(&[3_600_000; 20], WAITED_FOR);
        assert_eq!(far.keep_ms, 1_000, "an hour is far more than a cold start costs");
        let nobody = Cost {
            waiting_ms: 0.0,
            ..WAITED_FOR
        };
        assert_eq!(
            learned(&[3_000; 20], nobody).keep_ms,
            1_000,
            "nobody waits: a start is cheaper"
        );
        let dear = Cost {
            start_ms: 60_000.0,
            waiting_ms: 120_000.0,
        };
        assert_eq!(learned(&[50_000; 20], dear).keep_ms, 53_500);
    }

    #[test]
    fn work_that_comes_by_the_clock_finds_a_pod_that_came_back_just_before() {
        let pauses: Vec<u64> = (0..20).map(|i| 300_000 + i * 20).collect();
        let dear = Cost {
            start_ms: 600.0,
            waiting_ms: 20_000.0,
        };
        let plan = learned(&pauses, dear);
        assert_eq!(plan.keep_ms, 1_000);
        let (from, until) = plan.back_ms.expect("it comes back");
        assert!(
            (290_000..299_500).contains(&from) && until > 300_400,
            "{from} to {until}"
        );
        // Without a rhythm there is nothing to come back for.
        let chance: Vec<u64> = (1..20).map(|i| i * 97_000).collect();
        assert_eq!(learned(&chance, WAITED_FOR).back_ms, None);
    }

    #[test]
    fn a_single_value_fixes_the_time_and_old_pauses_are_forgotten() {
        let config = PolicyConfig {
            keep_warm_min_ms: 42_000,
            keep_warm_max_ms: 42_000,
            ..PolicyConfig::default()
        };
        let mut memory = Pauses::default();
        (0..20).for_each(|_| memory.add(300_000, WAITED_FOR, &config));
        let plan = memory.plan(WAITED_FOR, &config);
        assert_eq!((plan.keep_ms, plan.back_ms), (42_000, None));
        let mut pauses = vec![3_000; 40];
        pauses.extend([3_600_000; 32]);
        assert_eq!(learned(&pauses, WAITED_FOR).keep_ms, 1_000);
    }
}
