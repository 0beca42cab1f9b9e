//! What all requests share: the disk behind the locks of keys, and the listener behind both.
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use s3s::{S3Error, S3ErrorCode, S3Result, s3_error};
use tokio::time::Instant;

use super::disk::{Disk, DiskError, Draft};
use super::staging::Staged;
use super::uploads::Uploads;
use super::{ChangeKind, ObjectChange, ObjectListener};
use crate::store::ObjectInfo;

/// Locks of keys. Keys that share one wait for each other, which is harmless and rare.
const LOCKS: usize = 1024;
/// Changes that are remembered because their listener failed; more than these only the reconcile finds.
const UNTOLD: usize = 10_000;

/// What all requests share.
pub struct Shared {
    pub disk: Arc<Disk>,
    pub uploads: Uploads,
    listener: Arc<dyn ObjectListener>,
    pub max_object_bytes: u64,
    locks: Vec<tokio::sync::Mutex<()>>,
    hasher: RandomState,
    sequence: AtomicU64,
    untold: Mutex<HashMap<(String, String), Untold>>,
}

/// The last change of a key, of which the listener does not know. When the request is repeated the disk alone no longer shows
/// that it changed something.
enum Untold {
    Created,
    /// What the object was: nothing else is left of it.
    Removed(ObjectInfo),
}

impl Shared {
    pub fn new(disk: Disk, listener: Arc<dyn ObjectListener>, max_object_bytes: u64) -> Self {
        Self {
            disk: Arc::new(disk),
            uploads: Uploads::default(),
            listener,
            max_object_bytes,
            locks: (0..LOCKS).map(|_| tokio::sync::Mutex::new(())).collect(),
            hasher: RandomState::new(),
            sequence: AtomicU64::new(0),
            untold: Mutex::default(),
        }
    }

    /// Runs work on the disk where blocking is allowed.
    pub async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Disk) -> Result<T, DiskError> + Send + 'static,
    ) -> S3Result<T> {
        let disk = self.disk.clone();
        tokio::task::spawn_blocking(move || work(&disk))
            .await
            .map_err(internal)?
            .map_err(fault)
    }

    /// Gives back the space of uploads that nobody completed in time. Called before anything is written, which may need it.
    pub async fn sweep(&self) -> S3Result<()> {
        let expired = self.uploads.take_expired(Instant::now());
        if expired.is_empty() {
            return Ok(());
        }
        tracing::info!(uploads = expired.len(), "uploads that nobody completed are given up");
        self.discard(expired).await
    }

    /// Ends an upload; its parts go.
    pub async fn end_upload(&self, id: &str) -> S3Result<()> {
        self.discard(self.uploads.take(id)).await
    }

    /// An upload may have thousands of files.
    async fn discard(&self, uploads: impl Send + 'static) -> S3Result<()> {
        let drop_them = move |_: &Disk| {
            drop(uploads);
            Ok(())
        };
        self.blocking(drop_them).await
    }

    /// Held from the look at a key to the end of its event: events of a key come in the order of its changes, and who is
    /// told "exists already" is told so of an object that is durable.
    async fn lock(&self, bucket: &str, key: &str) -> Option<tokio::sync::MutexGuard<'_, ()>> {
        let hash = self.hasher.hash_one((bucket, key));
        let lock = self.locks.get(usize::try_from(hash % LOCKS as u64).unwrap_or(0))?;
        Some(lock.lock().await)
    }

    pub async fn write(
        &self,
        draft: Draft,
        stage: impl FnOnce(&Disk) -> Result<(Staged, String), DiskError> + Send + 'static,
    ) -> S3Result<ObjectInfo> {
        let (bucket, key) = (draft.bucket.clone(), draft.key.clone());
        let _lock = self.lock(&bucket, &key).await;
        let work = move |disk: &Disk| match disk.refuse_existing(&draft) {
            Ok(()) => {
                let (staged, etag) = stage(disk)?;
                disk.commit(staged, &draft, etag).map(Ok)
            }
            Err(DiskError::Exists) => Ok(Err(disk.read(&draft.bucket, &draft.key)?.map(|(info, _)| info))),
            Err(error) => Err(error),
        };
        match self.blocking(work).await? {
            Ok(info) => self.tell(ChangeKind::Created, info.clone()).await.map(|()| info),
            Err(there) => {
                // A put whose event failed is repeated with the same condition: its event must not be lost on the 412.
                if let Some(info) = there.filter(|_| self.is_untold(&bucket, &key)) {
                    self.tell(ChangeKind::Created, info).await?;
                }
                Err(fault(DiskError::Exists))
            }
        }
    }

    pub async fn remove(&self, bucket: String, key: String) -> S3Result<()> {
        let _lock = self.lock(&bucket, &key).await;
        let name = (bucket.clone(), key.clone());
        let found = self.blocking(move |disk| disk.delete(&bucket, &key)).await?;
        // A removal whose event failed is repeated, and finds nothing: its event must not be lost on the 204.
        match found.or_else(|| self.untold_removal(&name)) {
            Some(info) => self.tell(ChangeKind::Removed, info).await,
            None => Ok(()),
        }
    }

    async fn tell(&self, kind: ChangeKind, info: ObjectInfo) -> S3Result<()> {
        let name = (info.bucket.clone(), info.key.clone());
        let sequence = self.sequence.fetch_add(1, Ordering::Relaxed);
        let change = match kind {
            ChangeKind::Created => Untold::Created,
            ChangeKind::Removed => Untold::Removed(info.clone()),
        };
        let told = self.listener.on_durable(ObjectChange { kind, info, sequence }).await;
        let mut untold = self.untold.lock().unwrap_or_else(PoisonError::into_inner);
        // What came before is told no more: it would come after this one.
        untold.remove(&name);
        let Err(error) = told else { return Ok(()) };
        tracing::warn!(bucket = name.0, key = name.1, %error, "a change of an object could not be told");
        if untold.len() < UNTOLD {
            untold.insert(name, change);
        }
        Err(s3_error!(
            ServiceUnavailable,
            "the change could not be recorded: repeat the request"
        ))
    }

    fn is_untold(&self, bucket: &str, key: &str) -> bool {
        let untold = self.untold.lock().unwrap_or_else(PoisonError::into_inner);
        let change = untold.get(&(bucket.to_owned(), key.to_owned()));
        matches!(change, Some(Untold::Created))
    }

    fn untold_removal(&self, name: &(String, String)) -> Option<ObjectInfo> {
        let untold = self.untold.lock().unwrap_or_else(PoisonError::into_inner);
        match untold.get(name)? {
            Untold::Removed(info) => Some(info.clone()),
            Untold::Created => None,
        }
    }

    pub fn check_there(&self, bucket: &str) -> S3Result<()> {
        if self.disk.has_bucket(bucket) {
            Ok(())
        } else {
            Err(s3_error!(NoSuchBucket))
        }
    }
}

pub fn internal(error: tokio::task::JoinError) -> S3Error {
    S3Error::internal_error(error)
}

fn fault(error: DiskError) -> S3Error {
    match error {
        DiskError::NoBucket => s3_error!(NoSuchBucket),
        DiskError::Exists => s3_error!(PreconditionFailed, "the object exists already"),
        DiskError::BadDigest(_) => S3Error::with_message(S3ErrorCode::BadDigest, error.to_string()),
        DiskError::Full => {
            let code = S3ErrorCode::Custom("StorageFull".into());
            let mut error = S3Error::with_message(code, "no space is left in the object store");
            error.set_status_code(http::StatusCode::INSUFFICIENT_STORAGE);
            error
        }
        error @ (DiskError::Io(_) | DiskError::InUse) => {
            tracing::error!(%error, "the disk of the object store failed");
            S3Error::internal_error(error)
        }
    }
}
