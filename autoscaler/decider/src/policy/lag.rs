//! KEDA's Kafka scaler with the Horizontal Pod Autoscaler behind it (`pkg/scalers/kafka_scaler.go` and
//! `pkg/scaling/executor/scale_scaledobjects.go` of kedacore/keda, and the HPA's documented algorithm), formula for formula.
//! For users who come from KEDA, and as a baseline.
use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::decide::Observation;

/// One partition of the topic, as a group sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Partition {
    /// The group's offset; `None` when it never committed.
    pub committed: Option<i64>,
    /// Offset of the next record.
    pub end: i64,
}

/// Where a group without a commit begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum OffsetReset {
    /// With the next record.
    #[default]
    Latest,
    /// With the first one.
    Earliest,
}

/// Settings, with KEDA's names and defaults.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LagConfig {
    /// Records for one replica.
    pub lag_threshold: u64,
    /// More than so many make it active.
    pub activation_lag_threshold: u64,
    /// Where a group without a commit begins.
    pub offset_reset_policy: OffsetReset,
    /// More replicas than partitions are allowed.
    pub allow_idle_consumers: bool,
    /// A partition whose commit stands still counts only for being active.
    pub exclude_persistent_lag: bool,
    /// No more replicas than partitions with lag.
    pub limit_to_partitions_with_lag: bool,
    /// Only numbers of replicas that divide the partitions.
    pub ensure_even_distribution_of_partitions: bool,
    /// A group without a commit counts as 0.
    pub scale_to_zero_on_invalid_offset: bool,
    /// Between two looks whether it is active, s.
    pub polling_interval_s: u32,
    /// To zero after so long without being active, s.
    pub cooldown_period_s: u32,
    /// Between two decisions of the HPA, s (`horizontal-pod-autoscaler-sync-period`).
    pub sync_period_s: u32,
    /// A change under this share is none (`horizontal-pod-autoscaler-tolerance`).
    pub tolerance: f64,
    /// Fewer replicas only when that was so for so long, s.
    pub stabilization_window_s: u32,
}

impl Default for LagConfig {
    fn default() -> Self {
        Self {
            lag_threshold: 10,
            activation_lag_threshold: 0,
            offset_reset_policy: OffsetReset::Latest,
            allow_idle_consumers: false,
            exclude_persistent_lag: false,
            limit_to_partitions_with_lag: false,
            ensure_even_distribution_of_partitions: false,
            scale_to_zero_on_invalid_offset: false,
            polling_interval_s: 30,
            cooldown_period_s: 300,
            sync_period_s: 15,
            tolerance: 0.1,
            stabilization_window_s: 300,
        }
    }
}

/// What is kept between decisions.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LagState {
    polled_ms: Option<i64>,
    active_ms: Option<i64>,
    synced_ms: Option<i64>,
    replicas: u32,
    /// What the HPA came to lately: (ms since 1970, replicas).
    recommended: VecDeque<(i64, u32)>,
    /// Commits at the look before.
    commits: Vec<Option<i64>>,
}

/// The lag that counts for scaling, and the one that counts for being active.
#[must_use]
pub fn lag(config: &LagConfig, partitions: &[Partition], before: &[Option<i64>]) -> (u64, u64) {
    let (mut scaling, mut active, mut with_lag) = (0_u64, 0_u64, 0_u64);
    for (i, partition) in partitions.iter().enumerate() {
        let of = match partition.committed {
            Some(committed) => u64::try_from(partition.end.saturating_sub(committed)).unwrap_or(0),
            None if config.scale_to_zero_on_invalid_offset => 0,
            None if config.offset_reset_policy == OffsetReset::Latest => 1,
            None => u64::try_from(partition.end).unwrap_or(0),
        };
        let stands = partition.committed.is_some() && before.get(i) == Some(&partition.committed);
        active = active.saturating_add(of);
        if !(config.exclude_persistent_lag && stands) {
            scaling = scaling.saturating_add(of);
            with_lag += u64::from(of > 0);
        }
    }
    let threshold = config.lag_threshold.max(1);
    let all = partitions.len() as u64;
    let even = config.ensure_even_distribution_of_partitions;
    if !config.allow_idle_consumers || config.limit_to_partitions_with_lag || even {
        let most = if config.limit_to_partitions_with_lag {
            with_lag
        } else {
            all
        };
        if even {
            scaling = even_replicas(scaling, all, threshold).saturating_mul(threshold);
        }
        if scaling / threshold > most {
            scaling = most.saturating_mul(threshold);
        }
    }
    (scaling, active)
}

/// The smallest number of replicas that carries the lag and divides the partitions; all of them when none does.
fn even_replicas(lag: u64, partitions: u64, threshold: u64) -> u64 {
    (1..=partitions)
        .filter(|n| partitions.is_multiple_of(*n))
        .find(|n| n.saturating_mul(threshold) >= lag)
        .unwrap_or(partitions)
}

/// What became of one look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    /// Replicas, within bounds.
    pub pods: u32,
    /// The lag that counts for scaling.
    pub lag: u64,
    /// Without work, and waiting for the cool-down's end.
    pub cooling: bool,
}

/// Takes in a look; decides when KEDA would poll, or the HPA would look.
pub fn look(config: &LagConfig, bounds: (u32, u32), state: &mut LagState, seen: &Observation) -> Outcome {
    let now_ms = seen.now_ms;
    let due = |at: Option<i64>, s: u32| at.is_none_or(|at| now_ms.saturating_sub(at) >= i64::from(s) * 1_000);
    let whole = [Partition {
        committed: Some(0),
        end: i64::try_from(seen.known_items()).unwrap_or(i64::MAX),
    }];
    // Where partitions are not told, the lag is that of one, which then must not limit the replicas. A record is lag until it is done,
    // and KEDA's add-on for HTTP counts calls in the same way: those that wait, and those that are worked on.
    let (partitions, known, callers) = match seen.partitions.as_slice() {
        [] => (&whole[..], false, 0),
        all => (all, true, u64::from(seen.held)),
    };
    let told = LagConfig {
        allow_idle_consumers: config.allow_idle_consumers || !known,
        ..config.clone()
    };
    let (min, max) = (bounds.0, bounds.1.max(1));
    let (counted, active_lag) = lag(&told, partitions, &state.commits);
    let (counted, active_lag) = (counted.saturating_add(callers), active_lag.saturating_add(callers));
    let mut cooling = false;
    let called = seen.held > 0;
    if called && state.replicas == 0 {
        // The add-on does not wait for a poll, and a threshold for records says nothing of callers.
        wake(state, min, now_ms);
    }
    if due(state.polled_ms, config.polling_interval_s) {
        state.polled_ms = Some(now_ms);
        if called || active_lag > config.activation_lag_threshold {
            state.active_ms = Some(now_ms);
            if state.replicas == 0 {
                wake(state, min, now_ms);
            }
        } else if min == 0 && due(state.active_ms, config.cooldown_period_s) {
            state.replicas = 0;
        }
        state.commits = partitions.iter().map(|p| p.committed).collect();
    }
    if !called && active_lag <= config.activation_lag_threshold && state.replicas > 0 && min == 0 {
        cooling = true;
    }
    if state.replicas > 0 && due(state.synced_ms, config.sync_period_s) {
        state.synced_ms = Some(now_ms);
        state.replicas = hpa(config, (min.max(1), max), state, counted, now_ms);
    }
    Outcome {
        pods: state.replicas.clamp(min, max.max(min)),
        lag: counted,
        cooling,
    }
}

fn wake(state: &mut LagState, min: u32, now_ms: i64) {
    state.replicas = min.max(1);
    state.recommended.clear();
    (state.active_ms, state.synced_ms) = (Some(now_ms), Some(now_ms));
}

/// One decision of the HPA on a metric of type AverageValue, with its default behaviour: up at most to the double or by 4, at once;
/// down to the most of the stabilisation window.
fn hpa(config: &LagConfig, (min, max): (u32, u32), state: &mut LagState, lag: u64, now_ms: i64) -> u32 {
    let now = state.replicas;
    let per_replica = config.lag_threshold.max(1) as f64;
    let ratio = lag as f64 / (per_replica * f64::from(now.max(1)));
    let wanted = if (1.0 - ratio).abs() <= config.tolerance {
        now
    } else {
        (lag as f64 / per_replica).ceil() as u32
    };
    let window_ms = i64::from(config.stabilization_window_s) * 1_000;
    state.recommended.push_back((now_ms, wanted));
    state
        .recommended
        .retain(|(at, _)| now_ms.saturating_sub(*at) < window_ms.max(1));
    let most = state.recommended.iter().map(|(_, n)| *n).max().unwrap_or(wanted);
    let stable = if wanted < now { most.min(now) } else { wanted };
    let up = now.saturating_mul(2).max(now.saturating_add(4));
    stable.min(up).clamp(min, max.max(min))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn partitions(all: &[(Option<i64>, i64)]) -> Vec<Partition> {
        all.iter()
            .map(|(committed, end)| Partition {
                committed: *committed,
                end: *end,
            })
            .collect()
    }

    /// The figures of KEDA's `TestGetNextFactor`.
    #[test]
    fn even_numbers_of_replicas_are_those_of_keda() {
        for (lag, want) in [(10, 1), (20, 2), (40, 4), (50, 5), (99, 10), (100, 10), (101, 20)] {
            assert_eq!(even_replicas(lag, 100, 10), want, "a lag of {lag}");
        }
        assert_eq!(even_replicas(10_000, 100, 10), 100);
        assert_eq!(even_replicas(20, 13, 10), 13, "a prime number has no other divisor");
    }

    #[test]
    fn the_lag_is_counted_as_keda_counts_it() {
        let keda = LagConfig::default;
        let none = partitions(&[(None, 50), (None, 0)]);
        assert_eq!(lag(&keda(), &none, &[]), (2, 2), "latest: one each");
        let earliest = LagConfig {
            offset_reset_policy: OffsetReset::Earliest,
            ..keda()
        };
        assert_eq!(lag(&earliest, &none, &[]).1, 50, "the end, not what is there");
        let zero = LagConfig {
            scale_to_zero_on_invalid_offset: true,
            ..earliest
        };
        assert_eq!(lag(&zero, &none, &[]), (0, 0));
        let two = partitions(&[(Some(0), 500), (Some(10), 10)]);
        assert_eq!(lag(&keda(), &two, &[]), (20, 500), "no more replicas than partitions");
        let idle = LagConfig {
            allow_idle_consumers: true,
            ..keda()
        };
        assert_eq!(lag(&idle, &two, &[]), (500, 500));
        let limited = LagConfig {
            limit_to_partitions_with_lag: true,
            ..keda()
        };
        assert_eq!(lag(&limited, &two, &[]), (10, 500));
        let stuck = LagConfig {
            exclude_persistent_lag: true,
            allow_idle_consumers: true,
            ..keda()
        };
        assert_eq!(
            lag(&stuck, &two, &[Some(0), Some(4)]),
            (0, 500),
            "its commit stands still"
        );
        let even = LagConfig {
            ensure_even_distribution_of_partitions: true,
            ..keda()
        };
        let ten = partitions(&[(Some(0), 6); 10]);
        assert_eq!(
            lag(&even, &ten, &[]),
            (100, 60),
            "6 replicas do not divide 10 partitions"
        );
        assert_eq!(
            lag(&keda(), &partitions(&[(Some(9), 5)]), &[]),
            (0, 0),
            "never negative"
        );
    }

    fn story(steps: impl IntoIterator<Item = (i64, u64)>) -> Vec<(i64, u32)> {
        let (mut state, mut changes, mut before) = (LagState::default(), Vec::new(), 0);
        for (second, waiting) in steps {
            let seen = Observation {
                now_ms: second * 1_000,
                backlog: Some(waiting),
                ..Observation::default()
            };
            let pods = look(&LagConfig::default(), (0, 100), &mut state, &seen).pods;
            if pods != before {
                changes.push((second, pods));
                before = pods;
            }
        }
        changes
    }

    #[test]
    fn it_wakes_at_a_poll_doubles_at_each_sync_and_sleeps_after_the_cool_down() {
        // Work from the second 5 on, which is done at 200.
        let changes = story((0..900).map(|s| (s, if (5..200).contains(&s) { 600 } else { 0 })));
        let want = [(30, 1), (45, 5), (60, 10), (75, 20), (90, 40), (105, 60)];
        assert_eq!(&changes[..6], &want);
        let last = changes.last().unwrap();
        assert_eq!(last.1, 0);
        // The last poll that saw work was at 180; from there the cool-down.
        assert_eq!(last.0, 480, "{changes:?}");
    }

    #[test]
    fn callers_wake_it_at_once_and_keep_it_awake_while_they_are_served() {
        let config = LagConfig {
            activation_lag_threshold: 5,
            ..LagConfig::default()
        };
        let (mut state, mut now_ms) = (LagState::default(), 0);
        let mut called = |held: u32, in_flight: u32, backlog: Option<u64>| {
            now_ms += 1_000;
            let seen = Observation {
                now_ms,
                held,
                in_flight,
                backlog,
                ..Observation::default()
            };
            look(&config, (0, 100), &mut state, &seen).pods
        };
        assert_eq!(called(0, 0, Some(0)), 0);
        assert_eq!(called(0, 0, Some(3)), 0, "fewer records than make it active");
        assert_eq!(called(1, 0, None), 1);
        for _ in 0..1_000 {
            assert!(called(0, 40, None) >= 1);
        }
        assert_eq!(called(0, 40, None), 4, "10 each");
    }

    #[test]
    fn small_changes_are_none() {
        let changes = story((0..600).map(|s| (s, if s < 300 { 100 } else { 108 })));
        assert_eq!(
            changes,
            [(0, 1), (15, 5), (30, 10)],
            "108 of 100 is within the tolerance"
        );
    }
}
