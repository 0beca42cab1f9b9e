//! Who may do what. On loopback no key is needed; beyond it keys with roles are.
use std::net::SocketAddr;

use http::{HeaderMap, Method};
use imageflow_types::{ErrorCode, Problem};
use sha2::{Digest, Sha256};

/// What a key allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Reads.
    Viewer,
    /// Reads, runs, invokes, sends events, replays.
    FlowOperator,
    /// All that, and applies and deletes resources.
    FlowCreator,
    /// Everything.
    Admin,
}

impl Role {
    fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "viewer" => Self::Viewer,
            "flow_operator" => Self::FlowOperator,
            "flow_creator" => Self::FlowCreator,
            "admin" => Self::Admin,
            _ => return None,
        })
    }
}

/// A key, hashed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// Whose it is, for logs.
    pub name: String,
    /// What it allows.
    pub role: Role,
    hash: [u8; 32],
}

/// How callers are known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Auth {
    /// Everybody who reaches the loopback listener is admin.
    Loopback,
    /// By key.
    Keys(Vec<Key>),
}

/// Why a listener or a key file was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    /// A listener beyond loopback without keys.
    #[error(
        "{0} is not loopback, so callers must have keys: give a file of API keys with --api-keys, or listen on 127.0.0.1"
    )]
    KeysNeeded(SocketAddr),
    /// A line of the key file.
    #[error(
        "line {line} of the API key file {why}; a line is: NAME ROLE SHA256-OF-THE-KEY-IN-HEX, with a role of admin, flow_creator, flow_operator, viewer"
    )]
    Line {
        /// Which.
        line: usize,
        /// What is wrong.
        why: &'static str,
    },
    /// No key at all.
    #[error("the API key file has no key")]
    Empty,
}

impl Auth {
    /// Reads a key file: a name, a role and the SHA-256 of the key a line; `#` starts a comment.
    ///
    /// # Errors
    /// [`AuthError`] with the line.
    pub fn from_file(text: &str) -> Result<Self, AuthError> {
        let mut keys = Vec::new();
        for (i, line) in text.lines().enumerate() {
            let line = line.split('#').next().unwrap_or_default().trim();
            if line.is_empty() {
                continue;
            }
            let fault = |why| AuthError::Line { line: i + 1, why };
            let mut parts = line.split_whitespace();
            let (Some(name), Some(role), Some(hash), None) = (parts.next(), parts.next(), parts.next(), parts.next())
            else {
                return Err(fault("does not have three parts"));
            };
            let role = Role::parse(role).ok_or_else(|| fault("has an unknown role"))?;
            let hash = hex::decode(hash).ok().and_then(|h| h.try_into().ok());
            let hash = hash.ok_or_else(|| fault("has no SHA-256 in hex"))?;
            keys.push(Key {
                name: name.to_owned(),
                role,
                hash,
            });
        }
        if keys.is_empty() {
            Err(AuthError::Empty)
        } else {
            Ok(Self::Keys(keys))
        }
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
        let hash: [u8; 32] = Sha256::digest(given.ok_or_else(refuse)?.trim().as_bytes()).into();
        // Every key is compared whole, so that time tells nothing.
        let found = keys.iter().fold(
            None,
            |found, key| if same(&key.hash, &hash) { Some(key.role) } else { found },
        );
        found.ok_or_else(refuse)
    }
}

fn same(a: &[u8; 32], b: &[u8; 32]) -> bool {
    a.iter().zip(b).fold(0, |difference, (x, y)| difference | (x ^ y)) == 0
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
        && ["/invoke", "/runs", "/cancel", "/replay"]
            .iter()
            .any(|end| path.ends_with(end));
    if runs || path.starts_with("/v1/events") || path.starts_with("/v1/images") {
        return Role::FlowOperator;
    }
    Role::FlowCreator
}

#[cfg(test)]
mod tests {
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
        assert_eq!(Auth::from_file("# none").unwrap_err(), AuthError::Empty);
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
