//! What the platform holds in memory with many functions and a lag.
use std::time::{Duration, Instant};

use imageflow_eventlog::{EventLog, TopicSpec};
use imageflow_tests::Platform;
use imageflow_types::topics;
use serde_json::Value;

use crate::{World, beside, figure, name, work};

fn rss(pid: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|l| l.starts_with("VmRSS")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1024.0
}

/// 1,000 functions, 50 of them with a pod each and 2,000 events. The topics of those are of the usual size, the others have one
/// partition, as `--kafka-work-partitions 1` makes them.
pub async fn memory(world: &World, platform: &Platform) {
    const ACTIVE: usize = 50;
    const LAGGING: usize = 100_000;
    let begun = Instant::now();
    let topic = |n: usize| {
        let partitions = if n < ACTIVE { topics::WORK_PARTITIONS } else { 1 };
        TopicSpec::new(topics::work(&name(&format!("many-{n}"))), partitions)
    };
    let specs: Vec<TopicSpec> = (0..1000).map(topic).collect();
    for some in specs.chunks(50) {
        world.log.ensure_topics(some).await.unwrap();
    }
    beside("topics of 1,000 functions", begun.elapsed().as_secs_f64(), "s");
    let begun = Instant::now();
    for first in (0..1000).step_by(20) {
        let yaml: String = (first..first + 20)
            .map(|n| {
                let scale = if n < ACTIVE { "{ min: 1, max: 1 }" } else { "{ max: 1 }" };
                format!("apiVersion: imageflow.dev/v1alpha1\nkind: Function\nmetadata: {{ name: many-{n} }}\nspec: {{ operation: noop, scale: {scale} }}\n---\n")
            })
            .collect();
        platform.api.apply(&yaml).await;
    }
    beside("1,000 functions applied", begun.elapsed().as_secs_f64(), "s");
    let last = name(&format!("many-{}", ACTIVE - 1));
    let ready = |v: &Value| v["status"]["pods"]["ready"].as_u64() >= Some(1);
    platform.api.until(&format!("/v1/functions/{last}"), ready).await;
    tokio::time::sleep(Duration::from_secs(10)).await;
    beside("resident memory, 1,000 functions, idle", rss(platform.pid()), "MB");
    let functions: Vec<_> = (0..ACTIVE).map(|n| name(&format!("many-{n}"))).collect();
    let steps = (0..LAGGING).map(|n| work(&functions[n % ACTIVE], &format!("{n}")).1);
    world.fill(steps.collect()).await;
    let (mut peak, begun) = (0_f64, Instant::now());
    while begun.elapsed() < Duration::from_secs(30) {
        peak = peak.max(rss(platform.pid()));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    figure(
        "resident memory at most, 1,000 functions (950 of 1 partition), 50 active, 100,000 lagging events",
        peak,
        "MB",
        "<= 150",
        peak <= 150.0,
    );
}
