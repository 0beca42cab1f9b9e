//! The policies in `manifests/s3`: each service may do what it does, and nothing else, on a real S3 server.
//! versitygw takes policies by bucket, so those of the services are put together to such.
#![expect(clippy::unwrap_used, reason = "test code outside of test functions")]

mod support;

use std::collections::BTreeSet;
use std::path::Path;

use aws_sdk_s3 as sdk;
use bytes::Bytes;
use futures::{StreamExt, stream};
use http_body_util::Full;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use imageflow_objects::{ObjectBody, ObjectError, ObjectStore, PutOptions, S3Config, S3Store, SignedUrl};
use imageflow_servers::policies::{SERVICES, of_bucket, secret};
use imageflow_servers::s3::{S3Options, S3Server};
use serde_json::json;
use support::{PART, bytes};

const BUCKETS: [&str; 3] = ["raw-images", "processed-images", "system-logs"];
/// What each service may do in each bucket, as the table of the README says.
const MAY: [(&str, [&str; 3]); 4] = [
    ("gateway", ["list read write delete", "list read delete", ""]),
    ("router", ["list read", "list read", ""]),
    ("dispatcher", ["list read", "list read write", ""]),
    ("archive", ["", "", "write"]),
];
const LIFE: std::time::Duration = std::time::Duration::from_secs(60);

fn store(server: &S3Server, access: &str, secret: &str) -> S3Store {
    S3Store::new(S3Config {
        part_bytes: PART,
        ..S3Config::new(server.url(), access, secret)
    })
}

/// A client for what no service does.
fn client(server: &S3Server, access: &str, secret: &str) -> sdk::Client {
    let config = sdk::Config::builder()
        .behavior_version(sdk::config::BehaviorVersion::latest())
        .region(sdk::config::Region::new("us-east-1"))
        .credentials_provider(sdk::config::Credentials::new(access, secret, None, None, "test"))
        .endpoint_url(server.url())
        .force_path_style(true)
        .http_client(aws_smithy_http_client::Builder::new().build_http());
    sdk::Client::from_conf(config.build())
}

/// A server with an account for each service and an object in each bucket.
async fn world() -> Option<S3Server> {
    let server = S3Server::for_test(S3Options::default()).await?;
    let root = store(&server, server.access_key(), server.secret_key());
    let manifests = Path::new(&std::env::var("CARGO_MANIFEST_DIR").unwrap()).join("../../manifests");
    for service in SERVICES {
        server.add_user(service, &secret(service)).unwrap();
    }
    for bucket in BUCKETS {
        root.ensure_bucket(bucket).await.unwrap();
        let there = Bytes::from_static(b"there");
        root.put(bucket, "there", there, PutOptions::default()).await.unwrap();
        let policy = of_bucket(&manifests, bucket).unwrap().to_string();
        root.set_policy(bucket, &policy).await.unwrap();
    }
    Some(server)
}

/// Whether it was done; panics when it failed in another way than by a refusal.
#[track_caller]
fn done<T: std::fmt::Debug>(what: &str, outcome: Result<T, ObjectError>) -> bool {
    match outcome {
        Ok(_) => true,
        Err(ObjectError::AccessDenied { .. }) => false,
        Err(error) => panic!("{what}: {error}"),
    }
}

/// The same of a request with a signed URL, as a pod sends it.
async fn sent(signed: &SignedUrl, body: &'static [u8]) -> bool {
    let mut request = http::Request::builder().method(&*signed.method).uri(signed.expose());
    for (name, value) in &signed.headers {
        request = request.header(name, value);
    }
    let request = request.body(Full::new(Bytes::from_static(body))).unwrap();
    let client = Client::builder(TokioExecutor::new()).build_http();
    match client.request(request).await.unwrap().status().as_u16() {
        200 => true,
        403 => false,
        status => panic!("{}: {status}", signed.method),
    }
}

/// Two parts of an upload, and then no more.
fn cut_off() -> ObjectBody {
    let part = || Ok(bytes(PART));
    stream::iter([part(), part(), Err("cut off".into())]).boxed()
}

/// What an account is let do in a bucket. Each word stands for several calls, which must agree.
async fn found(store: &S3Store, bucket: &str) -> BTreeSet<&'static str> {
    let small = || Bytes::from_static(b"new");
    let once = || PutOptions {
        if_none_match: true,
        ..PutOptions::default()
    };
    let get = store.sign_get(bucket, "there", None, LIFE).await.unwrap();
    let put = store.sign_put(bucket, "signed", &[].into(), LIFE).await.unwrap();
    let outcomes = [
        ("list", done("list", store.list(bucket, "", None, 10).await)),
        ("list", done("head of none", store.head(bucket, "none").await)),
        ("read", done("get", store.get(bucket, "there", None).await)),
        ("read", done("head", store.head(bucket, "there").await)),
        ("read", sent(&get, b"").await),
        ("write", done("put", store.put(bucket, "new", small(), once()).await)),
        (
            "write",
            done(
                "parts",
                store.put(bucket, "parts", bytes(PART + 1), PutOptions::default()).await,
            ),
        ),
        ("write", sent(&put, b"new").await),
        ("delete", done("delete", store.delete(bucket, "new").await)),
    ];
    let let_in: BTreeSet<&str> = outcomes
        .iter()
        .filter(|(_, done)| *done)
        .map(|(word, _)| *word)
        .collect();
    let kept_out: BTreeSet<&str> = outcomes
        .iter()
        .filter(|(_, done)| !done)
        .map(|(word, _)| *word)
        .collect();
    assert!(let_in.is_disjoint(&kept_out), "{bucket}: {outcomes:?}");
    let_in
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_service_may_do_what_it_does_and_no_more() {
    let Some(server) = world().await else { return };
    let root = store(&server, server.access_key(), server.secret_key());
    let root_client = client(&server, server.access_key(), server.secret_key());
    for (service, may) in MAY {
        let store = store(&server, service, &secret(service));
        for (bucket, may) in BUCKETS.into_iter().zip(may) {
            let expected: BTreeSet<&str> = may.split_whitespace().collect();
            assert_eq!(found(&store, bucket).await, expected, "{service} in {bucket}");
            // What may write cleans up after itself.
            let broken = store.put_stream(bucket, "cut", cut_off(), PutOptions::default()).await;
            assert!(broken.is_err());
            let left = root_client
                .list_multipart_uploads()
                .bucket(bucket)
                .send()
                .await
                .unwrap();
            assert!(left.uploads().is_empty(), "{service} leaves parts in {bucket}");
            for key in ["new", "parts", "signed"] {
                root.delete(bucket, key).await.unwrap();
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_makes_buckets_or_changes_policies() {
    let Some(server) = world().await else { return };
    for service in SERVICES {
        let (own, client) = (
            store(&server, service, &secret(service)),
            client(&server, service, &secret(service)),
        );
        assert!(!done("a bucket", own.ensure_bucket("new-bucket").await), "{service}");
        for bucket in BUCKETS {
            let everything = json!({"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Principal": "*",
                "Action": "s3:*", "Resource": [format!("arn:aws:s3:::{bucket}/*")]}]});
            let put = client.put_bucket_policy().bucket(bucket).policy(everything.to_string());
            assert_eq!(
                put.send().await.unwrap_err().raw_response().unwrap().status().as_u16(),
                403
            );
            let delete = client.delete_bucket().bucket(bucket).send().await;
            assert_eq!(delete.unwrap_err().raw_response().unwrap().status().as_u16(), 403);
        }
    }
}

/// `imageflow up` asks for its buckets at each start, also where it may make none.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn buckets_that_are_there_are_enough_for_who_may_make_none() {
    let Some(server) = world().await else { return };
    let gateway = store(&server, "gateway", &secret("gateway"));
    gateway.ensure_bucket("raw-images").await.unwrap();
    let denied = gateway.ensure_bucket("system-logs").await;
    assert!(matches!(denied, Err(ObjectError::AccessDenied { .. })), "{denied:?}");
}
