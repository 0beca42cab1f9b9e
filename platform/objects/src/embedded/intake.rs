//! How the bytes of a request come in: small bodies in memory, the rest of large ones aside on disk, digests on the way.
use std::mem;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::TryStreamExt;
use http::HeaderMap;
use s3s::checksum::ChecksumHasher;
use s3s::dto::{Checksum, StreamingBlob};
use s3s::{S3Error, S3ErrorCode, S3Request, S3Result, TrailingHeaders, s3_error};

use super::disk::{Disk, DiskError};
use super::shared::Shared;
use super::staging::Staged;

/// Bytes gathered before they go to disk: enough that a photograph's thumbnail takes one trip, few enough for many clients.
const GATHER: usize = 1 << 20;
/// A client that sends nothing for so long is given up.
const STALLED: Duration = Duration::from_secs(60);

/// A body that has come in: part of it may be on disk.
pub struct Received {
    staged: Option<Staged>,
    gathered: Vec<Bytes>,
    digests: Digests,
}

impl Received {
    /// Reads a body.
    pub async fn read<T>(
        shared: &Shared,
        request: &S3Request<T>,
        body: Option<StreamingBlob>,
        announced: Option<i64>,
    ) -> S3Result<Self> {
        let limit = shared.max_object_bytes;
        if announced.is_some_and(|n| u64::try_from(n).is_ok_and(|n| n > limit)) {
            return Err(too_large(limit));
        }
        let digests = Digests::announced(&request.headers, request.trailing_headers.clone());
        let mut received = Self {
            staged: None,
            gathered: Vec::new(),
            digests,
        };
        let Some(mut body) = body else { return Ok(received) };
        let (mut total, mut waiting) = (0_u64, 0);
        loop {
            let next = tokio::time::timeout(STALLED, body.try_next()).await;
            let next = next.map_err(|_| s3_error!(RequestTimeout, "the body stopped coming"))?;
            let Some(chunk) = next.map_err(broken)? else {
                return Ok(received);
            };
            total += chunk.len() as u64;
            if total > limit {
                return Err(too_large(limit));
            }
            waiting += chunk.len();
            received.gathered.push(chunk);
            if waiting >= GATHER {
                received = shared
                    .blocking(move |disk| {
                        received.flush(disk)?;
                        Ok(received)
                    })
                    .await?;
                waiting = 0;
            }
        }
    }

    fn flush(&mut self, disk: &Disk) -> Result<&mut Staged, DiskError> {
        let staged = match self.staged.take() {
            Some(staged) => self.staged.insert(staged),
            None => self.staged.insert(disk.stage()?),
        };
        for chunk in mem::take(&mut self.gathered) {
            self.digests.hasher.update(&chunk);
            staged.append(&chunk)?;
        }
        Ok(staged)
    }

    /// All of it on disk, checked against what was announced; not synced yet.
    pub fn finish(mut self, disk: &Disk) -> Result<Staged, DiskError> {
        self.flush(disk)?;
        let Self { staged, digests, .. } = self;
        let staged = staged.ok_or_else(|| std::io::Error::from(std::io::ErrorKind::NotFound))?;
        digests.check(&staged.md5())?;
        Ok(staged)
    }
}

/// Errors of a body: s3s puts its own (a wrong chunk signature, a wrong payload digest) inside the stream's.
fn broken(error: s3s::StdError) -> S3Error {
    match error.downcast::<S3Error>() {
        Ok(error) => *error,
        Err(error) => S3Error::with_source(S3ErrorCode::IncompleteBody, error),
    }
}

pub fn too_large(limit: u64) -> S3Error {
    S3Error::with_message(
        S3ErrorCode::EntityTooLarge,
        format!("the object is over the limit of {limit} bytes"),
    )
}

const CRC32: &str = "x-amz-checksum-crc32";
const CRC32C: &str = "x-amz-checksum-crc32c";
const CRC64: &str = "x-amz-checksum-crc64nvme";
const SHA1: &str = "x-amz-checksum-sha1";
const SHA256: &str = "x-amz-checksum-sha256";

/// The digests that a client announces, in headers or in the trailer behind the body.
struct Digests {
    headers: HeaderMap,
    trailers: Option<TrailingHeaders>,
    hasher: ChecksumHasher,
}

impl Digests {
    fn announced(headers: &HeaderMap, trailers: Option<TrailingHeaders>) -> Self {
        let later = headers
            .get("x-amz-trailer")
            .and_then(|v| v.to_str().ok())
            .unwrap_or_default();
        let wanted = |name: &str| headers.contains_key(name) || later.split(',').any(|t| t.trim() == name);
        let hasher = ChecksumHasher {
            crc32: wanted(CRC32).then(Default::default),
            crc32c: wanted(CRC32C).then(Default::default),
            crc64nvme: wanted(CRC64).then(Default::default),
            sha1: wanted(SHA1).then(Default::default),
            sha256: wanted(SHA256).then(Default::default),
        };
        let kept = ["content-md5", CRC32, CRC32C, CRC64, SHA1, SHA256];
        let headers = headers.iter().filter(|(name, _)| kept.contains(&name.as_str()));
        Self {
            headers: headers.map(|(n, v)| (n.clone(), v.clone())).collect(),
            trailers,
            hasher,
        }
    }

    fn check(self, md5: &[u8]) -> Result<(), DiskError> {
        let mut announced = self.headers;
        if let Some(later) = self.trailers.as_ref().and_then(TrailingHeaders::take) {
            announced.extend(later);
        }
        let sums: Checksum = self.hasher.finalize();
        let pairs = [
            ("content-md5", Some(STANDARD.encode(md5))),
            (CRC32, sums.checksum_crc32),
            (CRC32C, sums.checksum_crc32c),
            (CRC64, sums.checksum_crc64nvme),
            (SHA1, sums.checksum_sha1),
            (SHA256, sums.checksum_sha256),
        ];
        for (name, found) in pairs {
            if let (Some(announced), Some(found)) = (announced.get(name), found)
                && announced.as_bytes() != found.as_bytes()
            {
                return Err(DiskError::BadDigest(name));
            }
        }
        Ok(())
    }
}
