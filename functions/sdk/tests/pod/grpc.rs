//! Resident calls.
use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::StreamBody;
use hyper::body::Frame;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use imageflow_proto::v1::ProcessRequest;
use imageflow_proto::v1::function_service_client::FunctionServiceClient;
use imageflow_proto::v1::process_response::Outcome;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use crate::support::Pod;

async fn channel(pod: &Pod) -> Channel {
    Channel::from_shared(pod.url("")).unwrap().connect().await.unwrap()
}

fn request(id: &str, image: impl Into<bytes::Bytes>, params: &str) -> ProcessRequest {
    ProcessRequest {
        correlation_id: id.into(),
        image: image.into(),
        content_type: "image/png".into(),
        params_json: params.into(),
        ..ProcessRequest::default()
    }
}

#[tokio::test]
async fn process_takes_large_images_and_tells_errors_by_status_and_code() {
    let mut pod = Pod::start(&[("IMAGEFLOW_CONCURRENCY_LIMIT", "1")]).await;
    let mut client = FunctionServiceClient::new(channel(&pod).await).max_decoding_message_size(16 << 20);
    let large = vec![3_u8; 6 << 20];
    let answer = client
        .process(request("a", large.clone(), r#"{"width":3}"#))
        .await
        .unwrap()
        .into_inner();
    let Some(Outcome::Result(result)) = answer.outcome else {
        panic!("no result")
    };
    assert_eq!((answer.correlation_id.as_str(), result.image.len()), ("a", large.len()));
    assert_eq!(result.content_type, "image/png");
    assert!(result.data_json.contains("\"width\":3"), "{}", result.data_json);

    let refused = client
        .process(request("b", "x", r#"{"mode":"refuse"}"#))
        .await
        .unwrap_err();
    assert_eq!(refused.code(), tonic::Code::InvalidArgument);
    assert_eq!(refused.metadata().get("imageflow-code").unwrap(), "unprocessable");
    let malformed = client.process(request("c", "x", "[]")).await.unwrap_err();
    assert!(malformed.message().contains("params_json"), "{malformed}");

    let mut other = client.clone();
    let held = tokio::spawn(async move { other.process(request("d", "x", r#"{"mode":"hold"}"#)).await });
    pod.entered.recv().await.unwrap();
    let busy = client.process(request("e", "x", "")).await.unwrap_err();
    assert_eq!(busy.code(), tonic::Code::Unavailable);
    assert_eq!(busy.metadata().get("imageflow-refused").unwrap(), "concurrency");
    pod.gate.open();
    held.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_failure_does_not_end_a_stream_but_a_drain_does() {
    let pod = Pod::start(&[("IMAGEFLOW_CONCURRENCY_LIMIT", "2")]).await;
    let mut client = FunctionServiceClient::new(channel(&pod).await);
    let mut health = HealthClient::new(channel(&pod).await);
    let check = HealthCheckRequest {
        service: "imageflow.v1.FunctionService".into(),
    };
    let mut watch = health.watch(check).await.unwrap().into_inner();
    assert_eq!(watch.message().await.unwrap().unwrap().status, 1, "serving");

    let (sender, receiver) = mpsc::channel(8);
    let mut answers = client
        .process_stream(ReceiverStream::new(receiver))
        .await
        .unwrap()
        .into_inner();
    for (id, params) in [("1", ""), ("2", r#"{"mode":"refuse"}"#), ("3", ""), ("4", "")] {
        sender.send(request(id, id.to_owned(), params)).await.unwrap();
    }
    let mut seen = Vec::new();
    for _ in 0..4 {
        let answer = answers.message().await.unwrap().unwrap();
        let text = match answer.outcome.unwrap() {
            Outcome::Result(result) => String::from_utf8(result.image.to_vec()).unwrap(),
            Outcome::Error(error) => error.code,
        };
        seen.push((answer.correlation_id, text));
    }
    seen.sort();
    let expected = [("1", "1"), ("2", "unprocessable"), ("3", "3"), ("4", "4")];
    assert_eq!(seen, expected.map(|(a, b)| (a.to_owned(), b.to_owned())));

    let served = pod.drain();
    assert_eq!(watch.message().await.unwrap().unwrap().status, 2, "not serving");
    drop(watch);
    assert!(
        answers.message().await.unwrap().is_none(),
        "the pod ends the stream though its caller would go on"
    );
    served.await.unwrap();
    drop(sender);
}

#[tokio::test]
async fn streams_that_wait_leave_the_one_at_work_its_share_of_the_connection() {
    let pod = Pod::start(&[("IMAGEFLOW_CONCURRENCY_LIMIT", "1")]).await;
    let client = FunctionServiceClient::new(channel(&pod).await).max_decoding_message_size(16 << 20);
    let image = Bytes::from(vec![3; 8 << 20]);
    let calls = (0..6).map(|_| {
        let (mut client, image) = (client.clone(), image.clone());
        async move {
            let messages = tokio_stream::iter([request("", image, "")]);
            let mut answers = client.process_stream(messages).await.unwrap().into_inner();
            let answer = answers.message().await.unwrap().unwrap();
            match answer.outcome {
                Some(Outcome::Result(result)) => result.image.len(),
                other => panic!("{other:?}"),
            }
        }
    });
    assert_eq!(futures::future::join_all(calls).await, [8 << 20; 6]);
}

/// A call of which nothing but the head ever comes; what it is answered at once, or when its time is over.
async fn head_only(pod: &Pod) -> http::HeaderMap {
    let client = Client::builder(TokioExecutor::new()).http2_only(true).build_http();
    let nothing = futures::stream::pending::<Result<Frame<Bytes>, Infallible>>();
    let request = http::Request::post(pod.url("/imageflow.v1.FunctionService/Process"))
        .header("content-type", "application/grpc")
        .body(StreamBody::new(nothing))
        .unwrap();
    let answer = tokio::time::timeout(Duration::from_secs(20), client.request(request)).await;
    answer
        .expect("it does not wait for the body")
        .unwrap()
        .headers()
        .clone()
}

#[tokio::test]
async fn a_call_is_refused_before_its_message_is_read() {
    let mut pod = Pod::start(&[("IMAGEFLOW_CONCURRENCY_LIMIT", "1")]).await;
    let mut client = FunctionServiceClient::new(channel(&pod).await);
    let held = tokio::spawn(async move { client.process(request("a", "x", r#"{"mode":"hold"}"#)).await });
    pod.entered.recv().await.unwrap();
    let refused = head_only(&pod).await;
    assert_eq!(refused["grpc-status"], "14", "{refused:?}");
    assert_eq!(refused["imageflow-refused"], "concurrency");
    // Nor does it matter how much was to come.
    let mut client = FunctionServiceClient::new(channel(&pod).await);
    let large = client.process(request("b", vec![0_u8; 6 << 20], "")).await.unwrap_err();
    assert_eq!(large.metadata().get("imageflow-refused").unwrap(), "concurrency");
    pod.gate.open();
    held.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_message_that_does_not_come_gives_its_place_back() {
    let pod = Pod::start(&[("IMAGEFLOW_TIMEOUT_MS", "50"), ("IMAGEFLOW_CONCURRENCY_LIMIT", "1")]).await;
    let late = head_only(&pod).await;
    assert_eq!(
        (&late["grpc-status"], &late["imageflow-code"]),
        (&"4".parse().unwrap(), &"timeout".parse().unwrap())
    );
    // One that needs no thread: it has 50 ms.
    assert_eq!(pod.image("/?mode=instant", "next").await.status, 200);
}
