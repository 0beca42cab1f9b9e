//! How a pod says that it listens: sooner than the Kubernetes API shows its address. Sender and receiver share the key of the
//! revision; the address is that of whoever sends, so a pod can announce nobody but itself.
use hmac::{Hmac, Mac};
use serde::{Deserialize, Serialize};
use sha2::Sha256;

use crate::names::RevisionName;

/// Version of the announcement's shape.
pub const SCHEMA: u32 = 1;
/// Where announcements are posted.
pub const PATH: &str = "/announce";
/// The header that has the signature of the body: HMAC-SHA-256 in hex.
pub const SIGNATURE: &str = "imageflow-signature";
/// An announcement is as good as this many milliseconds.
pub const LIFE_MS: i64 = 10_000;
/// Most bytes of an announcement.
pub const MAX_BYTES: usize = 2048;

/// A pod listens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Announcement {
    /// [`SCHEMA`].
    pub schema_version: u32,
    /// The pod's name.
    pub pod: String,
    /// Its revision, whose key signs.
    pub revision: RevisionName,
    /// The port on which it listens.
    pub port: u16,
    /// When it was made, ms since 1970.
    pub at_ms: i64,
    /// Never the same twice.
    pub nonce: String,
}

fn mac(key: &[u8]) -> Option<Hmac<Sha256>> {
    // A key of any length is one; the type cannot say so.
    Hmac::<Sha256>::new_from_slice(key).ok()
}

/// The key of a revision, made from the one key that the platform keeps.
#[must_use]
pub fn revision_key(master: &[u8], revision: &RevisionName) -> String {
    sign(master, format!("announce\n{revision}").as_bytes())
}

/// The signature of a body.
#[must_use]
pub fn sign(key: &[u8], body: &[u8]) -> String {
    let signed = mac(key).map(|mut mac| {
        mac.update(body);
        mac.finalize().into_bytes()
    });
    signed.map(hex::encode).unwrap_or_default()
}

/// Whether the signature is the body's, compared in constant time.
#[must_use]
pub fn is_signed(key: &[u8], body: &[u8], signature: &str) -> bool {
    let (Some(mut mac), Ok(given)) = (mac(key), hex::decode(signature)) else {
        return false;
    };
    mac.update(body);
    mac.verify_slice(&given).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_is_good_for_its_body_and_key_only() {
        let revision = RevisionName::new("resize-00001").unwrap();
        let key = revision_key(b"master", &revision);
        let signature = sign(key.as_bytes(), b"body");
        assert!(is_signed(key.as_bytes(), b"body", &signature));
        assert!(!is_signed(key.as_bytes(), b"other", &signature));
        let other = revision_key(b"master", &RevisionName::new("resize-00002").unwrap());
        assert!(!is_signed(other.as_bytes(), b"body", &signature));
        for odd in ["", "zz", &signature[2..]] {
            assert!(!is_signed(key.as_bytes(), b"body", odd), "{odd}");
        }
    }
}
