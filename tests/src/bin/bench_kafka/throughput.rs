//! Work and events per second beside bare loops, and the CPU that they take.
use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use http::Method;
use imageflow_eventlog::{ConsumerEvent, EventLog, NewRecord, OffsetCommit, Record, Transaction};
use imageflow_tests::roles::Roles;
use imageflow_tests::{Api, Platform};
use imageflow_types::work::StepResult;
use imageflow_types::{FunctionName, RunEvent, RunId, StepName, topics};
use serde_json::{Value, json};

use crate::{
    EVENT_BYTES, LOOP_IN, LOOP_OUT, PATIENCE, ROUNDS, World, apply, beside, figure, median, name, now_us, percentile,
    work,
};

/// Events of one round of the loops and of the dispatcher: of seconds, for the last commit of a round is waited for.
const COUNT: usize = 60_000;
/// Events of one round through the whole platform.
const WHOLE: usize = 10_000;

/// What the dispatcher answers one step with: the loops write as much.
fn answer() -> Vec<u8> {
    let result = StepResult {
        output: None,
        data: Value::Null,
        service_ms: 0.012_345,
        step_ms: BTreeMap::from([(StepName::new("only").unwrap(), 0.012_345)]),
        cold: false,
        reused: false,
    };
    let event = RunEvent::StageCompleted {
        run: RunId::derive(&["bench"]),
        stage: 0,
        result,
        at_ms: now_us() / 1000,
    };
    serde_json::to_vec(&event).unwrap()
}

/// Events per second of a loop that reads each event once and answers it with a record. With `transactions` answers and
/// offsets are written together; without, each batch is written and what is written is committed as lazily as the
/// dispatcher does.
pub async fn bare_loop(world: &World, count: usize, transactions: bool) -> f64 {
    let (group, mut consumer) = world.joined(LOOP_IN, topics::WORK_PARTITIONS as usize).await;
    let mut producer = if transactions {
        Some(world.log.transactional(&group).await.unwrap())
    } else {
        None
    };
    let events = (0..count)
        .map(|n| {
            NewRecord::new(LOOP_IN)
                .key(format!("{n}"))
                .value(vec![b'x'; EVENT_BYTES])
        })
        .collect();
    let said = bytes::Bytes::from(answer());
    let begun = Instant::now();
    let read = async {
        let (mut read, mut next, mut committed) = (0, HashMap::new(), Instant::now());
        let offsets = |next: &mut HashMap<u32, i64>| -> Vec<OffsetCommit> {
            next.drain().map(|(p, o)| OffsetCommit::new(LOOP_IN, p, o)).collect()
        };
        while read < count {
            let mut answers = Vec::new();
            for event in consumer.poll(500).await.unwrap() {
                let ConsumerEvent::Records(records) = event else {
                    continue;
                };
                for record in records {
                    next.insert(record.partition, record.offset + 1);
                    answers.push(NewRecord::new(LOOP_OUT).key(record.key.unwrap()).value(said.clone()));
                }
            }
            read += answers.len();
            if let Some(producer) = &mut producer {
                let transaction = Transaction {
                    records: answers,
                    offsets: offsets(&mut next),
                    group: group.clone(),
                    member: "loop".to_owned(),
                };
                producer.commit(transaction).await.unwrap();
                continue;
            }
            world.log.produce(answers).await.unwrap();
            if read >= count || committed.elapsed() > Duration::from_millis(200) {
                consumer.commit(offsets(&mut next)).await.unwrap();
                committed = Instant::now();
            }
        }
    };
    tokio::join!(world.fill(events), read);
    let rate = count as f64 / begun.elapsed().as_secs_f64();
    consumer.close().await.unwrap();
    rate
}

/// Seconds of CPU of a process, also of its threads that have ended.
fn cpu(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let Some((_, rest)) = stat.rsplit_once(')') else {
        return 0.0;
    };
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let ticks: f64 = fields[11..13].iter().map(|f| f.parse::<f64>().unwrap()).sum();
    ticks / 100.0
}

/// Seconds of CPU so far: of a process and of the pods of a function.
async fn used(api: &Api, pid: u32, function: &FunctionName) -> (f64, f64) {
    let value = api.get(&format!("/v1/functions/{function}")).await;
    let pods = value["status"]["podList"].as_array().cloned().unwrap_or_default();
    let pids = pods.iter().filter_map(|p| u32::try_from(p["pid"].as_u64()?).ok());
    (cpu(pid), pids.map(cpu).sum())
}

/// What one round took.
#[derive(Default)]
struct Round {
    rate: f64,
    platform_cpu: f64,
    pods_cpu: f64,
}

async fn ends(world: &World) -> Vec<(u32, i64)> {
    let marks = world.log.watermarks(topics::RUN_EVENTS).await.unwrap();
    marks.iter().map(|m| (m.partition, m.high)).collect()
}

/// Events per second of the dispatcher and its pod. `latency` takes the milliseconds from each work record's place in the
/// log to its result's.
async fn dispatched(
    world: &World,
    (api, pid): (&Api, u32),
    count: usize,
    round: usize,
    latency: Option<&mut Vec<f64>>,
) -> Round {
    let function = name("nothing");
    let steps = (0..count).map(|n| work(&function, &format!("{round}-{n}")).1).collect();
    let topic = topics::work(&function);
    let (work_ends, result_ends) = (world.log.watermarks(&topic).await.unwrap(), ends(world).await);
    let before = used(api, pid, &function).await;
    let begun = Instant::now();
    world.fill(steps).await;
    world.until_done(&function, begun).await;
    let took = begun.elapsed().as_secs_f64();
    let after = used(api, pid, &function).await;
    if let Some(latency) = latency {
        let mut written = HashMap::new();
        for mark in work_ends {
            for record in read_from(world, &topic, mark.partition, mark.high).await {
                written.insert(record.key.unwrap(), record.timestamp_ms);
            }
        }
        for (partition, from) in result_ends {
            for record in read_from(world, topics::RUN_EVENTS, partition, from).await {
                if let Some(at) = record.key.and_then(|key| written.get(&key).copied()) {
                    latency.push((record.timestamp_ms - at) as f64);
                }
            }
        }
    }
    Round {
        rate: count as f64 / took,
        platform_cpu: (after.0 - before.0) / count as f64 * 1000.0,
        pods_cpu: (after.1 - before.1) / count as f64 * 1000.0,
    }
}

async fn read_from(world: &World, topic: &str, partition: u32, mut from: i64) -> Vec<Record> {
    let mut all = Vec::new();
    loop {
        let some = world.log.read(topic, partition, from, 2000).await.unwrap();
        let Some(last) = some.last() else { return all };
        from = last.offset + 1;
        all.extend(some);
    }
}

/// Events per second from HTTP to runs that succeeded; the error says how far it came.
async fn through(world: &World, platform: &Platform, round: usize) -> Result<Round, String> {
    let function = name("nothing");
    let headers = [("content-type", "application/cloudevents-batch+json")];
    let succeeded = || {
        platform
            .api
            .metric("imageflow_flow_runs_total", &["status=\"succeeded\""])
    };
    let (runs, before, begun) = (
        succeeded().await,
        used(&platform.api, platform.pid(), &function).await,
        Instant::now(),
    );
    for batch in 0..WHOLE / 500 {
        let events: Vec<Value> = (0..500)
            .map(|n| json!({"specversion": "1.0", "id": format!("{round}-{batch}-{n}"), "source": "urn:bench", "type": "com.example.tick", "data": "x".repeat(EVENT_BYTES - 120)}))
            .collect();
        let body = json!(events).to_string();
        let answer = platform.api.send(Method::POST, "/v1/events", &headers, body).await;
        if answer.status() != 202 {
            let said = String::from_utf8_lossy(answer.body()).into_owned();
            return Err(format!("{}: {said}", answer.status()));
        }
    }
    loop {
        let done = succeeded().await - runs;
        if done >= WHOLE as f64 {
            break;
        }
        if begun.elapsed() > PATIENCE {
            return Err(format!("{done} of {WHOLE} runs succeeded in {PATIENCE:?}"));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let (took, after) = (
        begun.elapsed().as_secs_f64(),
        used(&platform.api, platform.pid(), &function).await,
    );
    world.until_done(&function, begun).await;
    Ok(Round {
        rate: WHOLE as f64 / took,
        platform_cpu: (after.0 - before.0) / WHOLE as f64 * 1000.0,
        pods_cpu: (after.1 - before.1) / WHOLE as f64 * 1000.0,
    })
}

fn of(rounds: &[Round], what: impl Fn(&Round) -> f64) -> f64 {
    median(&rounds.iter().map(what).collect::<Vec<_>>())
}

/// A dispatcher beside the loop: it alone reads the work, and nobody reads its reports.
pub async fn dispatcher(world: &World) {
    let folder = tempfile::tempdir().unwrap();
    let mut roles = Roles::new(&world.servers, folder.path());
    let (pods, autoscaler) = (roles.pods(), roles.autoscaler());
    let (gateway, api) = roles.gateway("gateway-1", "127.0.0.1:0");
    let dispatcher = roles.dispatcher("dispatcher-1");
    apply(&api).await;
    let at = (&api, dispatcher.pid());
    dispatched(world, at, COUNT / 4, 0, None).await;
    let (mut plain, mut work, mut latency) = (vec![], vec![], vec![]);
    for round in 1..=ROUNDS {
        let base = bare_loop(world, COUNT, false).await;
        let took = (round == ROUNDS).then_some(&mut latency);
        let through = dispatched(world, at, COUNT, round, took).await;
        eprintln!("round {round}: bare loop {base:.0}/s, work {:.0}/s", through.rate);
        plain.push(base);
        work.push(through);
    }
    for role in [dispatcher, gateway, autoscaler, pods] {
        role.stop();
    }
    let (base, rate) = (median(&plain), of(&work, |r| r.rate));
    beside("bare loop, produce then commit: 1 KB events per second", base, "1/s");
    beside(
        "work through a dispatcher and one pod: 1 KB steps per second",
        rate,
        "1/s",
    );
    let share = rate / base;
    figure(
        "work throughput, share of the bare loop (produce then commit)",
        share,
        "ratio",
        ">= 0.5",
        share >= 0.5,
    );
    let cpu = "s";
    beside(
        "CPU of the dispatcher per 1,000 steps",
        of(&work, |r| r.platform_cpu),
        cpu,
    );
    beside("CPU of the pod per 1,000 steps", of(&work, |r| r.pods_cpu), cpu);
    for (name, p) in [("p50", 0.5), ("p99", 0.99)] {
        let value = percentile(&mut latency, p);
        let what = format!("work record to result record in a burst of {COUNT} {name}, the wait in the queue included");
        beside(&what, value, "ms");
    }
}

/// All services in one process, beside the loop with transactions.
pub async fn whole(world: &World, platform: &Platform) {
    // The router reads first what dispatchers reported before it was there.
    world
        .until_read(topics::GROUP_ROUTER, topics::RUN_EVENTS, Instant::now())
        .await;
    let (mut transactional, mut rounds) = (vec![], vec![]);
    for round in 1..=ROUNDS {
        let both = bare_loop(world, COUNT, true).await;
        match through(world, platform, round).await {
            Ok(one) => {
                eprintln!(
                    "round {round}: bare loop with transactions {both:.0}/s, whole {:.0}/s",
                    one.rate
                );
                transactional.push(both);
                rounds.push(one);
            }
            Err(why) => {
                eprintln!("events through the whole platform: {why}");
                return;
            }
        }
    }
    let (both, rate) = (median(&transactional), of(&rounds, |r| r.rate));
    beside("bare loop, transactions: 1 KB events per second", both, "1/s");
    beside(
        "events through the whole platform, HTTP to run succeeded, per second",
        rate,
        "1/s",
    );
    beside(
        "the same, share of the bare loop with transactions",
        rate / both,
        "ratio",
    );
    let cpu = "s";
    beside(
        "CPU of the platform per 1,000 events, whole",
        of(&rounds, |r| r.platform_cpu),
        cpu,
    );
    beside(
        "CPU of the pod per 1,000 events, whole",
        of(&rounds, |r| r.pods_cpu),
        cpu,
    );
}
