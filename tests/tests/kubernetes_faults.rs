//! What can happen to a cluster while events are worked on: nothing is lost, and no result is there twice. Run by
//! `cargo xtask test cluster`, on the network of the cluster's first node.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use imageflow_tests::Api;
use imageflow_tests::external::{RESOURCES, World, put, until};
use imageflow_tests::kubectl::{apply, get, kubectl, try_kubectl, world};
use imageflow_tests::role::Role;
use imageflow_tests::roles::Roles;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

/// A node that is gone is noticed after 16 s, and what is done then takes its time too.
const PATIENCE: Duration = Duration::from_secs(180);
/// Photos of each fault: some pods for some seconds.
const PHOTOS: usize = 24;
/// Of a role's log, when the test fails.
const LAST_LINES: usize = 30;
/// The node of functions without a GPU.
const NODE: &str = "cpu-1";

/// The process of the cluster whose command begins with this name and has these words.
fn process(name: &str, words: &str) -> Pid {
    let all = std::fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let mut found = pids.filter(|pid| {
        let command = command(*pid);
        command
            .first()
            .is_some_and(|first| first.rsplit('/').next() == Some(name))
            && command.join(" ").contains(words)
    });
    let pid = found.next().unwrap_or_else(|| panic!("{name} {words} does not run"));
    Pid::from_raw(pid).unwrap()
}

/// The words of a process; none when it is gone.
fn command(pid: i32) -> Vec<String> {
    let bytes = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words = bytes.split(|b| *b == 0).filter(|word| !word.is_empty());
    words.map(|word| String::from_utf8_lossy(word).into_owned()).collect()
}

/// A stopped process, which goes on when this is dropped, however the test ends.
struct Stopped(Pid);

impl Stopped {
    fn new(pid: Pid) -> Self {
        kill_process(pid, Signal::STOP).unwrap();
        Self(pid)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        // The cluster may be gone by now.
        let _gone = kill_process(self.0, Signal::CONT);
    }
}

/// Says how the cluster and the roles are when the test fails: both are gone afterwards.
struct Tell<'a>(&'a Path);

impl Drop for Tell<'_> {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        let all = ["get", "fn,rev,deployments,pods", "-o", "wide"];
        let events = ["get", "events", "--sort-by=.metadata.creationTimestamp"];
        for what in [&["get", "nodes"][..], &all, &["describe", "fn"], &events] {
            println!("kubectl {what:?}:\n{}", try_kubectl(what, "").1);
        }
        let logs = std::fs::read_dir(self.0).into_iter().flatten().filter_map(Result::ok);
        for log in logs.filter(|l| l.path().extension().is_some_and(|e| e == "log")) {
            let text = std::fs::read_to_string(log.path()).unwrap_or_default();
            let lines: Vec<_> = text.lines().collect();
            let last = lines.len().saturating_sub(LAST_LINES);
            println!("{}:\n{}", log.path().display(), lines[last..].join("\n"));
        }
    }
}

struct Scene<'a> {
    world: &'a World,
    api: &'a Api,
    /// The number of the next photo.
    next: usize,
    /// Results that there must be.
    wanted: usize,
}

impl Scene<'_> {
    async fn put(&mut self) {
        for number in self.next..self.next + PHOTOS {
            put(&*self.world.objects, number).await.unwrap();
        }
        self.next += PHOTOS;
        self.wanted += PHOTOS;
    }

    /// All photos have their result, one each, and none became a dead letter.
    async fn all_there(&self, what: &str) {
        until(what, PATIENCE, async || self.world.results().await.len() >= self.wanted).await;
        assert_eq!(self.world.results().await.len(), self.wanted, "{what}");
        let letters = self.api.get("/v1/dead-letters").await;
        assert_eq!(letters["items"], json!([]), "{what}");
        println!("{what}: all {} photos have their one result", self.wanted);
    }

    async fn pods_run(&self) {
        until("pods run", PATIENCE, async || running() > 0).await;
    }
}

/// Pods of the function `grey`.
fn pods() -> Vec<Value> {
    let pods = get(&["pods", "-l", "imageflow.dev/function=grey"]);
    pods["items"].as_array().unwrap().clone()
}

/// How many of them run.
fn running() -> usize {
    let pods = pods();
    pods.iter().filter(|p| p["status"]["phase"] == "Running").count()
}

fn node_is_ready() -> Option<String> {
    let node = get(&["node", NODE]);
    let conditions = node["status"]["conditions"].as_array().unwrap().iter();
    let mut ready = conditions.filter(|c| c["type"] == "Ready");
    Some(ready.next()?["status"].as_str()?.to_owned())
}

/// The leader is killed: the other one takes over.
async fn operator_killed(roles: &Roles<'_>, scene: &mut Scene<'_>) -> Role {
    let first = roles.operator("operator-1");
    let holder = || get(&["-n", "imageflow-backend", "lease", "imageflow-operator"])["spec"]["holderIdentity"].clone();
    until("one leads", PATIENCE, async || {
        try_kubectl(&["-n", "imageflow-backend", "get", "lease", "imageflow-operator"], "").0
            && holder() == "operator-1"
    })
    .await;
    let second = roles.operator("operator-2");
    apply(RESOURCES);
    let ready = [
        "wait",
        "--for=condition=Ready",
        "fn/small",
        "fn/grey",
        "flow/two",
        "trigger/on-upload",
        "--timeout=60s",
    ];
    kubectl(&ready);
    // One pod at a time works on one photo, so that there is work for a while.
    let slow =
        r#"{"spec":{"concurrency":{"target":1,"limit":1},"scale":{"max":3,"keepWarm":{"min":"3s","max":"3s"}}}}"#;
    // A router hears of a trigger some moments after its condition says so; photos of before have no result.
    while scene.world.results().await.is_empty() {
        assert!(scene.next < PHOTOS, "no photo has a result");
        put(&*scene.world.objects, scene.next).await.unwrap();
        scene.next += 1;
        let there = until("its result", PATIENCE, async || !scene.world.results().await.is_empty());
        // It may be the one that came too early.
        let _too_early = tokio::time::timeout(Duration::from_secs(5), there).await;
    }
    // What came after one that has a run has one, too.
    let number = |run: &Value| {
        let key = run["request"]["input"]["object"]["key"].as_str()?;
        key.strip_prefix("in/photo ")?
            .strip_suffix(".png")?
            .parse::<usize>()
            .ok()
    };
    let runs = scene.api.get("/v1/runs").await;
    let earliest = runs["items"].as_array().unwrap().iter().filter_map(number).min();
    scene.wanted = scene.next - earliest.unwrap();
    scene.put().await;
    first.kill();
    kubectl(&["patch", "fn", "grey", "--type=merge", "-p", slow]);
    let latest = "--for=jsonpath={.status.latestRevision}=grey-00002";
    kubectl(&["wait", latest, "fn/grey", "--timeout=90s"]);
    assert_eq!(holder(), "operator-2");
    scene.all_there("the leading operator was killed").await;
    second
}

/// The only node for these functions takes no new pods for a while.
async fn node_cordoned(scene: &mut Scene<'_>) {
    // One that is not running yet may have its place on the node already, and would do all the work: when the function has a
    // new revision, pods of that follow those of the old one.
    until(
        "it is at zero, and no pod came before the node was closed",
        PATIENCE,
        async || {
            if !pods().is_empty() {
                return false;
            }
            kubectl(&["cordon", NODE]);
            let closed = pods().is_empty();
            if !closed {
                kubectl(&["uncordon", NODE]);
            }
            closed
        },
    )
    .await;
    scene.put().await;
    // Both steps are one stage on the pods of this function.
    until("a pod waits, and that is told", PATIENCE, async || {
        get(&["fn", "grey"]).to_string().contains("unschedulable")
    })
    .await;
    kubectl(&["uncordon", NODE]);
    scene.all_there("the node was cordoned").await;
}

/// The kubelet stands still until its node counts as lost and its pods are to go elsewhere, where there is nowhere.
async fn kubelet_stopped(scene: &mut Scene<'_>) {
    scene.put().await;
    scene.pods_run().await;
    let stopped = Stopped::new(process("kubelet", &format!("--hostname-override {NODE}")));
    until("the node counts as lost", PATIENCE, async || {
        node_is_ready().as_deref() == Some("Unknown")
    })
    .await;
    scene.put().await;
    drop(stopped);
    until("the node is back", PATIENCE, async || {
        node_is_ready().as_deref() == Some("True")
    })
    .await;
    scene.all_there("the kubelet was stopped").await;
}

/// The API server is killed, is away while there is work, and comes back.
async fn api_server_restarted(scene: &mut Scene<'_>) {
    scene.put().await;
    scene.pods_run().await;
    let pid = process("kube-apiserver", "--etcd-servers");
    let words = command(pid.as_raw_nonzero().get());
    let program = std::fs::read_link(format!("/proc/{}/exe", pid.as_raw_nonzero())).unwrap();
    kill_process(pid, Signal::KILL).unwrap();
    let away = || !try_kubectl(&["get", "--raw", "/readyz"], "").0;
    until("it is away", PATIENCE, async || away()).await;
    scene.put().await;
    // As the cluster has started it; it ends with the cluster.
    let mut again = Command::new(program);
    again.arg0(&words[0]).args(&words[1..]).process_group(0);
    again.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    std::mem::forget(again.spawn().unwrap());
    until("it is back", PATIENCE, async || !away()).await;
    scene.all_there("the API server was restarted").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_fails_no_event_is_lost_and_no_result_doubled() {
    let Some(world) = world().await else { return };
    let folder = tempfile::tempdir().unwrap();
    let _tell = Tell(folder.path());
    let mut roles = Roles::on_kubernetes(&world, folder.path());
    let pod_host = roles.pods();
    let autoscaler = roles.autoscaler();
    let (gateway, api) = roles.gateway("gateway-1", "127.0.0.1:0");
    let router = roles.router("router-1");
    let dispatcher = roles.dispatcher("dispatcher-1");
    let mut scene = Scene {
        world: &world,
        api: &api,
        next: 0,
        wanted: 0,
    };
    let mut operator = operator_killed(&roles, &mut scene).await;
    node_cordoned(&mut scene).await;
    kubelet_stopped(&mut scene).await;
    api_server_restarted(&mut scene).await;
    // It ends when it cannot renew its lease in time; a Deployment starts it again.
    if operator.has_ended() {
        println!("the operator had lost its lease and starts again");
        operator = roles.operator("operator-2");
    }
    kubectl(&[
        "patch",
        "fn",
        "small",
        "--type=merge",
        "-p",
        r#"{"spec":{"params":{"width":9}}}"#,
    ]);
    let latest = "--for=jsonpath={.status.latestRevision}=small-00002";
    kubectl(&["wait", latest, "fn/small", "--timeout=90s"]);
    until("all functions are ready again", PATIENCE, async || {
        let functions: Value = get(&["fn"]);
        let mut all = functions["items"].as_array().unwrap().iter();
        all.all(|function| function["status"]["conditions"][0]["status"] == "True")
    })
    .await;
    for role in [gateway, router, dispatcher, operator, autoscaler, pod_host] {
        role.stop();
    }
}
