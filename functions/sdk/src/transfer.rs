//! Fetching inputs and storing outputs by signed requests. No message repeats a URL: it holds a signature.
use std::collections::BTreeMap;
use std::error::Error;
use std::sync::OnceLock;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, ETAG, HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use imageflow_events::invocation::SignedRequest;
use imageflow_types::{ErrorCode, Problem};
use rustls::{ClientConfig, RootCertStore};

use crate::function::Content;

/// Longer than any handshake in a cluster; a store that does not answer is found before the call's own limit.
const CONNECT: Duration = Duration::from_secs(5);
/// Shorter than the idle limits of common object stores, so that we close first.
const POOL_IDLE: Duration = Duration::from_secs(20);
/// Header of an object that the platform wrote: the metadata by which the dispatcher marks it (`intake::METADATA_RUN`).
const WRITTEN_BY_RUN: &str = "x-amz-meta-imageflow-run";
/// Most bytes of such an object, where that is more than the pod's own limit. What goes from step to step is lossless: 50
/// megapixels, the most that the operations take, have 200 MB when they do not compress, and a PNG has a little beside them.
const MAX_WRITTEN_BYTES: u64 = 192 * 1024 * 1024;

pub(crate) struct Transfer {
    plain: Client<HttpConnector, Full<Bytes>>,
    // Roots and TLS settings cost time that a cold start on plain http does not have.
    tls: OnceLock<Client<HttpsConnector<HttpConnector>, Full<Bytes>>>,
    roots: Option<RootCertStore>,
    max_bytes: u64,
}

/// What a PUT found.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Stored {
    /// Written; the ETag without quotes, empty when the store did not say.
    Written { etag: String },
    /// It was there: somebody did the same work before.
    AlreadyThere,
}

impl Transfer {
    pub(crate) fn new(max_bytes: u64, roots: Option<RootCertStore>) -> Self {
        let plain = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(POOL_IDLE)
            .build(connector());
        Self {
            plain,
            tls: OnceLock::new(),
            roots,
            max_bytes,
        }
    }

    /// GETs the input.
    pub(crate) async fn get(&self, url: &str, headers: &BTreeMap<String, String>) -> Result<Content, Problem> {
        let request = request("input", &Method::GET, url, headers, None)?;
        let response = self.send("input", request).await?;
        let status = response.status();
        if !status.is_success() {
            return Err(match status {
                StatusCode::PRECONDITION_FAILED => Problem::new(
                    ErrorCode::InputChanged,
                    "the input object is not the one that the run was made for: it was overwritten",
                ),
                StatusCode::NOT_FOUND | StatusCode::GONE => Problem::new(
                    ErrorCode::InputChanged,
                    "the input object is not there any more: it was removed after the run was made",
                ),
                _ => store_problem("input", status),
            });
        }
        let content_type = response.headers().get(CONTENT_TYPE).and_then(|v| v.to_str().ok());
        let content_type = content_type.unwrap_or("application/octet-stream").to_owned();
        let max_bytes = match response.headers().contains_key(WRITTEN_BY_RUN) {
            true => self.max_bytes.max(MAX_WRITTEN_BYTES),
            false => self.max_bytes,
        };
        let bytes = read_limited(response.into_body(), max_bytes)
            .await
            .map_err(|error| match error {
                ReadError::TooLarge => too_large("the input object", max_bytes),
                ReadError::Broken(error) => Problem::new(
                    ErrorCode::StorageUnavailable,
                    format!("the input object could not be read whole: {error}"),
                ),
            })?;
        Ok(Content { bytes, content_type })
    }

    /// PUTs an output, which must not be there yet; see [`must_be_put`] for the target's own method.
    pub(crate) async fn put(&self, what: &str, target: &SignedRequest, content: &Content) -> Result<Stored, Problem> {
        let request = request(what, &Method::PUT, &target.url, &target.headers, Some(content))?;
        let response = self.send(what, request).await?;
        match response.status() {
            status if status.is_success() => {
                let etag = response
                    .headers()
                    .get(ETAG)
                    .and_then(|v| v.to_str().ok())
                    .unwrap_or_default();
                Ok(Stored::Written {
                    etag: etag.trim_start_matches("W/").trim_matches('"').to_owned(),
                })
            }
            StatusCode::PRECONDITION_FAILED => Ok(Stored::AlreadyThere),
            StatusCode::INSUFFICIENT_STORAGE => Err(Problem::new(
                ErrorCode::StorageFull,
                format!("the object store has no space for the {what}"),
            )),
            StatusCode::PAYLOAD_TOO_LARGE => Err(Problem::new(
                ErrorCode::TooLarge,
                format!("the object store refuses a {what} of this size"),
            )),
            status => Err(store_problem(what, status)),
        }
    }

    async fn send(&self, what: &str, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, Problem> {
        let sent = if request.uri().scheme_str() == Some("https") {
            self.tls
                .get_or_init(|| tls_client(self.roots.clone()))
                .request(request)
                .await
        } else {
            self.plain.request(request).await
        };
        sent.map_err(|error| {
            let mut text = format!("the object store could not be reached for the {what}: {error}");
            let mut source = error.source();
            while let Some(cause) = source {
                text.push_str(&format!(": {cause}"));
                source = cause.source();
            }
            Problem::new(ErrorCode::StorageUnavailable, text)
        })
    }
}

/// Refuses a target of another method: an event says where a result goes, not what else the pod does at that place.
pub(crate) fn must_be_put(what: &str, target: &SignedRequest) -> Result<(), Problem> {
    if target.method == Method::PUT.as_str() {
        return Ok(());
    }
    Err(Problem::new(
        ErrorCode::MalformedEvent,
        format!("the method of the {what} is not PUT"),
    ))
}

fn connector() -> HttpConnector {
    let mut http = HttpConnector::new();
    http.set_connect_timeout(Some(CONNECT));
    http.set_nodelay(true);
    http
}

fn tls_client(roots: Option<RootCertStore>) -> Client<HttpsConnector<HttpConnector>, Full<Bytes>> {
    let mut http = connector();
    http.enforce_http(false);
    let https = HttpsConnectorBuilder::new();
    let https = match roots {
        Some(roots) => https.with_tls_config(trusting(roots)),
        None => https.with_webpki_roots(),
    };
    let https = https.https_or_http().enable_http1().wrap_connector(http);
    Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(POOL_IDLE)
        .build(https)
}

fn trusting(roots: RootCertStore) -> ClientConfig {
    ClientConfig::builder()
        .with_root_certificates(roots)
        .with_no_client_auth()
}

fn request(
    what: &str,
    method: &Method,
    url: &str,
    headers: &BTreeMap<String, String>,
    content: Option<&Content>,
) -> Result<Request<Full<Bytes>>, Problem> {
    let malformed = |part: &str| {
        Problem::new(
            ErrorCode::MalformedEvent,
            format!("the {part} of the {what} is not valid"),
        )
    };
    let uri: Uri = url.parse().map_err(|_| malformed("URL"))?;
    if !matches!(uri.scheme_str(), Some("http" | "https")) {
        return Err(malformed("URL's scheme"));
    }
    let mut request = Request::new(Full::new(content.map(|c| c.bytes.clone()).unwrap_or_default()));
    *request.method_mut() = method.clone();
    *request.uri_mut() = uri;
    if let Some(value) = content.and_then(|c| HeaderValue::from_str(&c.content_type).ok()) {
        request.headers_mut().insert(CONTENT_TYPE, value);
    }
    for (name, value) in headers {
        let name = HeaderName::try_from(name.as_str()).map_err(|_| malformed("header name"))?;
        let value = HeaderValue::try_from(value.as_str()).map_err(|_| malformed("header value"))?;
        // The client sets both itself.
        if name != http::header::HOST && name != http::header::CONTENT_LENGTH {
            request.headers_mut().insert(name, value);
        }
    }
    Ok(request)
}

/// Statuses that say nothing about the work itself. Either the store cannot now, which is nobody's attempt, or it refuses
/// the request: a new attempt gets a new signature.
fn store_problem(what: &str, status: StatusCode) -> Problem {
    let cannot_now = status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS;
    Problem::new(
        if cannot_now {
            ErrorCode::StorageUnavailable
        } else {
            ErrorCode::Unavailable
        },
        format!("the object store answered {status} to the request for the {what}"),
    )
}

pub(crate) fn too_large(what: &str, max_bytes: u64) -> Problem {
    Problem::new(
        ErrorCode::TooLarge,
        format!("{what} has more than {max_bytes} bytes (IMAGEFLOW_MAX_BODY_BYTES)"),
    )
}

/// Why a body could not be read.
pub(crate) enum ReadError {
    TooLarge,
    Broken(String),
}

/// A body's bytes, at most `max_bytes`. One that says it is longer is refused before it is read.
pub(crate) async fn read_limited<B>(body: B, max_bytes: u64) -> Result<Bytes, ReadError>
where
    B: http_body::Body<Data = Bytes>,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    if body.size_hint().lower() > max_bytes {
        return Err(ReadError::TooLarge);
    }
    let limit = usize::try_from(max_bytes).unwrap_or(usize::MAX);
    match Limited::new(body, limit).collect().await {
        Ok(whole) => Ok(whole.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(ReadError::TooLarge),
        Err(error) => Err(ReadError::Broken(error.to_string())),
    }
}
