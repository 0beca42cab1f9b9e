//! The wanted properties of `README.md`, over any history.
use proptest::prelude::*;

use super::*;
use crate::policy::kpa::{Aggregation, Metric};

/// Another law than ours, with what sets it apart.
fn others() -> impl Strategy<Value = PolicyKind> {
    let seconds = || prop_oneof![Just(0_u32), 1_u32..90];
    let kpa = (
        any::<bool>(),
        0_u32..10,
        prop_oneof![Just(-1.0), Just(0.0), 0.0_f64..300.0],
        seconds(),
        seconds(),
        (0_u32..4, 0_u32..3, 1_u32..4),
        any::<bool>(),
    );
    let kpa = kpa.prop_map(
        |(rps, limit, burst, delay, retention, (initial_scale, revision, activation), weighted)| {
            let base = KpaConfig::default();
            PolicyKind::Kpa(KpaConfig {
                metric: if rps { Metric::Rps } else { base.metric },
                container_concurrency: limit,
                target_burst_capacity: burst,
                scale_down_delay_s: delay,
                scale_to_zero_pod_retention_s: retention,
                initial_scale,
                revision,
                activation_scale: activation,
                aggregation: if weighted {
                    Aggregation::WeightedExponential
                } else {
                    base.aggregation
                },
                ..base
            })
        },
    );
    let lag = (1_u64..50, 0_u64..20, seconds(), seconds(), seconds()).prop_map(|(each, active, poll, cool, stable)| {
        PolicyKind::Lag(LagConfig {
            lag_threshold: each,
            activation_lag_threshold: active,
            polling_interval_s: poll,
            cooldown_period_s: cool,
            stabilization_window_s: stable,
            ..LagConfig::default()
        })
    });
    prop_oneof![kpa, lag]
}

/// Of all laws.
fn of_all() -> impl Strategy<Value = PolicyConfig> {
    let policy = prop_oneof![1 => Just(PolicyKind::Imageflow), 2 => others()];
    (configs(), policy).prop_map(|(config, policy)| PolicyConfig { policy, ..config })
}

/// Of our law.
fn configs() -> impl Strategy<Value = PolicyConfig> {
    (
        0_u32..4,
        1_u32..30,
        1_u32..8,
        100_u64..60_000,
        0_u64..20_000,
        0_u64..60_000,
        0_u64..60_000,
    )
        .prop_map(|(min, more, target, drain, warm, warmer, window)| PolicyConfig {
            min,
            max: min + more,
            target,
            drain_target_ms: drain,
            keep_warm_min_ms: warm,
            keep_warm_max_ms: warm + warmer,
            window_ms: window,
            ..PolicyConfig::default()
        })
}

/// An observation without a time of its own.
fn looks() -> impl Strategy<Value = Observation> {
    let few = || prop_oneof![Just(0_u32), 0_u32..40];
    let backlog = prop_oneof![1 => Just(None), 3 => Just(Some(0_u64)), 4 => (0_u64..5_000).prop_map(Some)];
    (
        few(),
        0_u32..5,
        few(),
        few(),
        backlog,
        any::<Option<u16>>(),
        0_u64..200,
        0_u64..100_000,
        prop_oneof![3 => Just(0_u32), 1 => 0_u32..20],
        few(),
        prop::bool::weighted(0.2),
    )
        .prop_map(
            |(ready, starting, held, in_flight, backlog, oldest, completed, sum, expected, bound, partial)| {
                Observation {
                    now_ms: 0,
                    ready,
                    starting,
                    held,
                    held_batch: backlog.map_or(0, |most| bound.min(u32::try_from(most).unwrap_or(u32::MAX))),
                    in_flight,
                    backlog,
                    partial: partial && backlog.is_some(),
                    oldest_ms: oldest.map(u64::from),
                    completed,
                    service_ms_sum: if completed == 0 { 0 } else { sum },
                    calls: 0,
                    started: 0,
                    start_ms_sum: 0,
                    scheduling_ms_sum: 0,
                    expected,
                    partitions: Vec::new(),
                }
            },
        )
}

fn histories() -> impl Strategy<Value = Vec<(i64, Observation)>> {
    prop::collection::vec(
        (prop_oneof![8 => 1_i64..3_000, 1 => 3_000_i64..200_000], looks()),
        0..20,
    )
}

/// The observations of a history, with their times.
fn observations(history: &[(i64, Observation)]) -> impl Iterator<Item = Observation> {
    let times = history.iter().scan(0, |now, (after, _)| {
        *now += after;
        Some(*now)
    });
    times
        .zip(history)
        .map(|(now_ms, (_, seen))| Observation { now_ms, ..seen.clone() })
}

fn decisions(config: &PolicyConfig, seen: impl Iterator<Item = Observation>) -> Vec<Decision> {
    let mut memory = Memory::default();
    seen.map(|seen| {
        let (next, decision) = decide(config, &memory, &seen);
        memory = next;
        decision
    })
    .collect()
}

fn remember(config: &PolicyConfig, history: &[(i64, Observation)]) -> (Memory, i64) {
    let (mut memory, mut now) = (Memory::default(), 1_000_000);
    for (later, look) in history {
        now += later;
        memory = decide(
            config,
            &memory,
            &Observation {
                now_ms: now,
                ..look.clone()
            },
        )
        .0;
    }
    (memory, now)
}

/// Looks on without any work, a second apart, until the pods are gone; gives back how long it took, ms.
fn idle_until_gone(config: &PolicyConfig, mut memory: Memory, from: i64, mut pods: u32) -> Option<i64> {
    for second in 1..=400 {
        let seen = Observation {
            now_ms: from + second * 1_000,
            ready: pods,
            backlog: Some(0),
            ..Observation::default()
        };
        let decision;
        (memory, decision) = decide(config, &memory, &seen);
        pods = decision.desired;
        if pods == 0 {
            return Some((second - 1) * 1_000);
        }
    }
    None
}

proptest! {
    #[test]
    fn the_answer_is_within_bounds_and_a_pinned_number_is_the_answer(
        config in of_all(), history in histories(), look in looks(), pinned in 0_u32..50,
    ) {
        let (memory, now) = remember(&config, &history);
        let seen = Observation { now_ms: now + 1_000, ..look };
        let (_, decision) = decide(&config, &memory, &seen);
        prop_assert!((config.min..=config.max).contains(&decision.desired));
        prop_assert!(!decision.reasons.is_empty() || decision.desired == 0);
        let config = PolicyConfig { pinned: Some(pinned), ..config };
        prop_assert_eq!(decide(&config, &memory, &seen).1.desired, pinned);
    }

    #[test]
    fn more_work_never_gives_fewer_pods(
        config in of_all(), history in histories(), look in looks(), kind in 0_u8..4, more in 1_u32..3_000,
    ) {
        let (memory, now) = remember(&config, &history);
        let less = Observation { now_ms: now + 1_000, ..look };
        let mut seen = less.clone();
        match kind {
            0 => seen.held += more,
            1 => seen.in_flight += more,
            2 => seen.backlog = seen.backlog.map(|b| b + u64::from(more)),
            _ => seen.oldest_ms = seen.oldest_ms.map(|o| o + u64::from(more)),
        }
        let (before, after) = (decide(&config, &memory, &less).1, decide(&config, &memory, &seen).1);
        prop_assert!(after.desired >= before.desired, "{before:?}\n{after:?}");
    }

    #[test]
    fn deciding_twice_on_the_same_observation_changes_nothing(
        config in of_all(), history in histories(), look in looks(),
    ) {
        let (memory, now) = remember(&config, &history);
        let seen = Observation { now_ms: now + 1_000, ..look };
        let (once, first) = decide(&config, &memory, &seen);
        let (twice, second) = decide(&config, &once, &seen);
        prop_assert_eq!(first.desired, second.desired);
        prop_assert_eq!(once, twice);
    }

    #[test]
    fn work_at_zero_pods_gives_one_at_once(config in of_all(), history in histories(), look in looks()) {
        let (memory, now) = remember(&config, &history);
        let seen = Observation { now_ms: now + 1, ready: 0, starting: 0, ..look };
        // KEDA finds records when it polls, and has a threshold for them; callers wait for nobody's poll.
        let wakes = match config.policy {
            PolicyKind::Lag(_) => seen.held > 0,
            _ => seen.has_work(),
        };
        prop_assert!(decide(&config, &memory, &seen).1.desired >= u32::from(wakes));
    }

    #[test]
    fn the_same_history_gives_the_same_decisions_whenever_it_happens(
        config in of_all(), history in histories(), shift in 0_i64..4_000_000_000_000,
    ) {
        // Knative counts in the ticks and the seconds of the clock.
        let shift = if matches!(config.policy, PolicyKind::Kpa(_)) { shift - shift % kpa::TICK_MS } else { shift };
        let recorded: Vec<String> = observations(&history).map(|seen| serde_json::to_string(&seen).unwrap()).collect();
        let replayed: Vec<Observation> = recorded.iter().map(|seen| serde_json::from_str(seen).unwrap()).collect();
        let shifted = observations(&history).map(|seen| Observation { now_ms: seen.now_ms + shift, ..seen });
        let before = decisions(&config, observations(&history));
        // Bit for bit, fractions included.
        prop_assert_eq!(&before, &decisions(&config, replayed.into_iter()));
        let after: Vec<Decision> = decisions(&config, shifted)
            .into_iter()
            .map(|d| Decision { look_again_ms: d.look_again_ms.map(|at| at - shift), ..d })
            .collect();
        prop_assert_eq!(before, after);
    }

    #[test]
    fn work_that_is_announced_has_a_pod_before_it_comes(
        config in configs(), history in histories(), look in looks(), steps in 1_u32..20,
    ) {
        let (memory, now) = remember(&config, &history);
        let seen = Observation { now_ms: now + 1_000, held: 0, in_flight: 0, backlog: Some(0), partial: false, expected: steps, ..look };
        let least = config.min.max(1).min(config.max);
        let (next, decision) = decide(&config, &Memory { recent: Default::default(), ..memory }, &seen);
        prop_assert_eq!(decision.desired, least, "{:?}", decision);
        // It is not idle meanwhile, so what keeps it warm counts from when nothing is announced any more.
        let seen = Observation { now_ms: seen.now_ms + 600_000, completed: 0, ..seen };
        prop_assert!(decide(&config, &next, &seen).1.desired >= least);
    }

    #[test]
    fn without_work_the_pods_go_within_the_bounds_of_keep_warm(
        config in configs(), history in histories(), look in looks(),
    ) {
        let config = PolicyConfig { min: 0, ..config };
        let (memory, now) = remember(&config, &history);
        let work = Observation { now_ms: now + 1_000, ready: 1, held: 1, ..look };
        let (memory, decision) = decide(&config, &memory, &work);
        prop_assert!(decision.desired >= 1);
        let gone = idle_until_gone(&config, memory, now + 1_000, decision.desired);
        // The looks are a second apart.
        let (least, most) = (config.keep_warm_min_ms, config.keep_warm_max_ms + 1_000);
        prop_assert!(gone.is_some_and(|ms| ms as u64 >= least && ms as u64 <= most), "{gone:?} {least} {most}");
    }

    #[test]
    fn an_unknown_backlog_never_takes_pods_away(
        config in of_all(), history in histories(), look in looks(), partial in any::<bool>(),
    ) {
        let (memory, now) = remember(&config, &history);
        let backlog = look.backlog.filter(|_| partial);
        let seen = Observation { now_ms: now + 1_000, backlog, partial, ..look };
        let there = memory.desired.unwrap_or(seen.ready + seen.starting).clamp(config.min, config.max);
        let (_, decision) = decide(&config, &memory, &seen);
        prop_assert!(decision.desired >= there);
        prop_assert_eq!(decision.valid, decision.desired > there);
    }

    #[test]
    fn no_numbers_make_it_panic_or_lose_its_mind(
        times in prop::collection::vec(any::<i64>(), 1..6), policy in prop_oneof![Just(PolicyKind::Imageflow), others()],
        counts in prop::collection::vec(prop_oneof![Just(0), Just(u64::MAX), any::<u64>()], 18..19),
    ) {
        let narrow = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
        let config = PolicyConfig {
            min: narrow(counts[0]), max: narrow(counts[1]), target: narrow(counts[2]),
            drain_target_ms: counts[3], keep_warm_min_ms: counts[4], keep_warm_max_ms: counts[5],
            window_ms: counts[6], policy, ..PolicyConfig::default()
        };
        let mut memory = Memory::default();
        for (i, now_ms) in times.into_iter().enumerate() {
            let at = |k: usize| counts[7 + (i + k) % 11];
            let seen = Observation {
                now_ms, ready: narrow(at(0)), starting: narrow(at(1)), held: narrow(at(2)), held_batch: narrow(at(8)), in_flight: narrow(at(3)),
                backlog: Some(at(4)), partial: at(9) % 3 == 0, oldest_ms: Some(at(5)), completed: at(6), service_ms_sum: at(7),
                calls: 0, started: 0, start_ms_sum: 0, scheduling_ms_sum: 0, expected: 0, partitions: Vec::new(),
            };
            let decision;
            (memory, decision) = decide(&config, &memory, &seen);
            prop_assert!(decision.desired >= config.min && decision.desired <= config.max.max(config.min));
            prop_assert!(memory.load.slow.is_finite() && memory.load.fast.is_finite() && memory.service.mean_ms.is_finite());
            prop_assert!(decision.figures.slots.is_finite() && decision.figures.service_ms.is_finite());
        }
    }
}
