//! An object store in memory.
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use imageflow_objects::{ObjectError, ObjectInfo, ObjectStore, PutOptions, SignedUrl, check_key};

#[derive(Default)]
pub struct MemoryStore {
    objects: Mutex<BTreeMap<(String, String), (ObjectInfo, Bytes)>>,
}

impl MemoryStore {
    pub fn all(&self) -> Vec<ObjectInfo> {
        self.objects
            .lock()
            .unwrap()
            .values()
            .map(|(info, _)| info.clone())
            .collect()
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
        objects.insert(at, (info.clone(), body));
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

    async fn head(&self, bucket: &str, key: &str) -> Result<Option<ObjectInfo>, ObjectError> {
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
        let objects = self.objects.lock().unwrap();
        let found = objects.values().map(|(info, _)| info).filter(|i| {
            i.bucket == bucket && i.key.starts_with(prefix) && start_after.is_none_or(|after| i.key.as_str() > after)
        });
        // As S3 does it: neither media type nor metadata in a listing.
        Ok(found
            .take(max)
            .map(|i| ObjectInfo {
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
