//! How one role reaches another: an HTTP/2 connection that is made when it is needed, and a key.
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

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

/// Roles that are started together find each other within this.
const FOUND_WITHIN: Duration = Duration::from_secs(2);
/// How often a trouble that stays is told again.
const TOLD_EVERY: Duration = Duration::from_secs(60);

/// A trouble with a peer: told when it lasts, when its reason changes, and now and then while it stays.
#[derive(Debug, Default)]
pub struct Trouble {
    since: Option<Instant>,
    told: Option<(String, Instant)>,
}

impl Trouble {
    /// Whether people are to be told that the peer is not to be had, for this reason.
    pub fn is_news(&mut self, why: &str, now: Instant) -> bool {
        let since = *self.since.get_or_insert(now);
        if now.saturating_duration_since(since) < FOUND_WITHIN {
            return false;
        }
        let told = |(said, at): &(String, Instant)| said == why && now.saturating_duration_since(*at) < TOLD_EVERY;
        let news = !self.told.as_ref().is_some_and(told);
        if news {
            self.told = Some((why.to_owned(), now));
        }
        news
    }

    /// The peer is there.
    pub fn over(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trouble_is_told_when_it_lasts_or_changes_and_each_minute() {
        let (mut trouble, begun) = (Trouble::default(), Instant::now());
        let at = |seconds| begun + Duration::from_secs(seconds);
        let mut told = |why, seconds| trouble.is_news(why, at(seconds));
        let all = [
            told("refused", 0),
            told("refused", 1),
            told("refused", 2),
            told("refused", 4),
        ];
        assert_eq!(all, [false, false, true, false]);
        let all = [told("key", 6), told("key", 65), told("key", 66)];
        assert_eq!(all, [true, false, true]);
        trouble.over();
        assert!(!trouble.is_news("refused", at(100)));
    }

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
