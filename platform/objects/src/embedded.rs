//! An S3 server in this process.
use std::error::Error;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::GracefulShutdown;
use s3s::auth::SimpleAuth;
use s3s::service::S3ServiceBuilder;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::error::ObjectError;
use crate::store::ObjectInfo;

mod disk;
mod service;
mod uploads;

/// What happened to an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChangeKind {
    /// It was written.
    Created,
    /// It was removed.
    Removed,
}

/// A change that is durable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectChange {
    /// What happened.
    pub kind: ChangeKind,
    /// The object.
    pub info: ObjectInfo,
}

/// Why a listener could not take a change: the client is told 503 and repeats.
pub type ListenerError = Box<dyn Error + Send + Sync>;

/// Hears of each durable change before the client does.
#[async_trait]
pub trait ObjectListener: Send + Sync + 'static {
    /// Takes a change.
    ///
    /// # Errors
    /// Anything: then the client gets 503 and the object stays.
    async fn on_durable(&self, change: ObjectChange) -> Result<(), ListenerError>;
}

/// Settings of the embedded server.
pub struct EmbeddedS3Config {
    /// Folder of the objects.
    pub root: PathBuf,
    /// Where to listen.
    pub listen: SocketAddr,
    /// Access key and secret key.
    pub credentials: (String, String),
    /// Most bytes of all objects together.
    pub limit_bytes: Option<u64>,
    /// Most bytes of one put or part.
    pub max_object_bytes: u64,
    /// Hears of changes.
    pub listener: Arc<dyn ObjectListener>,
}

/// A running server.
pub struct EmbeddedS3 {
    addr: SocketAddr,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

/// Longest that shutdown waits for requests under way.
const DRAIN: Duration = Duration::from_secs(10);

impl EmbeddedS3 {
    /// Reads the folder and listens.
    ///
    /// # Errors
    /// `Unavailable` when the folder cannot be read or the address is taken.
    pub async fn start(config: EmbeddedS3Config) -> Result<Self, ObjectError> {
        let (root, limit) = (config.root.clone(), config.limit_bytes);
        let disk = tokio::task::spawn_blocking(move || disk::Disk::open(&root, limit));
        let disk = disk.await.map_err(ObjectError::unavailable)?.map_err(ObjectError::unavailable)?;
        let service = service::Service::new(Arc::new(disk), config.listener, config.max_object_bytes);
        let mut builder = S3ServiceBuilder::new(service);
        builder.set_auth(SimpleAuth::from_single(config.credentials.0, config.credentials.1));
        let service = builder.build();
        let listener = TcpListener::bind(config.listen).await.map_err(|e| {
            ObjectError::unavailable(format!("the S3 server cannot listen on {}: {e}", config.listen))
        })?;
        let addr = listener.local_addr().map_err(ObjectError::unavailable)?;
        let stop = CancellationToken::new();
        let token = stop.clone();
        let task = tokio::spawn(async move {
            let http = Builder::new(TokioExecutor::new());
            let graceful = GracefulShutdown::new();
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let stream = tokio::select! {
                    () = token.cancelled() => break,
                    accepted = listener.accept() => match accepted {
                        Ok((stream, _)) => stream,
                        Err(error) => {
                            tracing::warn!(%error, "a connection could not be accepted");
                            tokio::time::sleep(Duration::from_millis(50)).await;
                            continue;
                        }
                    },
                    Some(_) = connections.join_next(), if !connections.is_empty() => continue,
                };
                let _ = stream.set_nodelay(true);
                let connection = http.serve_connection(TokioIo::new(stream), service.clone()).into_owned();
                let connection = graceful.watch(connection);
                connections.spawn(async move {
                    if let Err(error) = connection.await {
                        tracing::debug!(%error, "a connection ended badly");
                    }
                });
            }
            drop(listener);
            let _ = tokio::time::timeout(DRAIN, graceful.shutdown()).await;
        });
        Ok(Self { addr, stop, task })
    }

    /// Where it listens.
    #[must_use]
    pub const fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Takes no new requests, finishes those under way, ends.
    pub async fn shutdown(self) {
        self.stop.cancel();
        if let Err(error) = self.task.await {
            tracing::error!(%error, "the S3 server ended unexpectedly");
        }
    }
}
