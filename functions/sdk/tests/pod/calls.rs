//! Plain invocation, connections and the small endpoints.
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Version};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{Pod, header, send, send_with};

#[tokio::test]
async fn an_image_comes_back_with_the_time_it_took() {
    let pod = Pod::start(&[]).await;
    let answer = pod.image("/?width=3", "pixels").await;
    assert_eq!((answer.status, &answer.body[..]), (200, &b"pixels"[..]));
    assert_eq!(answer.header("content-type"), "image/png");
    assert!(answer.header("server-timing").starts_with("function;dur="));
}

#[tokio::test]
async fn wrong_parameters_types_and_bodies_are_named() {
    let pod = Pod::start(&[]).await;
    let (status, _, detail) = pod.image("/?widht=3", "pixels").await.problem();
    assert_eq!(status, 400);
    assert!(
        detail.contains("widht") && detail.contains("did you mean \"width\"?"),
        "{detail}"
    );
    let (status, _, detail) = pod.image("/?width=wide", "pixels").await.problem();
    assert!(
        status == 400 && detail.contains("\"wide\" is not of the type integer"),
        "{detail}"
    );
    let (status, _, detail) = pod
        .post("/", header("content-type", "text/html"), "<p>")
        .await
        .problem();
    assert!(status == 415 && detail.contains("text/html"), "{detail}");
    let (status, code, detail) = pod.image("/?mode=refuse", "pixels").await.problem();
    assert_eq!(
        (status, code.as_str(), detail.as_str()),
        (422, "unprocessable", "the picture is torn")
    );
}

#[tokio::test]
async fn h2c_with_prior_knowledge_is_served_on_the_same_port() {
    let pod = Pod::start(&[]).await;
    let client = Client::builder(TokioExecutor::new()).http2_only(true).build_http();
    // Larger than a window of the protocol's default.
    let body = Bytes::from(vec![7; 300_000]);
    let request = http::Request::builder()
        .method(Method::POST)
        .uri(pod.url("/"))
        .body(http_body_util::Full::new(body.clone()));
    let response = client.request(request.unwrap()).await.unwrap();
    assert_eq!((response.status().as_u16(), response.version()), (200, Version::HTTP_2));
    let again = send_with(&client, Method::POST, &pod.url("/"), HeaderMap::new(), body.clone()).await;
    assert_eq!(again.body, body);
    assert_eq!(pod.image("/", "h1").await.body, "h1");
}

#[tokio::test]
async fn health_schema_metrics_and_wrong_routes_answer() {
    let pod = Pod::start(&[("IMAGEFLOW_REVISION", "probe-00001")]).await;
    pod.image("/", "pixels").await;
    pod.image("/?mode=refuse", "pixels").await;
    assert_eq!(pod.get("/healthz/live").await.status, 200);
    assert_eq!(pod.get("/healthz/ready").await.status, 200);
    assert_eq!(
        pod.get("/schema").await.json()["properties"]["width"],
        json!({"type":"integer"})
    );
    let metrics = String::from_utf8(pod.get("/metrics").await.body.to_vec()).unwrap();
    for part in [
        "imageflow_function_requests_total",
        "outcome=\"ok\"",
        "outcome=\"unprocessable\"",
        "function=\"probe\"",
        "revision=\"probe-00001\"",
        "imageflow_function_service_seconds_count",
    ] {
        assert!(metrics.contains(part), "{part} in {metrics}");
    }
    let wrong = pod.get("/").await;
    assert_eq!((wrong.problem().0, wrong.header("allow")), (405, "POST"));
    let put = send(Method::PUT, &pod.url("/schema"), HeaderMap::new(), Bytes::new()).await;
    assert_eq!((put.status, put.header("allow")), (405, "GET"));
    let (status, _, detail) = pod.get("/healthz/raedy").await.problem();
    assert!(status == 404 && detail.contains("/healthz/ready"), "{detail}");
}

#[tokio::test]
async fn a_connection_on_which_no_request_comes_is_closed() {
    let pod = Pod::start(&[("IMAGEFLOW_IDLE_MS", "50")]).await;
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let settings = [&preface[..], &[0, 0, 0, 4, 0, 0, 0, 0, 0]].concat();
    for sent in [&b""[..], b"POST / HTTP/1.1\r\nhost:", &preface[..10], &settings[..]] {
        let mut stream = TcpStream::connect(pod.addr).await.unwrap();
        stream.write_all(sent).await.unwrap();
        let mut answer = Vec::new();
        let closed = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut answer)).await;
        assert!(closed.is_ok(), "after {sent:?}");
    }
    let mut kept = TcpStream::connect(pod.addr).await.unwrap();
    let request = "GET /healthz/live HTTP/1.1\r\nhost: pod\r\n\r\n";
    kept.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    tokio::time::timeout(Duration::from_secs(20), kept.read_to_string(&mut answer))
        .await
        .expect("it is closed after its request, too")
        .unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 200") && answer.ends_with("live"),
        "{answer}"
    );
}

#[tokio::test]
async fn a_call_may_take_longer_than_a_connection_may_be_idle() {
    let mut pod = Pod::start(&[("IMAGEFLOW_IDLE_MS", "20")]).await;
    let url = pod.url("/?mode=hold");
    let held = tokio::spawn(async move { send(Method::POST, &url, HeaderMap::new(), "held".into()).await });
    pod.entered.recv().await.unwrap();
    // One that came later is closed for being idle, so the held one's time is over, too.
    let mut silent = TcpStream::connect(pod.addr).await.unwrap();
    assert_eq!(silent.read(&mut [0]).await.unwrap(), 0);
    pod.gate.open();
    assert_eq!(held.await.unwrap().body, "held");
}
