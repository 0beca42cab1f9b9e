//! What holds in every world.
use imageflow_decider::policy::lag::LagConfig;
use imageflow_decider::{PolicyConfig, PolicyKind};
use imageflow_simulator::baselines::{Fixed, Numaflow, NumaflowConfig, oracle};
use imageflow_simulator::policy::{Decider, Look, Policy};
use imageflow_simulator::workload::{self, Function, Kind, Request, Workload};
use imageflow_simulator::world;

/// Records what a policy was asked and answered.
struct Recorded<P> {
    policy: P,
    answers: Vec<(i64, u32, u32)>,
}

impl<P: Policy> Policy for Recorded<P> {
    fn decide(&mut self, looks: &[Look]) -> Vec<(u32, Option<i64>)> {
        let answers = self.policy.decide(looks);
        let told = looks
            .iter()
            .zip(&answers)
            .map(|(look, (pods, _))| (look.seen.now_ms, look.function, *pods));
        self.answers.extend(told);
        answers
    }

    fn wakes(&self) -> bool {
        self.policy.wakes()
    }
}

fn recorded<P: Policy>(load: &Workload, policy: P) -> (imageflow_simulator::metrics::Figures, Vec<(i64, u32, u32)>) {
    let mut recorded = Recorded {
        policy,
        answers: Vec::new(),
    };
    let figures = world::run(load, &mut recorded, 1);
    (figures, recorded.answers)
}

fn short() -> Vec<Workload> {
    let all = workload::all(3).into_iter();
    all.filter(|load| load.functions.len() < 100).collect()
}

fn ours(load: &Workload) -> Decider {
    Decider::new(PolicyConfig::default(), load)
}

/// A recorded trace, played again, gives the same decisions bit for bit.
#[test]
fn the_same_world_gives_the_same_decisions() {
    for load in short() {
        let (first, second) = (recorded(&load, ours(&load)), recorded(&load, ours(&load)));
        assert!(first == second, "{}", load.name);
        assert_ne!(first.1, [], "{}", load.name);
    }
}

#[test]
fn no_pod_time_is_less_than_the_work_and_all_work_that_can_end_does() {
    for load in short() {
        let function = &load.functions[0];
        let work: u64 = load
            .requests
            .iter()
            .map(|r| r.service * u64::from(r.fails.min(4) + 1))
            .sum();
        let least = work as f64 / 1_000.0 / f64::from(function.concurrency);
        let figures = recorded(&load, ours(&load)).0;
        assert!(
            figures.pod_seconds >= least,
            "{}: {} < {least}",
            load.name,
            figures.pod_seconds
        );
        assert!(oracle(&load).pod_seconds >= least * 0.999, "{}", load.name);
        assert!(figures.p99_ms < load.duration, "{}: some work has no end", load.name);
    }
}

#[test]
fn all_pods_are_gone_when_nothing_comes_any_more() {
    for load in short() {
        let (_, answers) = recorded(&load, ours(&load));
        for function in 0..load.functions.len() as u32 {
            let last = answers.iter().rev().find(|(_, f, _)| *f == function);
            assert!(last.is_none_or(|(.., pods)| *pods == 0), "{}: {last:?}", load.name);
        }
    }
}

/// 8 functions, 2 cards: what is asked for together is never more, at any look.
#[test]
fn cards_are_never_exceeded_and_everybody_is_served() {
    let load = workload::all(5).into_iter().find(|load| load.gpus > 0).unwrap();
    let (figures, answers) = recorded(&load, ours(&load));
    let mut asked = std::collections::BTreeMap::new();
    for look in answers.chunk_by(|a, b| a.0 == b.0) {
        asked.extend(look.iter().map(|(_, function, pods)| (*function, *pods)));
        assert!(asked.values().sum::<u32>() <= load.gpus, "{asked:?}");
    }
    assert_eq!(figures.misses, 0);
}

/// Of a flow's second step the pod is started while the first one works, so that less is waited for.
#[test]
fn the_pod_of_a_flows_next_step_starts_with_the_step_before() {
    let mut load = workload::all(5).into_iter().find(|load| load.name == "flow").unwrap();
    let told = recorded(&load, ours(&load)).0;
    // The same without anybody who says what comes: requests that come when they came.
    let mut alone = load.clone();
    for i in 0..load.requests.len() {
        let Some(next) = load.requests[i].next.take() else {
            continue;
        };
        alone.requests[next as usize].at = alone.requests[i].at + 600 + alone.requests[i].service;
        alone.requests[i].next = None;
    }
    alone.requests.sort_by_key(|r| r.at);
    let untold = recorded(&alone, ours(&alone)).0;
    assert!(told.waiting < untold.waiting * 0.8, "{told:?} {untold:?}");
}

/// The arithmetic of the reference on Numaflow: 1 to 50 replicas at its defaults needs 25 steps, 90 s apart.
#[test]
fn numaflow_takes_half_an_hour_from_1_to_50() {
    let function = Function {
        kind: Kind::Batch,
        concurrency: 1,
        bounds: (0, 50),
        ..Function::default()
    };
    let mut load = Workload::new("long", "", 3 * 3_600_000, vec![function]);
    let request = |at: u64| Request {
        at,
        function: 0,
        service: 1_000,
        partition: 0,
        fails: 0,
        next: None,
    };
    load.requests.extend((0..400_000).map(|i| request(i * 20)));
    let (_, answers) = recorded(&load, Numaflow::new(NumaflowConfig::default(), &load));
    let first = |least: u32| {
        answers
            .iter()
            .find(|(.., pods)| *pods >= least)
            .map(|(at, ..)| *at)
            .unwrap()
    };
    let minutes = (first(50) - first(1)) as f64 / 60_000.0;
    assert!((36.0..40.0).contains(&minutes), "{minutes} min");
}

/// KEDA hears of work by its poll only, and the HPA doubles each 15 s.
#[test]
fn keda_wakes_at_a_poll() {
    let load = workload::ramp();
    let config = PolicyConfig {
        policy: PolicyKind::Lag(LagConfig::default()),
        ..PolicyConfig::default()
    };
    let (_, answers) = recorded(&load, Decider::new(config, &load));
    let begin = answers[0].0;
    let steps: Vec<(i64, u32)> = answers
        .iter()
        .map(|(at, _, pods)| ((at - begin) / 1_000, *pods))
        .collect();
    let at = |second: i64| steps.iter().find(|(s, _)| *s == second).unwrap().1;
    assert_eq!((at(5), at(35), at(50)), (1, 8, 8), "partitions cap it: {steps:?}");
}

#[test]
fn a_fixed_number_costs_what_it_says() {
    let load = &workload::all(1)[0];
    let figures = world::run(load, &mut Fixed(3), 1);
    let want = 3.0 * load.duration as f64 / 1_000.0;
    assert!(
        (figures.pod_seconds / want - 1.0).abs() < 0.01,
        "{}",
        figures.pod_seconds
    );
    assert_eq!((figures.starts, figures.changes), (3, 1));
}
