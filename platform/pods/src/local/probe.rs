//! Asking a pod whether it is ready, or still alive.
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// Longest that one question may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// Between two questions at first: a start is over in milliseconds and every one of them counts.
const EAGER: Duration = Duration::from_millis(1);
/// Between two questions to a pod that takes long.
const PATIENT: Duration = Duration::from_millis(25);
/// How many eager questions.
const EAGER_QUESTIONS: u32 = 200;

/// Waits until the pod says that it is ready. A program that knows no such route answers 404 or 501: it listens, so it is
/// ready.
pub async fn ready(addr: SocketAddr) {
    let mut asked = 0;
    loop {
        if ask(addr, "/healthz/ready").await.is_some_and(good) {
            return;
        }
        asked += 1;
        tokio::time::sleep(if asked < EAGER_QUESTIONS { EAGER } else { PATIENT }).await;
    }
}

/// Whether the pod answers at all, and not with a server error.
pub async fn alive(addr: SocketAddr) -> bool {
    ask(addr, "/healthz/live").await.is_some_and(good)
}

fn good(status: StatusCode) -> bool {
    !status.is_server_error() || status == StatusCode::NOT_IMPLEMENTED
}

async fn ask(addr: SocketAddr, path: &str) -> Option<StatusCode> {
    let question = async {
        let stream = TcpStream::connect(addr).await.ok()?;
        // A connection can meet itself where nobody listens on a port that goes out.
        if stream.local_addr().ok()? == addr {
            return None;
        }
        stream.set_nodelay(true).ok()?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.ok()?;
        let request = Request::get(path)
            .header("host", "localhost")
            .body(Empty::<Bytes>::new())
            .ok()?;
        tokio::select! {
            answer = sender.send_request(request) => answer.ok().map(|a| a.status()),
            _ = connection => None,
        }
    };
    tokio::time::timeout(PATIENCE, question).await.ok().flatten()
}
