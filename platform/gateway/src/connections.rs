//! Connections of the API: how many there are at once, and what a client may cost before its request is there.
use std::io::{Error, ErrorKind};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use http::Request;
use hyper::body::Incoming;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

/// Pause after the process ran out of file descriptors: accepting at once again would only burn a core.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);
/// hyper refuses to work with a smaller buffer.
const LEAST_HEADER_BYTES: usize = 8192;
/// Questions to a silent client before it is taken for gone.
const PROBES: u32 = 3;

/// Limits of the HTTP server. They guard the platform against its clients; no request in good order meets them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HttpLimits {
    /// How long a request's header may take to arrive, and so how long an HTTP/1 connection may idle: 10 s.
    pub header_timeout: Duration,
    /// Most bytes of a header, at least 8 KiB; more gets 431: 64 KiB.
    pub max_header_bytes: usize,
    /// Most fields of an HTTP/1 header; more gets 431: 100.
    pub max_headers: usize,
    /// Most requests at once on one HTTP/2 connection; the client queues more: 128.
    pub max_streams: u32,
    /// Between two pings of an HTTP/2 connection; one that does not answer for as long again is closed: 20 s.
    pub ping_every: Duration,
    /// Most open connections; more wait in the listener's backlog until one closes: 8192. A caller that waits
    /// for a pod keeps one, and of these a function may have 1,000: others are to be told that they come in vain.
    pub max_connections: usize,
    /// How long a body may take beyond what it came with at `body_rate`: 30 s. Who stalls holds room that is for all.
    pub body_patience: Duration,
    /// Bytes a second at which a body must come at least: 64 KiB, less than any line over which images are sent.
    pub body_rate: u32,
    /// How long a client may be gone, or take nothing of its answer, until its connection is closed: 60 s.
    pub gone_after: Duration,
    /// How long requests under way may take to end at shutdown, then they are cut off: 45 s. Kubernetes kills after 60 s, and
    /// the rest of the process needs some of them.
    pub drain: Duration,
}

impl Default for HttpLimits {
    fn default() -> Self {
        Self {
            header_timeout: Duration::from_secs(10),
            max_header_bytes: 64 << 10,
            max_headers: 100,
            max_streams: 128,
            ping_every: Duration::from_secs(20),
            max_connections: 8192,
            body_patience: Duration::from_secs(30),
            body_rate: 64 << 10,
            gone_after: Duration::from_secs(60),
            drain: Duration::from_secs(45),
        }
    }
}

impl HttpLimits {
    fn builder(&self) -> Builder<TokioExecutor> {
        let mut builder = Builder::new(TokioExecutor::new());
        let bytes = self.max_header_bytes.max(LEAST_HEADER_BYTES);
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(self.header_timeout)
            .max_headers(self.max_headers)
            .max_buf_size(bytes);
        builder
            .http2()
            .timer(TokioTimer::new())
            .keep_alive_interval(self.ping_every)
            .keep_alive_timeout(self.ping_every)
            .max_concurrent_streams(self.max_streams)
            .max_header_list_size(u32::try_from(bytes).unwrap_or(u32::MAX));
        builder
    }
}

/// Serves until `stop`, then takes no more connections and returns when those that are open have been answered, or their time is
/// over.
pub async fn serve(listener: TcpListener, router: Router, limits: HttpLimits, stop: CancellationToken) {
    let builder = limits.builder();
    let mut open = JoinSet::new();
    loop {
        metrics::gauge!("imageflow_api_connections").set(open.len() as f64);
        tokio::select! {
            () = stop.cancelled() => break,
            Some(ended) = open.join_next() => report(ended),
            accepted = listener.accept(), if open.len() < limits.max_connections => match accepted {
                Ok((stream, _)) => {
                    let connection = serve_one(stream, router.clone(), builder.clone(), limits, stop.clone());
                    open.spawn(connection);
                }
                Err(error) if is_of_the_client(&error) => {}
                Err(error) => {
                    tracing::error!(%error, "a connection cannot be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
    drop(listener);
    let answered = async {
        while let Some(ended) = open.join_next().await {
            report(ended);
        }
    };
    if tokio::time::timeout(limits.drain, answered).await.is_err() {
        tracing::warn!(connections = open.len(), "requests did not end in time and are cut off");
        open.shutdown().await;
    }
}

/// Has the kernel close the connection of a client that is gone: without this one that vanished, its line cut, would stay until
/// something is sent, and one that reads nothing for good.
fn watch(stream: &TcpStream, gone_after: Duration) -> Result<(), Error> {
    let socket = SockRef::from(stream);
    // The kernel counts these in whole seconds. Half of the time is silence, half is for the questions.
    let least = Duration::from_secs(1);
    let keepalive = TcpKeepalive::new()
        .with_time((gone_after / 2).max(least))
        .with_interval((gone_after / 2 / PROBES).max(least))
        .with_retries(PROBES);
    socket.set_tcp_keepalive(&keepalive)?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(gone_after))?;
    Ok(())
}

/// Whether the connection failed before it was accepted, which says nothing of the listener.
fn is_of_the_client(error: &Error) -> bool {
    let of_the_client = [
        ErrorKind::ConnectionRefused,
        ErrorKind::ConnectionAborted,
        ErrorKind::ConnectionReset,
    ];
    of_the_client.contains(&error.kind())
}

fn report(ended: Result<(), JoinError>) {
    if let Err(error) = ended {
        tracing::error!(%error, "a request ended its connection");
    }
}

async fn serve_one(
    stream: TcpStream,
    router: Router,
    builder: Builder<TokioExecutor>,
    limits: HttpLimits,
    stop: CancellationToken,
) {
    if let Err(error) = stream
        .set_nodelay(true)
        .and_then(|()| watch(&stream, limits.gone_after))
    {
        tracing::debug!(%error, "a connection of the API is not set up as it should be");
    }
    let begun = Arc::new(AtomicBool::new(false));
    let (seen, router) = (begun.clone(), TowerToHyperService::new(router));
    let service = service_fn(move |request: Request<Incoming>| {
        seen.store(true, Ordering::Relaxed);
        router.call(request)
    });
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    // hyper's own timeout begins only when it knows the protocol: a client that sends nothing, or half of the HTTP/2
    // preface, would stay for good.
    let mut first = pin!(tokio::time::sleep(limits.header_timeout));
    let (mut awaits_first, mut stopping) = (true, false);
    loop {
        tokio::select! {
            // The connection first: a request that came while this process was too busy to read it has come in time.
            biased;
            ended = connection.as_mut() => {
                if let Err(error) = ended {
                    tracing::debug!(error, "a connection of the API has failed");
                }
                return;
            }
            () = stop.cancelled(), if !stopping => {
                stopping = true;
                connection.as_mut().graceful_shutdown();
            }
            () = first.as_mut(), if awaits_first => {
                if !begun.load(Ordering::Relaxed) {
                    tracing::debug!("a client sent no request in time");
                    return;
                }
                awaits_first = false;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_kernel_watches_that_the_client_is_there() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        watch(&stream, HttpLimits::default().gone_after).unwrap();
        let socket = SockRef::from(&stream);
        assert!(socket.keepalive().unwrap());
        let asked = socket.tcp_keepalive_interval().unwrap() * socket.tcp_keepalive_retries().unwrap();
        let silent = socket.tcp_keepalive_time().unwrap();
        assert_eq!(silent + asked, Duration::from_secs(60));
        #[cfg(target_os = "linux")]
        assert_eq!(socket.tcp_user_timeout().unwrap(), Some(Duration::from_secs(60)));
    }
}
