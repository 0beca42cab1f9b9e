//! A decision in one sentence, and what would change it.
use serde::{Deserialize, Serialize};

use crate::decide::{Decision, Observation};
use crate::policy::PolicyConfig;
use crate::policy::imageflow::TOLERANCE;
use crate::reason::{Ms, Reason};

/// A decision for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// What was decided, which term won, and what held it: `3 -> 7: backlog 420 at 12.0/s per pod would take 11.7 s with 3
    /// against a target of 10.0 s; 9 asked for, its share of the 7 GPU cards is 7`.
    pub sentence: String,
    /// From when on it would be another number, where that can be said.
    pub change: Option<String>,
}

/// Explains a decision; `from` is the number before.
#[must_use]
pub fn explain(config: &PolicyConfig, from: u32, seen: &Observation, decision: &Decision) -> Explanation {
    let to = decision.desired;
    let winner = winner(&decision.reasons);
    let limit = decision.reasons.iter().rev().find(|r| r.is_limit());
    let mut sentence = match from == to {
        true => format!("stays at {to}: "),
        false => format!("{from} -> {to}: "),
    };
    match winner {
        Some(Reason::Backlog {
            backlog,
            service_ms,
            target_ms,
            ..
        }) => sentence.push_str(&backlog_sentence(config, seen, *backlog, *service_ms, *target_ms)),
        Some(reason) => sentence.push_str(&reason.to_string()),
        None => sentence.push_str("no work"),
    }
    if let Some(limit) = limit.filter(|limit| Some(*limit) != winner) {
        sentence.push_str("; ");
        sentence.push_str(&limit.to_string());
    }
    Explanation {
        sentence,
        change: change(config, decision, winner, limit),
    }
}

/// The term that asks for most, else the first reason there is.
fn winner(reasons: &[Reason]) -> Option<&Reason> {
    let slots = |reason: &Reason| match reason {
        Reason::AtWork { slots, .. } | Reason::Backlog { slots, .. } => Some(*slots),
        Reason::Arrivals { slots, spare, .. } => Some(slots + spare),
        _ => None,
    };
    let terms = reasons.iter().filter_map(|r| Some((slots(r)?, r)));
    let most = terms.max_by(|a, b| a.0.total_cmp(&b.0));
    most.map(|(_, reason)| reason).or_else(|| reasons.first())
}

fn backlog_sentence(
    config: &PolicyConfig,
    seen: &Observation,
    backlog: u64,
    service_ms: f64,
    target_ms: u64,
) -> String {
    let per_pod = f64::from(config.target.max(1)) * 1_000.0 / service_ms.max(0.001);
    let (there, target) = (seen.ready.saturating_add(seen.starting), Ms(target_ms as f64));
    if there == 0 {
        return format!("backlog {backlog} at {per_pod:.1}/s per pod, to be done in {target}");
    }
    let takes = Ms(backlog as f64 / (per_pod * f64::from(there)) * 1_000.0);
    format!("backlog {backlog} at {per_pod:.1}/s per pod would take {takes} with {there} against a target of {target}")
}

fn change(
    config: &PolicyConfig,
    decision: &Decision,
    winner: Option<&Reason>,
    limit: Option<&Reason>,
) -> Option<String> {
    let next = decision.desired.saturating_add(1);
    let by_limit = limit.and_then(|limit| match limit {
        Reason::Max { .. } => Some("more with a higher spec.scale.max".to_owned()),
        Reason::Min { .. } => Some("fewer with a lower spec.scale.min".to_owned()),
        Reason::Cards { .. } | Reason::HandedOver { .. } => {
            Some("more when other functions give cards up, or with a higher priority or weight".to_owned())
        }
        Reason::Growth { .. } => Some("more at the next look, if as much is there".to_owned()),
        Reason::Patience { wanted, window_ms, .. } => Some(format!(
            "{wanted} when no more were needed for {}",
            Ms(*window_ms as f64)
        )),
        Reason::BacklogUnknown { .. } => Some("fewer when the backlog is known again".to_owned()),
        Reason::OneEach { .. } => Some("more with more pieces of work".to_owned()),
        _ => None,
    });
    by_limit.or_else(|| match winner? {
        Reason::Pinned { .. } => {
            Some("another number when spec.scale.replicas is changed, its own when it is unset".to_owned())
        }
        Reason::KeptWarm { idle_ms, keep_ms, .. } => {
            let left = Ms(keep_ms.saturating_sub(*idle_ms) as f64);
            Some(format!("0 after another {left} without work"))
        }
        Reason::Idle { .. } => Some("1 with the first piece of work".to_owned()),
        Reason::Backlog { backlog, slots, .. } => {
            let each = slots / *backlog as f64;
            let rest = needed(decision) - slots;
            let more = (threshold(config, decision.desired) - rest) / each;
            // The quotient of two sums may be a hair under a whole number.
            Some(format!(
                "{next} from a backlog of {} on",
                (more + 1e-6).floor() as u64 + 1
            ))
        }
        Reason::Arrivals {
            service_ms,
            slots,
            spare,
            ..
        } => {
            let rest = needed(decision) - slots;
            let for_needed = threshold(config, decision.desired) - rest;
            // x + k * sqrt(x) = the number of slots that is rounded up.
            let k = spare / slots.max(f64::MIN_POSITIVE).sqrt();
            let rounded = ((f64::from(decision.desired) + 0.5) * f64::from(config.target.max(1)) - rest).max(0.0);
            let root = (k.mul_add(k, 4.0 * rounded).sqrt() - k) / 2.0;
            let rate = for_needed.min(root * root) / service_ms * 1_000.0;
            (rate > 0.0).then(|| format!("{next} from {rate:.1} arrivals each second on"))
        }
        _ => None,
    })
}

/// Slots that the work asks for, without what is to spare.
fn needed(decision: &Decision) -> f64 {
    let spare = decision.reasons.iter().find_map(|reason| match reason {
        Reason::Arrivals { spare, .. } => Some(*spare),
        _ => None,
    });
    decision.figures.slots - spare.unwrap_or(0.0)
}

/// So many slots are still served by so many pods.
fn threshold(config: &PolicyConfig, pods: u32) -> f64 {
    (f64::from(pods) + TOLERANCE) * f64::from(config.target.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decide::decide;
    use crate::memory::Memory;

    /// A memory that knows that a request takes 100 ms.
    fn knowing() -> Memory {
        let seen = Observation {
            now_ms: 1_000,
            backlog: Some(0),
            completed: 100,
            service_ms_sum: 10_000,
            ..Observation::default()
        };
        decide(&PolicyConfig::default(), &Memory::default(), &seen).0
    }

    fn look(config: &PolicyConfig, backlog: u64, ready: u32) -> (Decision, Explanation) {
        let seen = Observation {
            now_ms: 121_000,
            ready,
            backlog: Some(backlog),
            ..Observation::default()
        };
        let decision = decide(config, &knowing(), &seen).1;
        let told = explain(config, ready, &seen, &decision);
        (decision, told)
    }

    #[test]
    fn a_backlog_is_explained_and_what_is_said_to_change_it_changes_it() {
        let config = PolicyConfig::default();
        let (decision, told) = look(&config, 1_000, 2);
        assert_eq!(decision.desired, 5);
        assert_eq!(
            told.sentence,
            "2 -> 5: backlog 1000 at 20.0/s per pod would take 25.0 s with 2 against a target of 10.0 s"
        );
        assert_eq!(told.change.as_deref(), Some("6 from a backlog of 1021 on"));
        assert_eq!(look(&config, 1_020, 2).0.desired, 5);
        assert_eq!(look(&config, 1_021, 2).0.desired, 6);
    }

    #[test]
    fn what_holds_the_number_is_in_the_sentence() {
        let config = PolicyConfig {
            max: 3,
            ..PolicyConfig::default()
        };
        let told = look(&config, 1_000, 0).1;
        assert_eq!(
            told.sentence,
            "0 -> 3: backlog 1000 at 20.0/s per pod, to be done in 10.0 s; 5 asked for, never more than 3"
        );
        assert_eq!(told.change.as_deref(), Some("more with a higher spec.scale.max"));
    }

    #[test]
    fn what_arrives_says_from_which_rate_on_there_are_more() {
        let (config, mut memory) = (PolicyConfig::default(), knowing());
        let mut last = None;
        for second in 0..120 {
            // 50 callers a second of 100 ms each.
            let seen = Observation {
                now_ms: 121_000 + second * 1_000,
                ready: 5,
                in_flight: 5,
                backlog: Some(0),
                completed: 50,
                calls: 50,
                service_ms_sum: 5_000,
                ..Observation::default()
            };
            let (next, decision) = decide(&config, &memory, &seen);
            memory = next;
            last = Some((explain(&config, 5, &seen, &decision), decision));
        }
        let (told, decision) = last.unwrap();
        assert!(
            told.sentence.contains("50.0 arrive each second x 100 ms each"),
            "{told:?}"
        );
        let said = told.change.unwrap();
        let rate: f64 = said.split(' ').nth(2).unwrap().parse().unwrap();
        let pods = |rate: f64| {
            let slots = rate / 10.0;
            let spare = 1.5 * slots.sqrt();
            ((slots / 2.0 - 0.1).ceil()).max(((slots + spare) / 2.0).round()) as u32
        };
        assert!(said.starts_with(&format!("{} from", decision.desired + 1)), "{said}");
        assert_eq!(
            (pods(rate - 0.2), pods(rate + 0.2)),
            (decision.desired, decision.desired + 1),
            "{said}"
        );
    }

    #[test]
    fn without_work_it_is_said_until_when_the_pod_stays() {
        let config = PolicyConfig::default();
        let (memory, mut now_ms) = (knowing(), 121_000);
        let seen = |now_ms| Observation {
            now_ms,
            ready: 1,
            backlog: Some(0),
            ..Observation::default()
        };
        let (memory, _) = decide(&config, &memory, &seen(now_ms));
        now_ms += 200;
        let decision = decide(&config, &memory, &seen(now_ms)).1;
        let told = explain(&config, 1, &seen(now_ms), &decision);
        assert!(told.change.is_some(), "{told:?} of {decision:?}");
    }
}
