//! The pod under test, its function, its callers and its object store.
use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Condvar, Mutex};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioIo};
use imageflow_events::invocation::{InputTarget, OutputTarget, SignedRequest, pack};
use imageflow_events::{Event, EventBuilder, EventBuilderV10, ext};
use imageflow_sdk::{Call, Config, Function, Reply};
use imageflow_types::{ErrorCode, Problem};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

/// Held calls wait here until the test opens it.
#[derive(Default)]
pub struct Gate {
    open: Mutex<bool>,
    opened: Condvar,
}

impl Gate {
    pub fn open(&self) {
        *self.open.lock().unwrap() = true;
        self.opened.notify_all();
    }

    fn wait(&self) {
        let open = self.open.lock().unwrap();
        drop(self.opened.wait_while(open, |open| !*open).unwrap());
    }
}

/// Gives its input back; `mode` makes it misbehave.
pub struct Probe {
    pub gate: Arc<Gate>,
    pub entered: mpsc::Sender<()>,
}

/// The thread that asks. That of a test is the one that serves, for its runtime has no other.
pub fn thread() -> String {
    format!("{:?}", std::thread::current().id())
}

impl Function for Probe {
    fn handle(&self, call: Call) -> Result<Reply, Problem> {
        let params = Value::Object(call.params.clone());
        match params["mode"].as_str() {
            Some("hold") => {
                self.entered.blocking_send(()).unwrap();
                self.gate.wait();
            }
            Some("panic" | "instant-panic") => panic!("as the test asked"),
            Some("refuse") => return Err(Problem::new(ErrorCode::Unprocessable, "the picture is torn")),
            _ => {}
        }
        let data = json!({
            "length": call.input.as_ref().map(|i| i.bytes.len()),
            "steps": call.steps.iter().map(|s| s.name.clone()).collect::<Vec<_>>(),
            "params": params,
            "event": call.event,
            "intermediate": call.intermediate,
            "thread": thread(),
        });
        Ok(Reply {
            output: call.input,
            data,
            steps: Vec::new(),
        })
    }

    fn is_instant(&self, call: &Call) -> bool {
        call.params
            .get("mode")
            .and_then(Value::as_str)
            .is_some_and(|mode| mode.starts_with("instant"))
    }

    fn schema(&self) -> Value {
        json!({"type":"object","additionalProperties":false,
            "properties":{"mode":{"type":"string"},"width":{"type":"integer"}}})
    }
}

pub struct Pod {
    pub addr: SocketAddr,
    pub gate: Arc<Gate>,
    pub entered: mpsc::Receiver<()>,
    stop: oneshot::Sender<()>,
    served: JoinHandle<()>,
}

impl Pod {
    pub async fn start(env: &[(&str, &str)]) -> Self {
        let config = Config::from_env(&|name| {
            let set = env.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned());
            set.or_else(|| (name == "IMAGEFLOW_FUNCTION").then(|| "probe".to_owned()))
        })
        .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let gate = Arc::new(Gate::default());
        let (sender, entered) = mpsc::channel(64);
        let (stop, stopped) = oneshot::channel::<()>();
        let function = Probe {
            gate: Arc::clone(&gate),
            entered: sender,
        };
        let served = tokio::spawn(imageflow_sdk::serve(listener, function, config, async move {
            let _ = stopped.await;
        }));
        Self {
            addr,
            gate,
            entered,
            stop,
            served,
        }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.addr)
    }

    /// Begins the drain; the handle ends with the server.
    pub fn drain(self) -> JoinHandle<()> {
        self.stop.send(()).unwrap();
        self.served
    }

    pub async fn post(&self, path: &str, headers: HeaderMap, body: impl Into<Bytes>) -> Answer {
        send(Method::POST, &self.url(path), headers, body.into()).await
    }

    pub async fn image(&self, path: &str, body: impl Into<Bytes>) -> Answer {
        self.post(path, header("content-type", "image/png"), body).await
    }

    pub async fn get(&self, path: &str) -> Answer {
        send(Method::GET, &self.url(path), HeaderMap::new(), Bytes::new()).await
    }

    pub async fn event(&self, event: &Event) -> Answer {
        let (headers, body) = imageflow_events::http::write_binary(event).unwrap();
        self.post("/", headers, body).await
    }
}

pub fn header(name: &'static str, value: &str) -> HeaderMap {
    HeaderMap::from_iter([(http::HeaderName::from_static(name), value.parse().unwrap())])
}

#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("not JSON: {:?}", self.body))
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |v| v.to_str().unwrap())
    }

    /// Status, code and detail of a problem.
    pub fn problem(&self) -> (u16, String, String) {
        assert_eq!(self.header("content-type"), "application/problem+json", "{self:?}");
        let problem = self.json();
        (
            self.status,
            problem["code"].as_str().unwrap().to_owned(),
            problem["detail"].as_str().unwrap().to_owned(),
        )
    }
}

pub async fn send(method: Method, url: &str, headers: HeaderMap, body: Bytes) -> Answer {
    let client = Client::builder(TokioExecutor::new()).build_http();
    send_with(&client, method, url, headers, body).await
}

pub type Http = Client<hyper_util::client::legacy::connect::HttpConnector, Full<Bytes>>;

pub async fn send_with(client: &Http, method: Method, url: &str, headers: HeaderMap, body: Bytes) -> Answer {
    let mut request = Request::builder()
        .method(method)
        .uri(url)
        .body(Full::new(body))
        .unwrap();
    request.headers_mut().extend(headers);
    let response = client.request(request).await.unwrap();
    let (parts, body) = response.into_parts();
    Answer {
        status: parts.status.as_u16(),
        headers: parts.headers,
        body: body.collect().await.unwrap().to_bytes(),
    }
}

/// What the object store saw: `PUT /out/a`.
#[derive(Default)]
struct Shelf {
    objects: BTreeMap<String, (Bytes, String)>,
    /// Those that the platform wrote.
    written: BTreeSet<String>,
    requests: Vec<String>,
    full: bool,
}

/// An object store with `If-Match` on GET and `If-None-Match: *` on PUT. The ETag of an object is its length.
pub struct Store {
    pub addr: SocketAddr,
    shelf: Arc<Mutex<Shelf>>,
    task: JoinHandle<()>,
}

impl Drop for Store {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Store {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let shelf = Arc::new(Mutex::new(Shelf::default()));
        let shared = Arc::clone(&shelf);
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let shelf = Arc::clone(&shared);
                let service = service_fn(move |request| answer(Arc::clone(&shelf), request));
                connections.spawn(async move {
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        Self { addr, shelf, task }
    }

    pub fn put(&self, path: &str, body: &'static [u8]) {
        let object = (Bytes::from_static(body), "image/png".to_owned());
        self.shelf.lock().unwrap().objects.insert(path.to_owned(), object);
    }

    /// An object that a step of the platform wrote.
    pub fn put_written(&self, path: &str, body: &'static [u8]) {
        self.put(path, body);
        self.shelf.lock().unwrap().written.insert(path.to_owned());
    }

    pub fn object(&self, path: &str) -> Option<(Bytes, String)> {
        self.shelf.lock().unwrap().objects.get(path).cloned()
    }

    pub fn requests(&self) -> Vec<String> {
        self.shelf.lock().unwrap().requests.clone()
    }

    pub fn fill_up(&self) {
        self.shelf.lock().unwrap().full = true;
    }

    /// The event that asks for a step over `/in/photo`, with its result at `/out/photo`.
    pub fn step(&self, data: Value, etag: &str) -> Event {
        let put = |path: &str| SignedRequest {
            url: format!("http://{}{path}?signature=secret", self.addr),
            method: "PUT".into(),
            headers: BTreeMap::from([("if-none-match".into(), "*".into())]),
        };
        let output = OutputTarget {
            object: put("/out/photo"),
            sidecar: put("/out/photo.json"),
            intermediate: true,
        };
        let input = InputTarget {
            headers: BTreeMap::from([("if-match".into(), format!("\"{etag}\""))]),
        };
        EventBuilderV10::new()
            .id("run-1/thumb/1")
            .source("/imageflow/flows/f")
            .ty(ext::TYPE_STEP_REQUESTED)
            .subject("raw-images/photo")
            .extension(ext::RUN, "run-1")
            .extension(ext::STEP, "thumb")
            .extension(ext::ATTEMPT, "1")
            .extension(
                ext::TRACEPARENT,
                "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            )
            .extension(ext::DATAREF, format!("http://{}/in/photo?signature=secret", self.addr))
            .extension(ext::INPUT, pack(&input).unwrap())
            .extension(ext::OUTPUT, pack(&output).unwrap())
            .data("application/json", data)
            .build()
            .unwrap()
    }
}

async fn answer(shelf: Arc<Mutex<Shelf>>, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let path = parts.uri.path().to_owned();
    let mut shelf = shelf.lock().unwrap();
    shelf.requests.push(format!("{} {path}", parts.method));
    let etag = |bytes: &Bytes| format!("\"{}\"", bytes.len());
    let status = |code: StatusCode| Response::builder().status(code).body(Full::default()).unwrap();
    let there = shelf.objects.get(&path).cloned();
    Ok(match (parts.method, there) {
        (Method::GET, None) => status(StatusCode::NOT_FOUND),
        (Method::GET, Some((bytes, _))) if parts.headers["if-match"] != etag(&bytes) => {
            status(StatusCode::PRECONDITION_FAILED)
        }
        (Method::GET, Some((bytes, kind))) => {
            let mut response = Response::builder().header("content-type", kind);
            if shelf.written.contains(&path) {
                response = response.header("x-amz-meta-imageflow-run", "run-1");
            }
            response.body(Full::new(bytes)).unwrap()
        }
        _ if shelf.full => status(StatusCode::INSUFFICIENT_STORAGE),
        (_, Some(_)) if parts.headers["if-none-match"] == "*" => status(StatusCode::PRECONDITION_FAILED),
        _ => {
            let tag = etag(&body);
            let kind = parts.headers["content-type"].to_str().unwrap().to_owned();
            shelf.objects.insert(path, (body, kind));
            Response::builder().header("etag", tag).body(Full::default()).unwrap()
        }
    })
}
