//! Any S3 server, through aws-sdk-s3.
use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use aws_sdk_s3 as sdk;
use bytes::Bytes;
use sdk::error::{ProvideErrorMetadata, SdkError};
use sdk::primitives::ByteStream;
use sdk::types::EncodingType;

use crate::error::ObjectError;
use crate::names;
use crate::presign::Presigner;
use crate::signed::SignedUrl;
use crate::store::{ObjectBody, ObjectInfo, ObjectStore, PutOptions, check_bucket, check_key};

mod config;
mod reader;
mod writer;

pub use config::{CaBundle, CaError, RetryBudget, S3Config};
use reader::Reader;
use writer::Source;

/// An S3 server.
#[derive(Debug, Clone)]
pub struct S3Store {
    pub(crate) client: sdk::Client,
    presigner: Presigner,
    max_get_bytes: u64,
    checksums: bool,
    part_bytes: usize,
    parts_in_flight: usize,
    budget: RetryBudget,
}

impl S3Store {
    /// A client; it connects when it is used.
    #[must_use]
    pub fn new(config: S3Config) -> Self {
        Self {
            client: config.client(),
            max_get_bytes: config.max_get_bytes,
            checksums: config.checksums,
            part_bytes: config.part_size(),
            parts_in_flight: config.parts_in_flight.max(1),
            presigner: Presigner {
                credentials: config.credentials(),
                endpoint: config.endpoint,
                region: config.region,
                path_style: config.path_style,
            },
            budget: config.budget,
        }
    }
}

fn fault<E>(error: SdkError<E>, bucket: &str, key: &str, expected: Option<&str>) -> ObjectError
where
    E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
{
    let (bucket, key) = (bucket.to_owned(), key.to_owned());
    let status = error.raw_response().map(|r| r.status().as_u16());
    match (error.code(), status) {
        (Some("NoSuchBucket"), _) => ObjectError::NoSuchBucket { bucket },
        (Some("NoSuchKey" | "NotFound"), _) | (None, Some(404)) => ObjectError::NoSuchKey { bucket, key },
        (Some("PreconditionFailed"), _) | (_, Some(412)) => match expected {
            Some(expected) => ObjectError::PreconditionFailed {
                bucket,
                key,
                expected: expected.to_owned(),
            },
            None => ObjectError::AlreadyExists { bucket, key },
        },
        (Some("EntityTooLarge"), _) | (_, Some(413)) => ObjectError::TooLarge,
        (
            Some(
                "StorageFull"
                | "XMinioStorageFull"
                | "InsufficientCapacity"
                | "QuotaExceeded"
                | "XMinioAdminBucketQuotaExceeded",
            ),
            _,
        )
        | (_, Some(507)) => ObjectError::Full,
        // Servers that keep objects as files: asking again does not help.
        (Some("ObjectParentIsFile" | "ExistingObjectIsDirectory" | "XMinioParentIsObject"), _) => {
            ObjectError::InvalidName {
                name: key,
                why: "is at odds with another object, which this server keeps as a file or folder of that name",
            }
        }
        (Some("KeyTooLongError"), _) => ObjectError::InvalidName {
            name: key,
            why: "is longer than this server takes",
        },
        (
            Some("InvalidRequest" | "InvalidArgument" | "MethodNotAllowed" | "InvalidObjectState" | "NotImplemented"),
            Some(status),
        ) => ObjectError::Refused { bucket, key, status },
        (Some("AccessDenied" | "SignatureDoesNotMatch" | "InvalidAccessKeyId"), _) | (_, Some(401 | 403)) => {
            ObjectError::AccessDenied { bucket }
        }
        // Another region's bucket, a key service that says no: the same each time.
        (_, Some(status @ 300..400)) => ObjectError::Refused { bucket, key, status },
        (Some("AuthorizationHeaderMalformed" | "IllegalLocationConstraintException"), Some(status)) => {
            ObjectError::Refused { bucket, key, status }
        }
        (Some(code), Some(status @ 400..500)) if code.starts_with("KMS.") => {
            ObjectError::Refused { bucket, key, status }
        }
        // Answers to HEAD have no body and so no code: of an object that is encrypted with its owner's key this is all that
        // there is to see. Those left out pass by themselves.
        (None, Some(status @ 400..500)) if !matches!(status, 408 | 409 | 425 | 429) => {
            ObjectError::Refused { bucket, key, status }
        }
        _ => ObjectError::unavailable(sdk::error::DisplayErrorContext(error).to_string()),
    }
}

fn bare(etag: Option<&str>) -> String {
    etag.unwrap_or_default().trim_matches('"').to_owned()
}

fn millis(time: Option<&sdk::primitives::DateTime>) -> i64 {
    time.and_then(|t| t.to_millis().ok()).unwrap_or(0)
}

fn check(bucket: &str, key: &str) -> Result<(), ObjectError> {
    check_bucket(bucket)?;
    check_key(key)
}

#[cfg(feature = "test-util")]
impl S3Store {
    /// Sets the policy of a bucket: the platform never does, tests give each service the account that it is to have.
    ///
    /// # Errors
    /// What the server says.
    pub async fn set_policy(&self, bucket: &str, policy: &str) -> Result<(), ObjectError> {
        let set = self
            .client
            .put_bucket_policy()
            .bucket(bucket)
            .policy(policy)
            .send()
            .await;
        set.map(drop).map_err(|error| fault(error, bucket, "", None))
    }
}

impl S3Store {
    /// Writes an object by one request.
    async fn put_whole(
        &self,
        (bucket, key): (&str, &str),
        body: Bytes,
        options: PutOptions,
    ) -> Result<ObjectInfo, ObjectError> {
        let size = body.len() as u64;
        let mut request = self
            .client
            .put_object()
            .bucket(bucket)
            .key(key)
            .body(ByteStream::from(body));
        request = request.set_content_type(options.content_type.clone());
        for (name, value) in &options.metadata {
            request = request.metadata(name, value);
        }
        if options.if_none_match {
            request = request.if_none_match("*");
        }
        let answer = request.send().await.map_err(|e| fault(e, bucket, key, None))?;
        Ok(ObjectInfo {
            bucket: bucket.to_owned(),
            key: key.to_owned(),
            etag: bare(answer.e_tag()),
            size,
            content_type: options.content_type,
            version: answer.version_id().map(str::to_owned),
            metadata: options.metadata,
            last_modified_ms: 0,
        })
    }

    pub(crate) fn sign_get_at(
        &self,
        (bucket, key): (&str, &str),
        if_match: Option<&str>,
        now: SystemTime,
        life: Duration,
    ) -> Result<SignedUrl, ObjectError> {
        check(bucket, key)?;
        let condition = if_match.map(|etag| ("if-match".to_owned(), format!("\"{etag}\"")));
        self.presigner
            .sign("GET", (bucket, key), condition.into_iter().collect(), now, life)
    }

    pub(crate) fn sign_put_at(
        &self,
        (bucket, key): (&str, &str),
        metadata: &BTreeMap<String, String>,
        now: SystemTime,
        life: Duration,
    ) -> Result<SignedUrl, ObjectError> {
        check(bucket, key)?;
        let marks = metadata
            .iter()
            .map(|(name, value)| (format!("x-amz-meta-{name}"), value.clone()));
        let once = ("if-none-match".to_owned(), "*".to_owned());
        self.presigner
            .sign("PUT", (bucket, key), marks.chain([once]).collect(), now, life)
    }
}

#[async_trait]
impl ObjectStore for S3Store {
    async fn put(&self, bucket: &str, key: &str, body: Bytes, options: PutOptions) -> Result<ObjectInfo, ObjectError> {
        check(bucket, key)?;
        if body.len() <= self.part_bytes {
            return self.put_whole((bucket, key), body, options).await;
        }
        let mut source = Source::Memory(body);
        let parts = (source.part(self.part_bytes).await?, source.part(self.part_bytes).await?);
        self.put_parts((bucket, key), parts, source, options).await
    }

    async fn put_stream(
        &self,
        bucket: &str,
        key: &str,
        body: ObjectBody,
        options: PutOptions,
    ) -> Result<ObjectInfo, ObjectError> {
        check(bucket, key)?;
        let mut source = Source::Stream(body, Bytes::new());
        let first = source.part(self.part_bytes).await?;
        if first.len() < self.part_bytes {
            return self.put_whole((bucket, key), first, options).await;
        }
        let second = source.part(self.part_bytes).await?;
        if second.is_empty() {
            return self.put_whole((bucket, key), first, options).await;
        }
        self.put_parts((bucket, key), (first, second), source, options).await
    }

    async fn get(&self, bucket: &str, key: &str, if_match: Option<&str>) -> Result<(ObjectInfo, Bytes), ObjectError> {
        check(bucket, key)?;
        let reader = Reader::open(&self.client, &self.budget, (bucket, key), if_match).await?;
        if reader.info().size > self.max_get_bytes {
            return Err(ObjectError::TooLarge);
        }
        reader.whole().await
    }

    async fn get_stream(
        &self,
        bucket: &str,
        key: &str,
        if_match: Option<&str>,
    ) -> Result<(ObjectInfo, ObjectBody), ObjectError> {
        check(bucket, key)?;
        let reader = Reader::open(&self.client, &self.budget, (bucket, key), if_match).await?;
        Ok((reader.info().clone(), reader.stream()))
    }

    async fn head(&self, bucket: &str, key: &str) -> Result<Option<ObjectInfo>, ObjectError> {
        check(bucket, key)?;
        let answer = match self.client.head_object().bucket(bucket).key(key).send().await {
            Ok(answer) => answer,
            Err(error) => {
                return match fault(error, bucket, key, None) {
                    ObjectError::NoSuchKey { .. } => Ok(None),
                    error => Err(error),
                };
            }
        };
        Ok(Some(ObjectInfo {
            bucket: bucket.to_owned(),
            key: key.to_owned(),
            etag: bare(answer.e_tag()),
            size: answer.content_length().and_then(|n| u64::try_from(n).ok()).unwrap_or(0),
            content_type: answer.content_type().map(str::to_owned),
            version: answer.version_id().map(str::to_owned),
            metadata: answer.metadata().cloned().unwrap_or_default().into_iter().collect(),
            last_modified_ms: millis(answer.last_modified()),
        }))
    }

    async fn delete(&self, bucket: &str, key: &str) -> Result<(), ObjectError> {
        check(bucket, key)?;
        match self.client.delete_object().bucket(bucket).key(key).send().await {
            Ok(_) => Ok(()),
            Err(error) => match fault(error, bucket, key, None) {
                ObjectError::NoSuchKey { .. } => Ok(()),
                error => Err(error),
            },
        }
    }

    async fn list(
        &self,
        bucket: &str,
        prefix: &str,
        start_after: Option<&str>,
        max: usize,
    ) -> Result<Vec<ObjectInfo>, ObjectError> {
        let max = i32::try_from(max.clamp(1, 1000)).unwrap_or(1000);
        check_bucket(bucket)?;
        let request = self
            .client
            .list_objects_v2()
            .bucket(bucket)
            .prefix(prefix)
            .max_keys(max)
            .encoding_type(EncodingType::Url);
        let request = request.set_start_after(start_after.map(str::to_owned));
        let answer = request.send().await.map_err(|e| fault(e, bucket, "", None))?;
        // A key may have characters that XML cannot hold, and one such would fail the page. A server that does not know the
        // encoding does not name it.
        let encoded = answer.encoding_type() == Some(&EncodingType::Url);
        let objects = answer.contents().iter().filter_map(|object| {
            Some(ObjectInfo {
                bucket: bucket.to_owned(),
                key: object.key().map(|key| {
                    if encoded {
                        names::decode_text(key)
                    } else {
                        key.to_owned()
                    }
                })?,
                etag: bare(object.e_tag()),
                size: object.size().and_then(|n| u64::try_from(n).ok()).unwrap_or(0),
                content_type: None,
                version: None,
                metadata: BTreeMap::new(),
                last_modified_ms: millis(object.last_modified()),
            })
        });
        Ok(objects.collect())
    }

    async fn ensure_bucket(&self, bucket: &str) -> Result<(), ObjectError> {
        check_bucket(bucket)?;
        match self.client.create_bucket().bucket(bucket).send().await {
            Ok(_) => Ok(()),
            Err(error) if matches!(error.code(), Some("BucketAlreadyExists" | "BucketAlreadyOwnedByYou")) => Ok(()),
            Err(error) => match fault(error, bucket, "", None) {
                // Who may not make buckets may well use those that are there.
                ObjectError::AccessDenied { .. } if self.client.head_bucket().bucket(bucket).send().await.is_ok() => {
                    Ok(())
                }
                error => Err(error),
            },
        }
    }

    async fn sign_get(
        &self,
        bucket: &str,
        key: &str,
        if_match: Option<&str>,
        life: Duration,
    ) -> Result<SignedUrl, ObjectError> {
        self.sign_get_at((bucket, key), if_match, SystemTime::now(), life)
    }

    async fn sign_put(
        &self,
        bucket: &str,
        key: &str,
        metadata: &BTreeMap<String, String>,
        life: Duration,
    ) -> Result<SignedUrl, ObjectError> {
        self.sign_put_at((bucket, key), metadata, SystemTime::now(), life)
    }
}
