//! Asking a pod whether it is ready, or still alive.
use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::Instant;

/// Longest that one question may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// Between two questions at first: a start is over in milliseconds and every one of them counts.
const EAGER: Duration = Duration::from_millis(1);
/// Between two questions to a pod that takes long.
const PATIENT: Duration = Duration::from_millis(25);
/// How many eager questions.
const EAGER_QUESTIONS: u32 = 200;
/// Between two questions whether a ready pod is alive, and how many unanswered ones end it.
const LIVE_EVERY: Duration = Duration::from_secs(5);
pub const LIVE_FAILURES: u32 = 3;

/// What came of a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    Said(StatusCode),
    /// It takes connections, and says nothing in time.
    Silent,
    /// It takes no connection, or ends it without an answer.
    Nobody,
}

impl Answer {
    fn good(self) -> bool {
        matches!(self, Self::Said(status) if !status.is_server_error() || status == StatusCode::NOT_IMPLEMENTED)
    }
}

/// Waits until the pod says that it is ready. A program that knows no such route answers 404 or 501: it listens, so it is
/// ready.
pub async fn ready(addr: SocketAddr) {
    let mut asked = 0;
    loop {
        if ask(addr, "/healthz/ready").await.good() {
            return;
        }
        asked += 1;
        tokio::time::sleep(if asked < EAGER_QUESTIONS { EAGER } else { PATIENT }).await;
    }
}

/// Waits until a ready pod has missed too many questions whether it is alive. A server error is no sign of life.
///
/// A program with one thread cannot answer while it works. So silence does not count while the pod holds a request: that has
/// a time limit of its own.
pub async fn lost(addr: SocketAddr, busy: impl Fn() -> bool) {
    lost_by(|| ask(addr, "/healthz/live"), busy).await;
}

async fn lost_by<A: Future<Output = Answer>>(ask: impl Fn() -> A, busy: impl Fn() -> bool) {
    let mut questions = tokio::time::interval_at(Instant::now() + LIVE_EVERY, LIVE_EVERY);
    questions.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut missed = 0;
    while missed < LIVE_FAILURES {
        questions.tick().await;
        let before = busy();
        let answer = ask().await;
        if answer.good() {
            missed = 0;
        } else if answer != Answer::Silent || !(before || busy()) {
            missed += 1;
        }
    }
}

async fn ask(addr: SocketAddr, path: &str) -> Answer {
    let until = Instant::now() + PATIENCE;
    let Some(stream) = within(until, connect(addr)).await.flatten() else {
        return Answer::Nobody;
    };
    said(until, stream, path).await
}

/// What comes of a question on a connection.
async fn said(until: Instant, stream: TcpStream, path: &str) -> Answer {
    match within(until, talk(stream, path)).await {
        Some(Some(status)) => Answer::Said(status),
        Some(None) => Answer::Nobody,
        None => Answer::Silent,
    }
}

async fn within<T>(until: Instant, work: impl Future<Output = T>) -> Option<T> {
    tokio::time::timeout_at(until, work).await.ok()
}

async fn connect(addr: SocketAddr) -> Option<TcpStream> {
    let stream = TcpStream::connect(addr).await.ok()?;
    // A connection can meet itself where nobody listens on a port that goes out.
    if stream.local_addr().ok()? == addr {
        return None;
    }
    stream.set_nodelay(true).ok()?;
    Some(stream)
}

async fn talk(stream: TcpStream, path: &str) -> Option<StatusCode> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.ok()?;
    let request = Request::get(path)
        .header("host", "localhost")
        .body(Empty::<Bytes>::new())
        .ok()?;
    let answer = sender.send_request(request);
    tokio::pin!(answer);
    let answer = tokio::select! {
        answer = &mut answer => answer,
        // Who closes with the answer ends the connection in the moment that gives it.
        _ = connection => answer.await,
    };
    answer.ok().map(|a| a.status())
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    async fn listener() -> (TcpListener, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        (listener, addr)
    }

    #[tokio::test]
    async fn an_answer_that_closes_the_connection_counts() {
        let (listener, addr) = listener().await;
        let answers = [
            "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok",
            "HTTP/1.0 200 OK\r\n\r\n",
        ];
        for answer in answers {
            let serve = async {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut question = [0; 1024];
                assert!(stream.read(&mut question).await.unwrap() > 0);
                stream.write_all(answer.as_bytes()).await.unwrap();
            };
            let ((), asked) = tokio::join!(serve, ask(addr, "/healthz/ready"));
            assert_eq!(asked, Answer::Said(StatusCode::OK), "{answer}");
        }
    }

    #[tokio::test]
    async fn who_takes_a_connection_and_says_nothing_is_silent_and_who_takes_none_is_nobody() {
        // Connections are taken by the kernel, as for a program whose only thread works.
        let (listener, addr) = listener().await;
        let stream = connect(addr).await.unwrap();
        // From here on there is nothing to wait for but the clock. It must not stand still before: it would be moved on while
        // the kernel makes the connection.
        tokio::time::pause();
        let until = Instant::now() + PATIENCE;
        assert_eq!(said(until, stream, "/healthz/live").await, Answer::Silent);
        tokio::time::resume();
        drop(listener);
        assert_eq!(ask(addr, "/healthz/live").await, Answer::Nobody);
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_pod_is_lost_unless_it_is_at_work() {
        let minutes = Duration::from_secs(300);
        let lost = |answer: Answer, at_work: bool| {
            let asked = move || async move {
                if answer == Answer::Silent {
                    tokio::time::sleep(PATIENCE).await;
                }
                answer
            };
            tokio::time::timeout(minutes, lost_by(asked, move || at_work))
        };
        let at_work = lost(Answer::Silent, true).await;
        assert!(at_work.is_err(), "it was given up at work");
        lost(Answer::Silent, false).await.unwrap();
        // Who takes no connection does not work either.
        lost(Answer::Nobody, true).await.unwrap();
    }
}
