//! The embedded object store behind a switch.
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use imageflow_objects::{
    EmbeddedS3, EmbeddedS3Config, ListenerError, ObjectChange, ObjectError, ObjectInfo, ObjectListener, ObjectStore,
    PutOptions, S3Config, S3Store, SignedUrl,
};
use tokio::sync::watch;

use super::within;

struct Nobody;

#[async_trait]
impl ObjectListener for Nobody {
    async fn on_durable(&self, _: ObjectChange) -> Result<(), ListenerError> {
        Ok(())
    }
}

/// A store that can be switched off, and counts who asked while it was.
pub struct Switch {
    inner: S3Store,
    down: watch::Sender<bool>,
    refused: watch::Sender<u32>,
    panics: AtomicU32,
    _server: EmbeddedS3,
}

impl Switch {
    pub async fn start(root: &std::path::Path) -> Self {
        let server = EmbeddedS3::start(EmbeddedS3Config {
            root: root.to_owned(),
            listen: ([127, 0, 0, 1], 0).into(),
            credentials: ("test".to_owned(), "test-secret".to_owned()),
            limit_bytes: None,
            max_object_bytes: 1 << 20,
            on_durable: std::sync::Arc::new(Nobody),
        })
        .await
        .unwrap();
        let (access, secret) = server.credentials().clone();
        let inner = S3Store::new(S3Config::new(format!("http://{}", server.addr()), access, secret));
        Self {
            inner,
            down: watch::channel(false).0,
            refused: watch::channel(0).0,
            panics: AtomicU32::new(0),
            _server: server,
        }
    }

    pub fn down(&self, down: bool) {
        self.down.send_replace(down);
    }

    /// Waits until the store was asked for something in vain so often.
    pub async fn refused(&self, times: u32) {
        let mut refused = self.refused.subscribe();
        let seen = within("a call on the store that is down", refused.wait_for(|n| *n >= times)).await;
        drop(seen.unwrap());
    }

    /// The next so many calls panic.
    pub fn panic(&self, times: u32) {
        self.panics.store(times, Ordering::SeqCst);
    }

    fn up(&self) -> Result<(), ObjectError> {
        let panics = |left: u32| left.checked_sub(1);
        let panics = self.panics.fetch_update(Ordering::SeqCst, Ordering::SeqCst, panics);
        assert!(panics.is_err(), "the test has the store panic");
        if !*self.down.borrow() {
            return Ok(());
        }
        self.refused.send_modify(|n| *n += 1);
        Err(ObjectError::Unavailable {
            source: "switched off by the test".into(),
        })
    }
}

#[async_trait]
impl ObjectStore for Switch {
    async fn put(&self, bucket: &str, key: &str, body: Bytes, options: PutOptions) -> Result<ObjectInfo, ObjectError> {
        self.up()?;
        self.inner.put(bucket, key, body, options).await
    }
    async fn get(&self, bucket: &str, key: &str, if_match: Option<&str>) -> Result<(ObjectInfo, Bytes), ObjectError> {
        self.up()?;
        self.inner.get(bucket, key, if_match).await
    }
    async fn head(&self, bucket: &str, key: &str) -> Result<Option<ObjectInfo>, ObjectError> {
        self.up()?;
        self.inner.head(bucket, key).await
    }
    async fn delete(&self, bucket: &str, key: &str) -> Result<(), ObjectError> {
        self.up()?;
        self.inner.delete(bucket, key).await
    }
    async fn list(
        &self,
        bucket: &str,
        prefix: &str,
        start_after: Option<&str>,
        max: usize,
    ) -> Result<Vec<ObjectInfo>, ObjectError> {
        self.up()?;
        self.inner.list(bucket, prefix, start_after, max).await
    }
    async fn ensure_bucket(&self, bucket: &str) -> Result<(), ObjectError> {
        self.up()?;
        self.inner.ensure_bucket(bucket).await
    }
    async fn sign_get(
        &self,
        bucket: &str,
        key: &str,
        if_match: Option<&str>,
        life: Duration,
    ) -> Result<SignedUrl, ObjectError> {
        self.up()?;
        self.inner.sign_get(bucket, key, if_match, life).await
    }
    async fn sign_put(
        &self,
        bucket: &str,
        key: &str,
        metadata: &BTreeMap<String, String>,
        life: Duration,
    ) -> Result<SignedUrl, ObjectError> {
        self.up()?;
        self.inner.sign_put(bucket, key, metadata, life).await
    }
}
