//! Where pods say that they listen.
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use imageflow_types::announce::{self, Announcement, LIFE_MS, MAX_BYTES, PATH, SCHEMA, SIGNATURE};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::KubernetesHost;
use crate::pod::PodId;

/// Most connections at once: each lasts a moment.
const MAX_CONNECTIONS: usize = 256;
/// Longest that a connection may last.
const PATIENCE: Duration = Duration::from_secs(5);
/// Most announcements that are remembered, so that none counts twice; more than that are refused until some are too old.
const MAX_NONCES: usize = 20_000;

/// Why an announcement does not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refused {
    Unreadable,
    Unsigned,
    TooOld,
    Again,
    TooMany,
}

impl Refused {
    const fn status(self) -> StatusCode {
        match self {
            Self::Unreadable => StatusCode::BAD_REQUEST,
            Self::Unsigned => StatusCode::UNAUTHORIZED,
            Self::TooOld | Self::Again => StatusCode::CONFLICT,
            Self::TooMany => StatusCode::TOO_MANY_REQUESTS,
        }
    }
}

/// Checks announcements.
pub struct Gate {
    master: Vec<u8>,
    /// Nonces that came, with when they are too old in any case.
    nonces: Mutex<HashMap<String, i64>>,
}

impl Gate {
    /// `master` makes the key of each revision.
    pub fn new(master: Vec<u8>) -> Self {
        Self {
            master,
            nonces: Mutex::default(),
        }
    }

    fn check(&self, body: &[u8], signature: &str, now_ms: i64) -> Result<Announcement, Refused> {
        let said: Announcement = serde_json::from_slice(body).map_err(|_| Refused::Unreadable)?;
        let key = announce::revision_key(&self.master, &said.revision);
        if !announce::is_signed(key.as_bytes(), body, signature) {
            return Err(Refused::Unsigned);
        }
        if said.schema_version > SCHEMA + 1 {
            return Err(Refused::Unreadable);
        }
        if (now_ms - said.at_ms).abs() > LIFE_MS {
            return Err(Refused::TooOld);
        }
        let mut nonces = self.nonces.lock().unwrap_or_else(PoisonError::into_inner);
        if nonces.len() >= MAX_NONCES {
            nonces.retain(|_, until| *until > now_ms);
            if nonces.len() >= MAX_NONCES {
                return Err(Refused::TooMany);
            }
        }
        // Clocks may differ by a life on either side.
        if nonces.insert(said.nonce.clone(), now_ms + 2 * LIFE_MS).is_some() {
            return Err(Refused::Again);
        }
        Ok(said)
    }
}

/// Serves until `stop`.
pub async fn serve(host: Arc<KubernetesHost>, gate: Gate, listener: TcpListener, stop: CancellationToken) {
    let (gate, room, tasks) = (
        Arc::new(gate),
        Arc::new(Semaphore::new(MAX_CONNECTIONS)),
        TaskTracker::new(),
    );
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "an announcement could not be accepted");
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            }
        };
        let Ok(permit) = room.clone().try_acquire_owned() else {
            tracing::warn!(%peer, "too many pods announce themselves at once; this one is not heard");
            continue;
        };
        let (host, gate, stop) = (host.clone(), gate.clone(), stop.clone());
        tasks.spawn(async move {
            let _permit = permit;
            let service = service_fn(move |request| {
                let (host, gate) = (host.clone(), gate.clone());
                async move { Ok::<_, std::convert::Infallible>(answer(&host, &gate, peer, request).await) }
            });
            let mut http = hyper::server::conn::http1::Builder::new();
            http.timer(TokioTimer::new())
                .header_read_timeout(PATIENCE)
                .keep_alive(false);
            let connection = http.serve_connection(TokioIo::new(stream), service);
            tokio::select! {
                () = stop.cancelled() => {}
                _ = tokio::time::timeout(PATIENCE, connection) => {}
            }
        });
    }
    tasks.close();
    tasks.wait().await;
}

async fn answer(
    host: &KubernetesHost,
    gate: &Gate,
    peer: SocketAddr,
    request: Request<Incoming>,
) -> Response<Full<Bytes>> {
    let status = hear(host, gate, peer, request).await;
    metrics::counter!("imageflow_function_announcements_total", "status" => status.as_u16().to_string()).increment(1);
    let mut response = Response::new(Full::default());
    *response.status_mut() = status;
    response
}

async fn hear(host: &KubernetesHost, gate: &Gate, peer: SocketAddr, request: Request<Incoming>) -> StatusCode {
    if request.uri().path() != PATH {
        return StatusCode::NOT_FOUND;
    }
    if request.method() != Method::POST {
        return StatusCode::METHOD_NOT_ALLOWED;
    }
    let signature = request.headers().get(SIGNATURE).and_then(|v| v.to_str().ok());
    let signature = signature.unwrap_or_default().to_owned();
    let Ok(body) = Limited::new(request.into_body(), MAX_BYTES).collect().await else {
        return StatusCode::PAYLOAD_TOO_LARGE;
    };
    match gate.check(&body.to_bytes(), &signature, host.now_ms()) {
        Ok(said) => {
            tracing::debug!(pod = said.pod, %peer, "a pod announces itself");
            let addr = SocketAddr::new(peer.ip().to_canonical(), said.port);
            host.announced(PodId::new(said.pod), said.revision, addr);
            StatusCode::NO_CONTENT
        }
        Err(refused) => {
            tracing::warn!(%peer, ?refused, "an announcement was refused");
            refused.status()
        }
    }
}

#[cfg(test)]
mod tests {
    use imageflow_types::RevisionName;

    use super::*;

    fn body(at_ms: i64, nonce: &str) -> Vec<u8> {
        let said = Announcement {
            schema_version: SCHEMA,
            pod: "resize-00001-abc".into(),
            revision: RevisionName::new("resize-00001").unwrap(),
            port: 8080,
            at_ms,
            nonce: nonce.into(),
        };
        serde_json::to_vec(&said).unwrap()
    }

    #[test]
    fn only_what_is_signed_fresh_and_new_counts() {
        let gate = Gate::new(b"master".to_vec());
        let key = announce::revision_key(b"master", &RevisionName::new("resize-00001").unwrap());
        let said = |body: &[u8], now_ms| {
            gate.check(body, &announce::sign(key.as_bytes(), body), now_ms)
                .map(|a| a.port)
        };
        assert_eq!(said(&body(1_000, "a"), 1_500), Ok(8080));
        assert_eq!(said(&body(1_000, "a"), 1_500), Err(Refused::Again));
        assert_eq!(said(&body(1_000, "b"), 12_000), Err(Refused::TooOld));
        assert_eq!(said(b"{}", 0), Err(Refused::Unreadable));
        let other = announce::revision_key(b"master", &RevisionName::new("blur-00001").unwrap());
        let signature = announce::sign(other.as_bytes(), &body(1_000, "c"));
        assert_eq!(
            gate.check(&body(1_000, "c"), &signature, 1_000).map(|_| ()),
            Err(Refused::Unsigned)
        );
    }
}
