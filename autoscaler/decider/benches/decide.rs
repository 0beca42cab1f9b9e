//! `cargo bench -p imageflow-decider`: one look at 10 to 10,000 busy functions, all that a tick of the loop decides. The time must
//! grow with their number and not faster.
use std::hint::black_box;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use imageflow_decider::{Memory, Observation, PolicyConfig, decide};

/// Looks before the one that is measured, one a second: means, pauses and patience have something in them then.
const LOOKS: i64 = 120;

/// What is seen of a busy function at a second.
fn look(function: u32, second: i64) -> Observation {
    let phase = u64::from(function) + second.unsigned_abs();
    Observation {
        now_ms: second * 1_000,
        ready: 3,
        held: (phase % 3) as u32,
        in_flight: 4 + (phase % 5) as u32,
        backlog: Some(phase % 200),
        oldest_ms: Some(phase % 5_000),
        completed: 20 + phase % 7,
        service_ms_sum: (20 + phase % 7) * 100,
        calls: phase % 9,
        ..Observation::default()
    }
}

fn remembering(config: &PolicyConfig, function: u32) -> Memory {
    let looks = (0..LOOKS).map(|second| look(function, second));
    looks.fold(Memory::default(), |memory, seen| decide(config, &memory, &seen).0)
}

fn benches(c: &mut Criterion) {
    let config = PolicyConfig::default();
    let mut group = c.benchmark_group("decide");
    for functions in [10_u32, 100, 1_000, 10_000] {
        let memories: Vec<Memory> = (0..functions).map(|f| remembering(&config, f)).collect();
        group.throughput(Throughput::Elements(u64::from(functions)));
        group.bench_function(BenchmarkId::from_parameter(functions), |b| {
            b.iter_batched_ref(
                || memories.clone(),
                |memories| {
                    for (function, memory) in (0..functions).zip(memories) {
                        let (next, decision) = decide(&config, memory, &look(function, LOOKS));
                        *memory = next;
                        black_box(decision.desired);
                    }
                },
                BatchSize::LargeInput,
            );
        });
    }
    group.finish();
}

criterion_group!(decide_all, benches);
criterion_main!(decide_all);
