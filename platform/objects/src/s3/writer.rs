//! Objects that are written in parts: as many in memory as are under way and one more, and nothing to be seen of them before
//! the last is there.
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use aws_sdk_s3 as sdk;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use md5::{Digest, Md5};
use sdk::error::ProvideErrorMetadata;
use sdk::primitives::ByteStream;
use sdk::types::{ChecksumAlgorithm, ChecksumType, CompletedMultipartUpload, CompletedPart};
use tokio::task::JoinSet;

use super::{S3Store, bare, fault};
use crate::error::ObjectError;
use crate::store::{ObjectBody, ObjectInfo, ObjectStore, PutOptions};

/// S3 takes no more parts.
const MOST_PARTS: i32 = 10_000;
/// Longest that an upload which failed waits for the parts under way, and then for its end: who put the object waits too.
const ABORT: Duration = Duration::from_secs(10);

/// Where parts come from.
pub(super) enum Source {
    Memory(Bytes),
    /// A stream, and what it gave beyond the last part.
    Stream(ObjectBody, Bytes),
}

impl Source {
    /// The next part: shorter than `size` only at the end, and empty after it.
    pub(super) async fn part(&mut self, size: usize) -> Result<Bytes, ObjectError> {
        match self {
            Self::Memory(bytes) => Ok(bytes.split_to(size.min(bytes.len()))),
            Self::Stream(body, rest) => {
                let mut part = BytesMut::new();
                loop {
                    let taken = rest.split_to(rest.len().min(size - part.len()));
                    if part.is_empty() && taken.len() == size {
                        return Ok(taken);
                    }
                    part.extend_from_slice(&taken);
                    if part.len() == size {
                        return Ok(part.freeze());
                    }
                    match body.next().await {
                        Some(Ok(bytes)) => *rest = bytes,
                        Some(Err(error)) => return Err(ObjectError::from_body(error)),
                        None => return Ok(part.freeze()),
                    }
                }
            }
        }
    }
}

/// An upload under way. When it is dropped before its end, it is aborted in the background.
struct Upload {
    target: Arc<Target>,
    parts: Parts,
    over: bool,
}

/// Parts under way.
type Parts = JoinSet<Result<CompletedPart, ObjectError>>;

struct Target {
    client: sdk::Client,
    bucket: String,
    key: String,
    id: String,
    checksums: bool,
}

impl Target {
    async fn send(&self, number: i32, bytes: Bytes) -> Result<CompletedPart, ObjectError> {
        let request = self
            .client
            .upload_part()
            .bucket(&self.bucket)
            .key(&self.key)
            .upload_id(&self.id)
            .part_number(number);
        let request = request.set_checksum_algorithm(self.checksums.then_some(ChecksumAlgorithm::Crc32));
        let answer = request.body(ByteStream::from(bytes)).send().await;
        let answer = answer.map_err(|e| fault(e, &self.bucket, &self.key, None))?;
        Ok(CompletedPart::builder()
            .part_number(number)
            .set_e_tag(answer.e_tag)
            .set_checksum_crc32(answer.checksum_crc32)
            .build())
    }

    /// Parts that are under way when an upload is aborted may be kept by the server for ever: they are waited for.
    async fn abort(&self, mut parts: Parts) {
        let ended = tokio::time::timeout(ABORT, async { while parts.join_next().await.is_some() {} });
        if ended.await.is_err() {
            parts.shutdown().await;
        }
        let request = self
            .client
            .abort_multipart_upload()
            .bucket(&self.bucket)
            .key(&self.key)
            .upload_id(&self.id);
        let outcome = match tokio::time::timeout(ABORT, request.send()).await {
            Ok(Ok(_)) => return,
            Ok(Err(error)) if error.code() == Some("NoSuchUpload") => return,
            Ok(Err(error)) => sdk::error::DisplayErrorContext(error).to_string(),
            Err(_) => format!("no answer in {ABORT:?}"),
        };
        tracing::warn!(
            bucket = self.bucket,
            key = self.key,
            upload = self.id,
            error = outcome,
            "the parts of a failed upload stay on the server: a lifecycle rule AbortIncompleteMultipartUpload removes them"
        );
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if self.over {
            return;
        }
        // Only when the caller gave up, or panicked: otherwise the abort was waited for.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let (target, parts) = (self.target.clone(), std::mem::take(&mut self.parts));
            runtime.spawn(async move { target.abort(parts).await });
        }
    }
}

impl S3Store {
    /// Writes an object of which `first` is the beginning and `second` what follows; both are there when this is called.
    pub(super) async fn put_parts(
        &self,
        (bucket, key): (&str, &str),
        (first, second): (Bytes, Bytes),
        source: Source,
        options: PutOptions,
    ) -> Result<ObjectInfo, ObjectError> {
        // The condition is checked at the end, by the server; this saves sending what will not be taken.
        if options.if_none_match && self.head(bucket, key).await?.is_some() {
            return Err(ObjectError::AlreadyExists {
                bucket: bucket.to_owned(),
                key: key.to_owned(),
            });
        }
        let mut request = self
            .client
            .create_multipart_upload()
            .bucket(bucket)
            .key(key)
            .set_content_type(options.content_type.clone());
        for (name, value) in &options.metadata {
            request = request.metadata(name, value);
        }
        if self.checksums {
            // Of the object and not of its parts' checksums: only then does a read check it.
            request = request
                .checksum_algorithm(ChecksumAlgorithm::Crc32)
                .checksum_type(ChecksumType::FullObject);
        }
        let answer = request.send().await.map_err(|e| fault(e, bucket, key, None))?;
        let id = answer
            .upload_id
            .ok_or_else(|| ObjectError::unavailable("the server named no upload"))?;
        let mut upload = Upload {
            target: Arc::new(Target {
                client: self.client.clone(),
                bucket: bucket.to_owned(),
                key: key.to_owned(),
                id,
                checksums: self.checksums,
            }),
            parts: JoinSet::new(),
            over: false,
        };
        let outcome = match self.send_parts(&mut upload, (first, second), source).await {
            Ok(sent) => self.complete(&upload.target, sent, options).await,
            Err(error) => Err(error),
        };
        if outcome.is_err() {
            let target = upload.target.clone();
            target.abort(std::mem::take(&mut upload.parts)).await;
        }
        upload.over = true;
        outcome
    }

    async fn send_parts(
        &self,
        upload: &mut Upload,
        (first, second): (Bytes, Bytes),
        mut source: Source,
    ) -> Result<Sent, ObjectError> {
        let mut sent = Sent::default();
        let under_way = &mut upload.parts;
        let mut ready = [Some(first), Some(second)].into_iter().flatten();
        for number in 1.. {
            let bytes = match ready.next() {
                Some(bytes) => bytes,
                None => source.part(self.part_bytes).await?,
            };
            if bytes.is_empty() {
                break;
            }
            if number > MOST_PARTS {
                return Err(ObjectError::TooLarge);
            }
            sent.size += bytes.len() as u64;
            sent.crc32.update(&bytes);
            while under_way.len() >= self.parts_in_flight {
                sent.add(under_way.join_next().await)?;
            }
            let target = upload.target.clone();
            under_way.spawn(async move { target.send(number, bytes).await });
        }
        while !under_way.is_empty() {
            sent.add(under_way.join_next().await)?;
        }
        Ok(sent)
    }

    async fn complete(&self, target: &Target, sent: Sent, options: PutOptions) -> Result<ObjectInfo, ObjectError> {
        let (bucket, key) = (&target.bucket, &target.key);
        let expected = sent.etag();
        let parts = sent.parts.into_values().collect();
        let mut request = self
            .client
            .complete_multipart_upload()
            .bucket(bucket)
            .key(key)
            .upload_id(&target.id)
            .multipart_upload(CompletedMultipartUpload::builder().set_parts(Some(parts)).build());
        if self.checksums {
            let sum = STANDARD.encode(sent.crc32.finalize().to_be_bytes());
            request = request.checksum_type(ChecksumType::FullObject).checksum_crc32(sum);
        }
        if options.if_none_match {
            request = request.if_none_match("*");
        }
        let mut info = ObjectInfo {
            bucket: bucket.clone(),
            key: key.clone(),
            etag: String::new(),
            size: sent.size,
            content_type: options.content_type,
            version: None,
            metadata: options.metadata,
            last_modified_ms: 0,
        };
        match request.send().await {
            Ok(answer) => {
                info.etag = bare(answer.e_tag());
                info.version = answer.version_id().map(str::to_owned);
                Ok(info)
            }
            Err(error) if error.code() == Some("NoSuchUpload") => {
                // The upload is over when an earlier attempt completed it and its answer was lost.
                let there = self.head(bucket, key).await?;
                match there.filter(|there| expected.as_ref() == Some(&there.etag)) {
                    Some(there) => Ok(ObjectInfo {
                        etag: there.etag,
                        version: there.version,
                        ..info
                    }),
                    None => Err(fault(error, bucket, key, None)),
                }
            }
            Err(error) => Err(fault(error, bucket, key, None)),
        }
    }
}

/// Parts that the server has, by number, and what they are together.
#[derive(Default)]
struct Sent {
    parts: BTreeMap<i32, CompletedPart>,
    size: u64,
    crc32: crc32fast::Hasher,
}

type Joined = Option<Result<Result<CompletedPart, ObjectError>, tokio::task::JoinError>>;

impl Sent {
    fn add(&mut self, joined: Joined) -> Result<(), ObjectError> {
        if let Some(part) = joined {
            let part = part.map_err(ObjectError::unavailable)??;
            self.parts.insert(part.part_number.unwrap_or(0), part);
        }
        Ok(())
    }

    /// The ETag that the object is to get, on servers whose ETags are digests.
    fn etag(&self) -> Option<String> {
        let mut digest = Md5::new();
        for part in self.parts.values() {
            let md5 = hex::decode(bare(part.e_tag())).ok().filter(|md5| md5.len() == 16)?;
            digest.update(md5);
        }
        Some(format!("{}-{}", hex::encode(digest.finalize()), self.parts.len()))
    }
}
