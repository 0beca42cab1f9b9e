//! Image in, image out, through a pod that the test plays.
use std::convert::Infallible;
use std::net::SocketAddr;

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
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

fn event(ty: &str) -> Value {
    json!({"specversion": "1.0", "id": "1", "source": "urn:t", "type": ty, "data": {"a": 1}})
}

/// A pod takes a step for the platform's: it would fetch from anywhere and put the result anywhere.
#[tokio::test]
async fn who_calls_a_function_cannot_ask_its_pod_for_a_step() {
    let world = World::sample().await;
    let (addr, mut asked) = pod(|| Response::new(Full::from("done"))).await;
    world.pod_at(addr);
    let path = "/v1/functions/resize/invoke";
    let mut step = event("dev.imageflow.step.requested");
    step["dataref"] = json!("http://169.254.169.254/latest");
    step["imageflowoutput"] = json!("e30");
    let mut fetch = event("com.example.fetch");
    fetch["dataref"] = json!("http://169.254.169.254/latest");
    let batch = json!([event("com.example.a"), step]);
    let upper = event("DEV.imageflow.step.requested");
    for (media, body) in [
        ("application/cloudevents+json", &step),
        ("Application/CloudEvents+JSON; charset=utf-8", &step),
        ("application/cloudevents+json", &upper),
        ("application/cloudevents+json", &fetch),
        ("application/cloudevents-batch+json", &batch),
    ] {
        let reply = world.post(path, &[("content-type", media)], body.to_string()).await;
        reply.problem(400, "malformed-event");
    }
    let binary = [
        ("ce-specversion", "1.0"),
        ("ce-id", "1"),
        ("ce-source", "urn:t"),
        ("ce-type", "dev.imageflow.step.requested"),
    ];
    world.post(path, &binary, PNG).await.problem(400, "malformed-event");
    assert!(asked.try_recv().is_err(), "none came to the pod");
}

#[tokio::test]
async fn events_of_the_callers_own_go_to_the_pod_without_what_only_the_platform_says() {
    let world = World::sample().await;
    let (addr, mut asked) = pod(|| Response::new(Full::from("done"))).await;
    world.pod_at(addr);
    let path = "/v1/functions/resize/invoke";
    let mut own = event("com.example.a");
    own["imageflowoutput"] = json!("e30");
    own["colour"] = json!("red");
    // Whoever takes the first of two finds another event than who takes the last.
    let twice = own.to_string().replacen('{', "{\"imageflowinput\":\"e30\",", 1);
    let batch = json!([own]).to_string();
    for (media, body) in [
        ("application/cloudevents+json", own.to_string()),
        ("application/cloudevents+json", twice),
        ("application/cloudevents-batch+json", batch),
    ] {
        let reply = world.post(path, &[("content-type", media)], body).await;
        assert_eq!(reply.status, 200, "{:?}", reply.body);
        let asked = asked.recv().await.unwrap();
        assert!(asked.content_type.starts_with(media), "{}", asked.content_type);
        let came: Value = serde_json::from_slice(&asked.body).unwrap();
        let came = came.as_array().map_or(&came, |batch| &batch[0]);
        assert_eq!((&came["data"], &came["colour"]), (&json!({"a": 1}), &json!("red")));
        assert!(came.get("imageflowoutput").is_none() && came.get("imageflowinput").is_none());
    }
    let binary = [
        ("ce-specversion", "1.0"),
        ("ce-id", "1"),
        ("ce-source", "urn:t"),
        ("ce-type", "com.example.a"),
        ("content-type", "image/png"),
    ];
    assert_eq!(world.post(path, &binary, PNG).await.status, 200);
    let asked = asked.recv().await.unwrap();
    assert_eq!((asked.content_type.as_str(), &asked.body[..]), ("image/png", PNG));
}
