//! Local pods with real processes: a small HTTP server in Python stands for any program.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "helpers of tests: a panic is the failure of a test"
)]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use imageflow_pods::{LocalHost, LocalHostConfig, LogQuery, Pod, PodHost, PodSpec, PodState, PodTable};
use imageflow_types::function::Resources;
use imageflow_types::{FunctionName, RevisionName};

const SERVER: &str = r#"
import http.server, os, signal, sys, threading
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/die":
            os._exit(3)
        self.send_response(404)
        self.end_headers()
    def log_message(self, *args):
        pass
print("listening", flush=True)
server = http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler)
signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
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
    tokio::time::timeout(Duration::from_secs(20), wait)
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

fn exists(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}/environ")).exists()
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
    host.shutdown().await;
    assert!(host.watch().borrow().pods.is_empty());
    assert!(pods.iter().all(|p| !exists(p.pid.unwrap())));
}

#[tokio::test]
async fn a_pod_that_dies_is_seen_and_started_again() {
    let dir = tempfile::tempdir().unwrap();
    let host = host(dir.path());
    let spec = server();
    host.apply(spec.clone()).await.unwrap();
    host.scale(&spec.revision, 1).await.unwrap();
    let first = ready(&*until(&host, |t| ready(t).len() == 1).await)[0].clone();
    let mut table = host.watch();
    table.mark_unchanged();
    let client: tokio::net::TcpStream = tokio::net::TcpStream::connect(first.addr).await.unwrap();
    client.writable().await.unwrap();
    client.try_write(b"GET /die HTTP/1.0\r\n\r\n").unwrap();
    let seen = table.wait_for(|t| t.pods.values().any(|p| matches!(p.state, PodState::BackOff { .. })));
    let seen = tokio::time::timeout(Duration::from_secs(1), seen)
        .await
        .expect("within a second")
        .unwrap()
        .clone();
    let PodState::BackOff { reason, .. } = &seen.pods[&first.id].state else {
        unreachable!()
    };
    assert!(reason.contains("exit code 3"), "{reason}");
    let again = ready(&*until(&host, |t| ready(t).len() == 1).await)[0].clone();
    assert_ne!(again.pid, first.pid);
    host.shutdown().await;
}

#[tokio::test]
async fn a_program_that_is_not_there_gives_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let host = host(dir.path());
    let spec = spec(vec!["./no-such-program".into()]);
    host.apply(spec.clone()).await.unwrap();
    host.scale(&spec.revision, 1).await.unwrap();
    let backed_off = |t: &PodTable| t.pods.values().any(|p| matches!(p.state, PodState::BackOff { .. }));
    let table = until(&host, backed_off).await;
    let PodState::BackOff { reason, .. } = &table.pods.values().next().unwrap().state else {
        unreachable!()
    };
    assert!(
        reason.contains("no-such-program") && reason.contains("No such file"),
        "{reason}"
    );
    host.shutdown().await;
}

#[tokio::test]
async fn memory_beyond_the_limit_ends_the_pod() {
    let dir = tempfile::tempdir().unwrap();
    let host = host(dir.path());
    let mut hog = spec(vec![
        "python3".into(),
        "-c".into(),
        "x = bytearray(700 << 20)\nimport time\ntime.sleep(60)".into(),
    ]);
    hog.resources.memory.bytes = 64 << 20;
    host.apply(hog.clone()).await.unwrap();
    host.scale(&hog.revision, 1).await.unwrap();
    let backed_off = |t: &PodTable| t.pods.values().any(|p| matches!(p.state, PodState::BackOff { .. }));
    let table = until(&host, backed_off).await;
    let PodState::BackOff { reason, .. } = &table.pods.values().next().unwrap().state else {
        unreachable!()
    };
    assert!(reason.contains("MemoryError"), "{reason}");
    host.shutdown().await;
}

#[tokio::test]
async fn what_a_killed_host_left_is_ended_by_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let first = host(dir.path());
    let spec = server();
    first.apply(spec.clone()).await.unwrap();
    first.scale(&spec.revision, 1).await.unwrap();
    let pid = ready(&*until(&first, |t| ready(t).len() == 1).await)[0].pid.unwrap();
    // The first host still runs: to the next one of the folder its pods are leftovers all the same.
    let next = host(dir.path());
    let died = until(&first, |t| t.pods.values().any(|p| p.pid != Some(pid))).await;
    assert_eq!(died.pods.len(), 1);
    first.shutdown().await;
    next.shutdown().await;
}
