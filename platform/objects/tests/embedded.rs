//! The embedded server as S3 clients see it: through aws-sdk-s3 over loopback.
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use imageflow_objects::{
    ChangeKind, EmbeddedS3, EmbeddedS3Config, ListenerError, ObjectChange, ObjectError, ObjectListener, ObjectStore,
    PutOptions, S3Config, S3Store, SignedUrl,
};

#[derive(Default)]
struct Heard {
    changes: Mutex<Vec<(ChangeKind, String)>>,
    deaf: AtomicBool,
}

#[async_trait::async_trait]
impl ObjectListener for Heard {
    async fn on_durable(&self, change: ObjectChange) -> Result<(), ListenerError> {
        if self.deaf.load(Ordering::SeqCst) {
            return Err("deaf".into());
        }
        self.changes.lock().unwrap().push((change.kind, change.info.key));
        Ok(())
    }
}

struct World {
    server: EmbeddedS3,
    store: Arc<S3Store>,
    heard: Arc<Heard>,
}

async fn start(root: &Path, limit: Option<u64>) -> World {
    let heard = Arc::new(Heard::default());
    let config = EmbeddedS3Config {
        root: root.to_owned(),
        listen: "127.0.0.1:0".parse().unwrap(),
        credentials: ("key".into(), "secret".into()),
        limit_bytes: limit,
        max_object_bytes: 8 << 20,
        listener: heard.clone(),
    };
    let server = EmbeddedS3::start(config).await.unwrap();
    let store = Arc::new(S3Store::new(S3Config::new(format!("http://{}", server.addr()), "key", "secret")));
    store.ensure_bucket("raw-images").await.unwrap();
    World { server, store, heard }
}

fn only_new() -> PutOptions {
    PutOptions { if_none_match: true, ..PutOptions::default() }
}

async fn send(signed: &SignedUrl, method: &str, body: &'static [u8], headers: bool) -> u16 {
    let client = Client::builder(TokioExecutor::new()).build_http::<Full<Bytes>>();
    let mut request = Request::builder().method(method).uri(signed.expose());
    for (name, value) in signed.headers.iter().filter(|_| headers) {
        request = request.header(name, value);
    }
    client.request(request.body(Full::new(Bytes::from_static(body))).unwrap()).await.unwrap().status().as_u16()
}

#[tokio::test]
async fn objects_keep_their_bytes_and_metadata_over_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let world = start(dir.path(), None).await;
    let metadata: BTreeMap<String, String> = [("imageflow-run".to_owned(), "run-1".to_owned())].into();
    let options = PutOptions { content_type: Some("image/png".into()), metadata: metadata.clone(), ..PutOptions::default() };
    for key in ["a/b/Grüße 1%.png", "a/b", "a"] {
        world.store.put("raw-images", key, Bytes::from_static(b"hello"), options.clone()).await.unwrap();
    }
    world.server.shutdown().await;
    let world = start(dir.path(), None).await;
    let (info, body) = world.store.get("raw-images", "a/b/Grüße 1%.png", None).await.unwrap();
    assert_eq!(body, "hello");
    assert_eq!(info.etag, "5d41402abc4b2a76b9719d911017c592");
    assert_eq!((info.content_type.as_deref(), info.metadata), (Some("image/png"), metadata));
    let keys: Vec<String> =
        world.store.list("raw-images", "a", None, 2).await.unwrap().into_iter().map(|o| o.key).collect();
    assert_eq!(keys, ["a", "a/b"]);
    let rest = world.store.list("raw-images", "a", Some("a/b"), 10).await.unwrap();
    assert_eq!(rest.len(), 1);
    world.store.delete("raw-images", "a").await.unwrap();
    assert!(world.store.head("raw-images", "a").await.unwrap().is_none());
    assert!(matches!(world.store.get("raw-images", "a", None).await, Err(ObjectError::NoSuchKey { .. })));
    assert!(matches!(world.store.list("nowhere", "", None, 1).await, Err(ObjectError::NoSuchBucket { .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_sixteen_who_write_only_when_new_exactly_one_wins() {
    let dir = tempfile::tempdir().unwrap();
    let world = start(dir.path(), None).await;
    let won = Arc::new(AtomicUsize::new(0));
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..16_u8 {
        let (store, won) = (world.store.clone(), won.clone());
        tasks.spawn(async move {
            match store.put("raw-images", "k", vec![n; 1000].into(), only_new()).await {
                Ok(_) => drop(won.fetch_add(1, Ordering::SeqCst)),
                Err(error) => assert!(matches!(error, ObjectError::AlreadyExists { .. }), "{error}"),
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    assert_eq!(won.load(Ordering::SeqCst), 1);
    let wrong = world.store.get("raw-images", "k", Some("0123")).await;
    assert!(matches!(wrong, Err(ObjectError::PreconditionFailed { .. })));
}

#[tokio::test]
async fn signed_urls_do_what_they_were_signed_for_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let world = start(dir.path(), None).await;
    let etag = world.store.put("raw-images", "in 1.png", Bytes::from_static(b"x"), PutOptions::default()).await.unwrap().etag;
    let life = Duration::from_secs(60);
    let get = world.store.sign_get("raw-images", "in 1.png", Some(&etag), life).await.unwrap();
    assert_eq!(send(&get, "GET", b"", true).await, 200);
    assert_eq!(send(&get, "GET", b"", false).await, 403, "the If-Match header was signed");
    assert_eq!(send(&get, "PUT", b"y", true).await, 403);
    world.store.put("raw-images", "in 1.png", Bytes::from_static(b"changed"), PutOptions::default()).await.unwrap();
    assert_eq!(send(&get, "GET", b"", true).await, 412, "the input changed");
    let metadata = [("imageflow-run".to_owned(), "run-1".to_owned())].into();
    let put = world.store.sign_put("raw-images", "out.png", &metadata, life).await.unwrap();
    assert_eq!(send(&put, "PUT", b"result", true).await, 200);
    assert_eq!(send(&put, "PUT", b"result", true).await, 412, "written once");
    assert_eq!(world.store.head("raw-images", "out.png").await.unwrap().unwrap().metadata, metadata);
    let tampered = put.expose().replace("out.png", "other.png");
    let client = Client::builder(TokioExecutor::new()).build_http::<Full<Bytes>>();
    let request = Request::put(tampered).body(Full::new(Bytes::new())).unwrap();
    assert_eq!(client.request(request).await.unwrap().status(), 403);
    assert!(!format!("{put:?}").contains("Signature"));
}

#[tokio::test]
async fn a_change_that_cannot_be_told_is_no_success() {
    let dir = tempfile::tempdir().unwrap();
    let world = start(dir.path(), None).await;
    world.heard.deaf.store(true, Ordering::SeqCst);
    let body = Bytes::from_static(b"x");
    let refused = world.store.put("raw-images", "k", body.clone(), PutOptions::default()).await;
    assert!(refused.as_ref().is_err_and(ObjectError::is_retryable), "{refused:?}");
    world.heard.deaf.store(false, Ordering::SeqCst);
    world.store.put("raw-images", "k", body, PutOptions::default()).await.unwrap();
    world.store.delete("raw-images", "k").await.unwrap();
    let heard = world.heard.changes.lock().unwrap().clone();
    assert_eq!(heard, [(ChangeKind::Created, "k".to_owned()), (ChangeKind::Removed, "k".to_owned())]);
}

#[tokio::test]
async fn limits_are_kept_and_leave_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let world = start(dir.path(), Some(10 << 10)).await;
    let put = |key: &'static str, size: usize| {
        let store = world.store.clone();
        async move { store.put("raw-images", key, vec![1; size].into(), PutOptions::default()).await }
    };
    put("a", 8 << 10).await.unwrap();
    assert!(matches!(put("b", 4 << 10).await, Err(ObjectError::Full)));
    assert!(matches!(put("c", 9 << 20).await, Err(ObjectError::TooLarge)));
    assert!(world.store.head("raw-images", "b").await.unwrap().is_none());
    world.store.delete("raw-images", "a").await.unwrap();
    put("b", 4 << 10).await.unwrap();
    for bad in ["../x", "a/../b", "a\nb"] {
        assert!(matches!(world.store.head("raw-images", bad).await, Err(ObjectError::InvalidName { .. })), "{bad}");
    }
}
