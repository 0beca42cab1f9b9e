//! An S3 server in this process, on a folder. Any S3 client can use it.
use std::error::Error;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use s3s::auth::SimpleAuth;
use s3s::service::S3ServiceBuilder;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use crate::store::ObjectInfo;
use connections::Limits;

mod access;
mod connections;
mod disk;
mod intake;
mod listing;
mod service;
mod shared;
mod staging;
#[cfg(test)]
mod tests;
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
    /// The object as it is, or as it was before it was removed.
    pub info: ObjectInfo,
    /// Rises with each change that this server process tells; changes of one key are told in their order.
    pub sequence: u64,
}

/// Why a listener could not take a change: the client is told 503 and repeats.
pub type ListenerError = Box<dyn Error + Send + Sync>;

/// Hears of each durable change before the client does.
#[async_trait]
pub trait ObjectListener: Send + Sync + 'static {
    /// Takes a change.
    ///
    /// # Errors
    /// Anything: then the client gets 503, though the change stays made. It is told again when the client repeats the request,
    /// put or removal, unless the key has changed again: then only the last change is told. A restart forgets it.
    async fn on_durable(&self, change: ObjectChange) -> Result<(), ListenerError>;

    /// Takes a change of which another server's notification tells. `occurrence` is the same whenever that change is told, and
    /// another for each other change of the key: of a removal often nothing else is known. By default it says nothing.
    ///
    /// # Errors
    /// Anything: then it is told again.
    async fn on_told(&self, change: ObjectChange, _occurrence: Option<&str>) -> Result<(), ListenerError> {
        self.on_durable(change).await
    }
}

/// Settings of the embedded server.
pub struct EmbeddedS3Config {
    /// Folder of the objects; made when it is not there.
    pub root: PathBuf,
    /// Where to listen; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Access key and secret key.
    pub credentials: (String, String),
    /// Most bytes of all objects together; `None` leaves it to the disk.
    pub limit_bytes: Option<u64>,
    /// Most bytes of one object.
    pub max_object_bytes: u64,
    /// Hears of changes.
    pub on_durable: Arc<dyn ObjectListener>,
}

/// Why the embedded server did not start.
#[derive(Debug, thiserror::Error)]
pub enum EmbeddedS3Error {
    /// The folder of the objects cannot be used.
    #[error("the objects in {} cannot be read", root.display())]
    Folder {
        /// The folder.
        root: PathBuf,
        /// Why.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// The address cannot be listened on.
    #[error("the S3 server cannot listen on {addr}")]
    Listen {
        /// The address.
        addr: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// A running server. It stops when this is dropped; `shutdown` waits for what is under way.
pub struct EmbeddedS3 {
    addr: SocketAddr,
    credentials: (String, String),
    stop: DropGuard,
    task: JoinHandle<()>,
}

impl fmt::Debug for EmbeddedS3 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EmbeddedS3")
            .field("addr", &self.addr)
            .finish_non_exhaustive()
    }
}

impl EmbeddedS3 {
    /// Reads the folder and listens.
    ///
    /// # Errors
    /// When the folder cannot be read or another process has it, or the address is taken.
    pub async fn start(config: EmbeddedS3Config) -> Result<Self, EmbeddedS3Error> {
        Self::start_with(config, Limits::default()).await
    }

    async fn start_with(config: EmbeddedS3Config, limits: Limits) -> Result<Self, EmbeddedS3Error> {
        let (root, limit) = (config.root.clone(), config.limit_bytes);
        let folder = |source| EmbeddedS3Error::Folder {
            root: config.root.clone(),
            source,
        };
        let disk = tokio::task::spawn_blocking(move || disk::Disk::open(&root, limit)).await;
        let disk = disk.map_err(|e| folder(e.into()))?.map_err(|e| folder(e.into()))?;
        let writes = TaskTracker::new();
        let service = service::Service::new(disk, config.on_durable, config.max_object_bytes, writes.clone());
        let mut builder = S3ServiceBuilder::new(service);
        builder.set_auth(SimpleAuth::from_single(
            config.credentials.0.clone(),
            config.credentials.1.clone(),
        ));
        builder.set_access(access::SignedHeaders);
        let service = builder.build();
        let listen = |source| EmbeddedS3Error::Listen {
            addr: config.listen,
            source,
        };
        let listener = TcpListener::bind(config.listen).await.map_err(listen)?;
        let addr = listener.local_addr().map_err(listen)?;
        let stop = CancellationToken::new();
        let task = tokio::spawn(connections::serve(listener, service, limits, writes, stop.clone()));
        Ok(Self {
            addr,
            credentials: config.credentials,
            stop: stop.drop_guard(),
            task,
        })
    }

    /// Where it listens.
    #[must_use]
    pub const fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Access key and secret key.
    #[must_use]
    pub const fn credentials(&self) -> &(String, String) {
        &self.credentials
    }

    /// Takes no new requests, finishes those under way (at most 10 s), ends.
    pub async fn shutdown(self) {
        drop(self.stop);
        if let Err(error) = self.task.await {
            tracing::error!(%error, "the S3 server ended unexpectedly");
        }
    }
}
