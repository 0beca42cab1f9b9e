//! The situations of knative/serving's own tests (`autoscaler_test.go`, `aggregation/bucketing_test.go`), with their numbers.
use super::*;

/// What their tests begin with; utilisation is 75 % there.
fn spec(target: f64, burst: f64) -> Spec {
    Spec {
        target,
        total: target / 0.75,
        burst,
        panic_threshold: 2.0,
        up: 10.0,
        down: 10.0,
        stable_window_ms: 60_000,
        delay_ms: 0,
        activation: 1,
        reachable: true,
    }
}

fn room(target: f64, burst: f64, panic: f64, ready: f64) -> i64 {
    (target / 0.75 * ready - burst - panic).floor() as i64
}

/// One decision on a fresh state.
fn once(spec: &Spec, stable: f64, panic: f64, ready: u32) -> Scaled {
    scale(spec, &mut KpaState::default(), stable, panic, ready, 1_000_000)
}

#[test]
fn single_decisions() {
    let of = spec;
    let slow_up = Spec {
        up: 1.1,
        ..of(1.0, 1982.0)
    };
    let slow_down = Spec {
        down: 1.1,
        ..of(10.0, 1982.0)
    };
    let alone = Spec {
        reachable: false,
        ..slow_down
    };
    // name, spec, stable, panic, ready, pods, excess burst capacity
    let table: [(&str, Spec, f64, f64, u32, u32, i64); 14] = [
        (
            "no data at zero",
            of(10.0, 100.0),
            0.0,
            0.0,
            1,
            0,
            room(10.0, 100.0, 0.0, 1.0),
        ),
        ("unlimited burst", of(181.0, -1.0), 21.0, 26.0, 1, 1, -1),
        ("no burst", of(10.0, 0.0), 50.0, 49.0, 1, 5, 0),
        (
            "no change",
            of(10.0, 100.0),
            50.0,
            50.0,
            1,
            5,
            room(10.0, 100.0, 50.0, 1.0),
        ),
        (
            "scaled already",
            of(10.0, 100.0),
            50.0,
            50.0,
            5,
            5,
            room(10.0, 100.0, 50.0, 5.0),
        ),
        ("small rate up", slow_up, 3.0, 3.1, 2, 3, room(1.0, 1982.0, 3.1, 2.0)),
        (
            "small rate down",
            slow_down,
            1.0,
            1.0,
            100,
            90,
            room(10.0, 1982.0, 1.0, 100.0),
        ),
        ("not reachable", alone, 1.0, 1.0, 100, 1, room(10.0, 1982.0, 1.0, 100.0)),
        (
            "panic doubles",
            of(10.0, 84.0),
            50.0,
            100.0,
            1,
            10,
            room(10.0, 84.0, 100.0, 1.0),
        ),
        (
            "stable grows",
            of(10.0, 101.0),
            50.0,
            10.0,
            1,
            5,
            room(10.0, 101.0, 10.0, 1.0),
        ),
        (
            "limited up",
            of(10.0, 61.0),
            1000.0,
            1001.0,
            1,
            10,
            room(10.0, 61.0, 1001.0, 1.0),
        ),
        (
            "limited up again",
            of(10.0, 61.0),
            1000.0,
            1001.0,
            10,
            100,
            room(10.0, 61.0, 1001.0, 10.0),
        ),
        (
            "limited down",
            of(10.0, 61.0),
            1.0,
            1.0,
            100,
            10,
            room(10.0, 61.0, 1.0, 100.0),
        ),
        (
            "no pods count as one",
            of(10.0, 81.0),
            1000.0,
            888.0,
            0,
            10,
            room(10.0, 81.0, 888.0, 0.0),
        ),
    ];
    for (name, spec, stable, panic, ready, pods, excess_burst_capacity) in table {
        let got = once(&spec, stable, panic, ready);
        let want = Scaled {
            pods,
            excess_burst_capacity,
        };
        assert_eq!(got, want, "{name}");
    }
}

#[test]
fn decisions_in_a_panic_take_the_larger_of_both() {
    for (stable, panic, want) in [(50.0, 30.0, 50), (20.0, 30.0, 30)] {
        let mut state = KpaState {
            panic_ms: Some(-5_000),
            max_panic_pods: 5,
            ..KpaState::default()
        };
        assert_eq!(scale(&spec(1.0, 100.0), &mut state, stable, panic, 5, 0).pods, want);
    }
}

#[test]
fn an_activation_scale_holds_only_when_there_is_traffic() {
    let spec = Spec {
        activation: 2,
        ..spec(10.0, 75.0)
    };
    assert_eq!(once(&spec, 0.0, 0.0, 1).pods, 0);
    assert_eq!(once(&spec, 1.0, 0.0, 1).pods, 2);
}

/// One step of a story: after ms, ready pods, stable, panic, pods wanted, and since when it panics afterwards.
type Step = (i64, u32, f64, f64, u32, Option<i64>);

fn story(name: &str, spec: &Spec, steps: &[Step]) {
    let mut state = KpaState::default();
    for (at, ready, stable, panic, pods, panics) in steps {
        let got = scale(spec, &mut state, *stable, *panic, *ready, *at);
        assert_eq!((got.pods, state.panic_ms), (*pods, *panics), "{name} at {at}");
    }
}

#[test]
fn panics_begin_last_and_end_as_knatives_do() {
    let slow = [
        (0, 10, 11.0, 25.0, 25, Some(0)),
        (30_000, 40, 30.0, 41.0, 41, Some(0)),
        (62_000, 55, 50.0, 56.0, 50, None),
    ];
    story("a slow increase ends it", &spec(1.0, 98.0), &slow);
    let surge = [
        (0, 10, 11.0, 25.0, 25, Some(0)),
        (30_000, 40, 30.0, 80.0, 80, Some(30_000)),
    ];
    story("a surge extends it", &spec(1.0, 98.0), &surge);
    let track = [
        (0, 1, 6.0, 6.0, 6, Some(0)),
        (0, 6, 36.0, 36.0, 36, Some(0)),
        (1_000, 36, 216.0, 216.0, 216, Some(1_000)),
        (1_000, 216, 1296.0, 1296.0, 1296, Some(1_000)),
        (2_000, 1296, 1296.0, 1296.0, 1296, Some(1_000)),
    ];
    story("exponential growth", &spec(1.0, 101.0), &track);
    let over = [
        (0, 10, 100.0, 1000.0, 100, Some(0)),
        (30_000, 10, 1.0, 1.0, 100, Some(0)),
        (61_000, 10, 1.0, 1.0, 1, None),
    ];
    story("after the stable window", &spec(10.0, 93.0), &over);
    let down = [(0, 8, 100.0, 100.0, 10, None), (0, 8, 50.0, 50.0, 5, None)];
    story("stable", &spec(10.0, 98.0), &down);
    let zero = [(0, 1, 1.0, 0.0, 1, None), (0, 1, 0.0, 0.0, 0, None)];
    story("to zero", &spec(10.0, 75.0), &zero);
}

#[test]
fn fewer_pods_wait_for_the_delay() {
    let spec = Spec {
        panic_threshold: 100.0,
        delay_ms: 300_000,
        ..spec(10.0, 0.0)
    };
    let simple = [
        (2_000, 0, 40.0, 40.0, 4, None),
        (300_000, 0, 0.0, 0.0, 4, None),
        (302_000, 0, 0.0, 0.0, 0, None),
    ];
    story("five minutes", &spec, &simple);
    let minutes = |n: i64| n * 60_000;
    let gradual = [
        (minutes(9), 0, 40.0, 40.0, 4, None),
        (minutes(10), 0, 30.0, 30.0, 4, None),
        (minutes(11), 0, 0.0, 0.0, 4, None),
        (minutes(14), 0, 0.0, 0.0, 3, None),
        (minutes(15), 0, 0.0, 0.0, 0, None),
    ];
    story("gradual", &spec, &gradual);
    let mut state = KpaState::default();
    assert_eq!(scale(&spec, &mut state, 40.0, 40.0, 0, 2_000).pods, 4);
    let alone = Spec {
        reachable: false,
        ..spec
    };
    assert_eq!(
        scale(&alone, &mut state, 0.0, 0.0, 0, 4_000).pods,
        0,
        "nothing leads to it"
    );
    let none = Spec { delay_ms: 0, ..spec };
    let at_once = [(0, 0, 40.0, 40.0, 4, None), (500, 0, 20.0, 20.0, 2, None)];
    story("no delay", &none, &at_once);
}

/// `TestStartInPanicMode`: over several pods it begins in a panic, so that a restart takes none away.
#[test]
fn a_restart_over_several_pods_panics() {
    for (ready, panics) in [(0, false), (1, false), (2, true)] {
        let mut state = KpaState::default();
        let seen = Observation {
            now_ms: 5_000,
            ready,
            backlog: Some(0),
            ..Observation::default()
        };
        let pods = look(&KpaConfig::default(), (0, 0), &mut state, &seen).pods;
        assert_eq!((state.panic_ms.is_some(), pods), (panics, ready), "{ready} pods");
    }
}

#[test]
fn targets_are_those_of_knative() {
    let with = |config: KpaConfig| config.targets();
    assert_eq!(with(KpaConfig::default()), (100.0, 70.0));
    let rps = KpaConfig {
        metric: Metric::Rps,
        ..KpaConfig::default()
    };
    assert_eq!(with(rps), (200.0, 140.0));
    let limited = KpaConfig {
        container_concurrency: 10,
        ..KpaConfig::default()
    };
    assert_eq!(with(limited.clone()), (10.0, 7.0));
    assert_eq!(
        with(KpaConfig {
            target: Some(20.0),
            ..limited.clone()
        }),
        (10.0, 7.0)
    );
    assert_eq!(
        with(KpaConfig {
            target: Some(5.0),
            ..limited
        }),
        (5.0, 3.5)
    );
    let tiny = KpaConfig {
        target: Some(0.001),
        ..KpaConfig::default()
    };
    assert_eq!(with(tiny), (0.001, 0.01));
    assert_eq!(KpaConfig::default().panic_window_s(), 6);
    let short = KpaConfig {
        stable_window_s: 6,
        ..KpaConfig::default()
    };
    assert_eq!(short.panic_window_s(), 1);
}

/// From the last request to the last pod's end: a stable window, and by default no more, since with so little capacity the
/// activator has been in the way all the time; without it the grace period comes on top.
#[test]
fn the_way_to_zero_takes_the_window_and_the_grace_period() {
    for (burst, want_s) in [(211.0, 61), (0.0, 91)] {
        let config = KpaConfig {
            target_burst_capacity: burst,
            ..KpaConfig::default()
        };
        let (mut state, mut ready, mut zero) = (KpaState::default(), 0, None);
        for second in 0..300_i64 {
            let seen = Observation {
                now_ms: second * 1_000,
                ready,
                in_flight: u32::from(second < 100),
                backlog: Some(0),
                ..Observation::default()
            };
            ready = look(&config, (0, 0), &mut state, &seen).pods;
            assert!(second >= 100 || ready == 1, "{second}");
            if second > 100 && ready == 0 {
                zero.get_or_insert(second - 99);
            }
        }
        let took = zero.unwrap();
        assert!(
            (want_s..=want_s + 2).contains(&took),
            "{took} s with a burst capacity of {burst}"
        );
    }
}

/// `initial-scale`: a revision begins with so many pods, once; what comes after is the law's, a restart included.
#[test]
fn a_new_revision_begins_with_its_initial_scale_once() {
    let with = |revision| KpaConfig {
        initial_scale: 3,
        revision,
        ..KpaConfig::default()
    };
    let seen = |second: i64, ready| Observation {
        now_ms: second * 1_000,
        ready,
        backlog: Some(0),
        ..Observation::default()
    };
    let mut state = KpaState::default();
    let mut ask = |config: &KpaConfig, second, ready| look(config, (0, 10), &mut state, &seen(second, ready));
    let first = ask(&with(1), 0, 0);
    assert_eq!((first.pods, first.begins), (3, true));
    assert_eq!(ask(&with(1), 2, 2).pods, 3, "not all are ready");
    let there = ask(&with(1), 4, 3);
    assert!(!there.begins);
    let last = (3..100).map(|tick| ask(&with(1), tick * 2, 1).pods).last();
    assert_eq!(last, Some(0), "no traffic");
    assert_eq!(ask(&with(2), 200, 0).pods, 3, "the next revision");

    let memory = crate::Memory {
        peer: Some(crate::memory::Peer::Kpa(Box::new(KpaState {
            initialised: 2,
            ..KpaState::default()
        }))),
        ..crate::Memory::default()
    };
    let Some(crate::memory::Peer::Kpa(mut kept)) = memory.learned().peer else {
        panic!("it is forgotten");
    };
    assert_eq!(look(&with(2), (0, 10), &mut kept, &seen(300, 0)).pods, 0);
}
