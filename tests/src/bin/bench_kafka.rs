//! `cargo xtask bench kafka [PART...]`: one JSON line a figure, all of them on three real brokers that are started for it
//! (replication 3, acks=all), beside loops that only read and write there. Parts: `decision`, `throughput`, `latency`, `recovery`, and
//! `memory`, which is run when named only: it makes 6,000 partitions.
//!
//! The bare loops use `imageflow-eventlog`, which alone may link rdkafka: one consumer, one idempotent producer.
//! Run as `bench-kafka pod` it is the function whose calls are timed.
#![expect(clippy::unwrap_used, reason = "a bench that cannot measure has nothing to say")]

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use imageflow_eventlog::{
    Consumer, ConsumerConfig, ConsumerEvent, EventLog, Kafka, KafkaConfig, NewRecord, Start, TopicSpec, Topics,
};
use imageflow_tests::figures::{beside, figure, percentile};
use imageflow_tests::{Api, Platform, decisions, external};
use imageflow_types::work::{Input, OutputRef, StageStep};
use imageflow_types::{FunctionName, RevisionName, RunId, StepName, StepRequest, topics};
use serde_json::{Value, json};

#[path = "bench_kafka/latency.rs"]
mod latency;
#[path = "bench_kafka/memory.rs"]
mod memory;
#[path = "bench_kafka/recovery.rs"]
mod recovery;
#[path = "bench_kafka/throughput.rs"]
mod throughput;

/// Rounds, by turns: the median is told.
const ROUNDS: usize = 3;
/// Events of the loops that go before all else.
const WARM_UP: usize = 10_000;
const LOOP_IN: &str = "bench.in";
const LOOP_OUT: &str = "bench.out";
const EVENT_BYTES: usize = 1024;
/// Longest that a part may take before it is called off.
const PATIENCE: Duration = Duration::from_secs(180);

fn median(samples: &[f64]) -> f64 {
    percentile(&mut samples.to_vec(), 0.5)
}

/// Microseconds since 1970: the same clock for all processes of the machine.
fn now_us() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    i64::try_from(since.as_micros()).unwrap()
}

/// Servers, and a client of the brokers.
struct World {
    servers: external::World,
    log: Arc<Kafka>,
}

impl World {
    async fn start() -> Option<Self> {
        let servers = external::World::start().await?;
        let log = Kafka::open(KafkaConfig::new(servers.cluster.bootstrap())).await;
        Some(Self {
            servers,
            log: log.unwrap(),
        })
    }

    fn platform(&self) -> Platform {
        self.servers.platform(&[])
    }

    /// Writes records as fast as the brokers take them.
    async fn fill(&self, records: Vec<NewRecord>) {
        const WRITERS: usize = 4;
        let mut writers = tokio::task::JoinSet::new();
        let share = records.len().div_ceil(WRITERS).max(1);
        for part in records.chunks(share) {
            let (log, part) = (self.log.clone(), part.to_vec());
            writers.spawn(async move {
                for batch in part.chunks(500) {
                    log.produce(batch.to_vec()).await.unwrap();
                }
            });
        }
        while let Some(written) = writers.join_next().await {
            written.unwrap();
        }
    }

    async fn until_done(&self, function: &FunctionName, since: Instant) {
        self.until_read(topics::GROUP_DISPATCHER, &topics::work(function), since)
            .await;
    }

    /// Waits until a group has committed all of a topic.
    async fn until_read(&self, group: &str, topic: &str, since: Instant) {
        while self.log.lag(group, topic).await.unwrap() > 0 {
            if since.elapsed() > PATIENCE {
                let committed = self.log.committed(group, topic).await.unwrap();
                let marks = self.log.watermarks(topic).await.unwrap();
                panic!("{topic} is not worked off in {PATIENCE:?}: ends {marks:?}, committed {committed:?}");
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// A member of a group of its own that has all partitions of the topic.
    async fn joined(&self, topic: &str, partitions: usize) -> (String, Box<dyn Consumer>) {
        let group = format!("bench-{}", now_us());
        let config = ConsumerConfig {
            start: Start::Latest,
            ..ConsumerConfig::new(&group, "loop", Topics::one(topic))
        };
        let mut consumer = self.log.consumer(config).await.unwrap();
        let mut assigned = 0;
        while assigned < partitions {
            for event in consumer.poll(1).await.unwrap() {
                if let ConsumerEvent::Assigned(new) = event {
                    assigned += new.len();
                }
            }
        }
        // With no commit yet a member reads from the end, which is looked up when it is assigned.
        tokio::time::sleep(Duration::from_millis(500)).await;
        (group, consumer)
    }
}

fn name(text: &str) -> FunctionName {
    FunctionName::new(text).unwrap()
}

/// The record of a step as the router writes it, 1 KB of value, for a run that no router knows: its end is told and changes
/// nothing.
fn work(function: &FunctionName, cause: &str) -> (RunId, NewRecord) {
    let run = RunId::derive(&["bench", function.as_str(), cause]);
    let pad = |bytes: usize| json!({"specversion": "1.0", "id": cause, "source": "urn:bench", "type": "com.example.tick", "data": "x".repeat(bytes)});
    let mut step = StepRequest {
        run: run.clone(),
        stage: 0,
        function: function.clone(),
        revision: RevisionName::of(function, 1),
        steps: vec![StageStep {
            name: StepName::new("only").unwrap(),
            function: function.clone(),
            operation: (function.as_str() == "nothing").then(|| "noop".to_owned()),
            params: serde_json::Map::new(),
        }],
        input: Input::Event(pad(0)),
        output: OutputRef {
            bucket: topics::BUCKET_PROCESSED.to_owned(),
            key: format!("bench/{run}"),
            intermediate: false,
        },
        requested_ms: now_us() / 1000,
        traceparent: None,
        attempts: Vec::new(),
        next: Vec::new(),
    };
    let bare = serde_json::to_vec(&step).unwrap().len();
    step.input = Input::Event(pad(EVENT_BYTES.saturating_sub(bare)));
    let value = serde_json::to_vec(&step).unwrap();
    let record = NewRecord::new(topics::work(function)).key(run.as_str().to_owned());
    (run, record.value(value))
}

/// A function that answers at once with when it was called.
async fn pod() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let port: u16 = std::env::var("PORT").unwrap().parse().unwrap();
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await.unwrap();
    loop {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.set_nodelay(true).unwrap();
        tokio::spawn(async move {
            let (mut got, mut at) = (Vec::new(), 0);
            loop {
                let head = got.windows(4).position(|w| w == b"\r\n\r\n").map(|p| p + 4);
                let whole = head.map(|head| {
                    let text = String::from_utf8_lossy(&got[..head]).to_ascii_lowercase();
                    let length = text.lines().find_map(|l| l.strip_prefix("content-length:"));
                    head + length.map_or(0, |l| l.trim().parse().unwrap())
                });
                match whole {
                    Some(whole) if got.len() >= whole => {
                        got.drain(..whole);
                        let body = json!({"specversion": "1.0", "id": "1", "source": "urn:bench", "type": "com.example.called", "data": {"us": at}}).to_string();
                        let answer = format!(
                            "HTTP/1.1 200 OK\r\ncontent-type: application/cloudevents+json\r\ncontent-length: {}\r\n\r\n{body}",
                            body.len()
                        );
                        if stream.write_all(answer.as_bytes()).await.is_err() {
                            return;
                        }
                    }
                    _ => {
                        if got.is_empty() {
                            at = 0;
                        }
                        if !matches!(stream.read_buf(&mut got).await, Ok(n) if n > 0) {
                            return;
                        }
                        if at == 0 {
                            at = now_us();
                        }
                    }
                }
            }
        });
    }
}

async fn bench(named: &[String]) -> Result<(), String> {
    const PARTS: [&str; 5] = ["decision", "throughput", "latency", "recovery", "memory"];
    if let Some(odd) = named.iter().find(|n| !PARTS.contains(&n.as_str())) {
        return Err(format!(
            "there is no part \"{odd}\": the parts are {}",
            PARTS.join(", ")
        ));
    }
    let wanted = |part: &str| named.iter().any(|n| n == part) || (named.is_empty() && part != "memory");
    let world = World::start()
        .await
        .ok_or("IMAGEFLOW_SKIP_SERVERS is set, and this needs servers")?;
    let loops = [LOOP_IN, LOOP_OUT].map(|topic| TopicSpec::new(topic, topics::WORK_PARTITIONS));
    world.log.ensure_topics(&loops).await.unwrap();
    // Brokers run several times as fast when they are warm.
    for transactions in [false, true] {
        throughput::bare_loop(&world, WARM_UP, transactions).await;
    }
    if wanted("memory") {
        memory::memory(&world).await;
    }
    if wanted("throughput") {
        throughput::dispatcher(&world).await;
    }
    if named.iter().any(|part| part != "memory") || named.is_empty() {
        with_platform(&world, wanted).await;
    }
    world.log.close().await;
    Ok(())
}

/// Makes the functions and the trigger, and waits for their pods.
async fn apply(api: &Api) {
    let own = std::env::current_exe().unwrap();
    let own = json!([own, "pod"]);
    let resources = format!(
        "apiVersion: imageflow.dev/v1alpha1\nkind: Function\nmetadata: {{ name: nothing }}\nspec: {{ operation: noop, scale: {{ min: 1, max: 1 }}, concurrency: {{ target: 32, limit: 64 }} }}\n---\n\
         apiVersion: imageflow.dev/v1alpha1\nkind: Function\nmetadata: {{ name: called }}\nspec: {{ command: {own}, scale: {{ min: 1, max: 1 }}, concurrency: {{ target: 32, limit: 64 }} }}\n---\n\
         apiVersion: imageflow.dev/v1alpha1\nkind: Trigger\nmetadata: {{ name: on-tick }}\nspec: {{ filters: [ {{ exact: {{ type: com.example.tick }} }} ], function: nothing }}\n"
    );
    api.apply(&resources).await;
    for function in ["nothing", "called"] {
        let ready = |v: &Value| v["status"]["pods"]["ready"].as_u64() >= Some(1);
        api.until(&format!("/v1/functions/{function}"), ready).await;
    }
}

/// The parts that measure all services in one process.
async fn with_platform(world: &World, wanted: impl Fn(&str) -> bool) {
    let mut platform = world.platform();
    apply(&platform.api).await;
    if wanted("decision") {
        decisions::from_zero(&platform.api, "three brokers").await;
    }
    if wanted("latency") {
        latency::latency(world).await;
    }
    if wanted("throughput") {
        throughput::whole(world, &platform).await;
    }
    if wanted("recovery") {
        platform = recovery::recovery(world, platform).await;
    }
    platform.stop();
}

fn main() -> Result<(), String> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.first().is_some_and(|a| a == "pod") {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.unwrap().block_on(pod());
        return Ok(());
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    runtime.unwrap().block_on(bench(&args))
}
