//! The door of a service for the platform's other roles: gRPC over HTTP/2, each role with a key of its own.
use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, Version, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::keys::{KeyRole, Keys};
use crate::serve::serve_until;

/// Codes of gRPC.
const PERMISSION_DENIED: u8 = 7;
const UNAUTHENTICATED: u8 = 16;

/// A role that calls others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServiceRole {
    /// The HTTP door.
    Gateway,
    /// Brings work to pods.
    Dispatcher,
    /// Makes work of events.
    Router,
    /// Scales pods.
    Autoscaler,
}

impl KeyRole for ServiceRole {
    const NAMES: &'static str = "gateway, dispatcher, router, autoscaler";

    fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "gateway" => Self::Gateway,
            "dispatcher" => Self::Dispatcher,
            "router" => Self::Router,
            "autoscaler" => Self::Autoscaler,
            _ => return None,
        })
    }
}

/// The roles that may call the method of a path, such as `/imageflow.v1.PodService/Scale`.
pub type Allowed = fn(&str) -> &'static [ServiceRole];

/// A listener beyond loopback without keys.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0} is not loopback, so the other roles must have keys: give a file of role keys with --role-keys, or listen on 127.0.0.1"
)]
pub struct KeysNeeded(SocketAddr);

/// Who may come in.
pub struct Door {
    /// Without keys everybody who reaches the loopback listener may.
    keys: Option<Keys<ServiceRole>>,
    allowed: Allowed,
}

impl Door {
    /// A door on `listen`.
    ///
    /// # Errors
    /// [`KeysNeeded`].
    pub fn new(listen: SocketAddr, keys: Option<Keys<ServiceRole>>, allowed: Allowed) -> Result<Self, KeysNeeded> {
        if keys.is_none() && !listen.ip().is_loopback() {
            return Err(KeysNeeded(listen));
        }
        Ok(Self { keys, allowed })
    }

    fn check(&self, headers: &HeaderMap, path: &str) -> Result<(), (u8, &'static str)> {
        let Some(keys) = &self.keys else { return Ok(()) };
        let given = headers.get(header::AUTHORIZATION).and_then(|v| v.to_str().ok());
        let role = given
            .and_then(|v| v.strip_prefix("Bearer "))
            .and_then(|key| keys.role(key));
        let role = role.ok_or((
            UNAUTHENTICATED,
            "set IMAGEFLOW_ROLE_KEY to a key of the --role-keys file",
        ))?;
        if (self.allowed)(path).contains(&role) {
            Ok(())
        } else {
            Err((PERMISSION_DENIED, "the role of this key may not call this"))
        }
    }
}

/// Serves the services until `stop`, then for a moment until the calls under way have ended.
///
/// # Errors
/// When the listener fails.
pub async fn serve_roles(
    listener: TcpListener,
    services: Router,
    door: Door,
    stop: CancellationToken,
) -> std::io::Result<()> {
    let services = services.layer(from_fn_with_state(Arc::new(door), guard));
    serve_until(listener, services, stop).await
}

/// Serves what anybody who reaches it may call, until `stop`.
///
/// # Errors
/// When the listener fails.
pub async fn serve_open(listener: TcpListener, services: Router, stop: CancellationToken) -> std::io::Result<()> {
    serve_until(listener, services, stop).await
}

async fn guard(State(door): State<Arc<Door>>, request: Request, next: Next) -> Response {
    // A page in a browser can reach loopback, too, but speaks no HTTP/2 without TLS.
    if request.version() != Version::HTTP_2 {
        return StatusCode::HTTP_VERSION_NOT_SUPPORTED.into_response();
    }
    match door.check(request.headers(), request.uri().path()) {
        Ok(()) => next.run(request).await,
        Err((code, message)) => {
            let mut response = Response::default();
            let headers = response.headers_mut();
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            headers.insert("grpc-status", HeaderValue::from(u16::from(code)));
            headers.insert("grpc-message", HeaderValue::from_static(message));
            response
        }
    }
}

#[cfg(test)]
mod tests {
    use sha2::{Digest, Sha256};

    use super::*;

    fn allowed(path: &str) -> &'static [ServiceRole] {
        match path {
            "/scale" => &[ServiceRole::Autoscaler],
            _ => &[ServiceRole::Autoscaler, ServiceRole::Gateway],
        }
    }

    fn listen(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn each_role_may_call_what_it_needs_and_no_more() {
        let hash = |key: &str| hex::encode(Sha256::digest(key));
        let file = format!(
            "g gateway {}\na autoscaler {}\nd dispatcher {}",
            hash("g1"),
            hash("a1"),
            hash("d1")
        );
        let door = Door::new(listen("0.0.0.0:7001"), Some(Keys::from_file(&file).unwrap()), allowed).unwrap();
        let check = |key: &str, path| {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, format!("Bearer {key}").parse().unwrap());
            door.check(&headers, path).map_err(|(code, _)| code)
        };
        assert_eq!(check("a1", "/scale"), Ok(()));
        assert_eq!(check("g1", "/follow"), Ok(()));
        assert_eq!(check("g1", "/scale"), Err(PERMISSION_DENIED));
        assert_eq!(check("d1", "/follow"), Err(PERMISSION_DENIED));
        assert_eq!(check("g2", "/follow"), Err(UNAUTHENTICATED));
        assert_eq!(door.check(&HeaderMap::new(), "/follow").unwrap_err().0, UNAUTHENTICATED);
    }

    #[test]
    fn without_keys_only_loopback_is_served() {
        assert!(Door::new(listen("127.0.0.1:7001"), None, allowed).is_ok());
        let refused = Door::new(listen("0.0.0.0:7001"), None, allowed).err().unwrap();
        assert!(refused.to_string().contains("--role-keys"));
    }
}
