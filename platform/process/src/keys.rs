//! Files of keys: who may do what. Kept are hashes, so a file that is read by others gives no key away.
use sha2::{Digest, Sha256};

/// What a key can allow.
pub trait KeyRole: Copy {
    /// The names of all roles, for messages.
    const NAMES: &'static str;
    /// The role of a name.
    fn parse(name: &str) -> Option<Self>;
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Key<R> {
    role: R,
    hash: [u8; 32],
}

/// The keys of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keys<R>(Vec<Key<R>>);

/// Why a file of keys was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyFileError {
    /// A line of it.
    #[error("line {line} of the key file {why}; a line is: NAME ROLE SHA256-OF-THE-KEY-IN-HEX, with a role of {roles}")]
    Line {
        /// Which.
        line: usize,
        /// What is wrong.
        why: &'static str,
        /// The roles there are.
        roles: &'static str,
    },
    /// No key at all.
    #[error("the key file has no key")]
    Empty,
}

impl<R: KeyRole> Keys<R> {
    /// Reads a key file: a name for people, a role and the SHA-256 of the key a line; `#` starts a comment.
    ///
    /// # Errors
    /// [`KeyFileError`] with the line.
    pub fn from_file(text: &str) -> Result<Self, KeyFileError> {
        let mut keys = Vec::new();
        for (i, line) in text.lines().enumerate() {
            let line = line.split('#').next().unwrap_or_default().trim();
            if line.is_empty() {
                continue;
            }
            let fault = |why| KeyFileError::Line {
                line: i + 1,
                why,
                roles: R::NAMES,
            };
            let parts: Vec<&str> = line.split_whitespace().collect();
            let [_, role, hash] = parts[..] else {
                return Err(fault("does not have three parts"));
            };
            let role = R::parse(role).ok_or_else(|| fault("has an unknown role"))?;
            let hash = hex::decode(hash).ok().and_then(|h| h.try_into().ok());
            let hash = hash.ok_or_else(|| fault("has no SHA-256 in hex"))?;
            keys.push(Key { role, hash });
        }
        if keys.is_empty() {
            Err(KeyFileError::Empty)
        } else {
            Ok(Self(keys))
        }
    }

    /// What a key allows; `None` for one that is not in the file.
    #[must_use]
    pub fn role(&self, key: &str) -> Option<R> {
        let hash: [u8; 32] = Sha256::digest(key.as_bytes()).into();
        // Every key is compared whole, so that time tells nothing.
        self.0.iter().fold(
            None,
            |found, key| if same(&key.hash, &hash) { Some(key.role) } else { found },
        )
    }
}

fn same(a: &[u8; 32], b: &[u8; 32]) -> bool {
    a.iter().zip(b).fold(0, |difference, (x, y)| difference | (x ^ y)) == 0
}
