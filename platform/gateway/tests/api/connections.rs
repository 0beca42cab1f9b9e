//! What a client may cost before its request is there, and how many may be there at once.
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Version};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use imageflow_gateway::HttpLimits;
use imageflow_objects::{ObjectStore, PutOptions};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::support::{PNG, Setup, World, state};

const SOON: Duration = Duration::from_secs(10);
const REQUEST: &[u8] = b"GET /healthz/live HTTP/1.1\r\nhost: a\r\n\r\n";

async fn world(limits: HttpLimits) -> World {
    let setup = Setup {
        limits,
        ..Setup::default()
    };
    World::sample_with(setup).await
}

async fn connect(world: &World) -> TcpStream {
    TcpStream::connect(world.addr).await.unwrap()
}

/// All that the gateway says until it closes the connection.
async fn until_closed(stream: &mut TcpStream) -> String {
    let mut said = Vec::new();
    // A reset is an end as well.
    let _ = timeout(SOON, stream.read_to_end(&mut said)).await.unwrap();
    String::from_utf8_lossy(&said).into_owned()
}

/// Sends a request and reads the answer; the connection stays.
async fn ask(stream: &mut TcpStream) {
    stream.write_all(REQUEST).await.unwrap();
    answered(stream).await;
}

async fn answered(stream: &mut TcpStream) {
    let mut said = Vec::new();
    while !said.ends_with(b"\r\n\r\nok") {
        let read = timeout(SOON, stream.read_buf(&mut said)).await.unwrap().unwrap();
        assert_ne!(read, 0, "{:?}", String::from_utf8_lossy(&said));
    }
}

#[tokio::test]
async fn a_client_that_never_finishes_its_header_is_closed() {
    let limits = HttpLimits {
        // It holds for what is sent in good order, too: long enough for that on a machine that is busy.
        header_timeout: Duration::from_secs(1),
        ..HttpLimits::default()
    };
    let world = world(limits).await;
    let watch = world.open(Method::GET, "/v1/runs?watch=true", &[], "").await;
    for beginning in [&b""[..], b"GET / HTTP/1.1\r\nhost: a\r\n", b"PRI * HTTP/2.0\r\n"] {
        let mut stream = connect(&world).await;
        stream.write_all(beginning).await.unwrap();
        let said = until_closed(&mut stream).await;
        assert!(!said.contains("200"), "{said}");
    }
    let mut idle = connect(&world).await;
    ask(&mut idle).await;
    until_closed(&mut idle).await;
    // An answer that takes longer than a header may is not cut: the run is told on the watch that began before.
    world.post("/v1/flows/thumbs/runs", &[], crate::support::PNG).await;
    let told = timeout(SOON, watch.into_body().frame()).await.unwrap();
    assert!(told.unwrap().unwrap().is_data());
}

#[tokio::test]
async fn a_header_that_is_too_long_or_has_too_many_fields_is_refused() {
    let limits = HttpLimits {
        max_header_bytes: 8192,
        max_headers: 8,
        ..HttpLimits::default()
    };
    let world = world(limits).await;
    let long = format!("x-a: {}\r\n", "a".repeat(9000));
    for fields in [long, "x-a: 1\r\n".repeat(9)] {
        let mut stream = connect(&world).await;
        let request = format!("GET /healthz/live HTTP/1.1\r\nhost: a\r\n{fields}\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let said = until_closed(&mut stream).await;
        assert!(said.starts_with("HTTP/1.1 431 "), "{said}");
    }
    ask(&mut connect(&world).await).await;
}

#[tokio::test]
async fn http2_is_told_how_many_requests_it_may_have_open() {
    let limits = HttpLimits {
        max_streams: 3,
        ..HttpLimits::default()
    };
    let world = world(limits).await;
    let io = TokioIo::new(connect(&world).await);
    let (mut sender, mut connection) = http2::handshake(TokioExecutor::new(), io).await.unwrap();
    let uri = format!("http://{}/healthz/live", world.addr);
    let request = Request::get(uri).body(Empty::<Bytes>::new()).unwrap();
    let response = tokio::select! {
        response = sender.send_request(request) => response.unwrap(),
        ended = &mut connection => panic!("{ended:?}"),
    };
    assert_eq!((response.status().as_u16(), response.version()), (200, Version::HTTP_2));
    assert_eq!(connection.current_max_send_streams(), 3);
}

#[tokio::test]
async fn above_the_cap_a_connection_waits_until_another_closes() {
    let limits = HttpLimits {
        max_connections: 2,
        ..HttpLimits::default()
    };
    let world = world(limits).await;
    let (mut first, mut second) = (connect(&world).await, connect(&world).await);
    ask(&mut first).await;
    ask(&mut second).await;
    let mut third = connect(&world).await;
    third.write_all(REQUEST).await.unwrap();
    // The server runs on this thread: so many turns of it would have answered the third.
    for _ in 0..50 {
        ask(&mut first).await;
        ask(&mut second).await;
    }
    let early = third.try_read(&mut [0; 1]);
    assert_eq!(early.unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    drop(first);
    answered(&mut third).await;
}

#[tokio::test]
async fn bodies_under_way_have_one_room_and_who_finds_none_is_asked_to_come_again() {
    let world = world(HttpLimits::default()).await;
    let large = vec![b'a'; 64 * 1024];
    world
        .post("/v1/apply", &[], large.clone())
        .await
        .problem(400, "invalid-argument");
    let mut slow = connect(&world).await;
    let head = b"POST /v1/apply HTTP/1.1\r\nhost: localhost\r\ncontent-length: 65536\r\nexpect: 100-continue\r\n\r\n";
    slow.write_all(head).await.unwrap();
    // The handler waits for the body now.
    let mut said = Vec::new();
    while !said.ends_with(b"\r\n\r\n") {
        let read = timeout(SOON, slow.read_buf(&mut said)).await.unwrap().unwrap();
        assert_ne!(read, 0, "{:?}", String::from_utf8_lossy(&said));
    }
    assert!(
        said.starts_with(b"HTTP/1.1 100 "),
        "{:?}",
        String::from_utf8_lossy(&said)
    );
    let refused = world.post("/v1/apply", &[], large.clone()).await;
    let problem = refused.problem(429, "overloaded");
    assert!(problem.contains("65536") && problem.contains("102400"), "{problem}");
    assert_eq!(refused.header("retry-after"), "1");
    // Who does not say how much comes may send as much as anybody.
    let mut unknown = connect(&world).await;
    let head =
        b"POST /v1/apply HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n";
    unknown.write_all(head).await.unwrap();
    assert!(until_closed(&mut unknown).await.starts_with("HTTP/1.1 429 "));
    world
        .post("/v1/apply", &[], "small")
        .await
        .problem(400, "invalid-argument");
    drop(slow);
    let again = async { while world.post("/v1/apply", &[], large.clone()).await.status == 429 {} };
    timeout(SOON, again).await.unwrap();
}

#[tokio::test]
async fn at_shutdown_a_connection_without_a_request_holds_nothing_up() {
    let mut world = world(HttpLimits::default()).await;
    let silent = connect(&world).await;
    let mut idle = connect(&world).await;
    ask(&mut idle).await;
    world.stop.cancel();
    timeout(SOON / 2, &mut world.server).await.unwrap().unwrap().unwrap();
    drop(silent);
}

/// The beginning of a request whose body does not come.
async fn stall(world: &World) -> TcpStream {
    let mut stalled = connect(world).await;
    let head = b"POST /v1/apply HTTP/1.1\r\nhost: localhost\r\ncontent-length: 65536\r\n\r\nkind";
    stalled.write_all(head).await.unwrap();
    stalled
}

#[tokio::test]
async fn a_body_that_stalls_is_answered_and_gives_its_room_back() {
    let limits = HttpLimits {
        // It holds for the last body, too, which comes in good order.
        body_patience: Duration::from_secs(1),
        ..HttpLimits::default()
    };
    let world = world(limits).await;
    let said = until_closed(&mut stall(&world).await).await;
    let (head, body) = said.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 408 "), "{said}");
    assert!(head.contains("content-type: application/problem+json"), "{said}");
    assert!(head.contains("connection: close"), "{said}");
    let problem: serde_json::Value = serde_json::from_str(body).unwrap();
    assert_eq!((&problem["status"], &problem["code"]), (&408.into(), &"timeout".into()));
    let large = vec![b'a'; 64 * 1024];
    let after = world.post("/v1/apply", &[], large).await;
    after.problem(400, "invalid-argument");
}

#[tokio::test]
async fn a_client_that_takes_nothing_of_its_answer_is_given_up() {
    let limits = HttpLimits {
        gone_after: Duration::from_millis(200),
        ..HttpLimits::default()
    };
    let mut world = world(limits).await;
    // More than the buffers of both sockets hold.
    let large = Bytes::from(vec![0; 32 << 20]);
    let put = world.objects.put("raw-images", "large", large, PutOptions::default());
    put.await.unwrap();
    let mut deaf = connect(&world).await;
    let request = b"GET /v1/images/raw-images/large HTTP/1.1\r\nhost: localhost\r\n\r\n";
    deaf.write_all(request).await.unwrap();
    deaf.readable().await.unwrap();
    world.stop.cancel();
    timeout(SOON, &mut world.server).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn at_shutdown_a_client_that_stalls_is_cut_off() {
    let limits = HttpLimits {
        drain: Duration::from_millis(100),
        ..HttpLimits::default()
    };
    let mut world = world(limits).await;
    let mut stalled = stall(&world).await;
    // The stalled one is being served: its room is taken.
    let large = vec![b'a'; 64 * 1024];
    while world.post("/v1/apply", &[], large.clone()).await.status != 429 {}
    world.stop.cancel();
    timeout(SOON, &mut world.server).await.unwrap().unwrap().unwrap();
    assert_eq!(until_closed(&mut stalled).await, "");
}

#[tokio::test]
async fn who_waits_for_a_run_has_no_share_of_the_room_for_bodies() {
    let world = world(HttpLimits::default()).await;
    let large = [PNG, &[0; 60 << 10][..]].concat();
    let waits = [("prefer", "wait=60")];
    let path = "/v1/flows/thumbs/runs";
    let (waited, other) = tokio::join!(world.post(path, &waits, large.clone()), async {
        let wish = crate::runs::request(&world).await;
        let other = world.post(path, &[], large.clone()).await;
        world.write_run(&state(&wish, "succeeded", 2)).await;
        other
    });
    assert_eq!((waited.status.as_u16(), other.status.as_u16()), (200, 202));
}
