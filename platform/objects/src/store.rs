//! The contract of an object store.
use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt, stream};
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
    /// Version id, where the bucket keeps versions; not known from a listing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// User metadata (`x-amz-meta-*` without the prefix); not known from a listing.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
    /// When it was written, ms since 1970, by the store's clock; 0 in the answer to a put, whose store does not say.
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

/// Why a body broke off. From `get_stream` it is an [`ObjectError`].
pub type BodyError = Box<dyn std::error::Error + Send + Sync>;

/// The bytes of an object, piece by piece.
pub type ObjectBody = BoxStream<'static, Result<Bytes, BodyError>>;

/// A store of objects in buckets.
#[async_trait]
pub trait ObjectStore: Send + Sync + 'static {
    /// Writes an object; it is durable when this returns.
    ///
    /// # Errors
    /// `AlreadyExists` with `if_none_match`, also when it was this put's own earlier attempt whose answer got lost;
    /// `NoSuchBucket`, `TooLarge`, `Full`, `Unavailable`.
    async fn put(&self, bucket: &str, key: &str, body: Bytes, options: PutOptions) -> Result<ObjectInfo, ObjectError>;
    /// Reads an object whole.
    ///
    /// # Errors
    /// `NoSuchKey`, `NoSuchBucket`; `PreconditionFailed` when its ETag is not `if_match`; `TooLarge` when the client was
    /// told to take no object of that size.
    async fn get(&self, bucket: &str, key: &str, if_match: Option<&str>) -> Result<(ObjectInfo, Bytes), ObjectError>;
    /// Writes an object of any size from a stream. It is seen whole or not at all: not when the stream breaks off, and not
    /// when this is dropped before it returns. Here and by default it is gathered in memory; stores of large objects do not.
    ///
    /// # Errors
    /// As `put`; the stream's own, as `Unavailable` unless it is an [`ObjectError`].
    async fn put_stream(
        &self,
        bucket: &str,
        key: &str,
        mut body: ObjectBody,
        options: PutOptions,
    ) -> Result<ObjectInfo, ObjectError> {
        let mut bytes = Vec::new();
        while let Some(more) = body.try_next().await.map_err(ObjectError::from_body)? {
            bytes.extend_from_slice(&more);
        }
        self.put(bucket, key, bytes.into(), options).await
    }
    /// Reads an object of any size as a stream, which asks again from where it breaks off and fails when it cannot go on or,
    /// after the last bytes, when their checksum is not right. By default it is read whole.
    ///
    /// # Errors
    /// As `get`, but no `TooLarge`.
    async fn get_stream(
        &self,
        bucket: &str,
        key: &str,
        if_match: Option<&str>,
    ) -> Result<(ObjectInfo, ObjectBody), ObjectError> {
        let (info, bytes) = self.get(bucket, key, if_match).await?;
        Ok((info, stream::iter([Ok(bytes)]).boxed()))
    }
    /// An object without its bytes; `None` when it is not there, or its bucket is not (S3 does not tell which).
    ///
    /// # Errors
    /// `AccessDenied`, `Unavailable`.
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
    /// A GET that somebody without credentials may make for `life` (1 s to 7 days), of these bytes only when `if_match` is
    /// given. The `headers` of the result must be sent, and no `x-amz-` header besides.
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
    /// A PUT that somebody without credentials may make for `life` (1 s to 7 days), of this key when it is not there yet,
    /// with this metadata. The media type is free. The `headers` of the result must be sent, and no `x-amz-` header besides.
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

/// Checks a bucket's name by the rules of S3: 3 to 63 of `a-z`, `0-9`, `-`, `.`, a letter or digit at both ends, no `..`,
/// not an IP address.
///
/// # Errors
/// `InvalidName` with the rule.
pub fn check_bucket(bucket: &str) -> Result<(), ObjectError> {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let why = if !(3..=63).contains(&bucket.len()) {
        "is not 3 to 63 characters long"
    } else if !bucket.bytes().all(|b| plain(b) || b == b'-' || b == b'.') {
        "has characters other than a-z, 0-9, - and ."
    } else if !bucket.starts_with(|c: char| c.is_ascii_alphanumeric())
        || !bucket.ends_with(|c: char| c.is_ascii_alphanumeric())
    {
        "does not start and end with a letter or digit"
    } else if bucket.contains("..") {
        "has two dots in a row"
    } else if bucket.parse::<std::net::IpAddr>().is_ok() {
        "is an IP address"
    } else {
        return Ok(());
    };
    Err(invalid(bucket, why))
}

/// Checks a key: 1 to 1,024 bytes as S3 has it, and no control characters and no `.` or `..` between slashes, which S3
/// allows but HTTP clients and listings mangle.
///
/// # Errors
/// `InvalidName` with the rule.
pub fn check_key(key: &str) -> Result<(), ObjectError> {
    if key.is_empty() || key.len() > 1024 {
        return Err(invalid(key, "is not 1 to 1024 bytes long"));
    }
    if key.chars().any(char::is_control) {
        return Err(invalid(key, "has control characters"));
    }
    if key.split('/').any(|part| part == "." || part == "..") {
        return Err(invalid(key, "has a part that is . or .."));
    }
    Ok(())
}

fn invalid(name: &str, why: &'static str) -> ObjectError {
    ObjectError::InvalidName {
        name: name.chars().take(80).collect(),
        why,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_reach_outside_or_break_clients_are_refused() {
        let long = "x".repeat(1025);
        for bad in ["", "..", "../x", "a/../b", "a/.", "a\0b", "a\nb", &long] {
            assert!(check_key(bad).is_err(), "{bad:?}");
        }
        for good in [
            "a",
            "a/b",
            "a..b",
            ".inputs/x.png",
            "Grüße 1%.png",
            "a//b",
            &long[..1024],
        ] {
            assert!(check_key(good).is_ok(), "{good:?}");
        }
        let long = "x".repeat(64);
        for bad in [
            "", "ab", "..", ".ab", "ab-", "a..b", "a/b", "Abc", "a_b", "10.0.0.1", &long,
        ] {
            assert!(check_bucket(bad).is_err(), "{bad:?}");
        }
        for good in ["raw-images", "a.b", "0ab", &long[..63]] {
            assert!(check_bucket(good).is_ok(), "{good:?}");
        }
    }
}
