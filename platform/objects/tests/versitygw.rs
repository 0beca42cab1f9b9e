//! [`S3Store`] against a real S3 server.
#![expect(clippy::unwrap_used, reason = "test code outside of test functions")]

mod support;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use imageflow_objects::{CaBundle, ObjectError, ObjectStore, PutOptions, RetryBudget, S3Config, S3Store, conformance};
use imageflow_servers::proxy::{Fault, Proxy};
use imageflow_servers::s3::{S3Options, S3Server};
use imageflow_servers::tls::authority;
use support::{BUCKET, PART, body, bytes, read, until};
use tokio::sync::Semaphore;

fn config(server: &S3Server, url: &str) -> S3Config {
    S3Config {
        part_bytes: PART,
        ..S3Config::new(url, server.access_key(), server.secret_key())
    }
}

async fn store(server: &S3Server) -> Arc<S3Store> {
    let store = Arc::new(S3Store::new(config(server, &server.url())));
    store.ensure_bucket(BUCKET).await.unwrap();
    store
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_conforms() {
    let Some(server) = S3Server::for_test(S3Options::default()).await else {
        return;
    };
    conformance::all(store(&server).await, BUCKET).await;
}

/// Without checksums, as for servers that refuse their headers, all is the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_conforms_without_checksums() {
    let Some(server) = S3Server::for_test(S3Options::default()).await else {
        return;
    };
    let store = Arc::new(S3Store::new(S3Config {
        checksums: false,
        ..config(&server, &server.url())
    }));
    conformance::all(store.clone(), BUCKET).await;
    let large = bytes(2 * PART + 1);
    store
        .put(BUCKET, "large", large.clone(), PutOptions::default())
        .await
        .unwrap();
    assert_eq!(store.get(BUCKET, "large", None).await.unwrap().1, large);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_rots_on_the_server_is_not_read() {
    let Some(server) = S3Server::for_test(S3Options::default()).await else {
        return;
    };
    let store = store(&server).await;
    for (key, size) in [("one", 100_000), ("parts", 2 * PART + 1)] {
        let good = bytes(size);
        store
            .put(BUCKET, key, good.clone(), PutOptions::default())
            .await
            .unwrap();
        assert_eq!(store.get(BUCKET, key, None).await.unwrap().1, good);
        let file = server.data_dir().join(BUCKET).join(key);
        flip(&file, size / 2);
        let rotten = store.get(BUCKET, key, None).await;
        assert!(rotten.is_err(), "{key}: a flipped bit is noticed");
        let (_, stream) = store.get_stream(BUCKET, key, None).await.unwrap();
        let error = read(stream).await.unwrap_err().to_string();
        assert!(error.contains("checksum"), "{key}: {error}");
    }
}

/// Flips a bit in place: the server keeps the checksum in the attributes of the file.
fn flip(file: &Path, at: usize) {
    use std::os::unix::fs::FileExt;
    let file = std::fs::File::options().read(true).write(true).open(file).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at as u64).unwrap();
    byte[0] ^= 1;
    file.write_all_at(&byte, at as u64).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_server_costs_an_upload_nothing_but_time() {
    let Some(mut server) = S3Server::for_test(S3Options::default()).await else {
        return;
    };
    let proxy = Proxy::start(&server.url()).await;
    let before = store(&server).await;
    before
        .put(BUCKET, "small", bytes(10), PutOptions::default())
        .await
        .unwrap();
    // As long as the server may take to be there again on a machine that is busy: what is claimed is not how long that is.
    let budget = RetryBudget {
        attempts: 50,
        total: Duration::from_secs(120),
        ..RetryBudget::default()
    };
    let through = S3Store::new(S3Config {
        budget,
        ..config(&server, &proxy.url)
    });
    let permits = Arc::new(Semaphore::new(0));
    proxy.fail("PUT partNumber=3", 1, Fault::Hold(permits.clone()));
    let large = bytes(4 * PART);
    let (stream, _) = body(&large);
    let put = tokio::spawn(async move { through.put_stream(BUCKET, "large", stream, PutOptions::default()).await });
    until("the third part is held", || proxy.seen("PUT partNumber=3") == 1).await;
    let pid = server.pid().unwrap();
    server.kill();
    permits.add_permits(1);
    until("the server is asked in vain", || proxy.seen("PUT partNumber=3") > 1).await;
    server.restart().await.unwrap();
    assert_ne!(server.pid().unwrap(), pid);
    put.await.unwrap().unwrap();
    assert_eq!(before.get(BUCKET, "large", None).await.unwrap().1, large);
    assert_eq!(before.get(BUCKET, "small", None).await.unwrap().1, bytes(10));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_is_trusted_by_the_authority_that_is_given_only() {
    let dir = tempfile::tempdir().unwrap();
    let ours = authority(dir.path(), "ours").unwrap();
    let other = authority(dir.path(), "other").unwrap();
    let options = S3Options {
        tls: Some(ours.server),
        ..S3Options::default()
    };
    let Some(server) = S3Server::for_test(options).await else {
        return;
    };
    let with = |ca| {
        S3Store::new(S3Config {
            ca: Some(CaBundle::read(ca).unwrap()),
            ..config(&server, &server.url())
        })
    };
    let store = with(ours.ca);
    store.ensure_bucket(BUCKET).await.unwrap();
    let large = bytes(2 * PART);
    store
        .put(BUCKET, "k", large.clone(), PutOptions::default())
        .await
        .unwrap();
    assert_eq!(store.get(BUCKET, "k", None).await.unwrap().1, large);
    let refused = with(other.ca).head(BUCKET, "k").await.unwrap_err().to_string();
    assert!(refused.contains("certificate"), "{refused}");
}

/// A server that keeps objects as files cannot hold `a` and `a/b` both: that is for good and says so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_below_another_is_refused_for_good() {
    let Some(server) = S3Server::for_test(S3Options::default()).await else {
        return;
    };
    let store = store(&server).await;
    for key in ["a", "b/c"] {
        store.put(BUCKET, key, bytes(1), PutOptions::default()).await.unwrap();
    }
    for key in ["a/b", "b"] {
        let put = store.put(BUCKET, key, bytes(1), PutOptions::default()).await;
        assert!(
            matches!(&put, Err(ObjectError::InvalidName { name, .. }) if name == key),
            "{put:?}"
        );
    }
}
