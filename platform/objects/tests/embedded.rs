//! The embedded server as its users see it: through [`S3Store`] over loopback.
#![expect(clippy::unwrap_used, reason = "test code outside of test functions")]

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use imageflow_objects::{
    ChangeKind, EmbeddedS3, EmbeddedS3Config, EmbeddedS3Error, ListenerError, ObjectChange, ObjectError,
    ObjectListener, ObjectStore, PutOptions, RetryBudget, S3Config, S3Store, conformance,
};

const BUCKET: &str = "raw-images";

#[derive(Default)]
struct Heard {
    changes: Mutex<Vec<ObjectChange>>,
    deaf: AtomicBool,
}

#[async_trait::async_trait]
impl ObjectListener for Heard {
    async fn on_durable(&self, change: ObjectChange) -> Result<(), ListenerError> {
        if self.deaf.load(Ordering::SeqCst) {
            return Err("deaf".into());
        }
        self.changes.lock().unwrap().push(change);
        Ok(())
    }
}

impl Heard {
    fn names(&self) -> Vec<(ChangeKind, String)> {
        self.changes
            .lock()
            .unwrap()
            .iter()
            .map(|c| (c.kind, c.info.key.clone()))
            .collect()
    }
}

fn config(root: &Path, limit: Option<u64>, on_durable: Arc<dyn ObjectListener>) -> EmbeddedS3Config {
    EmbeddedS3Config {
        root: root.to_owned(),
        listen: "127.0.0.1:0".parse().unwrap(),
        credentials: ("key".into(), "secret".into()),
        limit_bytes: limit,
        max_object_bytes: 1 << 20,
        on_durable,
    }
}

fn store(server: &EmbeddedS3) -> Arc<S3Store> {
    let (key, secret) = server.credentials().clone();
    Arc::new(S3Store::new(S3Config::new(
        format!("http://{}", server.addr()),
        key,
        secret,
    )))
}

async fn start(root: &Path, limit: Option<u64>) -> (EmbeddedS3, Arc<S3Store>, Arc<Heard>) {
    let heard = Arc::new(Heard::default());
    let server = EmbeddedS3::start(config(root, limit, heard.clone())).await.unwrap();
    let store = store(&server);
    store.ensure_bucket(BUCKET).await.unwrap();
    (server, store, heard)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_conforms() {
    let dir = tempfile::tempdir().unwrap();
    let (_server, store, _) = start(dir.path(), None).await;
    conformance::all(store, BUCKET).await;
}

#[tokio::test]
async fn a_restart_keeps_everything_and_a_key_may_be_the_folder_of_another() {
    let dir = tempfile::tempdir().unwrap();
    let (server, objects, _) = start(dir.path(), None).await;
    let metadata = [("run".to_owned(), "1".to_owned())].into();
    let options = PutOptions {
        content_type: Some("image/png".into()),
        metadata,
        ..PutOptions::default()
    };
    let keys = ["a", "a/b", "a/b/Grüße 1%.png"];
    for key in keys {
        objects.put(BUCKET, key, key.into(), options.clone()).await.unwrap();
    }
    let before = (
        objects.list(BUCKET, "", None, 10).await.unwrap(),
        objects.head(BUCKET, "a/b").await.unwrap(),
    );
    server.shutdown().await;
    let (_server, objects, heard) = start(dir.path(), None).await;
    let after = (
        objects.list(BUCKET, "", None, 10).await.unwrap(),
        objects.head(BUCKET, "a/b").await.unwrap(),
    );
    assert_eq!(before, after);
    for key in keys {
        assert_eq!(objects.get(BUCKET, key, None).await.unwrap().1, key);
    }
    assert!(heard.names().is_empty(), "what was told is not told again");
}

/// Looks, when it is told, whether a second server on a copy of the folder would have the object: that is, whether it is durable.
struct Looker {
    root: std::path::PathBuf,
    found: Mutex<Vec<bool>>,
}

#[async_trait::async_trait]
impl ObjectListener for Looker {
    async fn on_durable(&self, change: ObjectChange) -> Result<(), ListenerError> {
        let copy = tempfile::tempdir()?;
        let bucket = copy.path().join(BUCKET);
        std::fs::create_dir(&bucket)?;
        for file in std::fs::read_dir(self.root.join(BUCKET))? {
            let file = file?;
            std::fs::copy(file.path(), bucket.join(file.file_name()))?;
        }
        let server = EmbeddedS3::start(config(copy.path(), None, Arc::new(Heard::default()))).await?;
        let there = store(&server).head(BUCKET, &change.info.key).await?;
        self.found
            .lock()
            .unwrap()
            .push(there.is_some_and(|info| info.etag == change.info.etag));
        Ok(())
    }
}

#[tokio::test]
async fn the_object_is_on_disk_before_the_listener_hears_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let looker = Arc::new(Looker {
        root: dir.path().to_owned(),
        found: Mutex::default(),
    });
    let server = EmbeddedS3::start(config(dir.path(), None, looker.clone()))
        .await
        .unwrap();
    let objects = store(&server);
    objects.ensure_bucket(BUCKET).await.unwrap();
    objects
        .put(BUCKET, "k", Bytes::from_static(b"x"), PutOptions::default())
        .await
        .unwrap();
    assert_eq!(
        *looker.found.lock().unwrap(),
        [true],
        "and it was told before the answer came"
    );
}

#[tokio::test]
async fn a_change_that_cannot_be_told_is_no_success_and_is_told_when_the_put_is_repeated() {
    let dir = tempfile::tempdir().unwrap();
    let (_server, objects, heard) = start(dir.path(), None).await;
    let body = Bytes::from_static(b"x");
    let only_new = PutOptions {
        if_none_match: true,
        ..PutOptions::default()
    };
    heard.deaf.store(true, Ordering::SeqCst);
    for (key, options) in [("plain", PutOptions::default()), ("once", only_new.clone())] {
        let refused = objects.put(BUCKET, key, body.clone(), options).await;
        assert!(refused.as_ref().is_err_and(ObjectError::is_retryable), "{refused:?}");
    }
    heard.deaf.store(false, Ordering::SeqCst);
    objects
        .put(BUCKET, "plain", body.clone(), PutOptions::default())
        .await
        .unwrap();
    for _ in 0..2 {
        let there = objects.put(BUCKET, "once", body.clone(), only_new.clone()).await;
        assert!(matches!(there, Err(ObjectError::AlreadyExists { .. })), "{there:?}");
    }
    objects.delete(BUCKET, "plain").await.unwrap();
    let created = |key: &str| (ChangeKind::Created, key.to_owned());
    assert_eq!(
        heard.names(),
        [
            created("plain"),
            created("once"),
            (ChangeKind::Removed, "plain".to_owned())
        ]
    );
    let changes = heard.changes.lock().unwrap();
    assert!(changes.is_sorted_by(|a, b| a.sequence < b.sequence));
}

/// A removal that is repeated finds nothing on disk: its event comes from memory.
#[tokio::test]
async fn a_removal_that_cannot_be_told_is_told_when_it_is_repeated() {
    let dir = tempfile::tempdir().unwrap();
    let (server, _, heard) = start(dir.path(), None).await;
    // Asks once, so that a repeat is ours.
    let (key, secret) = server.credentials().clone();
    let objects = S3Store::new(S3Config {
        budget: RetryBudget {
            attempts: 1,
            ..RetryBudget::default()
        },
        ..S3Config::new(format!("http://{}", server.addr()), key, secret)
    });
    let only_new = PutOptions {
        if_none_match: true,
        ..PutOptions::default()
    };
    let put = async |key: &str, body: &'static str| objects.put(BUCKET, key, body.into(), only_new.clone()).await;
    for key in ["repeated", "written", "refused"] {
        put(key, "first").await.unwrap();
        heard.deaf.store(true, Ordering::SeqCst);
        let removal = objects.delete(BUCKET, key).await;
        assert!(removal.as_ref().is_err_and(ObjectError::is_retryable), "{removal:?}");
        if key == "refused" {
            assert!(put(key, "second").await.is_err(), "the write cannot be told either");
        }
        heard.deaf.store(false, Ordering::SeqCst);
    }
    for _ in 0..2 {
        objects.delete(BUCKET, "repeated").await.unwrap();
    }
    put("written", "second").await.unwrap();
    let there = put("refused", "second").await;
    assert!(matches!(there, Err(ObjectError::AlreadyExists { .. })), "{there:?}");
    for key in ["written", "refused"] {
        for _ in 0..2 {
            objects.delete(BUCKET, key).await.unwrap();
        }
    }
    let changes = heard.changes.lock().unwrap();
    let (first, second) = (md5_of("first"), md5_of("second"));
    for (key, expected) in [
        (
            "repeated",
            &[(ChangeKind::Created, &first), (ChangeKind::Removed, &first)][..],
        ),
        (
            "written",
            &[
                (ChangeKind::Created, &first),
                (ChangeKind::Created, &second),
                (ChangeKind::Removed, &second),
            ],
        ),
        (
            "refused",
            &[
                (ChangeKind::Created, &first),
                (ChangeKind::Created, &second),
                (ChangeKind::Removed, &second),
            ],
        ),
    ] {
        let told = changes.iter().filter(|c| c.info.key == key);
        let told: Vec<_> = told.map(|c| (c.kind, &c.info.etag)).collect();
        assert_eq!(told, expected, "{key}");
    }
    assert!(changes.is_sorted_by(|a, b| a.sequence < b.sequence));
}

fn md5_of(text: &str) -> String {
    use md5::{Digest, Md5};
    hex::encode(Md5::digest(text))
}

#[tokio::test]
async fn limits_are_kept_and_leave_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let (_server, objects, heard) = start(dir.path(), Some(1536 << 10)).await;
    let put = async |key: &str, kib: usize| {
        objects
            .put(BUCKET, key, vec![1; kib << 10].into(), PutOptions::default())
            .await
    };
    put("a", 1024).await.unwrap();
    assert!(matches!(put("b", 1000).await, Err(ObjectError::Full)));
    assert!(matches!(put("c", 1025).await, Err(ObjectError::TooLarge)));
    assert!(objects.head(BUCKET, "b").await.unwrap().is_none());
    assert_eq!(std::fs::read_dir(dir.path().join(".writing")).unwrap().count(), 0);
    put("a", 512).await.unwrap();
    put("b", 1000).await.unwrap();
    objects.delete(BUCKET, "b").await.unwrap();
    put("b", 1024).await.unwrap();
    assert_eq!(heard.names().len(), 5, "what was refused was not told");
}

#[tokio::test]
async fn a_folder_or_address_in_use_is_told_at_start() {
    let dir = tempfile::tempdir().unwrap();
    let (server, _, _) = start(dir.path(), None).await;
    let again = EmbeddedS3::start(config(dir.path(), None, Arc::new(Heard::default()))).await;
    assert!(matches!(again, Err(EmbeddedS3Error::Folder { .. })), "{again:?}");
    let other = tempfile::tempdir().unwrap();
    let taken = EmbeddedS3Config {
        listen: server.addr(),
        ..config(other.path(), None, Arc::new(Heard::default()))
    };
    assert!(matches!(
        EmbeddedS3::start(taken).await,
        Err(EmbeddedS3Error::Listen { .. })
    ));
}

#[tokio::test]
async fn wrong_credentials_are_denied_and_an_absent_server_is_worth_a_retry() {
    let dir = tempfile::tempdir().unwrap();
    let (server, objects, _) = start(dir.path(), None).await;
    let url = format!("http://{}", server.addr());
    let thief = S3Store::new(S3Config::new(&url, "key", "guess"));
    let denied = thief.list(BUCKET, "", None, 1).await;
    assert!(matches!(denied, Err(ObjectError::AccessDenied { .. })), "{denied:?}");
    assert_eq!(
        conformance::send(&format!("{url}/{BUCKET}/k"), "GET", &[], b"").await.0,
        403
    );
    server.shutdown().await;
    let gone = objects.head(BUCKET, "k").await;
    assert!(gone.as_ref().is_err_and(ObjectError::is_retryable), "{gone:?}");
}
