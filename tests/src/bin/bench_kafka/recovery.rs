//! How long a platform that was killed takes until it works again.
use std::collections::HashSet;
use std::time::Instant;

use imageflow_eventlog::{EventLog, OffsetCommit, Transaction};
use imageflow_tests::Platform;
use imageflow_types::{RunId, topics};

use crate::latency::Results;
use crate::{ROUNDS, World, beside, figure, median, name, now_us, work};

/// Of 11,428 offsets the metadata says that every eighth is done until it is full: (7 not, 1 done) 1,428 times, in the
/// dispatcher's notation, base64 of pairs of LEB128. With 4 more at the end 10,000 are incomplete.
const PAIRS: usize = 1_428;
const INCOMPLETE: usize = 10_000;

/// Kills the platform, leaves work behind, starts it, and returns seconds from the start of the process until it said that
/// it is up and until its pod was called first. With `deep` the work is a partition of incomplete offsets, else one record.
async fn restart(world: &World, platform: Platform, round: &str, deep: bool) -> (Platform, f64, f64) {
    let function = name("called");
    let topic = topics::work(&function);
    platform.kill();
    let base = world.log.watermarks(&topic).await.unwrap()[0].high;
    let count = if deep { PAIRS + INCOMPLETE } else { 1 };
    let work: Vec<_> = (0..count)
        .map(|n| work(&function, &format!("restart-{round}-{n}")))
        .collect();
    let is_done = |n: usize| deep && n < PAIRS * 8 && n % 8 == 7;
    let runs = |done: bool| -> HashSet<RunId> {
        let some = work.iter().enumerate().filter(|(n, _)| is_done(*n) == done);
        some.map(|(_, (run, _))| run.clone()).collect()
    };
    let (mut left, done) = (runs(false), runs(true));
    for batch in work.chunks(500) {
        let records = batch.iter().map(|(_, r)| r.clone().partition(0)).collect();
        world.log.produce(records).await.unwrap();
    }
    if deep {
        assert_eq!(left.len(), INCOMPLETE);
        let metadata = format!("1:{}", "BwEHAQcB".repeat(PAIRS / 3));
        let mut producer = world.log.transactional("bench-recovery").await.unwrap();
        let commit = Transaction {
            offsets: vec![OffsetCommit::new(&topic, 0, base).metadata(metadata)],
            group: topics::GROUP_DISPATCHER.to_owned(),
            ..Transaction::default()
        };
        producer.commit(commit).await.unwrap();
    }
    let mut results = Results::follow(world).await;
    let begun = (now_us(), Instant::now());
    let platform = world.platform();
    let up = begun.1.elapsed().as_secs_f64();
    let mut first = i64::MAX;
    while !left.is_empty() {
        for (run, at) in results.next().await {
            assert!(!done.contains(&run), "{run} was done before and is done again");
            // What an earlier round had not committed yet may come once more.
            if left.remove(&run) {
                first = first.min(at);
            }
        }
    }
    world.until_done(&function, begun.1).await;
    (platform, up, (first - begun.0) as f64 / 1e6)
}

pub async fn recovery(world: &World, mut platform: Platform) -> Platform {
    let (mut one, mut deep, mut ups) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        for (is_deep, took) in [(false, &mut one), (true, &mut deep)] {
            let (next, up, first) = restart(world, platform, &format!("{round}-{is_deep}"), is_deep).await;
            platform = next;
            ups.push(up);
            took.push(first);
        }
    }
    beside(
        "restart after a kill until the platform says that it is up",
        median(&ups),
        "s",
    );
    beside(
        "restart after a kill until the pod is called, one record left",
        median(&one),
        "s",
    );
    let deep = median(&deep);
    figure(
        "restart after a kill until the pod is called, a partition with 10,000 incomplete offsets",
        deep,
        "s",
        "<= 1",
        deep <= 1.0,
    );
    beside("of that, more than with one record left", deep - median(&one), "s");
    platform
}
