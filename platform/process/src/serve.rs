//! Serving until it is time to end.
use axum::Router;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::signals::overdue;

/// Serves until `stop`, then until the connections have ended. A peer that is frozen or cut off never ends its own: without a
/// bound the service would be held up for ever, with all that it ends in order after this.
pub async fn serve_until(listener: TcpListener, router: Router, stop: CancellationToken) -> std::io::Result<()> {
    let address = listener.local_addr()?;
    let served = axum::serve(listener, router).with_graceful_shutdown(stop.clone().cancelled_owned());
    tokio::select! {
        served = async { served.await } => served,
        () = overdue(&stop) => {
            tracing::warn!(%address, "a peer did not end its connection in time, it is dropped with the process");
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr};
    use std::time::Duration;

    use metrics_exporter_prometheus::PrometheusBuilder;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;
    use tokio::time::{Instant, timeout};

    use super::*;
    use crate::admin::{Readiness, serve_admin};
    use crate::door::{Door, serve_open, serve_roles};

    /// A peer that opened a connection and answers nothing from then on, as one does that is stopped.
    async fn frozen(address: SocketAddr) -> TcpStream {
        const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
        const NO_SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];
        let mut peer = TcpStream::connect(address).await.unwrap();
        peer.write_all(PREFACE).await.unwrap();
        peer.write_all(NO_SETTINGS).await.unwrap();
        // A connection that has not said what it speaks is closed at once: the head of a frame tells that it has.
        peer.read_exact(&mut [0; 9]).await.unwrap();
        peer
    }

    async fn serve(which: &str, listener: TcpListener, stop: CancellationToken) -> std::io::Result<()> {
        let router = Router::new();
        match which {
            "roles" => {
                let door = Door::new(listener.local_addr().unwrap(), None, |_| &[]).unwrap();
                serve_roles(listener, router, door, stop).await
            }
            "open" => serve_open(listener, router, stop).await,
            _ => {
                let metrics = PrometheusBuilder::new().build_recorder().handle();
                serve_admin(listener, metrics, Readiness::default(), stop).await
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_frozen_peer_does_not_hold_up_the_end() {
        for which in ["roles", "open", "admin"] {
            for freezes in [false, true] {
                let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
                let address = listener.local_addr().unwrap();
                let stop = CancellationToken::new();
                let served = tokio::spawn(serve(which, listener, stop.clone()));
                let peer = if freezes { Some(frozen(address).await) } else { None };
                let begun = Instant::now();
                stop.cancel();
                let ended = timeout(Duration::from_secs(60), served).await;
                ended.expect(which).unwrap().unwrap();
                let waited = begun.elapsed() > Duration::ZERO;
                assert_eq!(
                    waited, freezes,
                    "{which}: it waits for who is there, and for nobody else"
                );
                drop(peer);
            }
        }
    }
}
