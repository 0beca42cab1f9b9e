//! The pod: an HTTP server that hands each request to the test, which answers when it likes.
use std::collections::BTreeMap;
use std::net::SocketAddr;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use imageflow_events::invocation::{InputTarget, OutputTarget, SignedRequest, StepReply, unpack};
use imageflow_events::{Event, EventBuilder, EventBuilderV10, ext};
use imageflow_types::{ErrorCode, Problem, RunId};
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::time::Instant;

use super::within;

pub type Answer = Response<Body>;

/// One request at the pod.
pub struct Call {
    pub event: Event,
    pub run: RunId,
    pub attempt: u32,
    pub at: Instant,
    answer: oneshot::Sender<Answer>,
}

impl Call {
    pub fn answer(self, answer: Answer) {
        assert!(self.answer.send(answer).is_ok(), "the caller of {} has gone", self.run);
    }

    /// The same, unless the caller has gone.
    pub fn offer(self, answer: Answer) {
        let _gone = self.answer.send(answer);
    }

    /// Waits until the caller hangs up.
    pub async fn abandoned(mut self) {
        within("the caller hangs up", self.answer.closed()).await;
    }

    /// Fetches the input as a function does.
    pub async fn input(&self) -> (StatusCode, Bytes) {
        let target: InputTarget = unpack(&ext::text(&self.event, ext::INPUT).unwrap()).unwrap();
        let request = SignedRequest {
            url: ext::text(&self.event, ext::DATAREF).unwrap(),
            method: "GET".to_owned(),
            headers: target.headers,
        };
        let (status, _, body) = send(&request, None, Bytes::new()).await;
        (status, body)
    }

    /// Where the result goes.
    pub fn output(&self) -> OutputTarget {
        unpack(&ext::text(&self.event, ext::OUTPUT).unwrap()).unwrap()
    }
}

/// Makes a signed request; gives its status, ETag and body.
pub async fn send(signed: &SignedRequest, content_type: Option<&str>, body: Bytes) -> (StatusCode, String, Bytes) {
    let client: Client<_, Full<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
    let mut request = Request::builder().method(signed.method.as_str()).uri(&signed.url);
    let headers: &BTreeMap<String, String> = &signed.headers;
    for (name, value) in headers.iter().filter(|(n, _)| !n.eq_ignore_ascii_case("host")) {
        request = request.header(name, value);
    }
    if let Some(content_type) = content_type {
        request = request.header("content-type", content_type);
    }
    let response = client.request(request.body(Full::new(body)).unwrap()).await.unwrap();
    let (parts, body) = response.into_parts();
    let etag = parts.headers.get("etag").and_then(|v| v.to_str().ok());
    let etag = etag.unwrap_or_default().trim_matches('"').to_owned();
    (parts.status, etag, body.collect().await.unwrap().to_bytes())
}

/// A server that plays every pod of the test.
pub struct PodServer {
    pub addr: SocketAddr,
    calls: Mutex<mpsc::Receiver<Call>>,
}

impl PodServer {
    pub async fn start() -> Self {
        let (sender, calls) = mpsc::channel(64);
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let router = Router::new().fallback(take).with_state(sender);
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self {
            addr,
            calls: Mutex::new(calls),
        }
    }

    /// The next request.
    pub async fn call(&self) -> Call {
        let mut calls = self.calls.lock().await;
        within("a call at the pod", calls.recv()).await.unwrap()
    }

    /// Two requests in the order of the given runs, in whichever they came.
    pub async fn two(&self, first: &RunId, second: &RunId) -> (Call, Call) {
        let (one, other) = (self.call().await, self.call().await);
        let (one, other) = if &one.run == first { (one, other) } else { (other, one) };
        assert_eq!((&one.run, &other.run), (first, second));
        (one, other)
    }

    /// Whether no request has come that the test did not take.
    pub async fn is_quiet(&self) -> bool {
        self.calls.lock().await.try_recv().is_err()
    }
}

async fn take(State(calls): State<mpsc::Sender<Call>>, headers: HeaderMap, body: Bytes) -> Answer {
    let event = imageflow_events::http::read(&headers, &body).unwrap().remove(0);
    let (answer, answered) = oneshot::channel();
    let call = Call {
        run: RunId::parse(&ext::text(&event, ext::RUN).unwrap()).unwrap(),
        attempt: ext::text(&event, ext::ATTEMPT).unwrap().parse().unwrap(),
        at: Instant::now(),
        event,
        answer,
    };
    calls.send(call).await.unwrap();
    answered
        .await
        .unwrap_or_else(|_| status(500, "the test gave no answer"))
}

/// An answer of this status with a text.
pub fn status(status: u16, text: &str) -> Answer {
    let answer = Response::builder().status(status).header("content-type", "text/plain");
    answer.body(Body::from(text.to_owned())).unwrap()
}

/// An answer of our own SDK that says what went wrong.
pub fn problem(code: ErrorCode) -> Answer {
    let problem = Problem::new(code, "by the test");
    let answer = Response::builder()
        .status(problem.status)
        .header("content-type", "application/problem+json");
    answer.body(Body::from(serde_json::to_vec(&problem).unwrap())).unwrap()
}

/// The connection breaks in the middle of the answer, as when the pod dies.
pub fn broken() -> Answer {
    let body = futures::stream::once(async { Err::<Bytes, _>(std::io::Error::other("the pod died")) });
    Response::new(Body::from_stream(body))
}

/// The answer of a foreign function: the result itself.
pub fn body(content_type: &str, body: &[u8]) -> Answer {
    let answer = Response::builder().header("content-type", content_type);
    answer.body(Body::from(body.to_owned())).unwrap()
}

/// The answer of a function that stores its result itself.
pub fn replied(reply: &StepReply) -> Answer {
    let event = EventBuilderV10::new()
        .id("reply")
        .source("urn:test:pod")
        .ty(ext::TYPE_STEP_COMPLETED)
        .data("application/json", serde_json::to_value(reply).unwrap())
        .build()
        .unwrap();
    let (headers, body) = imageflow_events::http::write_binary(&event).unwrap();
    let mut answer = Response::new(Body::from(body));
    *answer.headers_mut() = headers;
    answer
}
