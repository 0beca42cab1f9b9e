//! What a real S3 server tells of the changes of its objects.
#![expect(clippy::unwrap_used, reason = "test code outside of test functions")]

mod support;

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use imageflow_objects::notifications::{Notification, parse};
use imageflow_objects::{ChangeKind, ObjectInfo, ObjectStore, PutOptions, S3Config, S3Store};
use imageflow_servers::s3::{EventTarget, S3Options, S3Server};
use support::{BUCKET, PART, bytes, until};
use tokio::net::TcpListener;

/// An HTTP server that keeps what it is sent.
async fn hook() -> (String, Arc<Mutex<Vec<Bytes>>>) {
    let heard = Arc::new(Mutex::new(Vec::new()));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let kept = heard.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let kept = kept.clone();
            let service = service_fn(move |request: Request<Incoming>| {
                let kept = kept.clone();
                async move {
                    let body = request.into_body().collect().await?.to_bytes();
                    kept.lock().unwrap().push(body);
                    Ok::<_, hyper::Error>(Response::new(Empty::<Bytes>::new()))
                }
            });
            let connection = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            tokio::spawn(connection);
        }
    });
    (url, heard)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn versitygw_tells_what_the_store_has() {
    let (url, heard) = hook().await;
    let options = S3Options {
        events: Some(EventTarget::Webhook(url)),
        versioning: true,
        ..S3Options::default()
    };
    let Some(server) = S3Server::for_test(options).await else {
        return;
    };
    let store = S3Store::new(S3Config {
        part_bytes: PART,
        ..S3Config::new(server.url(), server.access_key(), server.secret_key())
    });
    store.ensure_bucket(BUCKET).await.unwrap();
    let keys = ["plain.png", "in/Grüße 1%41+2&x=y?#.png", "empty"];
    let mut expected = Vec::new();
    for key in keys {
        let body = if key == "empty" { Bytes::new() } else { bytes(1000) };
        store.put(BUCKET, key, body, PutOptions::default()).await.unwrap();
        expected.push(store.head(BUCKET, key).await.unwrap().unwrap());
    }
    store
        .put(BUCKET, "large", bytes(2 * PART), PutOptions::default())
        .await
        .unwrap();
    let large = store.head(BUCKET, "large").await.unwrap().unwrap();
    for key in keys {
        store.delete(BUCKET, key).await.unwrap();
    }
    beyond_the_store(&server).await;
    until("all is told", || heard.lock().unwrap().len() >= 13).await;
    let messages = heard.lock().unwrap().clone();
    assert!(parse(&messages[0]).unwrap().is_empty(), "the first is a test");
    let told: Vec<Notification> = messages
        .iter()
        .flat_map(|m| parse(m).unwrap())
        .map(Result::unwrap)
        .collect();
    assert_eq!(told.len(), 11, "tags are no change of an object");
    let of = |kind: ChangeKind, key: &str| {
        let found = told.iter().find(|n| n.kind == kind && n.info.key == key);
        found.unwrap_or_else(|| panic!("{kind:?} of {key} in {told:?}"))
    };
    let known = |info: &ObjectInfo| (info.bucket.clone(), info.etag.clone(), info.size);
    for info in &expected {
        let created = of(ChangeKind::Created, &info.key);
        assert_eq!(known(&created.info), known(info));
        assert!(created.is_complete() && created.event == "ObjectCreated:Put");
        assert!(created.info.last_modified_ms.abs_diff(info.last_modified_ms) < 5000);
        assert!(of(ChangeKind::Removed, &info.key).is_complete());
    }
    let parts = of(ChangeKind::Created, "large");
    assert_eq!(parts.info.etag, large.etag);
    assert!(!parts.is_complete(), "the size of what came in parts is not told");
    let copy = of(ChangeKind::Created, "copy");
    assert!(!copy.info.etag.is_empty() && !copy.is_complete() && copy.event == "ObjectCreated:Copy");
    for key in ["copy", "large"] {
        assert!(of(ChangeKind::Removed, key).is_complete());
    }
    let kept = told.iter().find(|n| n.info.bucket == "kept").unwrap();
    let there = store.head("kept", "v").await.unwrap().unwrap();
    assert_eq!(known(&kept.info), known(&there));
    assert!(there.version.is_some(), "which versitygw does not tell");
}

/// Changes that others make: a tag, a copy, a removal of several, a put where versions are kept.
async fn beyond_the_store(server: &S3Server) {
    use aws_sdk_s3::config::{BehaviorVersion, Credentials, Region};
    use aws_sdk_s3::primitives::ByteStream;
    use aws_sdk_s3::types::{BucketVersioningStatus, Delete, ObjectIdentifier, Tag, Tagging, VersioningConfiguration};
    let config = aws_sdk_s3::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .http_client(aws_smithy_http_client::Builder::new().build_http())
        .endpoint_url(server.url())
        .region(Region::new("us-east-1"))
        .force_path_style(true)
        .credentials_provider(Credentials::new(
            server.access_key(),
            server.secret_key(),
            None,
            None,
            "test",
        ))
        .build();
    let client = aws_sdk_s3::Client::from_conf(config);
    let tag = Tag::builder().key("a").value("b").build().unwrap();
    let tags = Tagging::builder().tag_set(tag).build().unwrap();
    client
        .put_object_tagging()
        .bucket(BUCKET)
        .key("large")
        .tagging(tags)
        .send()
        .await
        .unwrap();
    let source = format!("{BUCKET}/large");
    client
        .copy_object()
        .bucket(BUCKET)
        .key("copy")
        .copy_source(source)
        .send()
        .await
        .unwrap();
    let object = |key: &str| ObjectIdentifier::builder().key(key).build().unwrap();
    let objects = Delete::builder()
        .objects(object("copy"))
        .objects(object("large"))
        .build()
        .unwrap();
    client
        .delete_objects()
        .bucket(BUCKET)
        .delete(objects)
        .send()
        .await
        .unwrap();
    client.create_bucket().bucket("kept").send().await.unwrap();
    let versions = VersioningConfiguration::builder()
        .status(BucketVersioningStatus::Enabled)
        .build();
    client
        .put_bucket_versioning()
        .bucket("kept")
        .versioning_configuration(versions)
        .send()
        .await
        .unwrap();
    client
        .put_object()
        .bucket("kept")
        .key("v")
        .body(ByteStream::from_static(b"v"))
        .send()
        .await
        .unwrap();
}
