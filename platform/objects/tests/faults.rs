//! What goes wrong between the store and a server: both servers, behind a proxy that fails on demand.
#![expect(clippy::unwrap_used, reason = "test code outside of test functions")]

mod support;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::{StreamExt, stream};
use imageflow_objects::{ObjectError, ObjectStore, PutOptions, RetryBudget, S3Config, S3Store};
use imageflow_servers::proxy::{Fault, Proxy};
use support::{BUCKET, PART, Target, body, bytes, read, until};
use tokio::sync::Semaphore;

const ALWAYS: usize = usize::MAX;

/// A server, the proxy before it, and a store that goes through it.
struct Bench {
    target: Target,
    proxy: Proxy,
    store: S3Store,
    direct: S3Store,
}

impl Bench {
    async fn new(target: Target) -> Self {
        let proxy = Proxy::start(&target.url()).await;
        let store = S3Store::new(target.config(&proxy.url));
        let direct = S3Store::new(target.config(target.url()));
        direct.ensure_bucket(BUCKET).await.unwrap();
        Self {
            target,
            proxy,
            store,
            direct,
        }
    }

    fn impatient(&self, budget: RetryBudget) -> S3Store {
        S3Store::new(S3Config {
            budget,
            ..self.target.config(&self.proxy.url)
        })
    }

    /// Nothing of a write that failed is to be seen, and nothing of it takes space.
    async fn assert_nothing(&self, key: &str) {
        assert!(self.direct.head(BUCKET, key).await.unwrap().is_none());
        assert!(self.direct.list(BUCKET, key, None, 10).await.unwrap().is_empty());
        until("the bytes of what failed are gone", || {
            self.target.bytes_on_disk() < 64 << 10
        })
        .await;
    }
}

/// Each of these runs against both servers.
macro_rules! on_both {
    ($($name:ident),* $(,)?) => {
        mod embedded {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                let Some(target) = super::Target::embedded().await else { return };
                super::$name(super::Bench::new(target).await).await;
            })*
        }
        mod versitygw {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                let Some(target) = super::Target::versitygw().await else { return };
                super::$name(super::Bench::new(target).await).await;
            })*
        }
    };
}

on_both!(
    a_503_is_retried_as_often_as_the_budget_allows,
    a_slow_server_is_waited_for_no_longer_than_the_budget,
    a_put_that_is_cut_is_repeated_or_leaves_nothing,
    a_put_whose_answer_is_lost_is_there_once,
    a_read_goes_on_where_it_broke_off,
    a_read_does_not_go_on_with_another_object,
    parts_are_retried_and_the_object_is_whole,
    an_upload_that_fails_leaves_nothing,
    a_stream_that_breaks_off_or_is_given_up_leaves_nothing,
    a_stream_is_not_read_ahead_of_what_is_sent,
    only_new_holds_for_parts_too,
);

fn only_new() -> PutOptions {
    PutOptions {
        if_none_match: true,
        ..PutOptions::default()
    }
}

fn is_retryable<T: std::fmt::Debug>(outcome: &Result<T, ObjectError>) -> bool {
    outcome.as_ref().is_err_and(ObjectError::is_retryable)
}

async fn a_503_is_retried_as_often_as_the_budget_allows(bench: Bench) {
    let small = bytes(1000);
    bench.proxy.fail("PUT /raw-images/k", 2, Fault::Unavailable);
    bench
        .store
        .put(BUCKET, "k", small.clone(), PutOptions::default())
        .await
        .unwrap();
    assert_eq!(bench.proxy.seen("PUT /raw-images/k"), 3);
    bench.proxy.fail("GET", 4, Fault::Unavailable);
    assert_eq!(bench.store.get(BUCKET, "k", None).await.unwrap().1, small);
    assert_eq!(bench.proxy.seen("GET /raw-images/k"), 5);
    bench.proxy.fail("/raw-images", ALWAYS, Fault::Unavailable);
    let started = Instant::now();
    let refused = bench.store.put(BUCKET, "no", small, PutOptions::default()).await;
    assert!(is_retryable(&refused), "{refused:?}");
    assert_eq!(bench.proxy.seen("PUT /raw-images/no"), 5);
    let listed = bench.store.list(BUCKET, "", None, 10).await;
    assert!(is_retryable(&listed), "{listed:?}");
    // At most 0.1 + 0.2 + 0.4 + 0.8 s of waiting for each of the two; the rest is for a machine that is busy.
    assert!(started.elapsed() < Duration::from_secs(30), "{:?}", started.elapsed());
    bench.direct.delete(BUCKET, "k").await.unwrap();
    bench.assert_nothing("no").await;
}

async fn a_slow_server_is_waited_for_no_longer_than_the_budget(bench: Bench) {
    let budget = |total| RetryBudget {
        connect: Duration::from_secs(3),
        attempt: Duration::from_millis(800),
        total: Duration::from_secs(total),
        attempts: 50,
    };
    let hour = Fault::Delay(Duration::from_secs(3600));
    bench.proxy.fail("PUT /raw-images/k", 1, hour.clone());
    bench
        .impatient(budget(60))
        .put(BUCKET, "k", bytes(1000), PutOptions::default())
        .await
        .unwrap();
    // A machine that is busy may let a later attempt take too long as well.
    assert!(bench.proxy.seen("PUT /raw-images/k") >= 2);
    let store = bench.impatient(budget(3));
    bench.proxy.fail("/raw-images", ALWAYS, hour);
    for put in [true, false] {
        let started = Instant::now();
        let outcome = if put {
            store
                .put(BUCKET, "no", bytes(10), PutOptions::default())
                .await
                .map(|_| ())
        } else {
            store.get(BUCKET, "k", None).await.map(|_| ())
        };
        assert!(is_retryable(&outcome), "{outcome:?}");
        let took = started.elapsed();
        // With all its attempts it would take minutes.
        assert!(
            (Duration::from_millis(2500)..Duration::from_secs(30)).contains(&took),
            "{took:?}"
        );
    }
    assert!(bench.direct.head(BUCKET, "no").await.unwrap().is_none());
}

async fn a_put_that_is_cut_is_repeated_or_leaves_nothing(bench: Bench) {
    let large = bytes(3_000_000);
    bench.proxy.fail("PUT", ALWAYS, Fault::CutRequest(1_000_000));
    let cut = bench.store.put(BUCKET, "k", large.clone(), PutOptions::default()).await;
    assert!(is_retryable(&cut), "{cut:?}");
    assert_eq!(bench.proxy.seen("PUT /raw-images/k"), 5);
    bench.assert_nothing("k").await;
    bench.proxy.heal();
    bench.proxy.fail("PUT", 2, Fault::CutRequest(1_000_000));
    let info = bench.store.put(BUCKET, "k", large.clone(), only_new()).await.unwrap();
    let (found, body) = bench.direct.get(BUCKET, "k", Some(&info.etag)).await.unwrap();
    assert_eq!((found.size, body), (3_000_000, large));
}

async fn a_put_whose_answer_is_lost_is_there_once(bench: Bench) {
    let small = bytes(1000);
    bench.proxy.fail("PUT", 1, Fault::LoseAnswer);
    let put = bench.store.put(BUCKET, "k", small.clone(), PutOptions::default()).await;
    assert_eq!(put.unwrap().size, 1000);
    bench.proxy.fail("PUT", 1, Fault::LoseAnswer);
    let put = bench.store.put(BUCKET, "once", small.clone(), only_new()).await;
    assert!(matches!(put, Err(ObjectError::AlreadyExists { .. })), "{put:?}");
    assert_eq!(bench.direct.get(BUCKET, "once", None).await.unwrap().1, small);
}

async fn a_read_goes_on_where_it_broke_off(bench: Bench) {
    let large = bytes(3_000_000);
    bench
        .direct
        .put(BUCKET, "k", large.clone(), PutOptions::default())
        .await
        .unwrap();
    bench.proxy.fail("GET", 2, Fault::CutAnswer(1_000_000));
    bench.proxy.fail("GET", 1, Fault::Unavailable);
    let (info, found) = bench.store.get(BUCKET, "k", None).await.unwrap();
    assert_eq!((info.size, found), (3_000_000, large.clone()));
    assert_eq!(bench.proxy.seen("GET /raw-images/k"), 4);
    bench.proxy.fail("GET", 2, Fault::CutAnswer(700_000));
    let (info, stream) = bench.store.get_stream(BUCKET, "k", None).await.unwrap();
    assert_eq!((info.size, read(stream).await.unwrap()), (3_000_000, large));
    bench.proxy.fail("GET", ALWAYS, Fault::CutAnswer(1000));
    let before = bench.proxy.seen("GET");
    let broken = bench.store.get(BUCKET, "k", None).await;
    assert!(is_retryable(&broken), "{broken:?}");
    assert_eq!(bench.proxy.seen("GET") - before, 5);
    let (_, stream) = bench.store.get_stream(BUCKET, "k", None).await.unwrap();
    let error = read(stream).await.unwrap_err();
    assert!(error.downcast::<ObjectError>().unwrap().is_retryable());
}

async fn a_read_does_not_go_on_with_another_object(bench: Bench) {
    let large = bytes(3_000_000);
    bench
        .direct
        .put(BUCKET, "k", large.clone(), PutOptions::default())
        .await
        .unwrap();
    bench.proxy.fail("GET", 1, Fault::CutAnswer(1_000_000));
    let (_, stream) = bench.store.get_stream(BUCKET, "k", None).await.unwrap();
    let other = large.slice(1..);
    bench
        .direct
        .put(BUCKET, "k", other, PutOptions::default())
        .await
        .unwrap();
    let error = read(stream).await.unwrap_err().downcast::<ObjectError>().unwrap();
    assert!(matches!(*error, ObjectError::PreconditionFailed { .. }), "{error}");
}

async fn parts_are_retried_and_the_object_is_whole(bench: Bench) {
    let large = bytes(4 * PART + 1);
    let options = PutOptions {
        content_type: Some("image/tiff".into()),
        metadata: [("imageflow-run".to_owned(), "1".to_owned())].into(),
        ..PutOptions::default()
    };
    bench.proxy.fail("POST uploads", 1, Fault::Unavailable);
    bench.proxy.fail("PUT partNumber=2", 2, Fault::Unavailable);
    bench.proxy.fail("PUT partNumber=3", 1, Fault::CutRequest(1_000_000));
    bench.proxy.fail("PUT partNumber=4", 1, Fault::LoseAnswer);
    bench.proxy.fail("POST uploadId", 1, Fault::LoseAnswer);
    let (stream, _) = body(&large);
    let put = bench
        .store
        .put_stream(BUCKET, "k", stream, options.clone())
        .await
        .unwrap();
    assert!(put.etag.ends_with("-5"), "{}", put.etag);
    let (info, found) = bench.direct.get(BUCKET, "k", Some(&put.etag)).await.unwrap();
    assert_eq!((put.size, &found), (large.len() as u64, &large));
    assert_eq!(
        (info.content_type, info.metadata),
        (options.content_type.clone(), options.metadata.clone())
    );
    // From memory, and of exactly one part, it is the same.
    bench.proxy.heal();
    let same = bench.store.put(BUCKET, "same", large, options).await.unwrap();
    assert_eq!(same.etag, put.etag);
    let one = bytes(PART);
    let (stream, _) = body(&one);
    let put = bench
        .store
        .put_stream(BUCKET, "one", stream, PutOptions::default())
        .await
        .unwrap();
    assert!(!put.etag.contains('-'), "one part is no upload of parts: {}", put.etag);
    assert_eq!(bench.direct.get(BUCKET, "one", None).await.unwrap().1, one);
    let (stream, _) = body(&Bytes::new());
    let none = bench
        .store
        .put_stream(BUCKET, "none", stream, PutOptions::default())
        .await;
    assert_eq!(none.unwrap().size, 0);
}

async fn an_upload_that_fails_leaves_nothing(bench: Bench) {
    let large = bytes(4 * PART);
    for broken in ["PUT partNumber=3", "POST uploadId"] {
        bench.proxy.fail(broken, ALWAYS, Fault::Unavailable);
        let put = bench.store.put(BUCKET, "k", large.clone(), PutOptions::default()).await;
        assert!(is_retryable(&put), "{put:?}");
        assert!(bench.proxy.seen(broken) >= 5);
        bench.proxy.heal();
        bench.assert_nothing("k").await;
    }
    assert_eq!(bench.proxy.seen("DELETE uploadId"), 2);
}

async fn a_stream_that_breaks_off_or_is_given_up_leaves_nothing(bench: Bench) {
    let large = bytes(3 * PART);
    let broken = body(&large)
        .0
        .chain(stream::iter([Err("the sender went away".into())]))
        .boxed();
    let put = bench.store.put_stream(BUCKET, "k", broken, PutOptions::default()).await;
    assert!(is_retryable(&put), "{put:?}");
    assert!(put.unwrap_err().to_string().contains("the sender went away"));
    assert_eq!(bench.proxy.seen("DELETE uploadId"), 1);
    bench.assert_nothing("k").await;
    let endless = body(&large).0.chain(stream::pending()).boxed();
    let store = bench.store.clone();
    let put = tokio::spawn(async move { store.put_stream(BUCKET, "k", endless, PutOptions::default()).await });
    until("parts are under way", || bench.target.bytes_on_disk() >= PART as u64).await;
    put.abort();
    assert!(put.await.unwrap_err().is_cancelled());
    until("the upload is aborted", || bench.proxy.seen("DELETE uploadId") == 2).await;
    bench.assert_nothing("k").await;
}

async fn a_stream_is_not_read_ahead_of_what_is_sent(bench: Bench) {
    let large = bytes(8 * PART);
    let permits = Arc::new(Semaphore::new(0));
    bench.proxy.fail("PUT partNumber", ALWAYS, Fault::Hold(permits.clone()));
    let (stream, taken) = body(&large);
    let store = S3Store::new(S3Config {
        budget: RetryBudget::default(),
        ..bench.target.config(&bench.proxy.url)
    });
    let put = tokio::spawn(async move { store.put_stream(BUCKET, "k", stream, PutOptions::default()).await });
    let taken = || taken.load(Ordering::SeqCst);
    for released in 0..3 {
        // Three parts under way and one at hand; of the last piece of 300 kB the next part has the rest.
        let at_hand = (released + 4) * PART;
        until("the parts are under way", || {
            bench.proxy.seen("PUT partNumber") == released + 3 && taken() >= at_hand
        })
        .await;
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        assert!(taken() < at_hand + 300_000, "{} of {at_hand}", taken());
        permits.add_permits(1);
    }
    permits.add_permits(100);
    assert_eq!(put.await.unwrap().unwrap().size, large.len() as u64);
    assert_eq!(bench.direct.get(BUCKET, "k", None).await.unwrap().1, large);
}

async fn only_new_holds_for_parts_too(bench: Bench) {
    let (large, small) = (bytes(2 * PART), bytes(10));
    bench
        .direct
        .put(BUCKET, "k", small.clone(), PutOptions::default())
        .await
        .unwrap();
    let put = bench.store.put(BUCKET, "k", large.clone(), only_new()).await;
    assert!(matches!(put, Err(ObjectError::AlreadyExists { .. })), "{put:?}");
    assert_eq!(bench.proxy.seen("partNumber"), 0, "nothing is sent in vain");
    // Somebody else is faster, after the look and before the end.
    let permits = Arc::new(Semaphore::new(0));
    bench.proxy.fail("POST uploadId", 1, Fault::Hold(permits.clone()));
    let store = bench.store.clone();
    let put = tokio::spawn(async move { store.put(BUCKET, "race", large, only_new()).await });
    until("the upload is about to end", || bench.proxy.seen("POST uploadId") == 1).await;
    bench
        .direct
        .put(BUCKET, "race", small.clone(), only_new())
        .await
        .unwrap();
    permits.add_permits(1);
    let put = put.await.unwrap();
    assert!(matches!(put, Err(ObjectError::AlreadyExists { .. })), "{put:?}");
    assert_eq!(bench.direct.get(BUCKET, "race", None).await.unwrap().1, small);
}
