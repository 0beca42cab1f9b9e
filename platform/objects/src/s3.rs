//! Any S3 server, through aws-sdk-s3.
use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use aws_sdk_s3 as sdk;
use aws_smithy_http_client::tls;
use bytes::Bytes;
use sdk::config::retry::RetryConfig;
use sdk::config::timeout::TimeoutConfig;
use sdk::config::{Credentials, Region, RequestChecksumCalculation, ResponseChecksumValidation};
use sdk::error::{ProvideErrorMetadata, SdkError};
use sdk::primitives::ByteStream;

use crate::error::ObjectError;
use crate::presign::Presigner;
use crate::signed::SignedUrl;
use crate::store::{ObjectInfo, ObjectStore, PutOptions, check_bucket, check_key};

/// Where an S3 server is and who we are there. Its debug text hides the secret.
#[derive(Clone)]
pub struct S3Config {
    /// `http://host:port` or `https://...`.
    pub endpoint: String,
    /// Region, for signatures.
    pub region: String,
    /// Access key.
    pub access_key: String,
    /// Secret key.
    pub secret_key: String,
    /// Whether the bucket stands in the path (as most servers other than AWS's want it) and not in the host name.
    pub path_style: bool,
    /// Objects larger than this are not read: `get` holds them in memory.
    pub max_get_bytes: u64,
}

impl S3Config {
    /// A server in the region `us-east-1`, path style, objects of up to 256 MiB.
    pub fn new(endpoint: impl Into<String>, access_key: impl Into<String>, secret_key: impl Into<String>) -> Self {
        Self {
            endpoint: endpoint.into(),
            region: "us-east-1".to_owned(),
            access_key: access_key.into(),
            secret_key: secret_key.into(),
            path_style: true,
            max_get_bytes: 256 << 20,
        }
    }
}

impl fmt::Debug for S3Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("S3Config")
            .field("endpoint", &self.endpoint)
            .field("region", &self.region)
            .finish_non_exhaustive()
    }
}

/// An S3 server.
#[derive(Debug, Clone)]
pub struct S3Store {
    pub(crate) client: sdk::Client,
    presigner: Presigner,
    max_get_bytes: u64,
}

impl S3Store {
    /// A client; it connects when it is used.
    #[must_use]
    pub fn new(config: S3Config) -> Self {
        let http = aws_smithy_http_client::Builder::new();
        let http = if config.endpoint.starts_with("https://") {
            http.tls_provider(tls::Provider::Rustls(tls::rustls_provider::CryptoMode::Ring))
                .build_https()
        } else {
            http.build_http()
        };
        let timeouts = TimeoutConfig::builder()
            .connect_timeout(Duration::from_secs(3))
            .operation_attempt_timeout(Duration::from_secs(30))
            .operation_timeout(Duration::from_secs(60))
            .build();
        let credentials = Credentials::new(config.access_key, config.secret_key, None, None, "imageflow");
        let presigner = Presigner {
            endpoint: config.endpoint.clone(),
            region: config.region.clone(),
            credentials: credentials.clone(),
            path_style: config.path_style,
        };
        let conf = sdk::Config::builder()
            .behavior_version_latest()
            .http_client(http)
            .endpoint_url(config.endpoint)
            .region(Region::new(config.region))
            .force_path_style(config.path_style)
            // Servers that are not AWS's know only the old integrity headers; the ETag covers single puts.
            .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
            .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
            .retry_config(RetryConfig::standard().with_max_attempts(3))
            .timeout_config(timeouts)
            .credentials_provider(credentials)
            .build();
        Self {
            client: sdk::Client::from_conf(conf),
            presigner,
            max_get_bytes: config.max_get_bytes,
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
        (Some("StorageFull" | "XMinioStorageFull" | "InsufficientCapacity"), _) | (_, Some(507)) => ObjectError::Full,
        (Some("AccessDenied" | "SignatureDoesNotMatch" | "InvalidAccessKeyId"), _) | (_, Some(401 | 403)) => {
            ObjectError::AccessDenied { bucket }
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

impl S3Store {
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

    async fn get(&self, bucket: &str, key: &str, if_match: Option<&str>) -> Result<(ObjectInfo, Bytes), ObjectError> {
        check(bucket, key)?;
        let quoted = if_match.map(|etag| format!("\"{etag}\""));
        let request = self.client.get_object().bucket(bucket).key(key).set_if_match(quoted);
        let answer = request.send().await.map_err(|e| fault(e, bucket, key, if_match))?;
        let info = ObjectInfo {
            bucket: bucket.to_owned(),
            key: key.to_owned(),
            etag: bare(answer.e_tag()),
            size: answer.content_length().and_then(|n| u64::try_from(n).ok()).unwrap_or(0),
            content_type: answer.content_type().map(str::to_owned),
            version: answer.version_id().map(str::to_owned),
            metadata: answer.metadata().cloned().unwrap_or_default().into_iter().collect(),
            last_modified_ms: millis(answer.last_modified()),
        };
        if info.size > self.max_get_bytes {
            return Err(ObjectError::TooLarge);
        }
        let body = answer
            .body
            .collect()
            .await
            .map_err(ObjectError::unavailable)?
            .into_bytes();
        Ok((info, body))
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
            .max_keys(max);
        let request = request.set_start_after(start_after.map(str::to_owned));
        let answer = request.send().await.map_err(|e| fault(e, bucket, "", None))?;
        let objects = answer.contents().iter().filter_map(|object| {
            Some(ObjectInfo {
                bucket: bucket.to_owned(),
                key: object.key()?.to_owned(),
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
            Err(error) => Err(fault(error, bucket, "", None)),
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
