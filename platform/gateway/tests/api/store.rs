//! An object store in memory.
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, stream};
use imageflow_objects::{ObjectBody, ObjectError, ObjectInfo, ObjectStore, PutOptions, SignedUrl, check_key};
use tokio::sync::watch;

/// Makes the error with which a call fails.
type Fault = fn() -> ObjectError;

#[derive(Default)]
pub struct MemoryStore {
    objects: Mutex<BTreeMap<(String, String), (ObjectInfo, Bytes)>>,
    faults: Mutex<BTreeMap<(String, String), Fault>>,
    /// Bytes of an object after which reading it breaks off.
    cut: Mutex<Option<usize>>,
    /// Whether lists have no end; how often one was asked for since.
    stuck: watch::Sender<Option<usize>>,
    /// How long a list takes, and a look at an object.
    takes: Mutex<(Duration, Duration)>,
}

/// Bytes of a piece of a stream.
pub const PIECE: usize = 1000;

impl MemoryStore {
    /// From now on looking at that object fails so, and with an empty key listing that bucket.
    pub fn fail(&self, bucket: &str, key: &str, fault: Fault) {
        let at = (bucket.to_owned(), key.to_owned());
        self.faults.lock().unwrap().insert(at, fault);
    }

    /// From now on reading objects breaks off after so many bytes.
    pub fn cut(&self, after: usize) {
        *self.cut.lock().unwrap() = Some(after);
    }

    /// From now on lists have no end.
    pub fn stick(&self) {
        self.stuck.send_replace(Some(0));
    }

    /// From now on a list takes so long on the paused clock of the test, and a look at an object so long.
    pub fn take(&self, list: Duration, look: Duration) {
        *self.takes.lock().unwrap() = (list, look);
    }

    /// Waits until such a list was asked for.
    pub async fn is_stuck(&self) {
        let mut stuck = self.stuck.subscribe();
        stuck.wait_for(|asked| asked.is_some_and(|n| n > 0)).await.unwrap();
    }

    /// As if the object had been put then, ms since 1970.
    pub fn put_at(&self, bucket: &str, key: &str, last_modified_ms: i64) {
        let at = (bucket.to_owned(), key.to_owned());
        let mut objects = self.objects.lock().unwrap();
        objects.get_mut(&at).unwrap().0.last_modified_ms = last_modified_ms;
    }

    /// Nothing fails any more.
    pub fn heal(&self) {
        self.faults.lock().unwrap().clear();
    }

    fn check(&self, bucket: &str, key: &str) -> Result<(), ObjectError> {
        let at = (bucket.to_owned(), key.to_owned());
        match self.faults.lock().unwrap().get(&at) {
            Some(fault) => Err(fault()),
            None => Ok(()),
        }
    }

    /// An object as others put it: S3 takes keys that we do not.
    pub fn others_put(&self, bucket: &str, key: &str) {
        let info = ObjectInfo {
            bucket: bucket.to_owned(),
            key: key.to_owned(),
            etag: "e".to_owned(),
            size: 1,
            content_type: None,
            version: None,
            metadata: BTreeMap::new(),
            last_modified_ms: 1,
        };
        let at = (bucket.to_owned(), key.to_owned());
        self.objects
            .lock()
            .unwrap()
            .insert(at, (info, Bytes::from_static(b"x")));
    }

    pub fn all(&self) -> Vec<ObjectInfo> {
        self.objects
            .lock()
            .unwrap()
            .values()
            .map(|(info, _)| info.clone())
            .collect()
    }
}

/// Moves the clock of the test, which has paused it.
async fn pass(time: Duration) {
    if !time.is_zero() {
        tokio::time::advance(time).await;
    }
}

fn no_such(bucket: &str, key: &str) -> ObjectError {
    ObjectError::NoSuchKey {
        bucket: bucket.to_owned(),
        key: key.to_owned(),
    }
}

#[async_trait]
impl ObjectStore for MemoryStore {
    async fn put(&self, bucket: &str, key: &str, body: Bytes, options: PutOptions) -> Result<ObjectInfo, ObjectError> {
        check_key(key)?;
        let mut objects = self.objects.lock().unwrap();
        let at = (bucket.to_owned(), key.to_owned());
        if options.if_none_match && objects.contains_key(&at) {
            return Err(ObjectError::AlreadyExists {
                bucket: at.0,
                key: at.1,
            });
        }
        let info = ObjectInfo {
            bucket: at.0.clone(),
            key: at.1.clone(),
            etag: imageflow_types::names::digest(&[&hex::encode(&body)])[..32].to_owned(),
            size: body.len() as u64,
            content_type: options.content_type,
            version: None,
            metadata: options.metadata,
            last_modified_ms: 1,
        };
        // A store keeps what was sent, not the memory of the request.
        objects.insert(at, (info.clone(), Bytes::copy_from_slice(&body)));
        Ok(info)
    }

    async fn get(&self, bucket: &str, key: &str, if_match: Option<&str>) -> Result<(ObjectInfo, Bytes), ObjectError> {
        let at = (bucket.to_owned(), key.to_owned());
        let (info, body) = self
            .objects
            .lock()
            .unwrap()
            .get(&at)
            .cloned()
            .ok_or_else(|| no_such(bucket, key))?;
        match if_match {
            Some(expected) if expected != info.etag => Err(ObjectError::PreconditionFailed {
                bucket: at.0,
                key: at.1,
                expected: expected.to_owned(),
            }),
            _ => Ok((info, body)),
        }
    }

    async fn get_stream(
        &self,
        bucket: &str,
        key: &str,
        if_match: Option<&str>,
    ) -> Result<(ObjectInfo, ObjectBody), ObjectError> {
        let (info, bytes) = self.get(bucket, key, if_match).await?;
        let cut = *self.cut.lock().unwrap();
        let there = bytes.slice(..cut.unwrap_or(bytes.len()));
        let pieces = (0..there.len()).step_by(PIECE);
        let mut pieces: Vec<_> = pieces
            .map(|at| Ok(there.slice(at..there.len().min(at + PIECE))))
            .collect();
        if cut.is_some() {
            let source = "the line is cut".into();
            pieces.push(Err(ObjectError::Unavailable { source }.into()));
        }
        Ok((info, stream::iter(pieces).boxed()))
    }

    async fn head(&self, bucket: &str, key: &str) -> Result<Option<ObjectInfo>, ObjectError> {
        check_key(key)?;
        self.check(bucket, key)?;
        let takes = self.takes.lock().unwrap().1;
        pass(takes).await;
        let at = (bucket.to_owned(), key.to_owned());
        Ok(self.objects.lock().unwrap().get(&at).map(|(info, _)| info.clone()))
    }

    async fn delete(&self, bucket: &str, key: &str) -> Result<(), ObjectError> {
        self.objects
            .lock()
            .unwrap()
            .remove(&(bucket.to_owned(), key.to_owned()));
        Ok(())
    }

    async fn list(
        &self,
        bucket: &str,
        prefix: &str,
        start_after: Option<&str>,
        max: usize,
    ) -> Result<Vec<ObjectInfo>, ObjectError> {
        self.check(bucket, "")?;
        let takes = self.takes.lock().unwrap().0;
        pass(takes).await;
        let stuck = self.stuck.borrow().is_some();
        if stuck {
            self.stuck.send_modify(|asked| *asked = asked.map(|n| n + 1));
            std::future::pending::<()>().await;
        }
        let objects = self.objects.lock().unwrap();
        let found = objects.values().map(|(info, _)| info).filter(|i| {
            i.bucket == bucket && i.key.starts_with(prefix) && start_after.is_none_or(|after| i.key.as_str() > after)
        });
        // As S3 does it: neither media type nor metadata in a listing. And as versitygw does it: what XML cannot hold is listed
        // as another key.
        Ok(found
            .take(max)
            .map(|i| ObjectInfo {
                key: i.key.replace('\u{fffe}', "\u{fffd}"),
                content_type: None,
                metadata: BTreeMap::new(),
                ..i.clone()
            })
            .collect())
    }

    async fn ensure_bucket(&self, _: &str) -> Result<(), ObjectError> {
        Ok(())
    }

    async fn sign_get(&self, bucket: &str, _: &str, _: Option<&str>, _: Duration) -> Result<SignedUrl, ObjectError> {
        Err(ObjectError::AccessDenied {
            bucket: bucket.to_owned(),
        })
    }

    async fn sign_put(
        &self,
        bucket: &str,
        _: &str,
        _: &BTreeMap<String, String>,
        _: Duration,
    ) -> Result<SignedUrl, ObjectError> {
        Err(ObjectError::AccessDenied {
            bucket: bucket.to_owned(),
        })
    }
}
