//! Image in, image out, through a pod that the test plays.
use std::convert::Infallible;
use std::net::SocketAddr;

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use crate::support::{PNG, Setup, World};

struct Asked {
    uri: String,
    content_type: String,
    traceparent: String,
    body: Bytes,
}

/// A pod that answers everything alike and tells what it was asked.
async fn pod(answer: fn() -> Response<Full<Bytes>>) -> (SocketAddr, mpsc::Receiver<Asked>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (sender, asked) = mpsc::channel(8);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let sender = sender.clone();
            let service = service_fn(move |request: Request<Incoming>| {
                let sender = sender.clone();
                async move {
                    let (head, body) = request.into_parts();
                    let text = |name: &str| head.headers.get(name).map_or("", |v| v.to_str().unwrap()).to_owned();
                    let asked = Asked {
                        uri: head.uri.to_string(),
                        content_type: text("content-type"),
                        traceparent: text("traceparent"),
                        body: body.collect().await.unwrap().to_bytes(),
                    };
                    let _ = sender.send(asked).await;
                    Ok::<_, Infallible>(answer())
                }
            });
            tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    });
    (addr, asked)
}

#[tokio::test]
async fn image_and_parameters_go_to_the_pod_and_its_image_comes_back() {
    let world = World::sample().await;
    let (addr, mut asked) = pod(|| {
        let response = Response::builder()
            .header("content-type", "image/webp")
            .header("x-secret", "1");
        response.body(Full::from("SMALL")).unwrap()
    })
    .await;
    world.pod_at(addr);
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let headers = [("content-type", "image/png"), ("traceparent", trace)];
    let reply = world
        .post("/v1/functions/resize/invoke?width=64&height=6%34", &headers, PNG)
        .await;
    assert_eq!((reply.status.as_u16(), &reply.body[..]), (200, &b"SMALL"[..]));
    assert_eq!(reply.header("content-type"), "image/webp");
    assert_eq!(reply.header("imageflow-revision"), "resize-00001");
    assert!(reply.header("server-timing").starts_with("total;dur="));
    assert!(reply.headers.get("x-secret").is_none() && reply.headers.contains_key("imageflow-cold-start"));
    let asked = asked.recv().await.unwrap();
    assert_eq!(
        (asked.uri.as_str(), asked.content_type.as_str()),
        ("/?width=64&height=6%34", "image/png")
    );
    assert_eq!(asked.body, PNG);
    assert!(
        asked.traceparent.contains("0af7651916cd43dd8448eb211c80319c"),
        "{}",
        asked.traceparent
    );
}

#[tokio::test]
async fn what_the_pod_refuses_is_passed_on_as_it_said_it() {
    let world = World::sample().await;
    let (addr, _asked) = pod(|| {
        let problem =
            imageflow_types::Problem::new(imageflow_types::ErrorCode::Unprocessable, "the picture is truncated");
        let body = serde_json::to_vec(&problem).unwrap();
        let response = Response::builder()
            .status(422)
            .header("content-type", "application/problem+json");
        response.body(Full::from(body)).unwrap()
    })
    .await;
    world.pod_at(addr);
    let reply = world.post("/v1/functions/resize/invoke", &[], PNG).await;
    assert!(reply.problem(422, "unprocessable").contains("truncated"));
    assert_eq!(reply.header("imageflow-revision"), "resize-00001");
}

#[tokio::test]
async fn plain_words_of_a_foreign_program_are_not_lost() {
    let world = World::sample().await;
    let (addr, _asked) = pod(|| {
        let response = Response::builder().status(422).header("content-type", "text/plain");
        response.body(Full::from("no face in this picture")).unwrap()
    })
    .await;
    world.pod_at(addr);
    let reply = world.post("/v1/functions/resize/invoke", &[], PNG).await;
    assert_eq!(reply.status, 422);
    assert!(
        String::from_utf8_lossy(&reply.body).contains("no face in this picture"),
        "{:?}",
        reply.body
    );
}

#[tokio::test]
async fn who_reads_slowly_has_room_of_that_for_answers_and_others_wait() {
    // More than the kernel takes of what nobody reads.
    const LARGE: usize = 32 << 20;
    const ROOM: usize = LARGE + LARGE / 2;
    let setup = Setup {
        max_answers_bytes: ROOM,
        ..Setup::default()
    };
    let world = World::sample_with(setup).await;
    let (addr, _asked) = pod(|| Response::new(Full::from(vec![7; LARGE]))).await;
    world.pod_at(addr);
    let path = "/v1/functions/resize/invoke";
    let first = world.open(Method::POST, path, &[], PNG).await;
    assert_eq!(world.delivery.room_for_answers(), ROOM - LARGE);
    let reads_when_another_waits = async {
        // Who waits has what there is.
        while world.delivery.room_for_answers() > 0 {
            tokio::task::yield_now().await;
        }
        first.into_body().collect().await.unwrap().to_bytes().len()
    };
    let (second, first) = tokio::join!(world.post(path, &[], PNG), reads_when_another_waits);
    assert_eq!((second.status.as_u16(), second.body.len(), first), (200, LARGE, LARGE));
    assert_eq!(world.delivery.room_for_answers(), ROOM);
}

#[tokio::test]
async fn an_unknown_tag_is_told_without_a_cold_start() {
    let world = World::sample().await;
    let problem = world
        .post("/v1/functions/resize/invoke?tag=canary", &[], PNG)
        .await
        .problem(404, "not-found");
    assert!(problem.contains("canary"), "{problem}");
}
