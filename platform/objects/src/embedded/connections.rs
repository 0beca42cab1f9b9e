//! Connections of the embedded server: how many there are at once, and how long a client may keep one for nothing.
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::Request;
use hyper::body::Incoming;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use s3s::service::S3Service;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Longest that shutdown waits for requests under way.
const DRAIN: Duration = Duration::from_secs(10);

/// What clients may cost. No client in good order meets a limit.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Most connections at a time; more wait in the backlog of the socket.
    pub connections: usize,
    /// A connection whose first request's head is not there in this time is closed, and an HTTP/1 connection on which a later
    /// one is not: an idle one too.
    pub head: Duration,
    /// Between two pings of an HTTP/2 connection; one that does not answer for as long again is closed.
    pub ping_every: Duration,
    /// Most requests at a time on an HTTP/2 connection; the client queues more.
    pub streams: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 1024,
            // Longer than the 90 s after which the usual clients close idle connections themselves: otherwise they would send
            // into one that is just being closed.
            head: Duration::from_secs(120),
            ping_every: Duration::from_secs(20),
            streams: 128,
        }
    }
}

impl Limits {
    fn builder(&self) -> Builder<TokioExecutor> {
        let mut http = Builder::new(TokioExecutor::new());
        http.http1().timer(TokioTimer::new()).header_read_timeout(self.head);
        http.http2()
            .timer(TokioTimer::new())
            .keep_alive_interval(self.ping_every)
            .keep_alive_timeout(self.ping_every)
            .max_concurrent_streams(self.streams);
        http
    }
}

/// Serves until `stop`, then takes no more connections and returns when what is under way is done, writes too.
pub async fn serve(
    listener: TcpListener,
    service: S3Service,
    limits: Limits,
    writes: TaskTracker,
    stop: CancellationToken,
) {
    let http = limits.builder();
    let graceful = GracefulShutdown::new();
    let free = Arc::new(Semaphore::new(limits.connections));
    let mut connections = JoinSet::new();
    while let Some(accepted) = stop.run_until_cancelled(accept(&listener, &free)).await {
        while connections.try_join_next().is_some() {}
        let (stream, permit) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of file descriptors, most likely: trying again at once would spin.
                tracing::warn!(%error, "a connection could not be accepted");
                stop.run_until_cancelled(tokio::time::sleep(Duration::from_millis(50)))
                    .await;
                continue;
            }
        };
        let (http, service, watcher) = (http.clone(), service.clone(), graceful.watcher());
        connections.spawn(async move {
            serve_one(stream, service, &http, limits.head, watcher).await;
            drop(permit);
        });
    }
    drop(listener);
    writes.close();
    let drained = tokio::time::timeout(DRAIN, async {
        graceful.shutdown().await;
        writes.wait().await;
    });
    if drained.await.is_err() {
        tracing::warn!("requests to the S3 server were cut off at shutdown");
    }
}

async fn accept(listener: &TcpListener, free: &Arc<Semaphore>) -> io::Result<(TcpStream, OwnedSemaphorePermit)> {
    let permit = free.clone().acquire_owned().await.map_err(io::Error::other)?;
    Ok((listener.accept().await?.0, permit))
}

async fn serve_one(
    stream: TcpStream,
    service: S3Service,
    http: &Builder<TokioExecutor>,
    patience: Duration,
    watcher: Watcher,
) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "a connection keeps its delay");
    }
    let begun = Arc::new(AtomicBool::new(false));
    let seen = begun.clone();
    let service = service_fn(move |request: Request<Incoming>| {
        seen.store(true, Ordering::Relaxed);
        Service::call(&service, request)
    });
    let connection = http.serve_connection(TokioIo::new(stream), service).into_owned();
    let mut connection = pin!(watcher.watch(connection));
    // hyper's own timeout begins only when it knows the protocol: a client that sends nothing, or half of the HTTP/2
    // preface, would stay for good.
    let ended = match tokio::time::timeout(patience, connection.as_mut()).await {
        Ok(ended) => ended,
        Err(_) if begun.load(Ordering::Relaxed) => connection.await,
        Err(_) => {
            tracing::debug!("a client sent no request in time");
            return;
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended badly");
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;
    use crate::conformance;
    use crate::embedded::{EmbeddedS3, EmbeddedS3Config, ListenerError, ObjectChange, ObjectListener};

    struct Nobody;

    #[async_trait::async_trait]
    impl ObjectListener for Nobody {
        async fn on_durable(&self, _: ObjectChange) -> Result<(), ListenerError> {
            Ok(())
        }
    }

    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    /// An empty frame of settings.
    const SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];
    /// A whole request: `GET http://h/` on stream 1.
    const REQUEST: &[u8] = &[0, 0, 6, 1, 5, 0, 0, 0, 1, 0x82, 0x86, 0x84, 0x41, 1, b'h'];

    /// Takes all connections of a server with clients that send this and no more, and looks whether another is served.
    async fn assert_room_beside(name: &str, sent: Vec<u8>) {
        let dir = tempfile::tempdir().unwrap();
        let config = EmbeddedS3Config {
            root: dir.path().to_owned(),
            listen: "127.0.0.1:0".parse().unwrap(),
            credentials: ("key".into(), "secret".into()),
            limit_bytes: None,
            max_object_bytes: 1 << 20,
            on_durable: Arc::new(Nobody),
        };
        let limits = Limits {
            connections: 2,
            head: Duration::from_millis(500),
            ping_every: Duration::from_millis(250),
            ..Limits::default()
        };
        let server = EmbeddedS3::start_with(config, limits).await.unwrap();
        let mut held = Vec::new();
        for _ in 0..limits.connections {
            let mut stream = TcpStream::connect(server.addr()).await.unwrap();
            stream.write_all(&sent).await.unwrap();
            held.push(stream);
        }
        let url = format!("http://{}/", server.addr());
        let answer = tokio::time::timeout(Duration::from_secs(30), conformance::send(&url, "GET", &[], b"")).await;
        assert_eq!(answer.map(|(status, _)| status), Ok(403), "{name}");
    }

    #[tokio::test]
    async fn connections_that_bring_nothing_make_room_for_others() {
        let http2 = |frames: &[&[u8]]| [PREFACE, &frames.concat()].concat();
        tokio::join!(
            assert_room_beside("silence", Vec::new()),
            assert_room_beside("half of a head", b"GET / HTTP/1.1\r\nhost:".to_vec()),
            assert_room_beside("half of a preface", PREFACE[..10].to_vec()),
            assert_room_beside("HTTP/2 without a request", http2(&[SETTINGS])),
            assert_room_beside("HTTP/2 without an answer to pings", http2(&[SETTINGS, REQUEST])),
        );
    }
}
