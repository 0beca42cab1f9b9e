//! The S3 operations on the disk.
use std::collections::BTreeMap;
use std::io::{Read, Seek, SeekFrom};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use s3s::dto::{
    AbortMultipartUploadInput, AbortMultipartUploadOutput, Bucket, CompleteMultipartUploadInput,
    CompleteMultipartUploadOutput, CopyObjectInput, CopyObjectOutput, CopyObjectResult, CopyPartResult, CopySource,
    CreateBucketInput, CreateBucketOutput, CreateMultipartUploadInput, CreateMultipartUploadOutput, DeleteBucketInput,
    DeleteBucketOutput, DeleteObjectInput, DeleteObjectOutput, DeleteObjectsInput, DeleteObjectsOutput, DeletedObject,
    ETag, ETagCondition, GetBucketLocationInput, GetBucketLocationOutput, GetObjectInput, GetObjectOutput,
    HeadBucketInput, HeadBucketOutput, HeadObjectInput, HeadObjectOutput, ListBucketsInput, ListBucketsOutput,
    ListObjectsInput, ListObjectsOutput, ListObjectsV2Input, ListObjectsV2Output, Metadata, PutObjectInput,
    PutObjectOutput, Range, StreamingBlob, Timestamp, UploadPartCopyInput, UploadPartCopyOutput, UploadPartInput,
    UploadPartOutput,
};
use s3s::{S3, S3Error, S3ErrorCode, S3Request, S3Response, S3Result, s3_error};
use tokio::io::AsyncReadExt;
use tokio::time::Instant;
use tokio_util::io::ReaderStream;
use tokio_util::task::TaskTracker;

use super::disk::{Disk, DiskError, Draft};
use super::intake::{Received, too_large};
use super::shared::{Shared, internal};
use super::staging::Staged;
use super::{ObjectListener, listing, uploads};
use crate::store::{ObjectInfo, check_bucket, check_key};

/// Bytes read from disk at a time; a smaller object is read with its metadata, in one trip to the disk.
const CHUNK: u64 = 256 << 10;

/// The service. Writes run as tasks of their own: a client that goes away stops neither the write nor its event.
pub struct Service {
    shared: Arc<Shared>,
    writes: TaskTracker,
}

impl Service {
    pub fn new(disk: Disk, listener: Arc<dyn ObjectListener>, max_object_bytes: u64, writes: TaskTracker) -> Self {
        let shared = Shared::new(disk, listener, max_object_bytes);
        Self {
            shared: Arc::new(shared),
            writes,
        }
    }

    /// Writes an object whose bytes `stage` gives, with its ETag, and tells the listener.
    async fn write(
        &self,
        draft: Draft,
        stage: impl FnOnce(&Disk) -> Result<(Staged, String), DiskError> + Send + 'static,
    ) -> S3Result<ObjectInfo> {
        check_key(&draft.key).map_err(|e| S3Error::with_message(S3ErrorCode::InvalidArgument, e.to_string()))?;
        let shared = self.shared.clone();
        let task = self.writes.spawn(async move { shared.write(draft, stage).await });
        task.await.map_err(internal)?
    }

    /// The object that a copy is of.
    async fn source(
        &self,
        source: &CopySource,
        matches: Option<&ETagCondition>,
    ) -> S3Result<(ObjectInfo, std::fs::File)> {
        let CopySource::Bucket { bucket, key, .. } = source else {
            return Err(s3_error!(
                NotImplemented,
                "copies are from a bucket of this server only"
            ));
        };
        let (bucket, key) = (bucket.to_string(), key.to_string());
        let found = self.shared.blocking(move |disk| disk.read(&bucket, &key)).await?;
        let (info, file) = found.ok_or_else(|| s3_error!(NoSuchKey))?;
        check_conditions(&info, matches, None)?;
        Ok((info, file))
    }

    async fn remove(&self, bucket: String, key: String) -> S3Result<()> {
        let shared = self.shared.clone();
        let task = self.writes.spawn(async move { shared.remove(bucket, key).await });
        task.await.map_err(internal)?
    }
}

pub fn strong(etag: &str) -> Option<ETag> {
    Some(ETag::Strong(etag.to_owned()))
}

pub fn time(ms: i64) -> Option<Timestamp> {
    let since = Duration::from_millis(u64::try_from(ms).unwrap_or(0));
    Some(Timestamp::from(UNIX_EPOCH + since))
}

fn metadata(info: &ObjectInfo) -> Option<Metadata> {
    (!info.metadata.is_empty()).then(|| info.metadata.iter().map(|(n, v)| (n.clone(), v.clone())).collect())
}

fn user_metadata(given: Option<Metadata>) -> BTreeMap<String, String> {
    given.unwrap_or_default().into_iter().collect()
}

/// `If-Match` and `If-None-Match` of a read. The latter is answered 304.
fn check_conditions(info: &ObjectInfo, matches: Option<&ETagCondition>, none: Option<&ETagCondition>) -> S3Result<()> {
    let same = |condition: &ETagCondition| match condition {
        ETagCondition::Any => true,
        ETagCondition::ETag(etag) => etag.value() == info.etag,
    };
    if matches.is_some_and(|m| !same(m)) {
        return Err(s3_error!(PreconditionFailed, "the object has another ETag"));
    }
    if none.is_some_and(same) {
        return Err(s3_error!(NotModified));
    }
    Ok(())
}

/// A put may be bound to "not there yet"; other conditions on puts are refused rather than ignored.
fn only_new(none: Option<&ETagCondition>, matches: Option<&ETagCondition>) -> S3Result<bool> {
    match (none, matches) {
        (None, None) => Ok(false),
        (Some(ETagCondition::Any), None) => Ok(true),
        _ => Err(s3_error!(
            NotImplemented,
            "of the conditions on a put only If-None-Match: * is known"
        )),
    }
}

fn check_part(number: i32) -> S3Result<()> {
    if (1..=10_000).contains(&number) {
        Ok(())
    } else {
        Err(s3_error!(InvalidArgument, "a part's number is 1 to 10000"))
    }
}

/// The bytes of an answer.
enum Content {
    Whole(Bytes),
    Rest(std::fs::File, u64),
}

#[async_trait::async_trait]
impl S3 for Service {
    async fn create_bucket(&self, req: S3Request<CreateBucketInput>) -> S3Result<S3Response<CreateBucketOutput>> {
        let bucket = req.input.bucket;
        check_bucket(&bucket).map_err(|e| S3Error::with_message(S3ErrorCode::InvalidBucketName, e.to_string()))?;
        if self.shared.blocking(move |disk| disk.create_bucket(&bucket)).await? {
            Ok(S3Response::new(CreateBucketOutput::default()))
        } else {
            Err(s3_error!(BucketAlreadyOwnedByYou))
        }
    }

    async fn delete_bucket(&self, req: S3Request<DeleteBucketInput>) -> S3Result<S3Response<DeleteBucketOutput>> {
        let bucket = req.input.bucket;
        if self.shared.blocking(move |disk| disk.delete_bucket(&bucket)).await? {
            Ok(S3Response::new(DeleteBucketOutput::default()))
        } else {
            Err(s3_error!(BucketNotEmpty))
        }
    }

    async fn head_bucket(&self, req: S3Request<HeadBucketInput>) -> S3Result<S3Response<HeadBucketOutput>> {
        self.shared.check_there(&req.input.bucket)?;
        Ok(S3Response::new(HeadBucketOutput::default()))
    }

    async fn list_buckets(&self, _: S3Request<ListBucketsInput>) -> S3Result<S3Response<ListBucketsOutput>> {
        let buckets = self.shared.blocking(|disk| Ok(disk.buckets())).await?.into_iter();
        let bucket = |(name, at)| Bucket {
            name: Some(name),
            creation_date: Some(Timestamp::from(at)),
            ..Bucket::default()
        };
        let buckets = buckets.map(bucket).collect();
        Ok(S3Response::new(ListBucketsOutput {
            buckets: Some(buckets),
            ..ListBucketsOutput::default()
        }))
    }

    async fn get_bucket_location(
        &self,
        req: S3Request<GetBucketLocationInput>,
    ) -> S3Result<S3Response<GetBucketLocationOutput>> {
        self.shared.check_there(&req.input.bucket)?;
        Ok(S3Response::new(GetBucketLocationOutput::default()))
    }

    async fn put_object(&self, mut req: S3Request<PutObjectInput>) -> S3Result<S3Response<PutObjectOutput>> {
        let only_new = only_new(req.input.if_none_match.as_ref(), req.input.if_match.as_ref())?;
        self.shared.check_there(&req.input.bucket)?;
        self.shared.sweep().await?;
        let body = req.input.body.take();
        let received = Received::read(&self.shared, &req, body, req.input.content_length).await?;
        let input = req.input;
        let draft = Draft {
            bucket: input.bucket,
            key: input.key,
            content_type: input.content_type,
            metadata: user_metadata(input.metadata),
            only_new,
        };
        let stage = move |disk: &Disk| {
            let staged = received.finish(disk)?;
            let etag = staged.md5_hex();
            Ok((staged, etag))
        };
        let info = self.write(draft, stage).await?;
        Ok(S3Response::new(PutObjectOutput {
            e_tag: strong(&info.etag),
            ..PutObjectOutput::default()
        }))
    }

    async fn copy_object(&self, req: S3Request<CopyObjectInput>) -> S3Result<S3Response<CopyObjectOutput>> {
        let input = req.input;
        let (from, file) = self
            .source(&input.copy_source, input.copy_source_if_match.as_ref())
            .await?;
        self.shared.sweep().await?;
        let replace = input
            .metadata_directive
            .as_ref()
            .is_some_and(|d| d.as_str() == "REPLACE");
        let draft = Draft {
            bucket: input.bucket,
            key: input.key,
            content_type: if replace { input.content_type } else { from.content_type },
            metadata: if replace {
                user_metadata(input.metadata)
            } else {
                from.metadata
            },
            only_new: false,
        };
        let stage = move |disk: &Disk| {
            let mut staged = disk.stage()?;
            staged.append_from(file, from.size)?;
            let etag = staged.md5_hex();
            Ok((staged, etag))
        };
        let info = self.write(draft, stage).await?;
        let result = CopyObjectResult {
            e_tag: strong(&info.etag),
            last_modified: time(info.last_modified_ms),
            ..CopyObjectResult::default()
        };
        Ok(S3Response::new(CopyObjectOutput {
            copy_object_result: Some(result),
            ..CopyObjectOutput::default()
        }))
    }

    async fn get_object(&self, req: S3Request<GetObjectInput>) -> S3Result<S3Response<GetObjectOutput>> {
        let input = req.input;
        let (bucket, key) = (input.bucket, input.key);
        let (conditions, wanted) = ((input.if_match, input.if_none_match), input.range);
        let read = move |disk: &Disk| {
            let Some((info, mut file)) = disk.read(&bucket, &key)? else {
                return Ok(Err(s3_error!(NoSuchKey)));
            };
            let range = check_conditions(&info, conditions.0.as_ref(), conditions.1.as_ref())
                .and_then(|()| Ok(wanted.map(|range| range.check(info.size)).transpose()?));
            let range = match range {
                Ok(range) => range,
                Err(error) => return Ok(Err(error)),
            };
            let (start, length) = range
                .as_ref()
                .map_or((0, info.size), |range| (range.start, range.end - range.start));
            file.seek(SeekFrom::Start(start))?;
            if length > CHUNK {
                return Ok(Ok((info, range, length, Content::Rest(file, length))));
            }
            let mut bytes = Vec::with_capacity(usize::try_from(length).unwrap_or(0));
            file.take(length).read_to_end(&mut bytes)?;
            Ok(Ok((info, range, length, Content::Whole(bytes.into()))))
        };
        let (info, range, length, content) = self.shared.blocking(read).await??;
        let body = match content {
            Content::Whole(bytes) => StreamingBlob::from(s3s::Body::from(bytes)),
            Content::Rest(file, length) => {
                let reader = tokio::fs::File::from_std(file).take(length);
                StreamingBlob::wrap(ReaderStream::with_capacity(
                    reader,
                    usize::try_from(CHUNK).unwrap_or(1 << 16),
                ))
            }
        };
        Ok(S3Response::new(GetObjectOutput {
            body: Some(body),
            content_length: i64::try_from(length).ok(),
            content_range: range.map(|r| format!("bytes {}-{}/{}", r.start, r.end - 1, info.size)),
            accept_ranges: Some("bytes".to_owned()),
            e_tag: strong(&info.etag),
            last_modified: time(info.last_modified_ms),
            metadata: metadata(&info),
            content_type: input.response_content_type.or(info.content_type),
            content_disposition: input.response_content_disposition,
            ..GetObjectOutput::default()
        }))
    }

    async fn head_object(&self, req: S3Request<HeadObjectInput>) -> S3Result<S3Response<HeadObjectOutput>> {
        let input = req.input;
        let found = self
            .shared
            .blocking(move |disk| disk.read(&input.bucket, &input.key))
            .await?;
        let (info, _) = found.ok_or_else(|| s3_error!(NoSuchKey))?;
        check_conditions(&info, input.if_match.as_ref(), input.if_none_match.as_ref())?;
        Ok(S3Response::new(HeadObjectOutput {
            content_length: i64::try_from(info.size).ok(),
            accept_ranges: Some("bytes".to_owned()),
            e_tag: strong(&info.etag),
            last_modified: time(info.last_modified_ms),
            metadata: metadata(&info),
            content_type: info.content_type,
            ..HeadObjectOutput::default()
        }))
    }

    async fn delete_object(&self, req: S3Request<DeleteObjectInput>) -> S3Result<S3Response<DeleteObjectOutput>> {
        self.remove(req.input.bucket, req.input.key).await?;
        Ok(S3Response::new(DeleteObjectOutput::default()))
    }

    async fn delete_objects(&self, req: S3Request<DeleteObjectsInput>) -> S3Result<S3Response<DeleteObjectsOutput>> {
        let mut deleted = Vec::new();
        for object in req.input.delete.objects {
            self.remove(req.input.bucket.clone(), object.key.clone()).await?;
            deleted.push(DeletedObject {
                key: Some(object.key),
                ..DeletedObject::default()
            });
        }
        Ok(S3Response::new(DeleteObjectsOutput {
            deleted: Some(deleted),
            ..DeleteObjectsOutput::default()
        }))
    }

    async fn list_objects(&self, req: S3Request<ListObjectsInput>) -> S3Result<S3Response<ListObjectsOutput>> {
        let marker = req.input.marker.clone();
        let mut input: ListObjectsV2Input = req.input.into();
        input.start_after.clone_from(&marker);
        let page = self.shared.blocking(move |disk| listing::page(disk, input)).await?;
        let written = listing::written(page.encoding_type.as_ref());
        let next = page.next_continuation_token.as_deref().map(listing::of_token);
        Ok(S3Response::new(ListObjectsOutput {
            name: page.name,
            prefix: page.prefix,
            marker: marker.as_deref().map(&written),
            delimiter: page.delimiter,
            max_keys: page.max_keys,
            is_truncated: page.is_truncated,
            next_marker: next.as_deref().map(&written),
            encoding_type: page.encoding_type,
            contents: page.contents,
            common_prefixes: page.common_prefixes,
            ..ListObjectsOutput::default()
        }))
    }

    async fn list_objects_v2(&self, req: S3Request<ListObjectsV2Input>) -> S3Result<S3Response<ListObjectsV2Output>> {
        let page = self.shared.blocking(move |disk| listing::page(disk, req.input)).await?;
        Ok(S3Response::new(page))
    }

    async fn create_multipart_upload(
        &self,
        req: S3Request<CreateMultipartUploadInput>,
    ) -> S3Result<S3Response<CreateMultipartUploadOutput>> {
        let input = req.input;
        check_key(&input.key).map_err(|e| S3Error::with_message(S3ErrorCode::InvalidArgument, e.to_string()))?;
        self.shared.check_there(&input.bucket)?;
        self.shared.sweep().await?;
        let draft = Draft {
            bucket: input.bucket.clone(),
            key: input.key.clone(),
            content_type: input.content_type,
            metadata: user_metadata(input.metadata),
            only_new: false,
        };
        let id = self.shared.uploads.start(draft, Instant::now());
        Ok(S3Response::new(CreateMultipartUploadOutput {
            bucket: Some(input.bucket),
            key: Some(input.key),
            upload_id: Some(id.ok_or_else(|| s3_error!(SlowDown, "too many uploads are under way"))?),
            ..CreateMultipartUploadOutput::default()
        }))
    }

    async fn upload_part(&self, mut req: S3Request<UploadPartInput>) -> S3Result<S3Response<UploadPartOutput>> {
        check_part(req.input.part_number)?;
        self.shared.sweep().await?;
        self.shared
            .uploads
            .draft(&req.input.upload_id, &req.input.bucket, &req.input.key)?;
        let body = req.input.body.take();
        let received = Received::read(&self.shared, &req, body, req.input.content_length).await?;
        let part = self
            .shared
            .blocking(move |disk| Ok(received.finish(disk)?.into_part()))
            .await?;
        let etag = hex::encode(part.md5());
        self.shared
            .uploads
            .add(&req.input.upload_id, req.input.part_number, part)?;
        Ok(S3Response::new(UploadPartOutput {
            e_tag: strong(&etag),
            ..UploadPartOutput::default()
        }))
    }

    async fn upload_part_copy(
        &self,
        req: S3Request<UploadPartCopyInput>,
    ) -> S3Result<S3Response<UploadPartCopyOutput>> {
        let input = req.input;
        check_part(input.part_number)?;
        self.shared.sweep().await?;
        self.shared.uploads.draft(&input.upload_id, &input.bucket, &input.key)?;
        let (from, mut file) = self
            .source(&input.copy_source, input.copy_source_if_match.as_ref())
            .await?;
        let range = match &input.copy_source_range {
            Some(range) => {
                let range = Range::parse(range).map_err(|_| s3_error!(InvalidArgument, "not a range of bytes"))?;
                range.check(from.size)?
            }
            None => 0..from.size,
        };
        if range.end - range.start > self.shared.max_object_bytes {
            return Err(too_large(self.shared.max_object_bytes));
        }
        let copy = move |disk: &Disk| {
            let mut staged = disk.stage()?;
            file.seek(SeekFrom::Start(range.start))?;
            staged.append_from(file, range.end - range.start)?;
            Ok(staged.into_part())
        };
        let part = self.shared.blocking(copy).await?;
        let e_tag = strong(&hex::encode(part.md5()));
        self.shared.uploads.add(&input.upload_id, input.part_number, part)?;
        let result = CopyPartResult {
            e_tag,
            last_modified: time(from.last_modified_ms),
            ..CopyPartResult::default()
        };
        let output = UploadPartCopyOutput {
            copy_part_result: Some(result),
            ..UploadPartCopyOutput::default()
        };
        Ok(S3Response::new(output))
    }

    async fn complete_multipart_upload(
        &self,
        req: S3Request<CompleteMultipartUploadInput>,
    ) -> S3Result<S3Response<CompleteMultipartUploadOutput>> {
        let input = req.input;
        let draft = self.shared.uploads.draft(&input.upload_id, &input.bucket, &input.key)?;
        let only_new = only_new(input.if_none_match.as_ref(), input.if_match.as_ref())?;
        let wanted = input.multipart_upload.and_then(|m| m.parts).unwrap_or_default();
        let parts = self.shared.uploads.chosen(&input.upload_id, &wanted)?;
        let limit = self.shared.max_object_bytes;
        if parts.iter().map(|part| part.size()).sum::<u64>() > limit {
            return Err(too_large(limit));
        }
        let stage = move |disk: &Disk| uploads::join(disk, &parts);
        let written = self.write(Draft { only_new, ..draft }, stage).await;
        // Over as well when the object is there already: to ask again would change nothing.
        let late = |error: &S3Error| *error.code() == S3ErrorCode::PreconditionFailed;
        if written.as_ref().err().is_none_or(late) {
            self.shared.end_upload(&input.upload_id).await?;
        }
        let info = written?;
        Ok(S3Response::new(CompleteMultipartUploadOutput {
            bucket: Some(input.bucket),
            key: Some(input.key),
            e_tag: strong(&info.etag),
            ..CompleteMultipartUploadOutput::default()
        }))
    }

    async fn abort_multipart_upload(
        &self,
        req: S3Request<AbortMultipartUploadInput>,
    ) -> S3Result<S3Response<AbortMultipartUploadOutput>> {
        self.shared
            .uploads
            .draft(&req.input.upload_id, &req.input.bucket, &req.input.key)?;
        self.shared.end_upload(&req.input.upload_id).await?;
        Ok(S3Response::new(AbortMultipartUploadOutput::default()))
    }
}
