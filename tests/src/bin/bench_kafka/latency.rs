//! From work record to pod call when there is nothing else to do, beside a loop that only writes and reads.
use std::time::Duration;

use imageflow_eventlog::{Consumer, ConsumerEvent, EventLog, FollowEvent, Follower, NewRecord, Start};
use imageflow_types::{RunEvent, RunId, topics};

use crate::{EVENT_BYTES, LOOP_IN, PATIENCE, World, beside, figure, name, now_us, percentile, work};

/// Calls one at a time.
const LOW: usize = 200;
/// Calls before, which open connections.
const WARM_UP: usize = 20;

/// The results of steps as they become durable.
pub struct Results(Box<dyn Follower>);

impl Results {
    pub async fn follow(world: &World) -> Self {
        let follower = world.log.follow(topics::RUN_EVENTS, Start::Latest).await.unwrap();
        let mut results = Self(follower);
        while !matches!(results.0.next().await.unwrap(), FollowEvent::CaughtUp) {}
        results
    }

    /// The runs whose step ended, and when (µs since 1970) the pod was called for it.
    pub async fn next(&mut self) -> Vec<(RunId, i64)> {
        let next = tokio::time::timeout(PATIENCE, self.0.next()).await;
        let FollowEvent::Records(records) = next.unwrap().unwrap() else {
            return Vec::new();
        };
        let events = records
            .iter()
            .filter_map(|r| serde_json::from_slice::<RunEvent>(r.value.as_ref()?).ok());
        events
            .filter_map(|event| match event {
                RunEvent::StageCompleted { run, result, .. } => Some((run, result.data["us"].as_i64()?)),
                RunEvent::StageFailed { run, error, .. } => panic!("{run} failed: {error:?}"),
                _ => None,
            })
            .collect()
    }
}

/// One record of a loop that only writes and reads: milliseconds from before it is written until it is read.
async fn bare(world: &World, consumer: &mut dyn Consumer, n: usize) -> f64 {
    let record = NewRecord::new(LOOP_IN)
        .key(format!("low-{n}"))
        .value(vec![b'x'; EVENT_BYTES]);
    let begun = now_us();
    let read = async {
        loop {
            let events = consumer.poll(1).await.unwrap();
            if events.iter().any(|e| matches!(e, ConsumerEvent::Records(_))) {
                return now_us();
            }
        }
    };
    let (written, read) = tokio::join!(world.log.produce(vec![record]), read);
    written.unwrap();
    (read - begun) as f64 / 1000.0
}

/// Between two calls, so that they meet no timer always at the same point.
async fn pause(n: usize) {
    tokio::time::sleep(Duration::from_millis(5 + (n as u64 * 7) % 20)).await;
}

/// The loop and the platform by turns.
pub async fn latency(world: &World) {
    let (_, mut consumer) = world.joined(LOOP_IN, topics::WORK_PARTITIONS as usize).await;
    let function = name("called");
    let mut results = Results::follow(world).await;
    let (mut read, mut called, mut ended) = (Vec::new(), Vec::new(), Vec::new());
    for n in 0..WARM_UP + LOW {
        let bare = bare(world, consumer.as_mut(), n).await;
        pause(n).await;
        let (run, record) = work(&function, &format!("low-{n}"));
        let begun = now_us();
        world.log.produce(vec![record]).await.unwrap();
        let at = loop {
            if let Some((_, at)) = results.next().await.into_iter().find(|(r, _)| *r == run) {
                break at;
            }
        };
        if n >= WARM_UP {
            read.push(bare);
            called.push((at - begun) as f64 / 1000.0);
            ended.push((now_us() - begun) as f64 / 1000.0);
        }
        pause(n).await;
    }
    consumer.close().await.unwrap();
    for (label, p, goal) in [("p50", 0.5, 5.0), ("p99", 0.99, 25.0)] {
        let (bare, called) = (percentile(&mut read, p), percentile(&mut called, p));
        let what = format!("bare loop, one at a time: produce to poll {label}");
        beside(&what, bare, "ms");
        let what = format!("work record to pod call, one at a time {label}");
        beside(&what, called, "ms");
        let over = called - bare;
        let what = format!("work record to pod call over the bare loop {label}");
        figure(&what, over, "ms", &format!("<= {goal}"), over <= goal);
        let what = format!("work record to result read again {label}");
        beside(&what, percentile(&mut ended, p), "ms");
    }
}
