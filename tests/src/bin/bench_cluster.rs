//! `cargo xtask bench cluster [PART...]`: one JSON line a figure, on the Kubernetes of `cargo xtask cluster up`, on whose network this
//! runs. Parts: `cold` (a call at zero until its first byte, by phases) and `operator` (1,000 Functions from nothing).
#![expect(clippy::unwrap_used, reason = "a bench that cannot measure has nothing to say")]
use std::time::{Duration, Instant};

use http::Method;
use imageflow_eventlog::{EventLog, Kafka, KafkaConfig, LogError, TopicSpec};
use imageflow_tests::Api;
use imageflow_tests::external::{World, photo};
use imageflow_tests::figures::{beside, figure, percentile};
use imageflow_tests::kubectl::{apply, clean, define, kubectl, try_kubectl};
use imageflow_tests::roles::Roles;
use imageflow_types::{FunctionName, topics};

/// Cold starts.
const ROUNDS: usize = 20;
/// Functions for the operator.
const MANY: usize = 1000;
/// Longest that anything may take.
const PATIENCE: Duration = Duration::from_secs(300);
/// How long records of a work topic are kept, as the operator says it.
const WORK_KEPT: Duration = Duration::from_secs(7 * 24 * 3600);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(200);
/// Between two looks at 1,000 functions, which cost the API server and kubectl a second of a core each.
const LOOK_AT_MANY: Duration = Duration::from_secs(2);
/// For how long the idle operator is watched.
const IDLE: Duration = Duration::from_secs(20);

fn function(name: &str, keep_warm: &str) -> String {
    format!(
        "apiVersion: imageflow.dev/v1alpha1\nkind: Function\nmetadata: {{ name: {name} }}\nspec: {{ operation: resize, params: {{ width: 8 }}, scale: {{ keepWarm: {{ min: {keep_warm}, max: {keep_warm} }} }} }}\n---\n"
    )
}

async fn until(what: &str, look: Duration, mut there: impl AsyncFnMut() -> bool) {
    let since = Instant::now();
    while !there().await {
        assert!(since.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        tokio::time::sleep(look).await;
    }
}

async fn cold(api: &Api) {
    apply(&function("cold", "1s"));
    kubectl(&["wait", "--for=condition=Ready", "fn/cold", "--timeout=60s"]);
    let (mut whole, mut phases) = (Vec::new(), [Vec::new(), Vec::new(), Vec::new(), Vec::new()]);
    for _ in 0..=ROUNDS {
        until("it is at zero", LOOK, async || {
            let none = kubectl(&["get", "pods", "-l", "imageflow.dev/function=cold", "-o", "name"]);
            none.trim().is_empty()
        })
        .await;
        let asked_ms = now_ms();
        let begun = Instant::now();
        let answer = api.send(Method::POST, "/v1/functions/cold/invoke", &[], photo(1)).await;
        assert_eq!(answer.status(), 200);
        let took = begun.elapsed().as_secs_f64() * 1000.0;
        let status = api.get("/v1/functions/cold").await;
        let pod = &status["status"]["podList"][0];
        let at = |name: &str| pod["phases"][name].as_i64().unwrap_or(asked_ms);
        let ready = at("readyMs");
        let steps = [
            (at("askedMs") - asked_ms) as f64,
            (at("scheduledMs").min(ready) - at("askedMs")) as f64,
            (ready - at("scheduledMs").min(ready)) as f64,
            asked_ms as f64 + took - ready as f64,
        ];
        whole.push(took);
        phases.iter_mut().zip(steps).for_each(|(all, one)| all.push(one));
    }
    // The first one reads the image from the disk.
    whole.remove(0);
    for all in &mut phases {
        all.remove(0);
    }
    let p50 = percentile(&mut whole, 0.5);
    figure(
        "cold start on a cached image, call at zero to its answer p50",
        p50,
        "ms",
        "<= 500",
        p50 <= 500.0,
    );
    let p95 = percentile(&mut whole, 0.95);
    figure("the same p95", p95, "ms", "<= 800", p95 <= 800.0);
    let names = [
        "phase: call to the pod being there (decision, scale, controller) p50",
        "phase: to scheduled p50",
        "phase: to the pod's announcement (sandbox, container, program) p50",
        "phase: to the answer p50",
    ];
    for (name, all) in names.into_iter().zip(&mut phases) {
        beside(name, percentile(all, 0.5), "ms");
    }
    kubectl(&["delete", "fn", "cold", "--timeout=60s"]);
}

fn now_ms() -> i64 {
    let since = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap();
    i64::try_from(since.as_millis()).unwrap()
}

/// CPU seconds of a process, its MiB, and how many of those are pages of its program file.
fn used(pid: u32) -> (f64, f64, f64) {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let ticks: f64 = fields[11..13].iter().map(|f| f.parse::<f64>().unwrap()).sum();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let mib = |name: &str| {
        let line = status.lines().find_map(|l| l.strip_prefix(name)).unwrap();
        line.trim().trim_end_matches(" kB").parse::<f64>().unwrap() / 1024.0
    };
    (ticks / 100.0, mib("VmRSS:"), mib("RssFile:"))
}

/// The topics of many functions, so that the operator finds them: one partition each, as is enough for functions with little to do.
async fn make_topics(world: &World) -> Result<(), LogError> {
    let log = Kafka::open(KafkaConfig::new(world.cluster.bootstrap())).await.unwrap();
    let names = (0..MANY).filter_map(|n| FunctionName::new(format!("many-{n:04}")).ok());
    let specs: Vec<TopicSpec> = names
        .map(|name| TopicSpec::new(topics::work(&name), 1).retention(WORK_KEPT))
        .collect();
    for some in specs.chunks(50) {
        log.ensure_topics(some).await?;
    }
    log.close().await;
    Ok(())
}

/// From 1,000 Functions that nobody has looked at, with their topics, to all of them Ready.
async fn many(world: &World, roles: &Roles<'_>) {
    let yaml: String = (0..MANY).map(|n| function(&format!("many-{n:04}"), "10s")).collect();
    let begun = Instant::now();
    make_topics(world).await.unwrap();
    beside(
        "topics of 1,000 functions, a partition each",
        begun.elapsed().as_secs_f64(),
        "s",
    );
    let begun = Instant::now();
    let (well, said) = try_kubectl(&["apply", "--server-side", "-f", "-"], &yaml);
    assert!(well, "{said}");
    beside("kubectl apply of 1,000 Functions", begun.elapsed().as_secs_f64(), "s");
    let begun = Instant::now();
    let operator = roles.operator("operator-2");
    let metrics = Api::new(&operator.admin);
    // Asking the API server for 1,000 objects again and again would cost it more than the operator's work: first the operator is
    // asked how many it has told of, then the table that people see.
    until("all functions were told of", LOOK_AT_MANY, async || {
        let told = metrics
            .metric("imageflow_operator_writes_total", &["kind=\"Status\""])
            .await;
        told >= MANY as f64
    })
    .await;
    let ready = || {
        let all = kubectl(&["get", "fn", "--no-headers"]);
        all.lines()
            .filter(|line| line.split_whitespace().any(|word| word == "True"))
            .count()
    };
    until("all functions are ready", LOOK_AT_MANY, async || ready() >= MANY).await;
    let took = begun.elapsed().as_secs_f64();
    figure(
        "operator: from 1,000 Functions that nobody has looked at until all are Ready, with its own start, topics there",
        took,
        "s",
        "<= 60",
        took <= 60.0,
    );
    let writes = async || metrics.metric("imageflow_operator_writes_total", &[]).await;
    // What the watches still tell of is over when nothing is reconciled any more.
    let mut last = -1.0;
    until("it is quiet", LOOK_AT_MANY, async || {
        let now = metrics.metric("imageflow_operator_reconciles_total", &[]).await;
        let quiet = (now - last).abs() < 0.5;
        last = now;
        quiet
    })
    .await;
    let (cpu, written) = (used(operator.pid()).0, writes().await);
    tokio::time::sleep(IDLE).await;
    let after = used(operator.pid());
    let share = (after.0 - cpu) / IDLE.as_secs_f64() * 100.0;
    figure(
        "operator idle with 1,000 Functions, share of a core",
        share,
        "%",
        "< 2",
        share < 2.0,
    );
    figure(
        "operator memory with 1,000 Functions",
        after.1,
        "MiB",
        "<= 100",
        after.1 <= 100.0,
    );
    beside("of that, pages of the program file", after.2, "MiB");
    let idle_writes = writes().await - written;
    figure(
        "operator writes while nothing changes",
        idle_writes,
        "1",
        "0",
        idle_writes == 0.0,
    );
    operator.stop();
}

async fn bench(named: &[String]) -> Result<(), String> {
    const PARTS: [&str; 2] = ["cold", "operator"];
    if let Some(odd) = named.iter().find(|n| !PARTS.contains(&n.as_str())) {
        return Err(format!(
            "there is no part \"{odd}\": the parts are {}",
            PARTS.join(", ")
        ));
    }
    let wanted = |part: &str| named.is_empty() || named.iter().any(|n| n == part);
    let world = World::start()
        .await
        .ok_or("IMAGEFLOW_SKIP_SERVERS is set, and this needs servers")?;
    define();
    clean();
    let folder = tempfile::tempdir().map_err(|e| e.to_string())?;
    let mut roles = Roles::on_kubernetes(&world, folder.path());
    let pods = roles.pods();
    let autoscaler = roles.autoscaler();
    let operator = roles.operator("operator-1");
    let (gateway, api) = roles.gateway("gateway-1", "127.0.0.1:0");
    // Without one it is not known that no work waits, and no pod is taken away.
    let dispatcher = roles.dispatcher("dispatcher-1");
    if wanted("cold") {
        cold(&api).await;
    }
    // The operator alone is measured: the brokers, the API server and all three nodes share this machine with it.
    for role in [operator, gateway, dispatcher, autoscaler, pods] {
        role.stop();
    }
    if wanted("operator") {
        many(&world, &roles).await;
    }
    Ok(())
}

fn main() -> Result<(), String> {
    let named: Vec<String> = std::env::args().skip(1).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    runtime.unwrap().block_on(bench(&named))
}
