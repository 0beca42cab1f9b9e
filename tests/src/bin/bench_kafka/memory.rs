//! What a dispatcher holds in memory with many functions and a lag.
use std::time::{Duration, Instant};

use imageflow_eventlog::{EventLog, TopicSpec};
use imageflow_tests::roles::Roles;
use imageflow_types::topics;

use crate::{World, beside, figure, name, work};

fn rss(pid: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|l| l.starts_with("VmRSS")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1024.0
}

/// 1,000 functions, 50 of them with a pod each and 2,000 events. The topics of those are of the usual size, the others have one
/// partition, as `--kafka-work-partitions 1` makes them. Each role is a process of its own.
pub async fn memory(world: &World) {
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
    let folder = tempfile::tempdir().unwrap();
    let mut roles = Roles::new(&world.servers, folder.path());
    let (pods, autoscaler) = (roles.pods(), roles.autoscaler());
    let (gateway, api) = roles.gateway("gateway-1", "127.0.0.1:0");
    let (router, dispatcher) = (roles.router("router-1"), roles.dispatcher("dispatcher-1"));
    let others = [&pods, &autoscaler, &gateway, &router].map(|role| role.pid());
    let whole = || rss(dispatcher.pid()) + others.iter().map(|pid| rss(*pid)).sum::<f64>();
    let begun = Instant::now();
    let function = |n: usize, scale: &str| {
        format!(
            "apiVersion: imageflow.dev/v1alpha1\nkind: Function\nmetadata: {{ name: many-{n} }}\nspec: {{ operation: noop, scale: {scale} }}\n---\n"
        )
    };
    // Without pods until the events are there, or most were done before the last came.
    for first in (0..1000).step_by(100) {
        let yaml: String = (first..first + 100)
            .map(|n| function(n, if n < ACTIVE { "{ replicas: 0 }" } else { "{ max: 1 }" }))
            .collect();
        api.apply(&yaml).await;
    }
    beside("1,000 functions applied", begun.elapsed().as_secs_f64(), "s");
    tokio::time::sleep(Duration::from_secs(10)).await;
    beside(
        "resident memory of a dispatcher, 1,000 functions, idle",
        rss(dispatcher.pid()),
        "MB",
    );
    beside(
        "resident memory of gateway, router, dispatcher, autoscaler and pods, idle",
        whole(),
        "MB",
    );
    let functions: Vec<_> = (0..ACTIVE).map(|n| name(&format!("many-{n}"))).collect();
    let begun = Instant::now();
    // One function after the other: a batch of writes is for few partitions.
    let steps = (0..LAGGING).map(|n| work(&functions[n / (LAGGING / ACTIVE)], &format!("{n}")).1);
    world.fill(steps.collect()).await;
    beside("100,000 events written", begun.elapsed().as_secs_f64(), "s");
    beside(
        "resident memory of a dispatcher, 100,000 events and no pod",
        rss(dispatcher.pid()),
        "MB",
    );
    let active: String = (0..ACTIVE).map(|n| function(n, "{ min: 1, max: 1 }")).collect();
    api.apply(&active).await;
    let (mut peak, mut whole_peak, begun) = (0_f64, 0_f64, Instant::now());
    while begun.elapsed() < Duration::from_secs(30) {
        (peak, whole_peak) = (peak.max(rss(dispatcher.pid())), whole_peak.max(whole()));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let mut left = 0;
    for function in &functions {
        let topic = topics::work(function);
        left += world.log.lag(topics::GROUP_DISPATCHER, &topic).await.unwrap();
    }
    beside("events that still lag then", left as f64, "1");
    beside(
        "resident memory of gateway, router, dispatcher, autoscaler and pods at most",
        whole_peak,
        "MB",
    );
    figure(
        "resident memory of a dispatcher at most, 1,000 functions (950 of 1 partition), 50 active, 100,000 lagging events",
        peak,
        "MB",
        "<= 150",
        peak <= 150.0,
    );
    for role in [gateway, router, dispatcher, autoscaler, pods] {
        role.stop();
    }
}
