//! How one role reaches another: an HTTP/2 connection that is made when it is needed, and a key.
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// A peer that is stopped or cut off is noticed within twice this.
const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// Where another role listens, and the key by which it knows us.
#[derive(Clone)]
pub struct Peer {
    url: String,
    key: Option<Arc<str>>,
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = self.key.as_ref().map(|_| "...");
        f.debug_struct("Peer")
            .field("url", &self.url)
            .field("key", &key)
            .finish()
    }
}

/// Why a peer cannot be used at all.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// The address.
    #[error("\"{0}\" is not an address such as http://127.0.0.1:7001")]
    Url(String),
    /// The key.
    #[error("the key for {0} has characters that no header can carry")]
    Key(String),
}

impl Peer {
    /// A peer at `url`, such as `http://127.0.0.1:7001`.
    pub fn new(url: impl Into<String>, key: Option<&str>) -> Self {
        Self {
            url: url.into(),
            key: key.map(Arc::from),
        }
    }

    /// Its address.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// A connection, made at the first call and made again when it breaks. Inside a runtime.
    ///
    /// # Errors
    /// [`PeerError`] for an address or a key that can never work.
    pub fn channel(&self) -> Result<PeerChannel, PeerError> {
        let wrong = |_| PeerError::Url(self.url.clone());
        if !self.url.starts_with("http://") {
            return Err(PeerError::Url(self.url.clone()));
        }
        let endpoint = Endpoint::from_shared(self.url.clone()).map_err(wrong)?;
        let channel = endpoint
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE)
            .keep_alive_while_idle(true)
            .connect_lazy();
        let bearer = match &self.key {
            None => None,
            Some(key) => {
                let value = MetadataValue::try_from(format!("Bearer {key}"));
                let mut value = value.map_err(|_| PeerError::Key(self.url.clone()))?;
                value.set_sensitive(true);
                Some(value)
            }
        };
        Ok(InterceptedService::new(channel, Bearer(bearer)))
    }
}

/// A connection that shows the key with each call.
pub type PeerChannel = InterceptedService<Channel, Bearer>;

/// Adds the key to a call.
#[derive(Clone)]
pub struct Bearer(Option<MetadataValue<Ascii>>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(key) = &self.0 {
            request.metadata_mut().insert("authorization", key.clone());
        }
        Ok(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_address_or_key_that_cannot_work_is_refused_and_a_key_is_not_shown() {
        assert!(matches!(
            Peer::new("127.0.0.1:7001", None).channel(),
            Err(PeerError::Url(_))
        ));
        assert!(matches!(
            Peer::new("http://127.0.0.1:7001", Some("a\nb")).channel(),
            Err(PeerError::Key(_))
        ));
        let peer = Peer::new("http://127.0.0.1:7001", Some("hush"));
        assert!(peer.channel().is_ok());
        assert!(!format!("{peer:?}").contains("hush"));
    }
}
