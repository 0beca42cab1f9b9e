//! The S3 operations on the disk.
use std::collections::{BTreeMap, BTreeSet};
use std::io::{Seek, SeekFrom, Write};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use futures::TryStreamExt;
use md5::{Digest, Md5};
use s3s::dto::{
    AbortMultipartUploadInput, AbortMultipartUploadOutput, Bucket, CommonPrefix, CompleteMultipartUploadInput,
    CompleteMultipartUploadOutput, CopyObjectInput, CopyObjectOutput, CopyObjectResult, CopySource, CreateBucketInput,
    CreateBucketOutput, CreateMultipartUploadInput, CreateMultipartUploadOutput, DeleteBucketInput, DeleteBucketOutput,
    DeleteObjectInput, DeleteObjectOutput, DeleteObjectsInput, DeleteObjectsOutput, DeletedObject, ETag, ETagCondition,
    GetBucketLocationInput, GetBucketLocationOutput, GetObjectInput, GetObjectOutput, HeadBucketInput, HeadBucketOutput,
    HeadObjectInput, HeadObjectOutput, ListBucketsInput, ListBucketsOutput, ListObjectsInput, ListObjectsOutput,
    ListObjectsV2Input, ListObjectsV2Output, Metadata, Object, PutObjectInput, PutObjectOutput, StreamingBlob, Timestamp,
    UploadPartInput, UploadPartOutput,
};
use s3s::{S3, S3Error, S3ErrorCode, S3Request, S3Response, S3Result, s3_error};
use tokio::io::AsyncReadExt;
use tokio_util::io::ReaderStream;

use super::disk::{Disk, DiskError, NewObject};
use super::uploads::{Part, Upload, Uploads};
use super::{ChangeKind, ObjectChange, ObjectListener};
use crate::store::{ObjectInfo, check_key};

/// Bytes read from disk at a time.
const CHUNK: usize = 256 << 10;
/// Most objects or prefixes of one page of a listing.
const PAGE: i32 = 1000;

pub struct Service {
    disk: Arc<Disk>,
    uploads: Uploads,
    listener: Arc<dyn ObjectListener>,
    max_object_bytes: u64,
}

impl Service {
    pub fn new(disk: Arc<Disk>, listener: Arc<dyn ObjectListener>, max_object_bytes: u64) -> Self {
        Self { disk, uploads: Uploads::default(), listener, max_object_bytes }
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Disk) -> Result<T, DiskError> + Send + 'static,
    ) -> S3Result<T> {
        let disk = self.disk.clone();
        let done = tokio::task::spawn_blocking(move || work(&disk)).await;
        done.map_err(S3Error::internal_error)?.map_err(fault)
    }

    /// The body of a request, within the limit.
    async fn body(&self, body: Option<StreamingBlob>, announced: Option<i64>) -> S3Result<Bytes> {
        let too_large = || {
            let limit = self.max_object_bytes;
            S3Error::with_message(S3ErrorCode::EntityTooLarge, format!("the object is over the limit of {limit} bytes"))
        };
        let announced = announced.and_then(|n| u64::try_from(n).ok());
        if announced.is_some_and(|n| n > self.max_object_bytes) {
            return Err(too_large());
        }
        let Some(mut body) = body else { return Ok(Bytes::new()) };
        let mut all = Vec::with_capacity(usize::try_from(announced.unwrap_or(0)).unwrap_or(0));
        while let Some(chunk) = body.try_next().await.map_err(|e| S3Error::with_source(S3ErrorCode::IncompleteBody, e))? {
            if (all.len() + chunk.len()) as u64 > self.max_object_bytes {
                return Err(too_large());
            }
            all.extend_from_slice(&chunk);
        }
        Ok(all.into())
    }

    async fn tell(&self, kind: ChangeKind, info: &ObjectInfo) -> S3Result<()> {
        self.listener.on_durable(ObjectChange { kind, info: info.clone() }).await.map_err(|error| {
            tracing::warn!(bucket = info.bucket, key = info.key, %error, "a change of an object could not be told");
            S3Error::with_message(S3ErrorCode::ServiceUnavailable, "the change could not be recorded: repeat the request")
        })
    }

    async fn found(&self, bucket: &str, key: &str) -> S3Result<Arc<ObjectInfo>> {
        self.disk.info(bucket, key).map_err(fault)?.ok_or_else(|| s3_error!(NoSuchKey))
    }

    async fn store(&self, object: Draft, body: Bytes) -> S3Result<Arc<ObjectInfo>> {
        check_key(&object.key).map_err(|e| S3Error::with_message(S3ErrorCode::InvalidArgument, e.to_string()))?;
        let info = self
            .blocking(move |disk| {
                let etag = hex::encode(Md5::digest(&body));
                disk.put(&object.new(etag), body.len() as u64, |file| file.write_all(&body))
            })
            .await?;
        self.tell(ChangeKind::Created, &info).await?;
        Ok(info)
    }
}

/// An object to be written, owned.
struct Draft {
    bucket: String,
    key: String,
    content_type: Option<String>,
    metadata: BTreeMap<String, String>,
    only_new: bool,
}

impl Draft {
    fn new(&self, etag: String) -> NewObject<'_> {
        NewObject {
            bucket: &self.bucket,
            key: &self.key,
            etag,
            content_type: self.content_type.clone(),
            metadata: self.metadata.clone(),
            only_new: self.only_new,
        }
    }
}

fn fault(error: DiskError) -> S3Error {
    match error {
        DiskError::NoBucket => s3_error!(NoSuchBucket),
        DiskError::Exists => s3_error!(PreconditionFailed, "the object exists already"),
        DiskError::Full => {
            let code = S3ErrorCode::Custom("StorageFull".into());
            let mut error = S3Error::with_message(code, "no space is left in the object store");
            error.set_status_code(http::StatusCode::INSUFFICIENT_STORAGE);
            error
        }
        DiskError::Io(error) => S3Error::internal_error(error),
    }
}

fn strong(etag: &str) -> Option<ETag> {
    Some(ETag::Strong(etag.to_owned()))
}

fn time(ms: i64) -> Option<Timestamp> {
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
        _ => Err(s3_error!(NotImplemented, "of the conditions on a put only If-None-Match: * is known")),
    }
}

#[async_trait::async_trait]
impl S3 for Service {
    async fn create_bucket(&self, req: S3Request<CreateBucketInput>) -> S3Result<S3Response<CreateBucketOutput>> {
        let bucket = req.input.bucket;
        if self.blocking(move |disk| disk.create_bucket(&bucket)).await? {
            Ok(S3Response::new(CreateBucketOutput::default()))
        } else {
            Err(s3_error!(BucketAlreadyOwnedByYou))
        }
    }

    async fn delete_bucket(&self, req: S3Request<DeleteBucketInput>) -> S3Result<S3Response<DeleteBucketOutput>> {
        let bucket = req.input.bucket;
        if self.blocking(move |disk| disk.delete_bucket(&bucket)).await? {
            Ok(S3Response::new(DeleteBucketOutput::default()))
        } else {
            Err(s3_error!(BucketNotEmpty))
        }
    }

    async fn head_bucket(&self, req: S3Request<HeadBucketInput>) -> S3Result<S3Response<HeadBucketOutput>> {
        if self.disk.has_bucket(&req.input.bucket) {
            Ok(S3Response::new(HeadBucketOutput::default()))
        } else {
            Err(s3_error!(NoSuchBucket))
        }
    }

    async fn list_buckets(&self, _: S3Request<ListBucketsInput>) -> S3Result<S3Response<ListBucketsOutput>> {
        let buckets = self.disk.buckets().into_iter().map(|name| Bucket { name: Some(name), ..Bucket::default() });
        let buckets = Some(buckets.collect());
        Ok(S3Response::new(ListBucketsOutput { buckets, ..ListBucketsOutput::default() }))
    }

    async fn get_bucket_location(
        &self,
        req: S3Request<GetBucketLocationInput>,
    ) -> S3Result<S3Response<GetBucketLocationOutput>> {
        if self.disk.has_bucket(&req.input.bucket) {
            Ok(S3Response::new(GetBucketLocationOutput::default()))
        } else {
            Err(s3_error!(NoSuchBucket))
        }
    }

    async fn put_object(&self, req: S3Request<PutObjectInput>) -> S3Result<S3Response<PutObjectOutput>> {
        let input = req.input;
        let body = self.body(input.body, input.content_length).await?;
        let draft = Draft {
            bucket: input.bucket,
            key: input.key,
            content_type: input.content_type,
            metadata: user_metadata(input.metadata),
            only_new: only_new(input.if_none_match.as_ref(), input.if_match.as_ref())?,
        };
        let info = self.store(draft, body).await?;
        Ok(S3Response::new(PutObjectOutput { e_tag: strong(&info.etag), ..PutObjectOutput::default() }))
    }

    async fn copy_object(&self, req: S3Request<CopyObjectInput>) -> S3Result<S3Response<CopyObjectOutput>> {
        let input = req.input;
        let CopySource::Bucket { bucket, key, .. } = &input.copy_source else {
            return Err(s3_error!(NotImplemented, "copies are from a bucket of this server only"));
        };
        let (bucket, key) = (bucket.to_string(), key.to_string());
        let found = self.blocking(move |disk| disk.read(&bucket, &key)).await?;
        let (from, file) = found.ok_or_else(|| s3_error!(NoSuchKey))?;
        if from.size > self.max_object_bytes {
            return Err(s3_error!(EntityTooLarge));
        }
        check_conditions(&from, input.copy_source_if_match.as_ref(), None)?;
        let mut body = Vec::new();
        tokio::fs::File::from_std(file).read_to_end(&mut body).await.map_err(S3Error::internal_error)?;
        let replace = input.metadata_directive.as_ref().is_some_and(|d| d.as_str() == "REPLACE");
        let draft = Draft {
            bucket: input.bucket,
            key: input.key,
            content_type: if replace { input.content_type } else { from.content_type },
            metadata: if replace { user_metadata(input.metadata) } else { from.metadata },
            only_new: false,
        };
        let info = self.store(draft, body.into()).await?;
        let result = CopyObjectResult {
            e_tag: strong(&info.etag),
            last_modified: time(info.last_modified_ms),
            ..CopyObjectResult::default()
        };
        Ok(S3Response::new(CopyObjectOutput { copy_object_result: Some(result), ..CopyObjectOutput::default() }))
    }

    async fn get_object(&self, req: S3Request<GetObjectInput>) -> S3Result<S3Response<GetObjectOutput>> {
        let input = req.input;
        let (bucket, key) = (input.bucket, input.key);
        let found = self.blocking(move |disk| disk.read(&bucket, &key)).await?;
        let (info, mut file) = found.ok_or_else(|| s3_error!(NoSuchKey))?;
        check_conditions(&info, input.if_match.as_ref(), input.if_none_match.as_ref())?;
        let (start, length, range) = match input.range {
            None => (0, info.size, None),
            Some(range) => {
                let range = range.check(info.size)?;
                let text = format!("bytes {}-{}/{}", range.start, range.end - 1, info.size);
                (range.start, range.end - range.start, Some(text))
            }
        };
        if start > 0 {
            file.seek(SeekFrom::Current(i64::try_from(start).unwrap_or(i64::MAX))).map_err(S3Error::internal_error)?;
        }
        let reader = tokio::fs::File::from_std(file).take(length);
        let body = StreamingBlob::wrap(ReaderStream::with_capacity(reader, CHUNK));
        Ok(S3Response::new(GetObjectOutput {
            body: Some(body),
            content_length: i64::try_from(length).ok(),
            content_range: range,
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
        let info = self.found(&input.bucket, &input.key).await?;
        check_conditions(&info, input.if_match.as_ref(), input.if_none_match.as_ref())?;
        Ok(S3Response::new(HeadObjectOutput {
            content_length: i64::try_from(info.size).ok(),
            accept_ranges: Some("bytes".to_owned()),
            e_tag: strong(&info.etag),
            last_modified: time(info.last_modified_ms),
            metadata: metadata(&info),
            content_type: info.content_type.clone(),
            ..HeadObjectOutput::default()
        }))
    }

    async fn delete_object(&self, req: S3Request<DeleteObjectInput>) -> S3Result<S3Response<DeleteObjectOutput>> {
        let (bucket, key) = (req.input.bucket, req.input.key);
        if let Some(info) = self.blocking(move |disk| disk.delete(&bucket, &key)).await? {
            self.tell(ChangeKind::Removed, &info).await?;
        }
        Ok(S3Response::new(DeleteObjectOutput::default()))
    }

    async fn delete_objects(&self, req: S3Request<DeleteObjectsInput>) -> S3Result<S3Response<DeleteObjectsOutput>> {
        let mut deleted = Vec::new();
        for object in req.input.delete.objects {
            let (bucket, key) = (req.input.bucket.clone(), object.key.clone());
            if let Some(info) = self.blocking(move |disk| disk.delete(&bucket, &key)).await? {
                self.tell(ChangeKind::Removed, &info).await?;
            }
            deleted.push(DeletedObject { key: Some(object.key), ..DeletedObject::default() });
        }
        Ok(S3Response::new(DeleteObjectsOutput { deleted: Some(deleted), ..DeleteObjectsOutput::default() }))
    }

    async fn list_objects(&self, req: S3Request<ListObjectsInput>) -> S3Result<S3Response<ListObjectsOutput>> {
        let marker = req.input.marker.clone();
        let mut page = req.map_input(Into::<ListObjectsV2Input>::into);
        page.input.start_after.clone_from(&marker);
        let page = self.list_objects_v2(page).await?;
        Ok(page.map_output(|page| ListObjectsOutput {
            name: page.name,
            prefix: page.prefix,
            marker,
            delimiter: page.delimiter,
            max_keys: page.max_keys,
            is_truncated: page.is_truncated,
            next_marker: page.next_continuation_token,
            contents: page.contents,
            common_prefixes: page.common_prefixes,
            ..ListObjectsOutput::default()
        }))
    }

    async fn list_objects_v2(&self, req: S3Request<ListObjectsV2Input>) -> S3Result<S3Response<ListObjectsV2Output>> {
        let input = req.input;
        let prefix = input.prefix.clone().unwrap_or_default();
        let delimiter = input.delimiter.clone().filter(|d| !d.is_empty());
        let most = usize::try_from(input.max_keys.unwrap_or(PAGE).clamp(0, PAGE)).unwrap_or(0);
        let after = input.continuation_token.clone().max(input.start_after.clone());
        let mut contents: Vec<Object> = Vec::new();
        let mut prefixes: BTreeSet<String> = BTreeSet::new();
        let mut last: Option<String> = None;
        let mut truncated = false;
        let scan = |info: &Arc<ObjectInfo>| {
            let rest = &info.key[prefix.len()..];
            let folded = delimiter
                .as_ref()
                .and_then(|d| rest.find(d.as_str()).map(|at| format!("{prefix}{}", &rest[..at + d.len()])));
            if let Some(folder) = &folded
                && (prefixes.contains(folder) || after.as_ref().is_some_and(|a| a.starts_with(folder.as_str())))
            {
                // A page that ends inside a folder has told the folder already; later pages step over the rest of it.
                last = Some(info.key.clone());
                return true;
            }
            if contents.len() + prefixes.len() >= most {
                truncated = true;
                return false;
            }
            last = Some(info.key.clone());
            match folded {
                Some(folder) => {
                    prefixes.insert(folder);
                }
                None => contents.push(Object {
                    key: Some(info.key.clone()),
                    e_tag: strong(&info.etag),
                    size: i64::try_from(info.size).ok(),
                    last_modified: time(info.last_modified_ms),
                    ..Object::default()
                }),
            }
            true
        };
        self.disk.scan(&input.bucket, &prefix, after.as_deref(), scan).map_err(fault)?;
        let count = i32::try_from(contents.len() + prefixes.len()).ok();
        let folders: Vec<CommonPrefix> = prefixes.into_iter().map(|p| CommonPrefix { prefix: Some(p) }).collect();
        Ok(S3Response::new(ListObjectsV2Output {
            name: Some(input.bucket),
            prefix: input.prefix,
            delimiter: input.delimiter,
            max_keys: i32::try_from(most).ok(),
            key_count: count,
            is_truncated: Some(truncated),
            continuation_token: input.continuation_token,
            next_continuation_token: if truncated { last } else { None },
            start_after: input.start_after,
            contents: Some(contents),
            common_prefixes: Some(folders),
            ..ListObjectsV2Output::default()
        }))
    }

    async fn create_multipart_upload(
        &self,
        req: S3Request<CreateMultipartUploadInput>,
    ) -> S3Result<S3Response<CreateMultipartUploadOutput>> {
        let input = req.input;
        check_key(&input.key).map_err(|e| S3Error::with_message(S3ErrorCode::InvalidArgument, e.to_string()))?;
        if !self.disk.has_bucket(&input.bucket) {
            return Err(s3_error!(NoSuchBucket));
        }
        let upload = Upload {
            bucket: input.bucket.clone(),
            key: input.key.clone(),
            content_type: input.content_type,
            metadata: user_metadata(input.metadata),
            parts: BTreeMap::new(),
        };
        let id = self.uploads.start(upload).ok_or_else(|| s3_error!(SlowDown, "too many uploads are under way"))?;
        Ok(S3Response::new(CreateMultipartUploadOutput {
            bucket: Some(input.bucket),
            key: Some(input.key),
            upload_id: Some(id),
            ..CreateMultipartUploadOutput::default()
        }))
    }

    async fn upload_part(&self, req: S3Request<UploadPartInput>) -> S3Result<S3Response<UploadPartOutput>> {
        let input = req.input;
        if !(1..=10_000).contains(&input.part_number) {
            return Err(s3_error!(InvalidArgument, "a part's number is 1 to 10000"));
        }
        let known = self.uploads.get(&input.upload_id, &input.bucket, &input.key);
        known.ok_or_else(|| s3_error!(NoSuchUpload))?;
        let body = self.body(input.body, input.content_length).await?;
        let (id, number) = (input.upload_id.clone(), input.part_number);
        let part = self
            .blocking(move |disk| {
                std::fs::write(disk.part_path(&id, number), &body)?;
                Ok(Part { md5: Md5::digest(&body).into(), size: body.len() as u64 })
            })
            .await?;
        let etag = hex::encode(part.md5);
        self.uploads.part(&input.upload_id, number, part);
        Ok(S3Response::new(UploadPartOutput { e_tag: strong(&etag), ..UploadPartOutput::default() }))
    }

    async fn complete_multipart_upload(
        &self,
        req: S3Request<CompleteMultipartUploadInput>,
    ) -> S3Result<S3Response<CompleteMultipartUploadOutput>> {
        let input = req.input;
        let upload = self.uploads.get(&input.upload_id, &input.bucket, &input.key);
        let upload = upload.ok_or_else(|| s3_error!(NoSuchUpload))?;
        let wanted = input.multipart_upload.and_then(|m| m.parts).unwrap_or_default();
        let mut parts = Vec::with_capacity(wanted.len());
        for part in &wanted {
            let number = part.part_number.unwrap_or(0);
            let known = upload.parts.get(&number).ok_or_else(|| s3_error!(InvalidPart))?;
            if part.e_tag.as_ref().is_some_and(|e| e.value() != hex::encode(known.md5)) {
                return Err(s3_error!(InvalidPart));
            }
            parts.push((number, known.clone()));
        }
        if parts.is_empty() || parts.windows(2).any(|w| w[0].0 >= w[1].0) {
            return Err(s3_error!(InvalidPartOrder));
        }
        let draft = Draft {
            bucket: input.bucket.clone(),
            key: input.key.clone(),
            content_type: upload.content_type,
            metadata: upload.metadata,
            only_new: only_new(input.if_none_match.as_ref(), input.if_match.as_ref())?,
        };
        let id = input.upload_id.clone();
        let info = self
            .blocking(move |disk| {
                let mut hash = Md5::new();
                parts.iter().for_each(|(_, part)| hash.update(part.md5));
                let etag = format!("{}-{}", hex::encode(hash.finalize()), parts.len());
                let size = parts.iter().map(|(_, part)| part.size).sum();
                disk.put(&draft.new(etag), size, |file| {
                    for (number, _) in &parts {
                        std::io::copy(&mut std::fs::File::open(disk.part_path(&id, *number))?, file)?;
                    }
                    Ok(())
                })
            })
            .await?;
        self.tell(ChangeKind::Created, &info).await?;
        self.forget(&input.upload_id).await?;
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
        self.forget(&req.input.upload_id).await?;
        Ok(S3Response::new(AbortMultipartUploadOutput::default()))
    }
}

impl Service {
    async fn forget(&self, id: &str) -> S3Result<()> {
        let Some(upload) = self.uploads.end(id) else { return Ok(()) };
        let id = id.to_owned();
        self.blocking(move |disk| {
            for number in upload.parts.keys() {
                std::fs::remove_file(disk.part_path(&id, *number))?;
            }
            Ok(())
        })
        .await
    }
}
