use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use imageflow_proto::peer::Peer;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::*;
use crate::host::{LogQuery, PodError, PodHost};
use crate::testing::FakeHost;

const PATIENCE: Duration = Duration::from_secs(20);

/// A pod host behind a real connection.
struct Server {
    addr: SocketAddr,
    stop: CancellationToken,
    task: JoinHandle<Result<(), tonic::transport::Error>>,
}

impl Server {
    async fn start(host: &Arc<FakeHost>, listen: SocketAddr) -> Self {
        let listener = TcpListener::bind(listen).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let service = PodServer::service(host.clone(), stop.clone());
        let serve = tonic::transport::Server::builder()
            .add_service(service)
            .serve_with_incoming_shutdown(TcpListenerStream::new(listener), stop.clone().cancelled_owned());
        Self {
            addr,
            stop,
            task: tokio::spawn(serve),
        }
    }

    async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap().unwrap();
    }
}

struct Caller {
    host: Arc<RemoteHost>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Caller {
    async fn start(addr: SocketAddr) -> Self {
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let config = RemoteConfig::new(Peer::new(format!("http://{addr}"), None));
        let host = RemoteHost::start(config, &tasks, &stop).unwrap();
        let mut connected = host.connected();
        timeout(PATIENCE, connected.wait_for(|c| *c)).await.unwrap().unwrap();
        Self { host, tasks, stop }
    }

    async fn table(&self, there: impl Fn(&PodTable) -> bool) -> Arc<PodTable> {
        let mut table = self.host.watch();
        let found = timeout(PATIENCE, table.wait_for(|t| there(t))).await;
        found.unwrap().unwrap().clone()
    }

    async fn stop(self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

fn resize() -> (FunctionName, RevisionName) {
    let function = FunctionName::new("resize").unwrap();
    let revision = RevisionName::of(&function, 1);
    (function, revision)
}

async fn until(there: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    let mut ticks = tokio::time::interval(Duration::from_millis(5));
    while !there() {
        assert!(Instant::now() < deadline, "it did not come");
        ticks.tick().await;
    }
}

fn loopback() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

#[tokio::test]
async fn callers_see_the_pods_and_the_host_sees_the_sum_of_their_loads() {
    let host = Arc::new(FakeHost::default());
    let (function, revision) = resize();
    let pod = host.add(&function, loopback(), PodState::Ready);
    let server = Server::start(&host, loopback()).await;
    let (one, two) = (Caller::start(server.addr).await, Caller::start(server.addr).await);
    let table = one.table(|t| t.pods.len() == 1).await;
    assert_eq!(table.pods, host.watch().borrow().pods, "nothing is lost on the way");

    one.host.set_load(&pod, 3);
    until(|| host.load(&pod) == Some(3)).await;
    assert_eq!(table.share(&table.pods[&pod]), 16, "one caller has the whole pod");
    two.host.set_load(&pod, 2);
    until(|| host.load(&pod) == Some(5)).await;
    let table = one.table(|t| t.sharers.get(&revision) == Some(&2)).await;
    assert_eq!(table.share(&table.pods[&pod]), 8);

    two.stop().await;
    until(|| host.load(&pod) == Some(3)).await;
    one.table(|t| t.sharers.is_empty()).await;
    one.stop().await;
    server.stop().await;
}

#[tokio::test]
async fn scaling_reaches_the_host_and_an_unknown_revision_is_told() {
    let host = Arc::new(FakeHost::default());
    let (function, revision) = resize();
    host.add(&function, loopback(), PodState::Starting);
    let server = Server::start(&host, loopback()).await;
    let caller = Caller::start(server.addr).await;
    caller.host.scale(&revision, 7).await.unwrap();
    assert_eq!(host.scaled().get(&revision), Some(&7));
    let unknown = RevisionName::of(&function, 2);
    let refused = caller.host.scale(&unknown, 1).await.unwrap_err();
    assert!(matches!(refused, PodError::UnknownRevision(r) if r == unknown));
    caller.stop().await;
    server.stop().await;
}

#[tokio::test]
async fn a_host_that_goes_away_keeps_its_pods_in_the_table_and_is_found_again() {
    let host = Arc::new(FakeHost::default());
    let (function, revision) = resize();
    let pod = host.add(&function, loopback(), PodState::Ready);
    let server = Server::start(&host, loopback()).await;
    let addr = server.addr;
    let caller = Caller::start(addr).await;
    caller.host.set_load(&pod, 4);
    until(|| host.load(&pod) == Some(4)).await;

    server.stop().await;
    let mut connected = caller.host.connected();
    timeout(PATIENCE, connected.wait_for(|c| !*c)).await.unwrap().unwrap();
    caller.table(|t| t.pods.len() == 1).await;
    let refused = caller.host.scale(&revision, 1).await.unwrap_err();
    assert!(matches!(refused, PodError::Unreachable { .. }), "{refused}");

    // Another process of the host, which knows of no loads.
    let host = Arc::new(FakeHost::default());
    host.add(&function, loopback(), PodState::Ready);
    host.add(&function, loopback(), PodState::Draining);
    let server = Server::start(&host, addr).await;
    caller.table(|t| t.pods.len() == 2).await;
    until(|| host.load(&pod) == Some(4)).await;
    caller.stop().await;
    server.stop().await;
}

#[tokio::test]
async fn lines_are_brought_for_as_long_as_somebody_reads_them() {
    let host = Arc::new(FakeHost::default());
    let (function, revision) = resize();
    let server = Server::start(&host, loopback()).await;
    let caller = Caller::start(server.addr).await;
    let mut lines = caller.host.follow_logs();
    until(|| host.lines.receiver_count() == 1).await;
    let line = LogLine {
        at_ms: 5,
        function: function.clone(),
        revision,
        pod: "resize-1".to_owned(),
        stream: Stream::Stderr,
        text: "so it is".to_owned(),
    };
    host.lines.send(line.clone()).unwrap();
    assert_eq!(timeout(PATIENCE, lines.recv()).await.unwrap().unwrap(), line);
    drop(lines);
    until(|| host.lines.receiver_count() == 0).await;
    let query = LogQuery {
        function,
        revision: None,
        tail: 5,
    };
    assert_eq!(caller.host.logs(query).await.unwrap(), []);
    caller.stop().await;
    server.stop().await;
}
