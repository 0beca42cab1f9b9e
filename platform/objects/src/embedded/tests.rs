//! What S3 clients other than ours ask for: parts, ranges, folders, copies, digests.
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_sdk_s3 as sdk;
use sdk::error::ProvideErrorMetadata;
use sdk::primitives::ByteStream;
use sdk::types::{CompletedMultipartUpload, CompletedPart, Delete, ObjectIdentifier};

use super::{EmbeddedS3, EmbeddedS3Config, ListenerError, ObjectChange, ObjectListener};
use crate::{ObjectStore, S3Config, S3Store, conformance};

const BUCKET: &str = "raw-images";

struct Nobody;

#[async_trait::async_trait]
impl ObjectListener for Nobody {
    async fn on_durable(&self, _: ObjectChange) -> Result<(), ListenerError> {
        Ok(())
    }
}

struct World {
    dir: tempfile::TempDir,
    _server: EmbeddedS3,
    store: S3Store,
}

async fn start() -> World {
    let dir = tempfile::tempdir().unwrap();
    let config = EmbeddedS3Config {
        root: dir.path().to_owned(),
        listen: "127.0.0.1:0".parse().unwrap(),
        credentials: ("key".into(), "secret".into()),
        limit_bytes: Some(32 << 20),
        max_object_bytes: 12 << 20,
        on_durable: Arc::new(Nobody),
    };
    let server = EmbeddedS3::start(config).await.unwrap();
    let store = S3Store::new(S3Config::new(format!("http://{}", server.addr()), "key", "secret"));
    store.client.create_bucket().bucket(BUCKET).send().await.unwrap();
    World {
        dir,
        _server: server,
        store,
    }
}

impl World {
    /// Files of what is no object yet.
    fn files_aside(&self) -> usize {
        std::fs::read_dir(self.dir.path().join(".writing")).unwrap().count()
    }

    async fn put(&self, key: &str, body: &[u8]) {
        let body = ByteStream::from(body.to_vec());
        self.store
            .client
            .put_object()
            .bucket(BUCKET)
            .key(key)
            .body(body)
            .send()
            .await
            .unwrap();
    }

    async fn upload(&self, key: &str, parts: &[Vec<u8>]) -> Result<String, String> {
        let client = &self.store.client;
        let upload = client
            .create_multipart_upload()
            .bucket(BUCKET)
            .key(key)
            .content_type("image/tiff");
        let id = upload.send().await.unwrap().upload_id.unwrap();
        let mut done = CompletedMultipartUpload::builder();
        for (number, bytes) in (1..).zip(parts) {
            let part = client
                .upload_part()
                .bucket(BUCKET)
                .key(key)
                .upload_id(&id)
                .part_number(number);
            let part = part.body(ByteStream::from(bytes.clone())).send().await.unwrap();
            done = done.parts(
                CompletedPart::builder()
                    .part_number(number)
                    .set_e_tag(part.e_tag)
                    .build(),
            );
        }
        let complete = client
            .complete_multipart_upload()
            .bucket(BUCKET)
            .key(key)
            .upload_id(&id);
        match complete.multipart_upload(done.build()).send().await {
            Ok(done) => Ok(done.e_tag.unwrap()),
            Err(error) => Err(error.code().unwrap_or_default().to_owned()),
        }
    }
}

#[tokio::test]
async fn parts_become_one_object_with_the_etag_of_s3() {
    let world = start().await;
    let parts: Vec<Vec<u8>> = (1..=3)
        .map(|n| vec![n; if n == 3 { 10 << 10 } else { 5 << 20 }])
        .collect();
    let etag = world.upload("big", &parts).await.unwrap();
    let answer = world
        .store
        .client
        .get_object()
        .bucket(BUCKET)
        .key("big")
        .send()
        .await
        .unwrap();
    assert_eq!(answer.e_tag(), Some(etag.as_str()));
    assert_eq!(answer.content_type(), Some("image/tiff"));
    assert_eq!(answer.body.collect().await.unwrap().into_bytes(), parts.concat());
    // md5(md5(part 1) + md5(part 2) + md5(part 3)), as AWS computes it; the value is from `md5sum`.
    assert_eq!(etag, "\"7826165eae4277bb378065db21440e15-3\"");
    let over = vec![vec![0; 5 << 20], vec![0; 5 << 20], vec![0; 5 << 20]];
    assert_eq!(world.upload("over", &over).await.unwrap_err(), "EntityTooLarge");
}

#[tokio::test]
async fn an_upload_that_nobody_completes_makes_room_for_a_put() {
    let world = start().await;
    let client = &world.store.client;
    let id = client.create_multipart_upload().bucket(BUCKET).key("given up");
    let id = id.send().await.unwrap().upload_id.unwrap();
    for number in 1..=3 {
        let part = client.upload_part().bucket(BUCKET).key("given up").upload_id(&id);
        let body = ByteStream::from(vec![0; 10 << 20]);
        part.part_number(number).body(body).send().await.unwrap();
    }
    let put = || {
        let put = client.put_object().bucket(BUCKET).key("k");
        put.body(ByteStream::from(vec![0; 5 << 20])).send()
    };
    assert_eq!(put().await.unwrap_err().code(), Some("StorageFull"));
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(24 * 3600)).await;
    tokio::time::resume();
    put().await.unwrap();
    assert_eq!(world.files_aside(), 0);
}

#[tokio::test]
async fn an_upload_that_comes_too_late_leaves_no_parts() {
    let world = start().await;
    let client = &world.store.client;
    world.put("k", b"first").await;
    let id = client.create_multipart_upload().bucket(BUCKET).key("k").send().await;
    let id = id.unwrap().upload_id.unwrap();
    let part = client
        .upload_part()
        .bucket(BUCKET)
        .key("k")
        .upload_id(&id)
        .part_number(1);
    let part = part.body(ByteStream::from_static(b"second")).send().await.unwrap();
    let part = CompletedPart::builder().part_number(1).set_e_tag(part.e_tag).build();
    assert_eq!(world.files_aside(), 1);
    let complete = client
        .complete_multipart_upload()
        .bucket(BUCKET)
        .key("k")
        .upload_id(&id);
    let all = CompletedMultipartUpload::builder().parts(part).build();
    let late = complete.multipart_upload(all).if_none_match("*").send().await;
    assert_eq!(late.unwrap_err().code(), Some("PreconditionFailed"));
    assert_eq!(world.files_aside(), 0);
}

#[tokio::test]
async fn ranges_give_their_bytes_and_no_metadata_behind_them() {
    let world = start().await;
    let body: Vec<u8> = (0..700_000_u32).map(|n| u8::try_from(n % 251).unwrap()).collect();
    world.put("k", &body).await;
    for (range, expected) in [
        ("bytes=0-9", &body[..10]),
        ("bytes=300000-300001", &body[300_000..=300_001]),
        ("bytes=699990-", &body[699_990..]),
        ("bytes=-5", &body[699_995..]),
        ("bytes=10-9999999", &body[10..]),
    ] {
        let answer = world
            .store
            .client
            .get_object()
            .bucket(BUCKET)
            .key("k")
            .range(range)
            .send()
            .await
            .unwrap();
        assert!(answer.content_range().unwrap().ends_with("/700000"));
        assert_eq!(answer.body.collect().await.unwrap().into_bytes(), expected, "{range}");
    }
    let outside = world
        .store
        .client
        .get_object()
        .bucket(BUCKET)
        .key("k")
        .range("bytes=700000-")
        .send()
        .await;
    assert_eq!(outside.unwrap_err().code(), Some("InvalidRange"));
}

#[tokio::test]
async fn a_delimiter_folds_folders_on_every_page() {
    let world = start().await;
    for key in ["a", "a/1", "a/2", "b/1", "b/2/3", "c", "d/1"] {
        world.put(key, b"x").await;
    }
    for (delimiter, prefix, expected) in [
        ("/", "", &["a", "a/", "b/", "c", "d/"][..]),
        ("/", "b/", &["b/1", "b/2/"]),
        ("", "a", &["a", "a/1", "a/2"]),
    ] {
        for size in [1, 2, 1000] {
            let mut found = Vec::new();
            let mut token = None;
            loop {
                let page = world
                    .store
                    .client
                    .list_objects_v2()
                    .bucket(BUCKET)
                    .prefix(prefix)
                    .delimiter(delimiter);
                let page = page.max_keys(size).set_continuation_token(token).send().await.unwrap();
                found.extend(page.contents().iter().map(|o| o.key().unwrap().to_owned()));
                found.extend(page.common_prefixes().iter().map(|p| p.prefix().unwrap().to_owned()));
                token = page.next_continuation_token().map(str::to_owned);
                assert_eq!(token.is_some(), page.is_truncated() == Some(true));
                if token.is_none() {
                    break;
                }
            }
            found.sort();
            assert_eq!(found, expected, "pages of {size}");
        }
    }
    let first = world
        .store
        .client
        .list_objects()
        .bucket(BUCKET)
        .max_keys(3)
        .send()
        .await
        .unwrap();
    let marker = first.next_marker().unwrap();
    let rest = world
        .store
        .client
        .list_objects()
        .bucket(BUCKET)
        .marker(marker)
        .send()
        .await
        .unwrap();
    assert_eq!((first.contents().len(), rest.contents().len()), (3, 4));
}

/// Such a key would fail each listing that it is in, and with it whoever reads all of them.
#[tokio::test]
async fn keys_that_xml_cannot_hold_are_listed() {
    let world = start().await;
    let keys = ["a\u{fffe}/1", "a\u{fffe}/2", "b \u{ffff}+%20", "c"];
    for key in keys {
        world.put(key, b"x").await;
    }
    let (mut found, mut after) = (Vec::new(), None);
    while let [object] = world
        .store
        .list(BUCKET, "", after.as_deref(), 1)
        .await
        .unwrap()
        .as_slice()
    {
        after = Some(object.key.clone());
        found.push(object.key.clone());
    }
    assert_eq!(found, keys);
    let client = &world.store.client;
    let folded = client.list_objects_v2().bucket(BUCKET).delimiter("/").max_keys(1);
    let folded = folded.encoding_type(sdk::types::EncodingType::Url);
    let first = folded.clone().send().await.unwrap();
    assert_eq!(first.common_prefixes()[0].prefix(), Some("a%EF%BF%BE/"));
    let second = folded
        .set_continuation_token(first.next_continuation_token)
        .send()
        .await;
    assert_eq!(second.unwrap().contents()[0].key(), Some("b%20%EF%BF%BF%2B%2520"));
    let old = client.list_objects().bucket(BUCKET).prefix("a\u{fffe}").max_keys(1);
    let old = old.encoding_type(sdk::types::EncodingType::Url).send().await.unwrap();
    assert_eq!(
        (old.prefix(), old.next_marker()),
        (Some("a%EF%BF%BE"), Some("a%EF%BF%BE/1"))
    );
}

#[tokio::test]
async fn a_copy_keeps_what_it_is_not_told_to_replace() {
    let world = start().await;
    let put = world
        .store
        .client
        .put_object()
        .bucket(BUCKET)
        .key("from ü")
        .metadata("run", "1");
    put.content_type("image/png")
        .body(ByteStream::from_static(b"hello"))
        .send()
        .await
        .unwrap();
    let source = format!("{BUCKET}/from%20%C3%BC");
    world
        .store
        .client
        .copy_object()
        .bucket(BUCKET)
        .key("to")
        .copy_source(source)
        .send()
        .await
        .unwrap();
    let to = world
        .store
        .client
        .get_object()
        .bucket(BUCKET)
        .key("to")
        .send()
        .await
        .unwrap();
    assert_eq!(
        (to.content_type(), to.metadata().unwrap()["run"].as_str()),
        (Some("image/png"), "1")
    );
    assert_eq!(to.e_tag(), Some("\"5d41402abc4b2a76b9719d911017c592\""));
    assert_eq!(to.body.collect().await.unwrap().into_bytes(), "hello");

    let client = &world.store.client;
    let id = client
        .create_multipart_upload()
        .bucket(BUCKET)
        .key("part")
        .send()
        .await
        .unwrap()
        .upload_id
        .unwrap();
    let part = client
        .upload_part_copy()
        .bucket(BUCKET)
        .key("part")
        .upload_id(&id)
        .part_number(1);
    let part = part
        .copy_source(format!("{BUCKET}/to"))
        .copy_source_range("bytes=1-3")
        .send()
        .await
        .unwrap();
    let etag = part.copy_part_result.unwrap().e_tag;
    let part = CompletedPart::builder().part_number(1).set_e_tag(etag).build();
    let complete = client
        .complete_multipart_upload()
        .bucket(BUCKET)
        .key("part")
        .upload_id(&id);
    complete
        .multipart_upload(CompletedMultipartUpload::builder().parts(part).build())
        .send()
        .await
        .unwrap();
    let answer = client.get_object().bucket(BUCKET).key("part").send().await.unwrap();
    assert_eq!(answer.body.collect().await.unwrap().into_bytes(), "ell");
}

#[tokio::test]
async fn bytes_that_are_not_those_announced_are_refused() {
    let world = start().await;
    let put = || {
        world
            .store
            .client
            .put_object()
            .bucket(BUCKET)
            .key("k")
            .body(ByteStream::from_static(b"hello"))
    };
    put()
        .checksum_algorithm(sdk::types::ChecksumAlgorithm::Crc32)
        .send()
        .await
        .unwrap();
    put()
        .checksum_sha256("LPJNul+wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ=")
        .send()
        .await
        .unwrap();
    for wrong in [
        put()
            .checksum_sha256("AAAAul+wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ=")
            .send()
            .await,
        put().content_md5("AAAAAAAAAAAAAAAAAAAAAA==").send().await,
    ] {
        assert_eq!(wrong.unwrap_err().code(), Some("BadDigest"));
    }
}

#[tokio::test]
async fn a_bucket_goes_when_it_is_empty() {
    let world = start().await;
    let client = &world.store.client;
    world.put("a/1", b"x").await;
    world.put("a/2", b"x").await;
    assert_eq!(
        client.delete_bucket().bucket(BUCKET).send().await.unwrap_err().code(),
        Some("BucketNotEmpty")
    );
    let keys = ["a/1", "a/2"].map(|key| ObjectIdentifier::builder().key(key).build().unwrap());
    let all = Delete::builder().set_objects(Some(keys.into())).build().unwrap();
    client.delete_objects().bucket(BUCKET).delete(all).send().await.unwrap();
    client.delete_bucket().bucket(BUCKET).send().await.unwrap();
    assert!(client.head_bucket().bucket(BUCKET).send().await.is_err());
    assert!(client.list_buckets().send().await.unwrap().buckets().is_empty());
}

#[tokio::test]
async fn a_signed_url_ends_with_its_life() {
    let world = start().await;
    world.put("k", b"x").await;
    let life = Duration::from_secs(60);
    for (ago, expected) in [(30, 200), (90, 403)] {
        let then = SystemTime::now() - Duration::from_secs(ago);
        let get = world.store.sign_get_at((BUCKET, "k"), None, then, life).unwrap();
        assert_eq!(
            conformance::send(get.expose(), "GET", &get.headers, b"").await.0,
            expected
        );
    }
}
