//! Who may do what. On loopback no key is needed; beyond it keys with roles are.
use std::net::SocketAddr;

use http::{HeaderMap, Method};
use imageflow_process::{KeyFileError, KeyRole, Keys};
use imageflow_types::{ErrorCode, Problem};

/// What a key allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Reads.
    Viewer,
    /// Reads, runs, invokes, sends events, replays, reconciles.
    FlowOperator,
    /// All that, and applies and deletes resources.
    FlowCreator,
    /// Everything.
    Admin,
}

impl KeyRole for Role {
    const NAMES: &'static str = "admin, flow_creator, flow_operator, viewer";

    fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "viewer" => Self::Viewer,
            "flow_operator" => Self::FlowOperator,
            "flow_creator" => Self::FlowCreator,
            "admin" => Self::Admin,
            _ => return None,
        })
    }
}

/// How callers are known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Auth {
    /// Everybody who reaches the loopback listener is admin.
    Loopback,
    /// By key.
    Keys(Keys<Role>),
}

/// Why a listener or a key file was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    /// A listener beyond loopback without keys.
    #[error(
        "{0} is not loopback, so callers must have keys: give a file of API keys with --api-keys, or listen on 127.0.0.1"
    )]
    KeysNeeded(SocketAddr),
    /// The key file.
    #[error(transparent)]
    File(#[from] KeyFileError),
}

impl Auth {
    /// Reads a key file: a name, a role and the SHA-256 of the key a line; `#` starts a comment.
    ///
    /// # Errors
    /// [`AuthError::File`] with the line.
    pub fn from_file(text: &str) -> Result<Self, AuthError> {
        Ok(Self::Keys(Keys::from_file(text)?))
    }

    /// Whether a listener may be opened.
    ///
    /// # Errors
    /// [`AuthError::KeysNeeded`].
    pub fn check_listen(&self, listen: SocketAddr) -> Result<(), AuthError> {
        if *self == Self::Loopback && !listen.ip().is_loopback() {
            return Err(AuthError::KeysNeeded(listen));
        }
        Ok(())
    }

    /// The caller's role.
    ///
    /// # Errors
    /// 401 without a valid key; 403 for a browser page that reaches for our loopback.
    pub fn role(&self, headers: &HeaderMap) -> Result<Role, Problem> {
        let keys = match self {
            Self::Loopback => return local(headers),
            Self::Keys(keys) => keys,
        };
        let text = |name: &str| headers.get(name).and_then(|v| v.to_str().ok());
        let given = text("x-api-key").or_else(|| text("authorization").and_then(|v| v.strip_prefix("Bearer ")));
        let refuse = || {
            Problem::new(
                ErrorCode::Unauthenticated,
                "send a valid API key: Authorization: Bearer KEY, or X-API-Key: KEY",
            )
        };
        keys.role(given.ok_or_else(refuse)?.trim()).ok_or_else(refuse)
    }
}

/// A page in a browser on this machine can reach loopback too: it is known by its Host or Origin.
fn local(headers: &HeaderMap) -> Result<Role, Problem> {
    let is_local = |host: &str| {
        let name = host.rsplit_once(':').map_or(
            host,
            |(name, port)| if port.parse::<u16>().is_ok() { name } else { host },
        );
        matches!(name, "localhost" | "127.0.0.1" | "[::1]")
    };
    for (name, prefixes) in [
        ("host", [""].as_slice()),
        ("origin", ["http://", "https://"].as_slice()),
    ] {
        let Some(value) = headers.get(name) else { continue };
        let text = value.to_str().unwrap_or_default();
        let ok = prefixes.iter().any(|p| text.strip_prefix(p).is_some_and(is_local));
        if !ok {
            let detail =
                format!("without keys only this machine is served, and {name} says \"{text}\"; use --api-keys");
            return Err(Problem::new(ErrorCode::Forbidden, detail));
        }
    }
    Ok(Role::Admin)
}

/// The least role for a request.
#[must_use]
pub fn needed(method: &Method, path: &str) -> Role {
    if method == Method::GET || method == Method::HEAD {
        return Role::Viewer;
    }
    // Actions are posted. By any other method the last part is a name, and a flow may well be called "runs".
    let runs = method == Method::POST
        && ["/invoke", "/runs", "/cancel", "/replay", "/reconcile"]
            .iter()
            .any(|end| path.ends_with(end));
    if runs || path.starts_with("/v1/events") || path.starts_with("/v1/images") {
        return Role::FlowOperator;
    }
    Role::FlowCreator
}

#[cfg(test)]
mod tests {
    use sha2::{Digest, Sha256};

    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(n, v)| (n.parse().unwrap(), v.parse().unwrap()))
            .collect()
    }

    #[test]
    fn keys_are_known_by_their_hash_and_give_their_role() {
        let hash = hex::encode(Sha256::digest(b"open sesame"));
        let auth = Auth::from_file(&format!("# people\nalice flow_operator {hash}\n")).unwrap();
        assert_eq!(
            auth.role(&headers(&[("authorization", "Bearer open sesame")])).unwrap(),
            Role::FlowOperator
        );
        assert_eq!(
            auth.role(&headers(&[("x-api-key", "open sesam")])).unwrap_err().status,
            401
        );
        assert_eq!(auth.role(&HeaderMap::new()).unwrap_err().status, 401);
        assert!(
            Auth::from_file("alice boss 00")
                .unwrap_err()
                .to_string()
                .contains("line 1")
        );
        assert_eq!(
            Auth::from_file("# none").unwrap_err(),
            AuthError::File(KeyFileError::Empty)
        );
    }

    #[test]
    fn roles_allow_what_they_say() {
        assert_eq!(needed(&Method::GET, "/v1/runs"), Role::Viewer);
        assert_eq!(needed(&Method::POST, "/v1/functions/resize/invoke"), Role::FlowOperator);
        assert_eq!(needed(&Method::POST, "/v1/events"), Role::FlowOperator);
        assert_eq!(needed(&Method::POST, "/v1/apply"), Role::FlowCreator);
        assert_eq!(needed(&Method::DELETE, "/v1/flows/x"), Role::FlowCreator);
        assert_eq!(needed(&Method::DELETE, "/v1/flows/runs"), Role::FlowCreator);
        assert!(Role::Admin > Role::FlowCreator && Role::Viewer < Role::FlowOperator);
    }

    #[test]
    fn without_keys_only_loopback_is_served() {
        assert!(Auth::Loopback.check_listen("127.0.0.1:8000".parse().unwrap()).is_ok());
        let error = Auth::Loopback
            .check_listen("0.0.0.0:8000".parse().unwrap())
            .unwrap_err();
        assert!(error.to_string().contains("--api-keys"));
        assert!(Auth::Loopback.role(&headers(&[("host", "127.0.0.1:8000")])).is_ok());
        assert_eq!(
            Auth::Loopback
                .role(&headers(&[("host", "evil.example:8000")]))
                .unwrap_err()
                .status,
            403
        );
        let page = headers(&[("host", "localhost:8000"), ("origin", "https://evil.example")]);
        assert_eq!(Auth::Loopback.role(&page).unwrap_err().status, 403);
    }
}
