//! The contract of an object store.
use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::error::ObjectError;
use crate::signed::SignedUrl;

/// An object without its bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ObjectInfo {
    /// Bucket.
    pub bucket: String,
    /// Key.
    pub key: String,
    /// ETag without quotes.
    pub etag: String,
    /// Bytes.
    pub size: u64,
    /// Media type; not known from a listing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content_type: Option<String>,
    /// User metadata (`x-amz-meta-*` without the prefix); not known from a listing.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
    /// When it was written, ms since 1970.
    pub last_modified_ms: i64,
}

/// How to put.
#[derive(Debug, Clone, Default)]
pub struct PutOptions {
    /// Media type.
    pub content_type: Option<String>,
    /// User metadata.
    pub metadata: BTreeMap<String, String>,
    /// Only when the key is not there yet.
    pub if_none_match: bool,
}

/// A store of objects in buckets.
#[async_trait]
pub trait ObjectStore: Send + Sync + 'static {
    /// Writes an object; it is durable when this returns.
    ///
    /// # Errors
    /// `AlreadyExists` with `if_none_match`; `NoSuchBucket`, `TooLarge`, `Full`, `Unavailable`.
    async fn put(&self, bucket: &str, key: &str, body: Bytes, options: PutOptions) -> Result<ObjectInfo, ObjectError>;
    /// Reads an object whole.
    ///
    /// # Errors
    /// `NoSuchKey`; `PreconditionFailed` when its ETag is not `if_match`.
    async fn get(&self, bucket: &str, key: &str, if_match: Option<&str>) -> Result<(ObjectInfo, Bytes), ObjectError>;
    /// An object without its bytes; `None` when it is not there.
    ///
    /// # Errors
    /// `NoSuchBucket`, `Unavailable`.
    async fn head(&self, bucket: &str, key: &str) -> Result<Option<ObjectInfo>, ObjectError>;
    /// Removes an object; one that is not there is removed already.
    ///
    /// # Errors
    /// `NoSuchBucket`, `Unavailable`.
    async fn delete(&self, bucket: &str, key: &str) -> Result<(), ObjectError>;
    /// Objects in the order of their keys: at most `max` (1 to 1,000) with the prefix and after `start_after`.
    ///
    /// # Errors
    /// `NoSuchBucket`, `Unavailable`.
    async fn list(
        &self,
        bucket: &str,
        prefix: &str,
        start_after: Option<&str>,
        max: usize,
    ) -> Result<Vec<ObjectInfo>, ObjectError>;
    /// Makes a bucket unless it is there.
    ///
    /// # Errors
    /// `InvalidName`, `AccessDenied`, `Unavailable`.
    async fn ensure_bucket(&self, bucket: &str) -> Result<(), ObjectError>;
    /// A GET that somebody without credentials may make for `life`, of these bytes only when `if_match` is given.
    ///
    /// # Errors
    /// `InvalidName`.
    async fn sign_get(
        &self,
        bucket: &str,
        key: &str,
        if_match: Option<&str>,
        life: Duration,
    ) -> Result<SignedUrl, ObjectError>;
    /// A PUT that somebody without credentials may make for `life`, of this key when it is not there yet. The media type is free.
    ///
    /// # Errors
    /// `InvalidName`.
    async fn sign_put(
        &self,
        bucket: &str,
        key: &str,
        metadata: &BTreeMap<String, String>,
        life: Duration,
    ) -> Result<SignedUrl, ObjectError>;
}

/// Checks a key by the rules of S3: 1 to 1,024 bytes, no control characters, no `.` or `..` between slashes.
///
/// # Errors
/// `InvalidName` with the rule.
pub fn check_key(key: &str) -> Result<(), ObjectError> {
    let fault = |why| ObjectError::InvalidName { name: key.chars().take(80).collect(), why };
    if key.is_empty() || key.len() > 1024 {
        return Err(fault("is not 1 to 1024 bytes long"));
    }
    if key.chars().any(char::is_control) {
        return Err(fault("has control characters"));
    }
    if key.split('/').any(|part| part == "." || part == "..") {
        return Err(fault("has a part that is . or .."));
    }
    Ok(())
}
