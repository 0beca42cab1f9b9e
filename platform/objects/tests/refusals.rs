//! What the answers of a server mean: which of its refusals are for good and which are worth another try, and how it writes
//! keys.
#![expect(clippy::unwrap_used, reason = "test code outside of test functions")]

use std::convert::Infallible;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use imageflow_objects::{ObjectError, ObjectStore, PutOptions, RetryBudget, S3Config, S3Store};
use tokio::net::TcpListener;

const BUCKET: &str = "raw-images";

/// A store whose server answers all with an S3 error of that code, or without a body.
async fn answered(status: u16, code: Option<&'static str>) -> S3Store {
    let body = code.map(|code| format!("<Error><Code>{code}</Code><Message>no</Message></Error>"));
    server(status, body.unwrap_or_default().into()).await
}

/// A store whose server gives this one answer.
async fn server(status: u16, body: Bytes) -> S3Store {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let answer = move |_: Request<Incoming>| {
        let answer = Response::builder().status(status).header("connection", "close");
        let answer = answer.body(Full::new(body.clone())).unwrap();
        async { Ok::<_, Infallible>(answer) }
    };
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let connection = hyper::server::conn::http1::Builder::new();
            let served = connection.serve_connection(TokioIo::new(stream), service_fn(&answer));
            let _ = served.await;
        }
    });
    S3Store::new(S3Config {
        budget: RetryBudget {
            attempts: 1,
            ..RetryBudget::default()
        },
        ..S3Config::new(url, "key", "secret")
    })
}

/// So AWS answers HEAD of an object that is encrypted with a key of its owner's (SSE-C).
#[tokio::test]
async fn a_head_that_is_refused_without_a_code_is_refused_for_good() {
    for status in [400, 405, 416] {
        let refused = answered(status, None).await.head(BUCKET, "k").await.unwrap_err();
        assert!(!refused.is_retryable(), "{refused:?}");
        assert_eq!(
            refused.to_string(),
            format!("the object store refuses {BUCKET}/k with status {status}")
        );
    }
}

#[tokio::test]
async fn a_head_that_may_pass_later_is_worth_a_retry() {
    for status in [408, 409, 425, 429, 500, 503] {
        let failed = answered(status, None).await.head(BUCKET, "k").await.unwrap_err();
        assert!(failed.is_retryable(), "{status}: {failed:?}");
    }
    let denied = answered(403, None).await.head(BUCKET, "k").await;
    assert!(matches!(denied, Err(ObjectError::AccessDenied { .. })), "{denied:?}");
    assert!(answered(404, None).await.head(BUCKET, "k").await.unwrap().is_none());
}

#[tokio::test]
async fn the_code_tells_what_is_for_good() {
    for (status, code, for_good) in [
        (400, "InvalidRequest", true),
        (400, "InvalidArgument", true),
        (405, "MethodNotAllowed", true),
        (403, "InvalidObjectState", true),
        (501, "NotImplemented", true),
        (400, "RequestTimeout", false),
        (409, "OperationAborted", false),
    ] {
        let store = answered(status, Some(code)).await;
        let read = store.get(BUCKET, "k", None).await.map(drop);
        let written = store.put(BUCKET, "k", Bytes::new(), PutOptions::default()).await;
        for refused in [read.unwrap_err(), written.map(drop).unwrap_err()] {
            let told = matches!(&refused, ObjectError::Refused { status: told, .. } if *told == status);
            assert_eq!((told, refused.is_retryable()), (for_good, !for_good), "{refused:?}");
        }
    }
}

/// Keys are encoded where the server says so, and not by those that do not know how.
#[tokio::test]
async fn listed_keys_are_read_as_the_server_says_that_it_writes_them() {
    for (said, written, key) in [
        ("<EncodingType>url</EncodingType>", "a+b%2B%01/%C3%BC", "a b+\u{1}/ü"),
        ("<EncodingType>url</EncodingType>", "a%20b", "a b"),
        ("", "a+b%2B", "a+b%2B"),
    ] {
        let body = format!("<ListBucketResult>{said}<Contents><Key>{written}</Key></Contents></ListBucketResult>");
        let listed = server(200, body.into()).await.list(BUCKET, "", None, 10).await.unwrap();
        assert_eq!(listed[0].key, key);
    }
}
