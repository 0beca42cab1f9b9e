//! Every policy at its defaults and at many other settings, on one load.
use imageflow_decider::policy::kpa::KpaConfig;
use imageflow_decider::policy::lag::LagConfig;
use imageflow_decider::{Memory, Observation, PolicyConfig, PolicyKind, decide};
use rayon::prelude::*;
use serde::Serialize;

use crate::baselines::{Fixed, Numaflow, NumaflowConfig, oracle};
use crate::metrics::Figures;
use crate::policy::{Decider, Look, Policy};
use crate::workload::Workload;
use crate::world;

/// Loads with more functions are run with a part of the settings only: they take long.
const MANY: usize = 1_000;

/// Who decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Family {
    /// Our law.
    ImageFlow,
    /// Knative's.
    Knative,
    /// KEDA's with the HPA.
    Keda,
    /// Numaflow's.
    Numaflow,
    /// A fixed number.
    Fixed,
    /// Who knows the future.
    Oracle,
}

impl std::fmt::Display for Family {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::ImageFlow => "ImageFlow",
            Self::Knative => "Knative",
            Self::Keda => "KEDA",
            Self::Numaflow => "Numaflow",
            Self::Fixed => "fixed",
            Self::Oracle => "oracle",
        })
    }
}

/// A policy with its settings.
#[derive(Debug, Clone, PartialEq)]
pub struct Candidate {
    /// Whose it is.
    pub family: Family,
    /// What is set, for people; empty for the defaults.
    pub label: String,
    settings: Settings,
}

#[derive(Debug, Clone, PartialEq)]
enum Settings {
    Decider(Box<PolicyConfig>),
    Numaflow(NumaflowConfig),
    Fixed(u32),
}

impl Candidate {
    fn decider(family: Family, label: String, policy: PolicyKind) -> Self {
        let config = PolicyConfig {
            policy,
            ..PolicyConfig::default()
        };
        Self {
            family,
            label,
            settings: Settings::Decider(Box::new(config)),
        }
    }

    fn policy(&self, load: &Workload) -> Box<dyn Policy> {
        match &self.settings {
            Settings::Decider(config) => Box::new(Decider::new(PolicyConfig::clone(config), load)),
            Settings::Numaflow(config) => Box::new(Numaflow::new(*config, load)),
            Settings::Fixed(pods) => Box::new(Fixed(*pods)),
        }
    }
}

/// One policy's figures on a load.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Row {
    /// Whose policy.
    pub family: Family,
    /// Its settings; empty for the defaults.
    pub label: String,
    /// What it came to.
    pub figures: Figures,
}

/// All policies of a load: ours first, then each other at its defaults and its other settings, last who knows the future.
#[must_use]
pub fn run(load: &Workload, seed: u64) -> Vec<Row> {
    let candidates = candidates(load);
    let rows = candidates.par_iter().map(|candidate| Row {
        family: candidate.family,
        label: candidate.label.clone(),
        figures: world::run(load, candidate.policy(load).as_mut(), seed),
    });
    let mut rows: Vec<Row> = rows.collect();
    rows.push(Row {
        family: Family::Oracle,
        label: String::new(),
        figures: oracle(load),
    });
    rows
}

/// Remembers when a policy first asked for so many pods.
struct Reach {
    policy: Decider,
    pods: u32,
    begun_ms: Option<i64>,
    reached_ms: Option<i64>,
}

impl Policy for Reach {
    fn decide(&mut self, looks: &[Look]) -> Vec<(u32, Option<i64>)> {
        let answers = self.policy.decide(looks);
        let now_ms = looks.first().map(|look| look.seen.now_ms);
        self.begun_ms = self.begun_ms.or(now_ms);
        if answers.iter().any(|(pods, _)| *pods >= self.pods) {
            self.reached_ms = self.reached_ms.or(now_ms);
        }
        answers
    }
}

/// How long ours takes from the first look to so many pods, ms; `None` when it never asks for them.
#[must_use]
pub fn ours_reach(load: &Workload, seed: u64, pods: u32) -> Option<i64> {
    let mut reach = Reach {
        policy: Decider::new(PolicyConfig::default(), load),
        pods,
        begun_ms: None,
        reached_ms: None,
    };
    world::run(load, &mut reach, seed);
    Some(reach.reached_ms? - reach.begun_ms?)
}

/// How long it takes to decide on so many functions that all have work and a past, on one core, ms: the median of 11 looks.
#[must_use]
pub fn decide_ms(functions: u32) -> f64 {
    let config = PolicyConfig::default();
    let mut memories = vec![Memory::default(); functions as usize];
    let mut times: Vec<f64> = (0..71_i64)
        .map(|second| {
            let begun = std::time::Instant::now();
            for (memory, i) in memories.iter_mut().zip(0_u32..) {
                let seen = Observation {
                    now_ms: 1_700_000_000_000 + second * 1_000,
                    ready: 2,
                    in_flight: (i + second as u32) % 5,
                    backlog: Some(u64::from(i % 7)),
                    completed: 10,
                    service_ms_sum: 1_000,
                    ..Observation::default()
                };
                let decision;
                (*memory, decision) = decide(&config, memory, &seen);
                std::hint::black_box(decision);
            }
            begun.elapsed().as_secs_f64() * 1_000.0
        })
        .collect();
    let mut last = times.split_off(60);
    last.sort_by(f64::total_cmp);
    last[5]
}

fn candidates(load: &Workload) -> Vec<Candidate> {
    let few = load.functions.len() > MANY;
    let mut all = vec![
        Candidate::decider(Family::ImageFlow, String::new(), PolicyKind::Imageflow),
        Candidate::decider(Family::Knative, String::new(), PolicyKind::Kpa(KpaConfig::default())),
        Candidate::decider(Family::Keda, String::new(), PolicyKind::Lag(LagConfig::default())),
        Candidate {
            family: Family::Numaflow,
            label: String::new(),
            settings: Settings::Numaflow(NumaflowConfig::default()),
        },
    ];
    all.extend(knative(few));
    all.extend(keda(few));
    if !few {
        all.extend(numaflow());
        let fixed = [1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 25, 30, 40];
        all.extend(fixed.map(|pods| Candidate {
            family: Family::Fixed,
            label: format!("{pods} pods"),
            settings: Settings::Fixed(pods),
        }));
    }
    all
}

fn knative(few: bool) -> Vec<Candidate> {
    let mut all = Vec::new();
    let (utilizations, windows): (&[f64], &[u32]) = match few {
        true => (&[0.7], &[6]),
        false => (&[0.5, 0.7, 0.85, 1.0], &[6, 15, 30, 60]),
    };
    for utilization in utilizations {
        for window in windows {
            for panic in [200.0, 1_000.0] {
                for delay in if few { &[0][..] } else { &[0, 30] } {
                    let config = KpaConfig {
                        target_utilization: *utilization,
                        stable_window_s: *window,
                        panic_threshold_percentage: panic,
                        scale_down_delay_s: *delay,
                        scale_to_zero_grace_s: 0,
                        ..KpaConfig::default()
                    };
                    let label = format!(
                        "utilization {utilization}, window {window} s, panic {panic} %, delay {delay} s, grace 0 s"
                    );
                    all.push(Candidate::decider(Family::Knative, label, PolicyKind::Kpa(config)));
                }
            }
        }
    }
    all
}

fn keda(few: bool) -> Vec<Candidate> {
    let mut all = Vec::new();
    let (thresholds, polls): (&[u64], &[u32]) = match few {
        true => (&[2], &[1]),
        false => (&[1, 2, 5, 10, 20, 50, 100], &[1, 5, 30]),
    };
    for lag_threshold in thresholds {
        for polling_interval_s in polls {
            for cooldown_period_s in [5, 30, 300] {
                for stabilization_window_s in if few { &[0][..] } else { &[0, 60, 300] } {
                    let config = LagConfig {
                        lag_threshold: *lag_threshold,
                        polling_interval_s: *polling_interval_s,
                        cooldown_period_s,
                        stabilization_window_s: *stabilization_window_s,
                        allow_idle_consumers: true,
                        ..LagConfig::default()
                    };
                    let label = format!(
                        "lag {lag_threshold}, poll {polling_interval_s} s, cool-down {cooldown_period_s} s, \
                         stabilization {stabilization_window_s} s, idle consumers"
                    );
                    all.push(Candidate::decider(Family::Keda, label, PolicyKind::Lag(config)));
                }
            }
        }
    }
    all
}

fn numaflow() -> Vec<Candidate> {
    let mut all = Vec::new();
    for target_processing_seconds in [1.0, 2.0, 5.0, 10.0, 20.0] {
        for cooldown in [10, 30, 90] {
            for step in [2, 10] {
                for (lookback_s, zero_replica_sleep_s) in [(30, 10), (120, 120)] {
                    let config = NumaflowConfig {
                        target_processing_seconds,
                        replicas_per_scale_up: step,
                        replicas_per_scale_down: step,
                        scale_up_cooldown_s: cooldown,
                        scale_down_cooldown_s: cooldown,
                        lookback_s,
                        zero_replica_sleep_s,
                        ..NumaflowConfig::default()
                    };
                    let label = format!(
                        "process in {target_processing_seconds} s, cool-downs {cooldown} s, {step} a step, lookback {lookback_s} s, \
                         sleep {zero_replica_sleep_s} s"
                    );
                    all.push(Candidate {
                        family: Family::Numaflow,
                        label,
                        settings: Settings::Numaflow(config),
                    });
                }
            }
        }
    }
    all
}
