//! `cargo xtask bench platform`: one JSON line a figure. Each figure stands beside its floor, measured in the same run.
#![expect(clippy::unwrap_used, reason = "a bench that cannot measure has nothing to say")]

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use http::Method;
use imageflow_eventlog::{
    ConsumerConfig, ConsumerEvent, Embedded, EmbeddedConfig, EventLog, NewRecord, OffsetCommit, TopicSpec, Topics,
    Transaction,
};
use imageflow_objects::PutOptions;
use imageflow_tests::platform::binary;
use imageflow_tests::{Platform, decisions, pictures};
use serde_json::{Value, json};

const COLD: usize = 40;
const WARM: usize = 100;
/// Events of one round.
const EVENTS: usize = 5_000;
/// Rounds: the median is told.
const ROUNDS: usize = 3;

fn figure(name: &str, value: f64, unit: &str, goal: &str, met: bool) {
    let value = (value * 100.0).round() / 100.0;
    println!(
        "{}",
        json!({"figure": name, "value": value, "unit": unit, "goal": goal, "met": met})
    );
}

fn percentile(samples: &mut [f64], p: f64) -> f64 {
    samples.sort_by(f64::total_cmp);
    samples[((samples.len() - 1) as f64 * p).round() as usize]
}

fn functions(prefix: &str, count: usize, operation: &str, scale: &str) -> String {
    (0..count)
        .map(|n| {
            format!("apiVersion: imageflow.dev/v1alpha1\nkind: Function\nmetadata: {{ name: {prefix}-{n} }}\nspec: {{ operation: {operation}, scale: {scale} }}\n---\n")
        })
        .collect()
}

/// The bare program: from spawn until its port answers a request.
fn floor() -> Vec<f64> {
    (0..COLD)
        .map(|_| {
            let port = std::net::TcpListener::bind("127.0.0.1:0")
                .unwrap()
                .local_addr()
                .unwrap()
                .port();
            let begun = Instant::now();
            let mut child = Command::new(binary())
                .arg("pod")
                .env_clear()
                .env("PORT", port.to_string())
                .env("IMAGEFLOW_BIND", "127.0.0.1")
                .env("IMAGEFLOW_FUNCTION", "floor")
                .env("IMAGEFLOW_REVISION", "floor-00001")
                .env("IMAGEFLOW_OPERATION", "resize")
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            let answer = loop {
                use std::io::{Read, Write};
                if let Ok(mut stream) = std::net::TcpStream::connect(("127.0.0.1", port)) {
                    stream.write_all(b"GET /healthz/ready HTTP/1.0\r\n\r\n").unwrap();
                    let mut answer = [0; 12];
                    stream.read_exact(&mut answer).unwrap();
                    break answer;
                }
            };
            let took = begun.elapsed().as_secs_f64() * 1000.0;
            assert!(answer.ends_with(b"200"), "{}", String::from_utf8_lossy(&answer));
            child.kill().unwrap();
            child.wait().unwrap();
            took
        })
        .collect()
}

async fn cold_start(platform: &Platform) {
    let mut floor = floor();
    platform
        .api
        .apply(&functions("cold", COLD, "resize", "{ keepWarm: { min: 1s, max: 1s } }"))
        .await;
    let mut cold = Vec::new();
    for n in 0..COLD {
        let picture = pictures::png(64, 48, n as u32);
        let path = format!("/v1/functions/cold-{n}/invoke?width=16");
        let begun = Instant::now();
        let answer = platform
            .api
            .send(Method::POST, &path, &[("content-type", "image/png")], picture)
            .await;
        cold.push(begun.elapsed().as_secs_f64() * 1000.0);
        assert_eq!(answer.status(), 200, "{}", String::from_utf8_lossy(answer.body()));
        assert_eq!(answer.headers()["imageflow-cold-start"], "true");
    }
    let (p50, p95) = (percentile(&mut cold, 0.5), percentile(&mut cold, 0.95));
    let floor = percentile(&mut floor, 0.5);
    figure("cold start p50", p50, "ms", "<= 40", p50 <= 40.0);
    figure("cold start p95", p95, "ms", "<= 80", p95 <= 80.0);
    figure(
        "cold start floor p50 (bare program until its port answers)",
        floor,
        "ms",
        "none",
        true,
    );
    figure("cold start p50 / floor", p50 / floor, "ratio", "none", true);
}

const WARM_RESOURCES: &str = r"
apiVersion: imageflow.dev/v1alpha1
kind: Function
metadata: { name: warm }
spec: { operation: resize, params: { width: 16 }, scale: { min: 1 } }
---
apiVersion: imageflow.dev/v1alpha1
kind: Function
metadata: { name: nothing }
spec: { operation: noop, scale: { min: 1, max: 2 }, concurrency: { target: 16, limit: 32 } }
---
apiVersion: imageflow.dev/v1alpha1
kind: Trigger
metadata: { name: on-put }
spec: { filters: [ { prefix: { subject: raw-images/warm/ } } ], function: warm }
---
apiVersion: imageflow.dev/v1alpha1
kind: Trigger
metadata: { name: on-tick }
spec: { filters: [ { exact: { type: com.example.tick } } ], function: nothing }
";

async fn event_to_result(platform: &Platform) {
    let objects = platform.objects();
    let mut beyond = Vec::new();
    for n in 0..WARM {
        let body = pictures::png(64, 48, 10_000 + n as u32);
        let options = PutOptions {
            content_type: Some("image/png".into()),
            ..PutOptions::default()
        };
        let key = format!("warm/{n}.png");
        let begun = Instant::now();
        let info = objects.put("raw-images", &key, body.into(), options).await.unwrap();
        let run = imageflow_types::RunId::derive(&["trigger", "on-put", "raw-images", &key, &info.etag]);
        let path = format!("/v1/runs/{run}?watch=true&wait=60");
        let answer = platform.api.send(Method::GET, &path, &[], "").await;
        let text = String::from_utf8_lossy(answer.body()).into_owned();
        let state = serde_json::from_str::<Value>(text.lines().last().unwrap()).unwrap();
        let took = begun.elapsed().as_secs_f64() * 1000.0;
        assert_eq!(state["status"], "succeeded", "{state}");
        beyond.push(took - state["steps"][0]["serviceMs"].as_f64().unwrap_or(0.0));
    }
    let p50 = percentile(&mut beyond, 0.5);
    figure(
        "event to stored result beyond the operation p50",
        p50,
        "ms",
        "<= 15",
        p50 <= 15.0,
    );
}

/// A loop that only reads and writes the log: each event is read once and answered by one record, in transactions.
async fn log_loop(dir: &Path) -> f64 {
    let log = Embedded::open(EmbeddedConfig::new(dir)).await.unwrap();
    log.ensure_topics(&[TopicSpec::new("in", 12), TopicSpec::new("out", 12)])
        .await
        .unwrap();
    let begun = Instant::now();
    let writer = log.clone();
    let write = tokio::spawn(async move {
        for batch in 0..EVENTS / 500 {
            let records = (0..500)
                .map(|n| NewRecord::new("in").key(format!("{batch}-{n}")).value(vec![0_u8; 200]))
                .collect();
            writer.produce(records).await.unwrap();
        }
    });
    let mut consumer = log
        .consumer(ConsumerConfig::new("g", "m", Topics::one("in")))
        .await
        .unwrap();
    let mut producer = log.transactional("t").await.unwrap();
    let mut read = 0;
    while read < EVENTS {
        for event in consumer.poll(500).await.unwrap() {
            let ConsumerEvent::Records(records) = event else {
                continue;
            };
            read += records.len();
            let mut next = std::collections::HashMap::new();
            for record in &records {
                next.insert(record.partition, record.offset + 1);
            }
            let offsets = next.into_iter().map(|(p, o)| OffsetCommit::new("in", p, o)).collect();
            let answers = records
                .iter()
                .map(|r| {
                    NewRecord::new("out")
                        .key(r.key.clone().unwrap())
                        .value(r.value.clone().unwrap())
                })
                .collect();
            let transaction = Transaction {
                records: answers,
                offsets,
                group: "g".into(),
                member: "m".into(),
            };
            producer.commit(transaction).await.unwrap();
        }
    }
    write.await.unwrap();
    EVENTS as f64 / begun.elapsed().as_secs_f64()
}

/// Runs that succeeded so far, by the platform's own count: to list thousands of them would cost more than they did.
async fn succeeded(platform: &Platform) -> f64 {
    platform
        .api
        .metric("imageflow_flow_runs_total", &["status=\"succeeded\""])
        .await
}

/// Seconds of CPU and context switches so far of the platform, of the pods of `nothing`, and of this program.
async fn used(platform: &Platform) -> [(f64, f64); 3] {
    let value = platform.api.get("/v1/functions/nothing").await;
    let pods = value["status"]["podList"].as_array().cloned().unwrap_or_default();
    let of = |pid: u32| (process(pid).1, switches(pid));
    let pods = pods.iter().filter_map(|p| u32::try_from(p["pid"].as_u64()?).ok());
    let pods = pods.map(of).fold((0.0, 0.0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
    [of(platform.pid()), pods, of(std::process::id())]
}

/// Context switches so far of the threads that a process has.
fn switches(pid: u32) -> f64 {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let status = threads.filter_map(|thread| std::fs::read_to_string(thread.ok()?.path().join("status")).ok());
    status
        .map(|text| {
            let counts = text.lines().filter(|l| l.contains("ctxt_switches"));
            let counts = counts.filter_map(|l| l.split_whitespace().nth(1)?.parse::<f64>().ok());
            counts.sum::<f64>()
        })
        .sum()
}

/// Sends a round of events in batches of 500 and waits until as many runs have succeeded. Events per second.
async fn ticks(platform: &Platform, round: usize) -> f64 {
    let headers = [("content-type", "application/cloudevents-batch+json")];
    let before = succeeded(platform).await;
    let begun = Instant::now();
    for batch in 0..EVENTS / 500 {
        let events: Vec<Value> = (0..500)
            .map(|n| json!({"specversion":"1.0","id":format!("{round}-{batch}-{n}"),"source":"urn:bench","type":"com.example.tick","data":{"n":n}}))
            .collect();
        let answer = platform
            .api
            .send(Method::POST, "/v1/events", &headers, json!(events).to_string())
            .await;
        assert_eq!(answer.status(), 202);
    }
    // To write all metrics out takes milliseconds of the platform's time, so it is not asked more often.
    while succeeded(platform).await < before + EVENTS as f64 {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    EVENTS as f64 / begun.elapsed().as_secs_f64()
}

async fn throughput(platform: &Platform) {
    // The first round brings pods and connections up.
    ticks(platform, 0).await;
    let (mut rates, mut bases) = (Vec::new(), Vec::new());
    let before = used(platform).await;
    for round in 1..=ROUNDS {
        rates.push(ticks(platform, round).await);
    }
    let after = used(platform).await;
    for _ in 0..ROUNDS {
        let dir = tempfile::tempdir().unwrap();
        bases.push(log_loop(dir.path()).await);
    }
    let (rate, base) = (percentile(&mut rates, 0.5), percentile(&mut bases, 0.5));
    figure(
        "no-op events per second through the platform",
        rate,
        "1/s",
        "none",
        true,
    );
    figure(
        "events per second of a loop that only reads and writes the log",
        base,
        "1/s",
        "none",
        true,
    );
    figure(
        "no-op events, share of the log loop",
        rate / base,
        "ratio",
        ">= 0.25",
        rate / base >= 0.25,
    );
    let thousands = (ROUNDS * EVENTS) as f64 / 1000.0;
    for (at, who) in ["the platform", "the pods", "this bench"].into_iter().enumerate() {
        let (cpu, switched) = (after[at].0 - before[at].0, after[at].1 - before[at].1);
        let name = format!("CPU of {who} per 1,000 no-op events");
        figure(&name, cpu / thousands * 1000.0, "ms", "none", true);
        let name = format!("context switches of {who} per no-op event");
        figure(&name, switched / thousands / 1000.0, "1", "none", true);
    }
}

/// Resident memory in MB and seconds of CPU so far, of a process, also of threads that have ended.
fn process(pid: u32) -> (f64, f64) {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let rss = status.lines().find(|l| l.starts_with("VmRSS")).unwrap();
    let kb: f64 = rss.split_whitespace().nth(1).unwrap().parse().unwrap();
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let ticks: f64 = fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap();
    (kb / 1024.0, ticks / 100.0)
}

async fn idle(count: usize, goal_rss: Option<f64>, goal_cpu: f64) {
    let dir = tempfile::tempdir().unwrap();
    let platform = Platform::start(dir.path(), &[]);
    for chunk in 0..count.div_ceil(1000) {
        let n = (count - chunk * 1000).min(1000);
        platform
            .api
            .apply(&functions(&format!("idle-{chunk}"), n, "resize", "{ max: 3 }"))
            .await;
    }
    // The kernel counts in ticks of 10 ms, so that 30 s tell a 30th of a percent.
    const SPAN: Duration = Duration::from_secs(30);
    // What applying left to do is over when two looks in a row cost nothing worth counting.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let (_, before) = process(platform.pid());
    tokio::time::sleep(SPAN).await;
    let (rss, after) = process(platform.pid());
    let share = (after - before) / SPAN.as_secs_f64() * 100.0;
    if let Some(goal) = goal_rss {
        figure(
            &format!("resident memory idle with {count} functions at zero"),
            rss,
            "MB",
            &format!("<= {goal}"),
            rss <= goal,
        );
    }
    figure(
        &format!("CPU idle with {count} functions at zero"),
        share,
        "% of a core",
        &format!("<= {goal_cpu}"),
        share <= goal_cpu,
    );
    platform.stop();
}

/// All parts, or those that are named: `cold-start`, `decision`, `latency`, `throughput`, `idle`.
#[tokio::main]
async fn main() {
    let named: Vec<String> = std::env::args().skip(1).collect();
    let wanted = |part: &str| named.is_empty() || named.iter().any(|n| n == part);
    let dir = tempfile::tempdir().unwrap();
    let platform = Platform::start(dir.path(), &[]);
    if wanted("cold-start") {
        cold_start(&platform).await;
    }
    if wanted("decision") {
        decisions::from_zero(&platform.api, "embedded").await;
    }
    platform.api.apply(WARM_RESOURCES).await;
    for function in ["warm", "nothing"] {
        let path = format!("/v1/functions/{function}");
        let ready = |v: &Value| v["status"]["pods"]["ready"].as_u64() >= Some(1);
        platform.api.until(&path, ready).await;
    }
    if wanted("latency") {
        event_to_result(&platform).await;
    }
    if wanted("throughput") {
        throughput(&platform).await;
    }
    platform.stop();
    if wanted("idle") {
        idle(20, Some(80.0), 1.0).await;
        idle(5_000, None, 2.0).await;
    }
}
