//! An HTTP proxy that fails as it is told to.
#![allow(
    clippy::unwrap_used,
    clippy::missing_panics_doc,
    reason = "a test fails by panicking, its helpers too"
)]
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Frame, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

type Error = Box<dyn std::error::Error + Send + Sync>;
type Bytestream = BoxBody<Bytes, Error>;

/// How a request fails.
#[derive(Clone)]
pub enum Fault {
    /// 503 `SlowDown`, and the server hears nothing of it.
    Unavailable,
    /// It gets to the server later.
    Delay(Duration),
    /// It gets to the server when there is a permit.
    Hold(Arc<Semaphore>),
    /// After so many bytes of its body both connections break.
    CutRequest(u64),
    /// The server did it, and the connection breaks before the answer.
    LoseAnswer,
    /// The connection breaks after so many bytes of the answer's body.
    CutAnswer(u64),
}

struct Rule {
    words: Vec<String>,
    fault: Fault,
    times: usize,
}

#[derive(Default)]
struct Shared {
    rules: Mutex<Vec<Rule>>,
    seen: Mutex<Vec<String>>,
    upstream: String,
}

/// A running proxy; it ends with the drop.
pub struct Proxy {
    shared: Arc<Shared>,
    /// Where it listens.
    pub url: String,
    task: JoinHandle<()>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn fits(line: &str, words: &[String]) -> bool {
    words.iter().all(|word| line.contains(word))
}

fn split(words: &str) -> Vec<String> {
    words.split_whitespace().map(str::to_owned).collect()
}

impl Proxy {
    /// Starts one before the server at this URL.
    pub async fn start(upstream: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let shared = Arc::new(Shared {
            upstream: upstream.to_owned(),
            ..Shared::default()
        });
        // No idle connections: a server that was restarted is reached at once.
        let client = Client::builder(TokioExecutor::new())
            .pool_max_idle_per_host(0)
            .build(HttpConnector::new());
        let task = tokio::spawn(serve(listener, shared.clone(), client));
        Self { shared, url, task }
    }

    /// Fails the next `times` requests whose `METHOD /path?query` has all of the words.
    pub fn fail(&self, words: &str, times: usize, fault: Fault) {
        let words = split(words);
        self.shared.rules.lock().unwrap().push(Rule { words, fault, times });
    }

    /// Forgets the faults.
    pub fn heal(&self) {
        self.shared.rules.lock().unwrap().clear();
    }

    /// How many requests with all of the words have come.
    pub fn seen(&self, words: &str) -> usize {
        let words = split(words);
        let seen = self.shared.seen.lock().unwrap();
        seen.iter().filter(|line| fits(line, &words)).count()
    }
}

async fn serve(listener: TcpListener, shared: Arc<Shared>, client: Client<HttpConnector, Bytestream>) {
    let mut connections = tokio::task::JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let (shared, client) = (shared.clone(), client.clone());
        connections.spawn(async move {
            let service = service_fn(move |request| handle(shared.clone(), client.clone(), request));
            let connection = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            // An error is what a cut connection ends with.
            let _cut = connection.await;
        });
    }
}

async fn handle(
    shared: Arc<Shared>,
    client: Client<HttpConnector, Bytestream>,
    request: Request<Incoming>,
) -> Result<Response<Bytestream>, Error> {
    let line = format!("{} {}", request.method(), request.uri());
    let fault = {
        let mut rules = shared.rules.lock().unwrap();
        shared.seen.lock().unwrap().push(line.clone());
        let rule = rules.iter_mut().find(|rule| rule.times > 0 && fits(&line, &rule.words));
        rule.map(|rule| {
            rule.times -= 1;
            rule.fault.clone()
        })
    };
    let (mut head, body) = request.into_parts();
    head.uri = format!("{}{}", shared.upstream, head.uri).parse()?;
    let send =
        async |body: Bytestream| -> Result<_, Error> { Ok(client.request(Request::from_parts(head, body)).await?) };
    let body = body.map_err(Error::from).boxed();
    let answer = match fault {
        Some(Fault::Unavailable) => {
            body.collect().await?;
            let text = "<Error><Code>SlowDown</Code><Message>by the test</Message></Error>";
            let mut answer = Response::new(Full::from(text).map_err(Error::from).boxed());
            *answer.status_mut() = hyper::StatusCode::SERVICE_UNAVAILABLE;
            answer
                .headers_mut()
                .insert(CONTENT_TYPE, HeaderValue::from_static("application/xml"));
            return Ok(answer);
        }
        Some(Fault::Delay(delay)) => {
            tokio::time::sleep(delay).await;
            send(body).await?
        }
        Some(Fault::Hold(permits)) => {
            permits.acquire().await?.forget();
            send(body).await?
        }
        Some(Fault::CutRequest(after)) => {
            send(Cut::body(body, after)).await?;
            return Err("cut".into());
        }
        Some(Fault::LoseAnswer) => {
            send(body).await?.into_body().collect().await?;
            return Err("lost".into());
        }
        Some(Fault::CutAnswer(after)) => {
            let answer = send(body).await?;
            return Ok(answer.map(|body| Cut::body(body.map_err(Error::from).boxed(), after)));
        }
        None => send(body).await?,
    };
    Ok(answer.map(|body| body.map_err(Error::from).boxed()))
}

/// A body that breaks off.
struct Cut {
    body: Bytestream,
    after: u64,
    flushed: bool,
}

impl Cut {
    fn body(body: Bytestream, after: u64) -> Bytestream {
        let flushed = false;
        Self { body, after, flushed }.boxed()
    }
}

impl Body for Cut {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        if self.after == 0 {
            if !self.flushed {
                // hyper sends what it has when there is nothing to add; on an error it would not.
                self.flushed = true;
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            return Poll::Ready(Some(Err("cut".into())));
        }
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        let Poll::Ready(Some(Ok(frame))) = frame else {
            return frame;
        };
        let Ok(mut data) = frame.into_data() else {
            return Poll::Ready(Some(Err("cut".into())));
        };
        data.truncate(usize::try_from(self.after).unwrap_or(usize::MAX));
        self.after -= data.remaining() as u64;
        Poll::Ready(Some(Ok(Frame::data(data))))
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        self.body.size_hint()
    }
}
