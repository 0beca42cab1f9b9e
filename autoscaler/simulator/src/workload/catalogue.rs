//! The loads on which policies are compared.
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, Exp, LogNormal, Pareto, Zipf};

use super::{Function, Kind, Ms, Request, Workload, chance};

const MINUTE: Ms = 60_000;
const HOUR: Ms = 60 * MINUTE;

/// All loads, from a seed.
#[must_use]
pub fn all(seed: u64) -> Vec<Workload> {
    vec![
        steady(seed),
        diurnal(seed),
        burst(seed),
        periodic(seed),
        heavy_tail(seed),
        on_off(seed),
        rare(seed),
        gpu(seed),
        poison(seed),
        stuck(seed),
        blind(seed),
        flow(seed),
    ]
}

/// A trickle, then suddenly work for 50 pods: 100 records a second of a second each.
#[must_use]
pub fn ramp() -> Workload {
    let mut load = Workload::new("ramp", "from 1 pod to 50", 2 * MINUTE, vec![batch()]);
    load.requests.extend((0..6_000).map(|i| request(i * 10, 0, 1_000)));
    load.sorted()
}

fn batch() -> Function {
    Function {
        kind: Kind::Batch,
        patience: 10_000,
        ..Function::default()
    }
}

/// Arrivals of a Poisson process whose rate per second changes with time, by thinning.
fn poisson(chance: &mut ChaCha8Rng, from: Ms, to: Ms, most: f64, rate: impl Fn(Ms) -> f64) -> Vec<Ms> {
    let mut times = Vec::new();
    let Ok(gaps) = Exp::new(most / 1_000.0) else {
        return times;
    };
    let mut at = from as f64;
    loop {
        at += gaps.sample(chance);
        if at >= to as f64 {
            return times;
        }
        if chance.random::<f64>() * most < rate(at as Ms) {
            times.push(at as Ms);
        }
    }
}

/// Service times around a median, ms.
fn service(chance: &mut ChaCha8Rng, median: f64, sigma: f64) -> Ms {
    LogNormal::new(median.ln(), sigma).map_or(1, |law| law.sample(chance).clamp(1.0, 600_000.0) as Ms)
}

fn request(at: Ms, function: u32, service: Ms) -> Request {
    Request {
        at,
        function,
        service,
        partition: 0,
        fails: 0,
        next: None,
    }
}

fn steady(seed: u64) -> Workload {
    let mut chance = chance(seed, "steady");
    let about = "HTTP, 20 requests a second for an hour, 100 ms each";
    let mut load = Workload::new("steady", about, HOUR + 15 * MINUTE, vec![Function::default()]);
    for at in poisson(&mut chance, 0, HOUR, 20.0, |_| 20.0) {
        load.requests.push(request(at, 0, service(&mut chance, 100.0, 0.3)));
    }
    load.sorted()
}

fn diurnal(seed: u64) -> Workload {
    let mut chance = chance(seed, "diurnal");
    let about = "HTTP, 1 to 40 requests a second and back in each half hour, 100 ms each";
    let mut load = Workload::new("diurnal", about, HOUR + 45 * MINUTE, vec![Function::default()]);
    let rate = |at: Ms| 20.5 - 19.5 * (at as f64 / (30 * MINUTE) as f64 * std::f64::consts::TAU).cos();
    for at in poisson(&mut chance, 0, 90 * MINUTE, 40.0, rate) {
        load.requests.push(request(at, 0, service(&mut chance, 100.0, 0.3)));
    }
    load.sorted()
}

fn burst(seed: u64) -> Workload {
    let mut chance = chance(seed, "burst");
    let about = "events, nothing, then 6,000 within a minute, every 20 minutes, 200 ms each";
    let mut load = Workload::new("burst", about, HOUR + 15 * MINUTE, vec![batch()]);
    for round in 0..3 {
        let from = MINUTE + round * 20 * MINUTE;
        for at in poisson(&mut chance, from, from + MINUTE, 100.0, |_| 100.0) {
            load.requests.push(request(at, 0, service(&mut chance, 200.0, 0.3)));
        }
    }
    load.sorted()
}

fn periodic(seed: u64) -> Workload {
    let mut chance = chance(seed, "periodic");
    let about = "HTTP, 20 callers at once every 5 minutes, as a cron job, 150 ms each";
    let mut load = Workload::new("periodic", about, 3 * HOUR, vec![Function::default()]);
    for round in 0..33 {
        for _ in 0..20 {
            let at = MINUTE + round * 5 * MINUTE + chance.random_range(0..500);
            load.requests.push(request(at, 0, service(&mut chance, 150.0, 0.2)));
        }
    }
    load.sorted()
}

fn heavy_tail(seed: u64) -> Workload {
    let mut chance = chance(seed, "heavy-tail");
    let about = "events, 10 a second, images of very different sizes: 60 ms and up, a Pareto tail of 1.5";
    let mut load = Workload::new("heavy-tail", about, HOUR + 15 * MINUTE, vec![batch()]);
    let times = poisson(&mut chance, 0, HOUR, 10.0, |_| 10.0);
    let Ok(sizes) = Pareto::<f64>::new(60.0, 1.5) else {
        return load;
    };
    for at in times {
        let service = sizes.sample(&mut chance).clamp(1.0, 60_000.0) as Ms;
        load.requests.push(request(at, 0, service));
    }
    load.sorted()
}

fn on_off(seed: u64) -> Workload {
    let mut chance = chance(seed, "on-off");
    let about = "HTTP, half a minute of 5 requests a second, then nothing for 5 to 40 minutes, 100 ms each";
    let mut load = Workload::new("on-off", about, 6 * HOUR, vec![Function::default()]);
    let mut from = MINUTE;
    while from < 6 * HOUR - 16 * MINUTE {
        for at in poisson(&mut chance, from, from + MINUTE / 2, 5.0, |_| 5.0) {
            load.requests.push(request(at, 0, service(&mut chance, 100.0, 0.3)));
        }
        from += chance.random_range(5 * MINUTE..40 * MINUTE);
    }
    load.sorted()
}

fn rare(seed: u64) -> Workload {
    const FUNCTIONS: u32 = 10_000;
    let mut chance = chance(seed, "rare");
    let about = "HTTP, 10,000 functions whose popularity follows Zipf's law, 20 requests a second in all, 100 ms each";
    let functions = vec![Function::default(); FUNCTIONS as usize];
    let mut load = Workload::new("rare", about, HOUR + 15 * MINUTE, functions);
    load.room = 20_000;
    load.partitions = 1;
    let Ok(popularity) = Zipf::new(f64::from(FUNCTIONS), 1.0) else {
        return load;
    };
    for at in poisson(&mut chance, 0, HOUR, 20.0, |_| 20.0) {
        let rank: f64 = popularity.sample(&mut chance);
        let function = (rank as u32).clamp(1, FUNCTIONS) - 1;
        load.requests
            .push(request(at, function, service(&mut chance, 100.0, 0.3)));
    }
    load.sorted()
}

fn gpu(seed: u64) -> Workload {
    let mut chance = chance(seed, "gpu");
    let about =
        "events, 8 GPU functions on 2 cards, each with 40 images of 250 ms at a time every few minutes, cold start 4 s";
    let function = Function {
        cards: 1,
        concurrency: 1,
        cold: (4_000.0, 0.2),
        patience: 60_000,
        ..batch()
    };
    let mut load = Workload::new("gpu", about, 2 * HOUR, vec![function; 8]);
    load.gpus = 2;
    for function in 0..8 {
        let mut at = chance.random_range(0..4 * MINUTE);
        while at < 2 * HOUR - 20 * MINUTE {
            for _ in 0..40 {
                load.requests.push(request(
                    at + chance.random_range(0..5_000),
                    function,
                    service(&mut chance, 250.0, 0.2),
                ));
            }
            at += chance.random_range(2 * MINUTE..6 * MINUTE);
        }
    }
    load.sorted()
}

fn poison(seed: u64) -> Workload {
    let mut chance = chance(seed, "poison");
    let about = "events, 5 a second of which one in three fails in each of 5 attempts, 200 ms each";
    let mut load = Workload::new("poison", about, HOUR, vec![batch()]);
    for at in poisson(&mut chance, 0, 40 * MINUTE, 5.0, |_| 5.0) {
        let fails = if chance.random_range(0..3) == 0 { u32::MAX } else { 0 };
        let one = request(at, 0, service(&mut chance, 200.0, 0.3));
        load.requests.push(Request { fails, ..one });
    }
    load.sorted()
}

fn stuck(seed: u64) -> Workload {
    let mut chance = chance(seed, "stuck");
    let about = "events, 10 a second; one of 8 partitions is not delivered from minute 5 to 25, 200 ms each";
    let mut load = Workload::new("stuck", about, HOUR, vec![batch()]);
    load.stuck = Some((5 * MINUTE, 25 * MINUTE));
    for at in poisson(&mut chance, 0, 40 * MINUTE, 10.0, |_| 10.0) {
        load.requests.push(request(at, 0, service(&mut chance, 200.0, 0.3)));
    }
    load.sorted()
}

fn blind(seed: u64) -> Workload {
    let mut chance = chance(seed, "blind");
    let about = "events, 10 a second and 60 for a minute of each ten; nothing is known of the backlog for one minute of each four";
    let mut load = Workload::new("blind", about, HOUR, vec![batch()]);
    load.blind = (0..10)
        .map(|n| (n * 4 * MINUTE + 3 * MINUTE, (n + 1) * 4 * MINUTE))
        .collect();
    let rate = |at: Ms| if at % (10 * MINUTE) < MINUTE { 60.0 } else { 10.0 };
    for at in poisson(&mut chance, 0, 40 * MINUTE, 60.0, rate) {
        load.requests.push(request(at, 0, service(&mut chance, 200.0, 0.3)));
    }
    load.sorted()
}

fn flow(seed: u64) -> Workload {
    let mut chance = chance(seed, "flow");
    let about = "HTTP, a flow of two steps, 3 s on a CPU and then 800 ms on a card whose pod takes 4 s to start; 3 images each 5 to 30 minutes";
    let first = Function {
        concurrency: 1,
        ..Function::default()
    };
    let second = Function {
        cards: 1,
        concurrency: 1,
        cold: (4_000.0, 0.2),
        ..Function::default()
    };
    let mut load = Workload::new("flow", about, 8 * HOUR, vec![first, second]);
    load.gpus = 2;
    let mut at = MINUTE;
    while at < 8 * HOUR - 20 * MINUTE {
        for _ in 0..3 {
            let service = service(&mut chance, 3_000.0, 0.2);
            load.requests
                .push(request(at + chance.random_range(0..20_000), 0, service));
        }
        at += chance.random_range(5 * MINUTE..30 * MINUTE);
    }
    load.sorted().followed(1, |_| service(&mut chance, 800.0, 0.2))
}
