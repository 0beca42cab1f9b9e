//! Listening, connections, and the end.
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::service::Routes;

use crate::app::App;
use crate::config::Config;
use crate::error::SdkError;
use crate::function::Function;
use crate::{Env, announce, grpc, route, telemetry};

/// Most connections at once. Delivery and probes need a few; past it new ones wait in the kernel.
const MAX_CONNECTIONS: usize = 1024;
/// Between two pings of an h2 connection, and how long one may go unanswered: a client that vanished is to hold no connection.
const PING: Duration = Duration::from_secs(20);
/// Silence on any connection after which the kernel asks whether the client is there, and between its questions.
const SILENCE: Duration = Duration::from_secs(30);
const ASK_EVERY: Duration = Duration::from_secs(10);
/// Questions without an answer before the client is taken for gone.
const QUESTIONS: u32 = 3;
/// Time for the last answers to leave after the work is done.
const FLUSH: Duration = Duration::from_secs(5);
/// Flow-control window of an h2 stream: the default of 64 KiB makes a photograph wait for many round trips. A connection has
/// as much for all its streams together: those that wait for a permit leave theirs full, which must not hold up those at work.
const WINDOW: u32 = 256 * 1024;
/// Most streams of an h2 connection, unless the pod takes more calls at once. Clients begin up to 100 before they are told how
/// many there may be, and those above it are refused.
const STREAMS: u32 = 128;
/// How often samples of metrics are folded into buckets.
const UPKEEP: Duration = Duration::from_secs(5);

/// Serves `function` as the environment says until SIGTERM or SIGINT, then drains. Makes its own runtime, so it must not
/// be called inside one.
///
/// # Errors
/// [`SdkError`] when the environment is wrong or the address is taken.
pub fn run(function: impl Function, env: Env<'_>) -> Result<(), SdkError> {
    let config = Config::from_env(env)?;
    // First of all: from here on a request waits in the kernel instead of being refused.
    let bind = |source| SdkError::Bind {
        addr: config.addr,
        source,
    };
    let listener = std::net::TcpListener::bind(config.addr).map_err(bind)?;
    listener.set_nonblocking(true).map_err(bind)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        // One thread a call, and two for looking up names and flushing spans.
        .max_blocking_threads(config.concurrency_limit as usize + 2)
        .build()
        .map_err(SdkError::Runtime)?;
    let served = runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).map_err(SdkError::Runtime)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(SdkError::Runtime)?;
        let listener = TcpListener::from_std(listener).map_err(SdkError::Runtime)?;
        let provider = telemetry::init(&config)?;
        let app = Arc::new(App::new(Arc::new(function), config));
        app.metrics.install();
        serve_app(listener, app, async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        })
        .await;
        if let Some(provider) = provider {
            let _ = tokio::task::spawn_blocking(move || telemetry::flush(&provider)).await;
        }
        Ok(())
    });
    // Work past its time limit cannot be stopped; the process ends without it.
    runtime.shutdown_background();
    served
}

/// Serves `function` on `listener` until `shutdown` ends, then drains: turns unready, refuses new work, finishes what it
/// holds (for at most the time limit and a second), closes its connections. Sets neither subscriber nor signal handlers.
pub async fn serve(listener: TcpListener, function: impl Function, config: Config, shutdown: impl Future<Output = ()>) {
    serve_app(listener, Arc::new(App::new(Arc::new(function), config)), shutdown).await;
}

async fn serve_app(listener: TcpListener, app: Arc<App>, shutdown: impl Future<Output = ()>) {
    let (routes, health) = grpc::routes(&app);
    grpc::report(&health, true).await;
    if let Ok(addr) = listener.local_addr() {
        tracing::info!(%addr, function = app.config.function, revision = app.config.revision, "listening");
    }
    let server = Server::new(Arc::clone(&app), routes);
    let announcing = announce::announce(&app.config, listener.local_addr().ok());
    tokio::pin!(shutdown);
    tokio::select! {
        never = server.accept(&listener) => match never {},
        ((), ()) = futures::future::join(announcing, upkeep(&app)) => {}
        () = &mut shutdown => {}
    }

    app.admission.drain();
    grpc::report(&health, false).await;
    let held = app.admission.in_flight();
    tracing::info!(held, "draining");
    let grace = app.config.timeout + Duration::from_secs(1);
    // Still listening: who comes now is told to go elsewhere, which is quicker than a refused connection.
    tokio::select! {
        never = server.accept(&listener) => match never {},
        () = app.admission.idle() => {}
        () = tokio::time::sleep(grace) => {
            tracing::warn!(held = app.admission.in_flight(), "work did not end in time and is given up");
        }
    }
    drop(listener);
    server.close().await;
    tracing::info!("drained");
}

async fn upkeep(app: &App) {
    let mut ticks = tokio::time::interval(UPKEEP);
    loop {
        ticks.tick().await;
        app.metrics.upkeep();
    }
}

/// Runs the tasks of h2 where the server can wait for them.
#[derive(Clone)]
struct Tracked(TaskTracker);

impl<F> hyper::rt::Executor<F> for Tracked
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, future: F) {
        self.0.spawn(future);
    }
}

/// Has the kernel ask whether the client is there. It does not limit how long an answer may stay unread, as the gateway does: a
/// dispatcher may have no room for it until the call's time is over.
fn watch(stream: &TcpStream) -> std::io::Result<()> {
    let asking = TcpKeepalive::new()
        .with_time(SILENCE)
        .with_interval(ASK_EVERY)
        .with_retries(QUESTIONS);
    SockRef::from(stream).set_tcp_keepalive(&asking)
}

struct Server {
    app: Arc<App>,
    routes: Routes,
    builder: auto::Builder<Tracked>,
    tasks: TaskTracker,
    graceful: GracefulShutdown,
    give_up: CancellationToken,
    room: Arc<Semaphore>,
}

impl Server {
    fn new(app: Arc<App>, routes: Routes) -> Self {
        let streams = app.config.concurrency_limit.max(STREAMS);
        let tasks = TaskTracker::new();
        let mut builder = auto::Builder::new(Tracked(tasks.clone()));
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(app.config.idle);
        builder
            .http2()
            .timer(TokioTimer::new())
            .keep_alive_interval(PING)
            .keep_alive_timeout(PING)
            .max_concurrent_streams(streams)
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(WINDOW * streams);
        Self {
            app,
            routes,
            builder,
            tasks,
            graceful: GracefulShutdown::new(),
            give_up: CancellationToken::new(),
            room: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
        }
    }

    async fn accept(&self, listener: &TcpListener) -> std::convert::Infallible {
        loop {
            let room = Arc::clone(&self.room).acquire_owned().await;
            match listener.accept().await {
                Ok((stream, _)) => self.connection(stream, room.ok()),
                Err(error) => {
                    // Out of descriptors, mostly: the next try would fail at once too.
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
        }
    }

    fn connection(&self, stream: TcpStream, room: Option<OwnedSemaphorePermit>) {
        if let Err(error) = stream.set_nodelay(true).and_then(|()| watch(&stream)) {
            tracing::debug!(%error, "a connection is not set up as it should be");
        }
        let (app, routes, idle) = (Arc::clone(&self.app), self.routes.clone(), self.app.config.idle);
        let begun = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&begun);
        let service = service_fn(move |request| {
            seen.store(true, Ordering::Relaxed);
            route::route(Arc::clone(&app), routes.clone(), request)
        });
        let connection = self
            .builder
            .serve_connection(TokioIo::new(stream), service)
            .into_owned();
        let watcher: Watcher = self.graceful.watcher();
        let give_up = self.give_up.clone();
        // hyper's own limit begins only when it knows the protocol: a client that sends nothing, or a part of the h2 preface,
        // would stay for good.
        let silent = async move {
            tokio::time::sleep(idle).await;
            if begun.load(Ordering::Relaxed) {
                std::future::pending::<()>().await;
            }
        };
        self.tasks.spawn(async move {
            let _room = room;
            tokio::select! {
                ended = watcher.watch(connection) => {
                    if let Err(error) = ended {
                        tracing::debug!(error, "a connection broke");
                    }
                }
                () = silent => tracing::debug!("a client sent no request in time"),
                () = give_up.cancelled() => {}
            }
        });
    }

    /// Lets the last answers leave, then cuts what is left.
    async fn close(self) {
        self.tasks.close();
        if tokio::time::timeout(FLUSH, self.graceful.shutdown()).await.is_err() {
            tracing::warn!("connections did not close in time and are cut");
        }
        self.give_up.cancel();
        let _ = tokio::time::timeout(FLUSH, self.tasks.wait()).await;
    }
}
