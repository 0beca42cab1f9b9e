//! The bytes of an object, asked for again from where they broke off.
use std::time::Duration;

use aws_sdk_s3 as sdk;
use bytes::Bytes;
use futures::{StreamExt, stream};
use sdk::primitives::ByteStream;

use super::config::RetryBudget;
use super::{bare, fault, millis};
use crate::error::ObjectError;
use crate::store::{BodyError, ObjectBody, ObjectInfo};

/// An object that is being read.
pub(super) struct Reader {
    client: sdk::Client,
    info: ObjectInfo,
    body: ByteStream,
    /// Bytes given out.
    offset: u64,
    /// How often it was asked for again.
    resumed: u32,
    budget: RetryBudget,
}

impl Reader {
    pub(super) async fn open(
        client: &sdk::Client,
        budget: &RetryBudget,
        (bucket, key): (&str, &str),
        if_match: Option<&str>,
    ) -> Result<Self, ObjectError> {
        let quoted = if_match.map(|etag| format!("\"{etag}\""));
        let request = client.get_object().bucket(bucket).key(key).set_if_match(quoted);
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
        Ok(Self {
            client: client.clone(),
            info,
            body: answer.body,
            offset: 0,
            resumed: 0,
            budget: budget.clone(),
        })
    }

    pub(super) const fn info(&self) -> &ObjectInfo {
        &self.info
    }

    /// The next bytes; `None` after the last, when their checksum was right.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, ObjectError> {
        // Each time that the rest is asked for has a budget of its own: this bounds them all together.
        let total = self.budget.total;
        tokio::time::timeout(total, self.next_in_time())
            .await
            .map_err(|_| ObjectError::unavailable(format!("no byte came in {total:?}")))?
    }

    async fn next_in_time(&mut self) -> Result<Option<Bytes>, ObjectError> {
        loop {
            let broken: BodyError = match tokio::time::timeout(self.budget.attempt, self.body.next()).await {
                Ok(Some(Ok(bytes))) if bytes.is_empty() => continue,
                Ok(Some(Ok(bytes))) => {
                    self.offset += bytes.len() as u64;
                    return Ok(Some(bytes));
                }
                Ok(None) if self.offset == self.info.size => return Ok(None),
                Ok(None) => "the body is shorter than was announced".into(),
                Ok(Some(Err(error))) => sdk::error::DisplayErrorContext(error).to_string().into(),
                Err(_) => format!("no byte came in {:?}", self.budget.attempt).into(),
            };
            // All bytes were there and yet it failed: they are not those that were written.
            if self.offset >= self.info.size || self.resumed + 1 >= self.budget.attempts || self.info.etag.is_empty() {
                return Err(ObjectError::unavailable(broken));
            }
            tracing::debug!(
                bucket = self.info.bucket,
                key = self.info.key,
                offset = self.offset,
                error = %broken,
                "the body of an object broke off and is asked for again"
            );
            tokio::time::sleep(RetryBudget::pause(self.resumed)).await;
            self.resumed += 1;
            self.body = self.rest().await?;
        }
    }

    /// What is left, of the very object that the first bytes were of.
    async fn rest(&self) -> Result<ByteStream, ObjectError> {
        let ObjectInfo { bucket, key, etag, .. } = &self.info;
        let request = self.client.get_object().bucket(bucket).key(key);
        let request = request
            .if_match(format!("\"{etag}\""))
            .range(format!("bytes={}-", self.offset));
        let answer = request.send().await.map_err(|e| fault(e, bucket, key, Some(etag)))?;
        let length = answer.content_length().and_then(|n| u64::try_from(n).ok());
        if length != Some(self.info.size - self.offset) {
            return Err(ObjectError::unavailable(
                "the server gave other bytes than the range asked for",
            ));
        }
        Ok(answer.body)
    }

    /// All of it, within the budget and the time that it takes at 1 MiB/s.
    pub(super) async fn whole(mut self) -> Result<(ObjectInfo, Bytes), ObjectError> {
        let longest = self.budget.total + Duration::from_secs(self.info.size >> 20);
        let size = usize::try_from(self.info.size).map_err(|_| ObjectError::TooLarge)?;
        let read = async {
            let first = self.next().await?.unwrap_or_default();
            // The usual small object comes in one piece, which need not be copied.
            if first.len() == size {
                let end = self.next().await?;
                return Ok(end.map_or(first, |_| Bytes::new()));
            }
            let mut bytes = Vec::with_capacity(size);
            bytes.extend_from_slice(&first);
            while let Some(more) = self.next().await? {
                bytes.extend_from_slice(&more);
            }
            Ok::<_, ObjectError>(bytes.into())
        };
        let bytes: Bytes = tokio::time::timeout(longest, read)
            .await
            .map_err(|_| ObjectError::unavailable(format!("the object did not come in {longest:?}")))??;
        if bytes.len() != size {
            return Err(ObjectError::unavailable("the body is not as long as was announced"));
        }
        Ok((self.info, bytes))
    }

    pub(super) fn stream(self) -> ObjectBody {
        stream::try_unfold(self, |mut reader| async move {
            let bytes = reader.next().await?;
            Ok(bytes.map(|bytes| (bytes, reader)))
        })
        .boxed()
    }
}
