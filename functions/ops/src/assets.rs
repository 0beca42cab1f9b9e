//! Pictures that steps refer to by name.
use std::collections::BTreeMap;

use bytes::Bytes;

/// Named pictures (encoded), given by the caller: what a `watermark` may refer to instead of carrying it inline.
#[derive(Debug, Clone, Default)]
pub struct Assets(BTreeMap<String, Bytes>);

impl Assets {
    /// Adds or replaces the picture `name`.
    pub fn insert(&mut self, name: impl Into<String>, bytes: impl Into<Bytes>) {
        self.0.insert(name.into(), bytes.into());
    }

    /// The encoded picture `name`.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Bytes> {
        self.0.get(name)
    }
}
