//! Saying that the pod listens, the moment it does: an endpoint watch shows it some 0.6 s later.
use std::net::SocketAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST};
use http::{Method, Request, StatusCode};
use http_body_util::Full;
use hyper_util::rt::TokioIo;
use imageflow_types::announce::{Announcement, PATH, SCHEMA, SIGNATURE, sign};
use imageflow_types::names::RevisionName;
use tokio::net::TcpStream;

use crate::config::{Announce, Config};

/// First pause before it is said again; it doubles.
const AGAIN: Duration = Duration::from_millis(50);
/// Tries at each address. Who does not listen by then sees the pod by its watch.
const TRIES: u32 = 6;
/// Longest for one try.
const PATIENCE: Duration = Duration::from_secs(2);

/// Tells whom the environment names, if any.
pub(crate) async fn announce(config: &Config, addr: Option<SocketAddr>) {
    let (Some(to), Some(addr)) = (&config.announce, addr) else {
        return;
    };
    let Ok(revision) = RevisionName::new(config.revision.clone()) else {
        tracing::warn!(
            revision = config.revision,
            "IMAGEFLOW_REVISION is no revision, so the pod is not announced"
        );
        return;
    };
    for attempt in 0..TRIES {
        match tell(config, to, &revision, addr.port()).await {
            Ok(()) => return tracing::debug!(url = %to.url, "announced"),
            Err(why) => tracing::debug!(url = %to.url, why, "not announced yet"),
        }
        tokio::time::sleep(AGAIN * 2_u32.pow(attempt)).await;
    }
    tracing::info!(url = %to.url, "nobody heard that this pod listens; it is found by its probes");
}

/// Every address, because each is a process that gives work. The last failure counts.
async fn tell(config: &Config, to: &Announce, revision: &RevisionName, port: u16) -> Result<(), String> {
    let (host, at) = (to.url.host_str().unwrap_or_default(), to.url.port().unwrap_or(80));
    let found = tokio::net::lookup_host((host, at)).await.map_err(|e| e.to_string())?;
    let addresses: Vec<SocketAddr> = found.collect();
    if addresses.is_empty() {
        return Err(format!("{host} has no address"));
    }
    let mut told = Ok(());
    for address in addresses {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        let said = Announcement {
            schema_version: SCHEMA,
            pod: config.pod.clone(),
            revision: revision.clone(),
            port,
            at_ms: i64::try_from(now.as_millis()).unwrap_or(i64::MAX),
            nonce: uuid::Uuid::new_v4().simple().to_string(),
        };
        let sent = tokio::time::timeout(PATIENCE, post(address, host, &to.key, &said)).await;
        match sent {
            Ok(Ok(())) => {}
            Ok(Err(why)) => told = Err(why),
            Err(_) => told = Err(format!("{address} does not answer")),
        }
    }
    told
}

async fn post(address: SocketAddr, host: &str, key: &str, said: &Announcement) -> Result<(), String> {
    let body = serde_json::to_vec(said).map_err(|e| e.to_string())?;
    let stream = TcpStream::connect(address).await.map_err(|e| e.to_string())?;
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(|e| e.to_string())?;
    let request = Request::builder()
        .method(Method::POST)
        .uri(PATH)
        .header(HOST, host)
        .header(CONTENT_TYPE, "application/json")
        .header(SIGNATURE, sign(key.as_bytes(), &body))
        .body(Full::new(Bytes::from(body)))
        .map_err(|e| e.to_string())?;
    let answer = async {
        let response = sender.send_request(request).await;
        // The connection ends with its only user.
        drop(sender);
        response
    };
    let (response, _) = tokio::join!(answer, connection);
    match response.map_err(|e| e.to_string())?.status() {
        StatusCode::NO_CONTENT => Ok(()),
        status => Err(format!("{address} answered {status}")),
    }
}

#[cfg(test)]
mod tests {
    use imageflow_types::announce::is_signed;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use url::Url;

    use super::*;

    /// Takes one announcement, answers it, and returns its head and body.
    async fn hear(listener: &TcpListener, answer: &str) -> (String, Vec<u8>) {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut got = Vec::new();
        loop {
            stream.read_buf(&mut got).await.unwrap();
            let Some(head) = got.windows(4).position(|w| w == b"\r\n\r\n").map(|p| p + 4) else {
                continue;
            };
            let text = String::from_utf8_lossy(&got[..head]).to_ascii_lowercase();
            let length = text.lines().find_map(|l| l.strip_prefix("content-length: ")).unwrap();
            if got.len() == head + length.parse::<usize>().unwrap() {
                let head_text = text.clone();
                let body = got.split_off(head);
                let answer = format!("HTTP/1.1 {answer}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
                stream.write_all(answer.as_bytes()).await.unwrap();
                return (head_text, body);
            }
        }
    }

    #[tokio::test]
    async fn it_is_said_again_until_it_is_heard_and_each_time_anew() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut config = Config::from_env(&|name| match name {
            "IMAGEFLOW_POD" => Some("resize-00001-abc".into()),
            "IMAGEFLOW_REVISION" => Some("resize-00001".into()),
            _ => None,
        })
        .unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        config.announce = Some(Announce {
            url: Url::parse(&url).unwrap(),
            key: "the key".into(),
        });
        let told = announce(&config, Some(SocketAddr::from(([0, 0, 0, 0], 8080))));
        let heard = async {
            let first = hear(&listener, "503 Service Unavailable").await;
            let second = hear(&listener, "204 No Content").await;
            (first, second)
        };
        let ((), ((_, first), (head, second))) = tokio::join!(told, heard);
        assert!(head.starts_with("post /announce "), "{head}");
        let signature = head
            .lines()
            .find_map(|l| l.strip_prefix("imageflow-signature: "))
            .unwrap();
        assert!(is_signed(b"the key", &second, signature));
        let read = |body: &[u8]| serde_json::from_slice::<Announcement>(body).unwrap();
        let (first, second) = (read(&first), read(&second));
        assert_eq!((second.pod.as_str(), second.port), ("resize-00001-abc", 8080));
        assert_ne!(first.nonce, second.nonce);
    }
}
