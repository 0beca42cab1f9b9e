//! Servers to test against.
#![allow(dead_code, reason = "each of the test files uses its part of this")]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use imageflow_objects::{
    EmbeddedS3, EmbeddedS3Config, ListenerError, ObjectBody, ObjectChange, ObjectListener, RetryBudget, S3Config,
};
use imageflow_servers::s3::{S3Options, S3Server};

pub const BUCKET: &str = "raw-images";

struct Deaf;

#[async_trait::async_trait]
impl ObjectListener for Deaf {
    async fn on_durable(&self, _: ObjectChange) -> Result<(), ListenerError> {
        Ok(())
    }
}

/// A server under test.
pub enum Target {
    Embedded(EmbeddedS3, tempfile::TempDir),
    Versitygw(S3Server),
}

impl Target {
    pub async fn embedded() -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let config = EmbeddedS3Config {
            root: dir.path().to_owned(),
            listen: "127.0.0.1:0".parse().unwrap(),
            credentials: ("key".into(), "secret".into()),
            limit_bytes: None,
            max_object_bytes: 1 << 30,
            on_durable: Arc::new(Deaf),
        };
        Some(Self::Embedded(EmbeddedS3::start(config).await.unwrap(), dir))
    }

    pub async fn versitygw() -> Option<Self> {
        Some(Self::Versitygw(S3Server::for_test(S3Options::default()).await?))
    }

    pub fn url(&self) -> String {
        match self {
            Self::Embedded(server, _) => format!("http://{}", server.addr()),
            Self::Versitygw(server) => server.url(),
        }
    }

    fn root(&self) -> PathBuf {
        match self {
            Self::Embedded(_, dir) => dir.path().to_owned(),
            Self::Versitygw(server) => server.data_dir(),
        }
    }

    /// Settings of a client at `url`, which is this server's or a proxy's.
    pub fn config(&self, url: impl Into<String>) -> S3Config {
        let config = match self {
            Self::Embedded(server, _) => {
                let (key, secret) = server.credentials().clone();
                S3Config::new(url, key, secret)
            }
            Self::Versitygw(server) => S3Config::new(url, server.access_key(), server.secret_key()),
        };
        S3Config {
            part_bytes: PART,
            budget: RetryBudget {
                attempt: Duration::from_secs(10),
                ..RetryBudget::default()
            },
            ..config
        }
    }

    /// Bytes of all files that it keeps: those that nobody sees too.
    pub fn bytes_on_disk(&self) -> u64 {
        size_of(&self.root())
    }
}

fn size_of(path: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(path) else { return 0 };
    // What vanishes while we look is not there.
    let sizes = entries.flatten().filter_map(|entry| {
        let meta = entry.metadata().ok()?;
        Some(if meta.is_dir() {
            size_of(&entry.path())
        } else {
            meta.len()
        })
    });
    sizes.sum()
}

/// The smallest part that S3 allows.
pub const PART: usize = 5 << 20;

/// Bytes that are nowhere the same for long.
pub fn bytes(n: usize) -> Bytes {
    let mut state = 1_u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    };
    (0..n).map(|_| next()).collect::<Vec<_>>().into()
}

/// A body in pieces of 300 kB, which parts do not end with, and how many bytes of it were taken.
pub fn body(bytes: &Bytes) -> (ObjectBody, Arc<AtomicUsize>) {
    let taken = Arc::new(AtomicUsize::new(0));
    let (counter, bytes) = (taken.clone(), bytes.clone());
    let chunks: Vec<Bytes> = (0..bytes.len())
        .step_by(300_000)
        .map(|at| bytes.slice(at..bytes.len().min(at + 300_000)))
        .collect();
    let body = stream::iter(chunks).map(move |chunk| {
        counter.fetch_add(chunk.len(), Ordering::SeqCst);
        Ok(chunk)
    });
    (body.boxed(), taken)
}

pub async fn read(mut body: ObjectBody) -> Result<Bytes, imageflow_objects::BodyError> {
    let mut all = Vec::new();
    while let Some(piece) = body.try_next().await? {
        all.extend_from_slice(&piece);
    }
    Ok(all.into())
}

/// Waits for a state.
pub async fn until(what: &str, mut reached: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !reached() {
        assert!(Instant::now() < deadline, "in 20 s not: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
