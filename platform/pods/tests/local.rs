//! Local pods with real processes: a small HTTP server in Python stands for any program.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "helpers of tests: a panic is the failure of a test"
)]

use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use imageflow_pods::{
    Enforcement, LocalHost, LocalHostConfig, LogQuery, Pod, PodHost, PodProvisioner, PodSpec, PodState, PodTable,
};
use imageflow_types::function::Resources;
use imageflow_types::{FunctionName, RevisionName};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

/// A safety net, not a measure.
const PATIENCE: Duration = Duration::from_secs(20);

const SERVER: &str = r#"
import http.server, os, signal, sys, threading
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/die":
            print("last words", file=sys.stderr, flush=True)
            os._exit(3)
        if self.path == "/slow":
            # Answered when the test says so, by a second request.
            self.server.asked.set()
            self.server.released.wait(20)
        if self.path == "/release":
            self.server.asked.wait(20)
            self.server.released.set()
        if self.path == "/grow":
            kept = []
            try:
                while True:
                    kept.append(b"x" * (1 << 20))
            except MemoryError as e:
                kept.clear()
                print(repr(e), file=sys.stderr, flush=True)
                os._exit(1)
        self.send_response(404)
        self.end_headers()
    def log_message(self, *args):
        pass
print("listening", flush=True)
server = http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler)
signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
server.asked, server.released = threading.Event(), threading.Event()
server.serve_forever()
"#;

fn spec(command: Vec<String>) -> PodSpec {
    let function = FunctionName::new("any").unwrap();
    PodSpec {
        revision: RevisionName::of(&function, 1),
        function,
        command,
        env: Vec::new(),
        resources: Resources::default(),
        concurrency_limit: 1,
        timeout: Duration::from_secs(5),
    }
}

fn server() -> PodSpec {
    spec(vec!["python3".into(), "-c".into(), SERVER.into()])
}

fn host(dir: &Path) -> Arc<LocalHost> {
    LocalHost::start(LocalHostConfig::new(dir.to_owned(), Vec::new())).unwrap()
}

async fn until(host: &Arc<LocalHost>, there: impl Fn(&PodTable) -> bool) -> Arc<PodTable> {
    let mut table = host.watch();
    let wait = table.wait_for(|t| there(t));
    tokio::time::timeout(PATIENCE, wait)
        .await
        .expect("in time")
        .unwrap()
        .clone()
}

fn ready(table: &PodTable) -> Vec<Pod> {
    table
        .pods
        .values()
        .filter(|p| p.state == PodState::Ready)
        .cloned()
        .collect()
}

/// A zombie has no environment any more.
fn exists(pid: u32) -> bool {
    std::fs::read(format!("/proc/{pid}/environ")).is_ok_and(|environment| !environment.is_empty())
}

/// Waits for the end of a process that is no child of ours, which only looking can tell.
async fn ended(pid: u32) {
    let mut look = tokio::time::interval(Duration::from_millis(10));
    let gone = async {
        while exists(pid) {
            look.tick().await;
        }
    };
    tokio::time::timeout(PATIENCE, gone).await.expect("it ends in time");
}

/// Waits until a process is in the cgroup of its pod: it is put there some time after the pod is ready.
async fn confined(pid: u32, pod: &Pod) {
    let mut look = tokio::time::interval(Duration::from_millis(10));
    let inside = async {
        while !std::fs::read_to_string(format!("/proc/{pid}/cgroup"))
            .unwrap()
            .contains(pod.id.as_str())
        {
            look.tick().await;
        }
    };
    tokio::time::timeout(PATIENCE, inside)
        .await
        .expect("it is in the group in time");
}

async fn get(pod: &Pod, path: &str) -> TcpStream {
    let mut stream = TcpStream::connect(pod.addr).await.unwrap();
    stream
        .write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes())
        .await
        .unwrap();
    stream
}

async fn reason(host: &Arc<LocalHost>) -> String {
    let table = until(host, |t| {
        t.pods.values().any(|p| matches!(p.state, PodState::BackOff { .. }))
    })
    .await;
    let PodState::BackOff { reason, .. } = &table.pods.values().next().unwrap().state else {
        unreachable!()
    };
    reason.clone()
}

#[tokio::test]
async fn pods_start_and_drain_and_their_lines_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let host = host(dir.path());
    let spec = server();
    host.apply(spec.clone()).await.unwrap();
    host.scale(&spec.revision, 2).await.unwrap();
    let table = until(&host, |t| ready(t).len() == 2).await;
    let pods = ready(&table);
    assert!(pods[0].addr != pods[1].addr && pods.iter().all(|p| p.phases.ready_ms.is_some()));
    host.set_load(&pods[0].id, 1);
    host.scale(&spec.revision, 1).await.unwrap();
    let table = until(&host, |t| t.pods.len() == 1).await;
    assert_eq!(ready(&table)[0].id, pods[0].id, "the busy one stays");
    let query = LogQuery {
        function: spec.function.clone(),
        revision: None,
        tail: 10,
    };
    let lines = host.logs(query).await.unwrap();
    assert!(lines.iter().any(|l| l.text == "listening"), "{lines:?}");
    host.set_load(&pods[0].id, 0);
    host.shutdown().await;
    assert!(host.watch().borrow().pods.is_empty());
    assert!(pods.iter().all(|p| !exists(p.pid.unwrap())));
}

#[tokio::test]
async fn a_pod_that_drains_gives_its_last_answer_first() {
    let dir = tempfile::tempdir().unwrap();
    let host = host(dir.path());
    // This program dies at SIGTERM without a word, as most do.
    let server = SERVER.replace("signal.signal(", "0 and signal.signal(");
    let mut spec = spec(vec!["python3".into(), "-c".into(), server]);
    spec.timeout = Duration::from_secs(30);
    host.apply(spec.clone()).await.unwrap();
    host.scale(&spec.revision, 1).await.unwrap();
    let pod = ready(&*until(&host, |t| ready(t).len() == 1).await)[0].clone();
    let mut slow = get(&pod, "/slow").await;
    host.set_load(&pod.id, 1);
    host.scale(&spec.revision, 0).await.unwrap();
    until(&host, |t| t.pods[&pod.id].state == PodState::Draining).await;
    get(&pod, "/release").await;
    let mut answer = String::new();
    slow.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.0 404"), "{answer}");
    assert_eq!(
        host.watch().borrow().pods.len(),
        1,
        "it is there as long as delivery counts a request"
    );
    host.set_load(&pod.id, 0);
    until(&host, |t| t.pods.is_empty()).await;
    host.shutdown().await;
}

#[tokio::test]
async fn a_pod_that_dies_is_seen_and_started_again() {
    let dir = tempfile::tempdir().unwrap();
    let host = host(dir.path());
    // With children of its own, which must go with it: also one that left its process group.
    let children = "import subprocess\nfor alone in (False, True):\n \
                    print(subprocess.Popen(['sleep', '600'], start_new_session=alone).pid, flush=True)";
    let spec = spec(vec!["python3".into(), "-c".into(), format!("{children}{SERVER}")]);
    host.apply(spec.clone()).await.unwrap();
    host.scale(&spec.revision, 1).await.unwrap();
    let first = ready(&*until(&host, |t| ready(t).len() == 1).await)[0].clone();
    let query = LogQuery {
        function: spec.function.clone(),
        revision: None,
        tail: 10,
    };
    let lines = host.logs(query).await.unwrap();
    let children: Vec<u32> = lines[..2].iter().map(|line| line.text.parse().unwrap()).collect();
    assert!(children.iter().all(|child| exists(*child)));
    let mut table = host.watch();
    table.mark_unchanged();
    get(&first, "/die").await;
    let seen = table.wait_for(|t| t.pods.values().any(|p| matches!(p.state, PodState::BackOff { .. })));
    let seen = tokio::time::timeout(PATIENCE, seen)
        .await
        .expect("in time")
        .unwrap()
        .clone();
    let PodState::BackOff {
        reason, failed_starts, ..
    } = &seen.pods[&first.id].state
    else {
        unreachable!()
    };
    assert_eq!(*failed_starts, 0, "it started, and died of its work");
    assert!(
        reason.contains("exit code 3") && reason.contains("last words"),
        "{reason}"
    );
    for child in children {
        ended(child).await;
    }
    let again = ready(&*until(&host, |t| ready(t).len() == 1).await)[0].clone();
    assert_ne!(again.pid, first.pid);
    assert_ne!(again.phases.asked_ms, first.phases.asked_ms, "it is a start of its own");
    let mut last = again;
    for _ in 0..3 {
        get(&last, "/die").await;
        let restarts = last.restarts;
        let table = until(&host, |t| ready(t).first().is_some_and(|p| p.restarts > restarts)).await;
        last = ready(&table)[0].clone();
    }
    host.shutdown().await;
}

#[tokio::test]
async fn what_a_pod_starts_before_it_is_ready_is_in_its_cgroup_too() {
    let dir = tempfile::tempdir().unwrap();
    let host = host(dir.path());
    if host.enforcement() == Enforcement::Rlimits {
        return host.shutdown().await;
    }
    // A child that has nothing of its pod but where it comes from.
    let child = "import subprocess\n\
                 child = subprocess.Popen(['sleep', '600'], start_new_session=True, env={'PATH': os.environ['PATH']})\n\
                 print(child.pid, flush=True)\n";
    let program = SERVER.replace("class Handler", &format!("{child}class Handler"));
    let spec = spec(vec!["python3".into(), "-c".into(), program]);
    host.apply(spec.clone()).await.unwrap();
    host.scale(&spec.revision, 1).await.unwrap();
    let pod = ready(&*until(&host, |t| ready(t).len() == 1).await)[0].clone();
    let query = LogQuery {
        function: spec.function.clone(),
        revision: None,
        tail: 10,
    };
    let child: u32 = host.logs(query).await.unwrap()[0].text.parse().unwrap();
    confined(child, &pod).await;
    host.scale(&spec.revision, 0).await.unwrap();
    until(&host, |t| t.pods.is_empty()).await;
    ended(child).await;
    host.shutdown().await;
}

#[tokio::test]
async fn a_program_that_knows_no_get_at_all_is_ready() {
    let dir = tempfile::tempdir().unwrap();
    let host = host(dir.path());
    // The library answers 501 then.
    let spec = spec(vec!["python3".into(), "-c".into(), SERVER.replace("do_GET", "do_POST")]);
    host.apply(spec.clone()).await.unwrap();
    host.scale(&spec.revision, 1).await.unwrap();
    until(&host, |t| ready(t).len() == 1).await;
    host.shutdown().await;
}

#[tokio::test]
async fn a_program_that_is_not_there_gives_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let host = host(dir.path());
    let spec = spec(vec!["./no-such-program".into()]);
    host.apply(spec.clone()).await.unwrap();
    host.scale(&spec.revision, 1).await.unwrap();
    let reason = reason(&host).await;
    assert!(
        reason.contains("no-such-program") && reason.contains("No such file"),
        "{reason}"
    );
    let failed = |p: &Pod| matches!(p.state, PodState::BackOff { failed_starts, .. } if failed_starts >= 3);
    until(&host, |t| t.pods.values().any(failed)).await;
    host.remove(&spec.revision).await.unwrap();
    until(&host, |t| t.pods.is_empty()).await;
    assert!(host.scale(&spec.revision, 1).await.is_err(), "it is forgotten");
    host.shutdown().await;
}

/// A host that starts this program with little memory.
async fn hog(dir: &Path, program: &str) -> Arc<LocalHost> {
    let host = host(dir);
    let mut hog = spec(vec!["python3".into(), "-c".into(), program.into()]);
    hog.resources.memory.bytes = 64 << 20;
    host.apply(hog.clone()).await.unwrap();
    host.scale(&hog.revision, 1).await.unwrap();
    host
}

#[tokio::test]
async fn memory_beyond_the_limit_ends_a_start_and_is_told_as_such() {
    let dir = tempfile::tempdir().unwrap();
    let program = "x = bytearray(700 << 20)\nimport signal\nsignal.pause()";
    let host = hog(dir.path(), program).await;
    let reason = reason(&host).await;
    host.shutdown().await;
    assert!(
        reason.contains("before it was ready: out of memory: limit 64Mi") && reason.contains("MemoryError"),
        "{reason}"
    );
}

#[tokio::test]
async fn memory_beyond_the_limit_ends_a_ready_pod_and_is_told_as_such() {
    let dir = tempfile::tempdir().unwrap();
    let host = hog(dir.path(), SERVER).await;
    let enforcement = host.enforcement();
    let pod = ready(&*until(&host, |t| ready(t).len() == 1).await)[0].clone();
    // Until it is in its group another limit holds.
    if enforcement != Enforcement::Rlimits {
        confined(pod.pid.unwrap(), &pod).await;
    }
    let asked = get(&pod, "/grow").await;
    let reason = reason(&host).await;
    drop(asked);
    host.shutdown().await;
    assert!(
        reason.contains("while it was ready: out of memory: limit 64Mi"),
        "{reason}"
    );
    let how = if enforcement == Enforcement::Rlimits {
        "exit code 1"
    } else {
        "signal 9"
    };
    assert!(reason.contains(how), "{reason}");
}

#[tokio::test]
async fn a_folder_has_one_host_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let first = host(dir.path());
    let spec = server();
    first.apply(spec.clone()).await.unwrap();
    first.scale(&spec.revision, 1).await.unwrap();
    let pid = ready(&*until(&first, |t| ready(t).len() == 1).await)[0].pid.unwrap();
    // On another thread, because a host that takes the folder over waits for the end of what it ends.
    let folder = dir.path().to_owned();
    let second = LocalHostConfig::new(folder.clone(), Vec::new());
    let runtime = tokio::runtime::Handle::current();
    let start = move || {
        let _inside = runtime.enter();
        LocalHost::start(second).err().map(|refused| refused.to_string())
    };
    let refused = tokio::task::spawn_blocking(start).await.unwrap();
    let refused = refused.expect("the folder is taken");
    assert!(
        refused.contains(&folder.display().to_string()) && refused.contains("--data-dir"),
        "{refused}"
    );
    let pods = ready(&first.watch().borrow());
    assert!(exists(pid) && pods[0].pid == Some(pid), "its pods go on: {pods:?}");
    first.shutdown().await;
    host(&folder).shutdown().await;
}

/// Runs in a process of its own, which the tests below kill: a host and two pods, one of which has put the mark out of its
/// environment.
#[tokio::test]
#[ignore = "it is the part of another process"]
async fn as_a_platform_that_is_killed() {
    let Some(dir) = std::env::var_os("PODS_TEST_DIR") else {
        return;
    };
    let mut warden = Vec::new();
    if std::env::var_os("PODS_TEST_WARDEN").is_some() {
        let exe = std::env::current_exe().unwrap().to_str().unwrap().to_owned();
        warden.extend([exe, "--ignored".into(), "--exact".into(), "as_a_warden".into()]);
    }
    let host = LocalHost::start(LocalHostConfig::new(dir.into(), warden)).unwrap();
    let mut spec = server();
    host.apply(spec.clone()).await.unwrap();
    host.scale(&spec.revision, 1).await.unwrap();
    spec.revision = RevisionName::of(&spec.function, 2);
    spec.command.splice(
        0..0,
        ["env".to_owned(), "-u".to_owned(), "IMAGEFLOW_PLATFORM_ID".to_owned()],
    );
    host.apply(spec.clone()).await.unwrap();
    host.scale(&spec.revision, 1).await.unwrap();
    let table = until(&host, |t| ready(t).len() == 2).await;
    for pod in ready(&table) {
        println!("\npod {}", pod.pid.unwrap());
    }
    println!("that is all");
    std::future::pending().await
}

/// Runs in a process of its own, started by the host above with the platform's id as the last argument.
#[test]
#[ignore = "it is the part of another process"]
fn as_a_warden() {
    let arguments: Vec<String> = std::env::args().collect();
    if let [.., name, platform] = arguments.as_slice()
        && name == "as_a_warden"
    {
        imageflow_pods::warden_main(platform).unwrap();
    }
}

/// Starts the platform above on the folder, waits for its pods and kills it; their pids.
async fn killed_platform(dir: &Path, warden: bool) -> Vec<u32> {
    let mut platform = tokio::process::Command::new(std::env::current_exe().unwrap());
    platform
        .args(["--ignored", "--exact", "--nocapture", "as_a_platform_that_is_killed"])
        .env("PODS_TEST_DIR", dir)
        .stdout(Stdio::piped())
        .kill_on_drop(true);
    if warden {
        platform.env("PODS_TEST_WARDEN", "1");
    }
    let mut platform = platform.spawn().unwrap();
    let mut lines = BufReader::new(platform.stdout.take().unwrap()).lines();
    let mut pids: Vec<u32> = Vec::new();
    while let Some(line) = lines.next_line().await.unwrap() {
        if let Some(pid) = line.strip_prefix("pod ") {
            pids.push(pid.parse().unwrap());
        }
        if line == "that is all" {
            break;
        }
    }
    assert!(pids.len() == 2 && pids.iter().all(|pid| exists(*pid)), "{pids:?}");
    platform.kill().await.unwrap();
    pids
}

#[tokio::test]
async fn a_killed_platform_leaves_no_orphan() {
    let dir = tempfile::tempdir().unwrap();
    for pid in killed_platform(dir.path(), true).await {
        ended(pid).await;
    }
}

#[tokio::test]
async fn what_a_killed_platform_without_a_warden_left_is_ended_by_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let pids = killed_platform(dir.path(), false).await;
    assert!(pids.iter().all(|pid| exists(*pid)), "nobody ends them yet: {pids:?}");
    // The folder of a dead platform is free.
    let next = host(dir.path());
    assert!(!pids.iter().any(|pid| exists(*pid)), "{pids:?}");
    next.shutdown().await;
}
