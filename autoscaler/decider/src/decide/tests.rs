use super::*;

const T0: i64 = 1_000_000;

fn busy(now_ms: i64, ready: u32, in_flight: u32, backlog: u64) -> Observation {
    Observation {
        now_ms,
        ready,
        in_flight,
        backlog: Some(backlog),
        ..Observation::default()
    }
}

/// A memory that knows the service time.
fn knowing(service_ms: u64) -> Memory {
    let mut seen = busy(T0 - 120_000, 0, 0, 0);
    (seen.completed, seen.service_ms_sum) = (100, 100 * service_ms);
    decide(&PolicyConfig::default(), &Memory::default(), &seen).0
}

fn told(decision: &Decision) -> String {
    decision
        .reasons
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join("; ")
}

#[test]
fn a_backlog_gets_the_pods_that_drain_it_in_time_and_the_reason_can_be_checked_by_hand() {
    let (_, decision) = decide(&PolicyConfig::default(), &knowing(100), &busy(T0, 0, 0, 1_000));
    assert_eq!(decision.desired, 5, "{}", told(&decision));
    assert!(
        told(&decision).contains("1000 waiting x 100 ms each, to be done in 10.0 s: 10.0 slots"),
        "{}",
        told(&decision)
    );
}

#[test]
fn a_slow_function_shows_itself_before_its_first_request_ends() {
    let config = PolicyConfig::default();
    let (mut memory, mut last) = (Memory::default(), 0);
    for second in 0..12 {
        let seen = busy(T0 + second * 1_000, last, last * 4, 40 - u64::from(last * 4).min(40));
        let decision;
        (memory, decision) = decide(&config, &memory, &seen);
        assert!(
            decision.desired <= (2 * last).max(2),
            "ramps: {} after {last}",
            decision.desired
        );
        last = decision.desired;
    }
    assert!(last >= 5, "nothing completed in 11 s, but only {last} pods");
}

#[test]
fn a_missed_drain_target_asks_for_more() {
    let mut late = busy(T0, 0, 0, 1_000);
    late.oldest_ms = Some(15_000);
    let (_, decision) = decide(&PolicyConfig::default(), &knowing(100), &late);
    assert_eq!(decision.desired, 8, "{}", told(&decision));
}

#[test]
fn a_part_of_the_backlog_asks_for_more_pods_but_takes_none_away_and_teaches_no_rate() {
    let config = PolicyConfig::default();
    let (mut memory, decision) = decide(&config, &knowing(100), &busy(T0, 0, 0, 1_000));
    assert_eq!(decision.desired, 5);
    let mut rates = Vec::new();
    for second in 1..60 {
        let mut seen = busy(T0 + second * 1_000, 5, 10, 100);
        (seen.completed, seen.service_ms_sum) = (100, 10_000);
        // In the end the others tell theirs again, which was there all the time.
        seen.partial = second < 59;
        seen.backlog = Some(if seen.partial { 100 } else { 990 });
        let decision;
        (memory, decision) = decide(&config, &memory, &seen);
        assert!(decision.desired >= 5, "{}", told(&decision));
        assert_eq!(decision.valid, !seen.partial);
        rates.push(memory.load.rate());
    }
    let (last, before) = rates.split_last().unwrap();
    assert!(before.iter().all(|rate| rate == &rates[0]), "{before:?}");
    assert!((90.0..110.0).contains(last), "{last}: what was done came meanwhile");
    let mut seen = busy(T0 + 60_000, 5, 10, 3_000);
    seen.partial = true;
    let (_, decision) = decide(&config, &memory, &seen);
    assert!(decision.desired > 5 && decision.valid, "{}", told(&decision));
}

/// Two dispatchers share pods of 4 slots, of which each may fill 2. One of them has all the work: half of each pod looks free to it.
#[test]
fn records_that_wait_for_the_slots_of_their_dispatcher_are_not_taken_for_stuck_ones() {
    let config = PolicyConfig {
        target: 4,
        ..PolicyConfig::default()
    };
    let pods_for = |held_batch: u32| {
        let (mut memory, mut pods) = (knowing(1_000), 5);
        for second in 0..60 {
            let mut seen = busy(T0 + second * 1_000, pods, 2 * pods, 1_000);
            seen.held_batch = held_batch;
            (seen.completed, seen.service_ms_sum) = (u64::from(2 * pods), u64::from(2_000 * pods));
            let decision;
            (memory, decision) = decide(&config, &memory, &seen);
            pods = decision.desired;
        }
        (pods, memory.unreached)
    };
    assert_eq!(pods_for(1_000), (config.max, 0));
    let (fewer, stuck) = pods_for(100);
    assert!(fewer < config.max && stuck == 900, "{fewer} pods, {stuck} are stuck");
}

#[test]
fn callers_that_wait_get_slots_at_once() {
    let seen = Observation {
        now_ms: T0,
        held: 7,
        backlog: Some(0),
        ..Observation::default()
    };
    let (_, decision) = decide(&PolicyConfig::default(), &Memory::default(), &seen);
    assert_eq!(decision.desired, 4, "{}", told(&decision));
}

#[test]
fn a_pause_shorter_than_the_usual_one_costs_no_cold_start() {
    let config = PolicyConfig::default();
    let (mut memory, mut now, mut cold) = (Memory::default(), T0, 0);
    let mut pods = 0;
    // A request every 40 s, and a start takes a minute: a pod that waits is cheaper.
    for round in 0..20 {
        for second in 0..40 {
            let mut seen = busy(now, pods, u32::from(second == 0), 0);
            let is_cold = second == 0 && pods == 0;
            (seen.started, seen.start_ms_sum) = (u64::from(is_cold), 60_000 * u64::from(is_cold));
            cold += u32::from(round >= 8 && is_cold);
            let decision;
            (memory, decision) = decide(&config, &memory, &seen);
            pods = decision.desired;
            now += 1_000;
        }
    }
    assert_eq!(cold, 0);
    for _ in 0..60 {
        pods = decide(&config, &memory, &busy(now, pods, 0, 0)).1.desired;
        now += 1_000;
    }
    assert_eq!(pods, 0, "the pause is over the usual, and the pod goes");
}

/// What a small world does with the answers: pods start at once and fill up to their limit of 4.
struct World {
    memory: Memory,
    pods: u32,
    in_flight: f64,
    backlog: f64,
    most: u32,
}

impl World {
    fn second(&mut self, now_ms: i64, arrivals: f64, service_ms: f64) {
        let done = (self.in_flight * 1_000.0 / service_ms).min(self.backlog + self.in_flight + arrivals);
        self.backlog = (self.backlog + self.in_flight + arrivals - done).max(0.0);
        self.in_flight = self.backlog.min(f64::from(self.pods * 4));
        self.backlog -= self.in_flight;
        let seen = Observation {
            now_ms,
            ready: self.pods,
            in_flight: self.in_flight.round() as u32,
            backlog: Some(self.backlog.round() as u64),
            completed: done.round() as u64,
            service_ms_sum: (done.round() * service_ms) as u64,
            ..Observation::default()
        };
        let decision;
        (self.memory, decision) = decide(&PolicyConfig::default(), &self.memory, &seen);
        self.pods = decision.desired;
        self.most = self.most.max(self.pods);
    }
}

#[test]
fn while_a_backlog_drains_the_pods_do_not_run_away_and_afterwards_all_go() {
    let mut world = World {
        memory: knowing(100),
        pods: 0,
        in_flight: 0.0,
        backlog: 1_000.0,
        most: 0,
    };
    let mut drained = None;
    for second in 0..60 {
        world.second(T0 + second * 1_000, 0.0, 100.0);
        if world.backlog + world.in_flight < 0.5 {
            drained = drained.or(Some(second));
        }
    }
    assert!(
        drained.is_some_and(|s| s <= 12),
        "drained after {drained:?} s, wanted 10"
    );
    assert!(
        world.most <= 6,
        "5 pods drain it in time, but there were {}",
        world.most
    );
    assert_eq!(world.pods, 0);
}

#[test]
fn a_steady_stream_settles_and_does_not_flap() {
    let mut world = World {
        memory: knowing(100),
        pods: 0,
        in_flight: 0.0,
        backlog: 0.0,
        most: 0,
    };
    let mut seen = Vec::new();
    for second in 0..400_i64 {
        // 100 a second x 100 ms are 10 slots, 5 pods; the noise is 20 %.
        let noise = f64::from(u32::try_from(second * 7919 % 41).unwrap()) - 20.0;
        world.second(T0 + second * 1_000, 100.0 + noise, 100.0);
        if second >= 150 {
            seen.push(world.pods);
        }
    }
    let (least, most) = (seen.iter().min().unwrap(), seen.iter().max().unwrap());
    assert!(
        (5..=6).contains(least) && *most <= 7,
        "between {least} and {most} pods, wanted 5 or 6"
    );
    let changes = seen.windows(2).filter(|w| w[0] != w[1]).count();
    assert!(changes <= 12, "{changes} changes in 250 s");
    assert!(world.backlog < 200.0, "{} wait", world.backlog);
}

#[test]
fn a_memory_of_another_version_is_forgotten_but_the_pods_stay() {
    let config = PolicyConfig::default();
    let old = Memory {
        schema: 99,
        desired: Some(7),
        ..knowing(5_000)
    };
    let mut seen = busy(T0, 7, 0, 0);
    seen.backlog = None;
    let (memory, decision) = decide(&config, &old, &seen);
    assert_eq!((decision.desired, decision.valid), (7, false));
    assert_eq!(
        (memory.schema, memory.service.samples),
        (crate::memory::MEMORY_SCHEMA, 0)
    );
}

#[test]
fn what_was_learned_survives_being_stored() {
    let stored = serde_json::to_string(&knowing(250)).unwrap();
    assert!(stored.len() < 1_000, "{stored}");
    let back: Memory = serde_json::from_str(&stored).unwrap();
    let (_, decision) = decide(&PolicyConfig::default(), &back, &busy(T0, 0, 0, 400));
    assert_eq!(decision.desired, 5, "{}", told(&decision));
}
