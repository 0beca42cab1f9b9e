//! A signed URL, which is as good as a credential while it lives.
use std::fmt;

/// A signed request. Neither `Debug` nor `Display` shows its URL.
#[derive(Clone, PartialEq, Eq)]
pub struct SignedUrl {
    url: String,
    /// HTTP method.
    pub method: String,
    /// Headers that were signed and so must be sent.
    pub headers: Vec<(String, String)>,
}

impl SignedUrl {
    pub(crate) const fn new(url: String, method: String, headers: Vec<(String, String)>) -> Self {
        Self { url, method, headers }
    }

    /// The URL with its signature: for the one who is to make the request, not for logs.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.url
    }
}

impl fmt::Debug for SignedUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SignedUrl({self})")
    }
}

impl fmt::Display for SignedUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} [signed url]", self.method)
    }
}
