//! What every [`ObjectStore`] must do, as checks that panic on the first deviation. Each makes its own keys under a prefix
//! of its own in the bucket it is given, so that they may run beside each other and against a server that holds other things.
#![expect(clippy::unwrap_used, reason = "a check that cannot go on has failed")]
#![expect(clippy::missing_panics_doc, reason = "to panic is what these are for")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use tokio::task::JoinSet;

use crate::{ObjectError, ObjectStore, PutOptions, SignedUrl};

/// All checks, one after the other, in a bucket that is made when it is not there.
pub async fn all(store: Arc<dyn ObjectStore>, bucket: &str) {
    store.ensure_bucket(bucket).await.unwrap();
    store.ensure_bucket(bucket).await.unwrap();
    objects_come_back_as_they_were_put(store.as_ref(), bucket).await;
    what_is_not_there_is_told_apart(store.as_ref(), bucket).await;
    listings_are_paged_in_the_order_of_keys(store.as_ref(), bucket).await;
    of_sixteen_who_write_only_when_new_exactly_one_wins(store.clone(), bucket).await;
    a_read_is_bound_to_its_etag(store.as_ref(), bucket).await;
    a_signed_get_does_what_it_was_signed_for_and_nothing_else(store.as_ref(), bucket).await;
    a_signed_put_does_what_it_was_signed_for_and_nothing_else(store.as_ref(), bucket).await;
}

fn only_new() -> PutOptions {
    PutOptions {
        if_none_match: true,
        ..PutOptions::default()
    }
}

fn marked() -> BTreeMap<String, String> {
    [("imageflow-run".to_owned(), "run-1".to_owned())].into()
}

/// Bytes, ETag, media type and metadata are those of the put, for keys with spaces and signs too; a second put replaces all.
pub async fn objects_come_back_as_they_were_put(store: &dyn ObjectStore, bucket: &str) {
    let options = PutOptions {
        content_type: Some("image/png".into()),
        metadata: marked(),
        ..PutOptions::default()
    };
    for key in ["same/plain.png", "same/Grüße 1%+2&x=y?#.png", "same/a..b/~(x)'!*.png"] {
        let put = store
            .put(bucket, key, Bytes::from_static(b"hello"), options.clone())
            .await
            .unwrap();
        assert_eq!(
            put.etag, "5d41402abc4b2a76b9719d911017c592",
            "the MD5 of the bytes, without quotes"
        );
        let (info, body) = store.get(bucket, key, None).await.unwrap();
        assert_eq!(body, "hello");
        assert_eq!(
            (info.key.as_str(), info.etag.as_str(), info.size),
            (key, put.etag.as_str(), 5)
        );
        assert_eq!(
            (info.content_type.as_deref(), &info.metadata),
            (Some("image/png"), &marked())
        );
        assert!(info.last_modified_ms > 0);
        assert_eq!(store.head(bucket, key).await.unwrap().unwrap(), info);
    }
    let plain = PutOptions {
        content_type: Some("text/plain".into()),
        ..PutOptions::default()
    };
    store.put(bucket, "same/plain.png", Bytes::new(), plain).await.unwrap();
    let (info, body) = store.get(bucket, "same/plain.png", None).await.unwrap();
    assert!(body.is_empty() && info.size == 0 && info.metadata.is_empty());
    assert_eq!(info.content_type.as_deref(), Some("text/plain"));
}

/// A missing key, a missing bucket and a name that cannot be are three different errors; removing is idempotent.
pub async fn what_is_not_there_is_told_apart(store: &dyn ObjectStore, bucket: &str) {
    store
        .put(bucket, "gone", Bytes::from_static(b"x"), PutOptions::default())
        .await
        .unwrap();
    store.delete(bucket, "gone").await.unwrap();
    store.delete(bucket, "gone").await.unwrap();
    assert!(store.head(bucket, "gone").await.unwrap().is_none());
    assert!(matches!(store.get(bucket, "gone", None).await, Err(ObjectError::NoSuchKey { key, .. }) if key == "gone"));
    let nowhere = "no-such-bucket-here";
    let put = store.put(nowhere, "k", Bytes::new(), PutOptions::default()).await;
    assert!(matches!(put, Err(ObjectError::NoSuchBucket { .. })), "{put:?}");
    assert!(matches!(
        store.get(nowhere, "k", None).await,
        Err(ObjectError::NoSuchBucket { .. })
    ));
    assert!(matches!(
        store.list(nowhere, "", None, 1).await,
        Err(ObjectError::NoSuchBucket { .. })
    ));
    for key in ["../x", "a/../b", "a\nb", "a\0b", ""] {
        assert!(
            matches!(store.head(bucket, key).await, Err(ObjectError::InvalidName { .. })),
            "{key:?}"
        );
    }
    assert!(matches!(
        store.ensure_bucket("../up").await,
        Err(ObjectError::InvalidName { .. })
    ));
}

/// Pages follow each other without gap or double, hold the prefix only, and agree with `head`.
pub async fn listings_are_paged_in_the_order_of_keys(store: &dyn ObjectStore, bucket: &str) {
    let mut expected: Vec<String> = (0..25).map(|n| format!("page/{n:02} ü&<")).collect();
    for key in expected.iter().rev() {
        store
            .put(bucket, key, key.clone().into(), PutOptions::default())
            .await
            .unwrap();
    }
    store
        .put(bucket, "pagf", Bytes::new(), PutOptions::default())
        .await
        .unwrap();
    let mut found = Vec::new();
    let mut after: Option<String> = None;
    loop {
        let page = store.list(bucket, "page/", after.as_deref(), 10).await.unwrap();
        assert!(page.len() <= 10);
        let Some(last) = page.last() else { break };
        after = Some(last.key.clone());
        found.extend(page);
    }
    expected.sort();
    assert_eq!(found.iter().map(|o| o.key.clone()).collect::<Vec<_>>(), expected);
    let head = store.head(bucket, &expected[3]).await.unwrap().unwrap();
    assert_eq!((&found[3].etag, found[3].size), (&head.etag, head.size));
    // HTTP dates have whole seconds.
    assert!(found[3].last_modified_ms.abs_diff(head.last_modified_ms) < 1000);
}

/// `If-None-Match: *` is atomic, and the winner's bytes are the ones that stay.
pub async fn of_sixteen_who_write_only_when_new_exactly_one_wins(store: Arc<dyn ObjectStore>, bucket: &str) {
    store.delete(bucket, "race").await.unwrap();
    let mut tasks = JoinSet::new();
    for n in 0..16_u8 {
        let (store, bucket) = (store.clone(), bucket.to_owned());
        tasks.spawn(async move { (n, store.put(&bucket, "race", vec![n; 1000].into(), only_new()).await) });
    }
    let mut winners = Vec::new();
    for (n, put) in tasks.join_all().await {
        match put {
            Ok(_) => winners.push(n),
            Err(error) => assert!(matches!(error, ObjectError::AlreadyExists { .. }), "{error}"),
        }
    }
    assert_eq!(winners.len(), 1, "{winners:?}");
    assert_eq!(store.get(bucket, "race", None).await.unwrap().1, vec![winners[0]; 1000]);
}

/// `if_match` gives the bytes of that ETag or `PreconditionFailed`.
pub async fn a_read_is_bound_to_its_etag(store: &dyn ObjectStore, bucket: &str) {
    let first = store
        .put(bucket, "bound", Bytes::from_static(b"1"), PutOptions::default())
        .await
        .unwrap();
    assert_eq!(store.get(bucket, "bound", Some(&first.etag)).await.unwrap().1, "1");
    store
        .put(bucket, "bound", Bytes::from_static(b"2"), PutOptions::default())
        .await
        .unwrap();
    let wrong = store.get(bucket, "bound", Some(&first.etag)).await;
    assert!(
        matches!(&wrong, Err(ObjectError::PreconditionFailed { expected, .. }) if *expected == first.etag),
        "{wrong:?}"
    );
}

const LIFE: Duration = Duration::from_secs(60);

/// The signed GET works as it was handed out, and fails when anything of it is changed or left out.
pub async fn a_signed_get_does_what_it_was_signed_for_and_nothing_else(store: &dyn ObjectStore, bucket: &str) {
    let key = "signed/in 1+2.png";
    let etag = store
        .put(bucket, key, Bytes::from_static(b"x"), PutOptions::default())
        .await
        .unwrap()
        .etag;
    let get = store.sign_get(bucket, key, Some(&etag), LIFE).await.unwrap();
    assert_eq!(
        send(get.expose(), "GET", &get.headers, b"").await,
        (200, Bytes::from_static(b"x"))
    );
    assert_eq!(
        send(get.expose(), "GET", &[], b"").await.0,
        403,
        "the If-Match header was signed"
    );
    assert_eq!(
        send(get.expose(), "PUT", &get.headers, b"y").await.0,
        403,
        "it is no PUT"
    );
    assert_eq!(
        send(&get.expose().replace("in%201", "in%202"), "GET", &get.headers, b"")
            .await
            .0,
        403,
        "another key"
    );
    store
        .put(bucket, key, Bytes::from_static(b"changed"), PutOptions::default())
        .await
        .unwrap();
    assert_eq!(
        send(get.expose(), "GET", &get.headers, b"").await.0,
        412,
        "the input changed"
    );
    assert!(!format!("{get:?} {get}").contains(get.expose()), "it hides itself");
}

/// The signed PUT writes once, with the metadata that was signed.
pub async fn a_signed_put_does_what_it_was_signed_for_and_nothing_else(store: &dyn ObjectStore, bucket: &str) {
    let key = "signed/out.png";
    store.delete(bucket, key).await.unwrap();
    store
        .put(bucket, "secret", Bytes::from_static(b"secret"), PutOptions::default())
        .await
        .unwrap();
    let put = store.sign_put(bucket, key, &marked(), LIFE).await.unwrap();
    for (left_out, _) in &put.headers {
        let headers: Vec<_> = put
            .headers
            .iter()
            .filter(|(name, _)| name != left_out)
            .cloned()
            .collect();
        assert_eq!(
            send(put.expose(), "PUT", &headers, b"r").await.0,
            403,
            "without {left_out}"
        );
    }
    let more = with(&put, "x-amz-copy-source", &format!("/{bucket}/secret"));
    // However the list of signed headers is written in the URL.
    let disguised = put.expose().replace("X-Amz-SignedHeaders", "X%2DAmz-SignedHeaders");
    assert_ne!(disguised, put.expose());
    for url in [put.expose(), &disguised] {
        let refused = send(url, "PUT", &more, b"").await.0;
        assert!(
            (400..500).contains(&refused),
            "a signed PUT must not be made a copy: {refused}"
        );
    }
    assert_eq!(
        send(&put.expose().replace("out.png", "other.png"), "PUT", &put.headers, b"r")
            .await
            .0,
        403
    );
    assert!(
        store.head(bucket, key).await.unwrap().is_none(),
        "nothing of that has written"
    );
    let headers = with(&put, "content-type", "image/webp");
    assert_eq!(send(put.expose(), "PUT", &headers, b"result").await.0, 200);
    assert_eq!(
        send(put.expose(), "PUT", &headers, b"again").await.0,
        412,
        "written once"
    );
    let (info, body) = store.get(bucket, key, None).await.unwrap();
    assert_eq!((body, info.metadata), (Bytes::from_static(b"result"), marked()));
    assert_eq!(info.content_type.as_deref(), Some("image/webp"));
}

fn with(signed: &SignedUrl, name: &str, value: &str) -> Vec<(String, String)> {
    let more = (name.to_owned(), value.to_owned());
    signed.headers.iter().cloned().chain([more]).collect()
}

/// A request as somebody without credentials makes it: status and body.
pub async fn send(url: &str, method: &str, headers: &[(String, String)], body: &'static [u8]) -> (u16, Bytes) {
    let client = Client::builder(TokioExecutor::new()).build_http::<Full<Bytes>>();
    let mut request = Request::builder().method(method).uri(url);
    for (name, value) in headers {
        request = request.header(name, value);
    }
    let answer = client
        .request(request.body(Full::new(Bytes::from_static(body))).unwrap())
        .await
        .unwrap();
    (
        answer.status().as_u16(),
        answer.into_body().collect().await.unwrap().to_bytes(),
    )
}
