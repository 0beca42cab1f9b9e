//! The HTTP client of the platform's API.
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderMap, Method, Request, Response, header};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper_util::client::legacy::{Client as Hyper, connect::HttpConnector};
use hyper_util::rt::TokioExecutor;
use imageflow_types::{ErrorCode, Problem, RunId, RunState};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::error::CliError;

/// Most bytes of one answer that is read as a whole, and of one line of a stream.
const ANSWER_LIMIT: usize = 256 << 20;
const LINE_LIMIT: usize = 16 << 20;
/// Most items that the platform lists at once.
const PAGE: usize = 1000;
/// How long an ordinary request may take until its answer begins, beside the time to send its body.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Bytes of a body that are sent a second at least: the platform gives up a body that comes more slowly.
const LEAST_RATE: u64 = 64 << 10;
/// How long an answer that has begun and is read as a whole may be silent.
const SILENCE: Duration = Duration::from_secs(60);
/// After so long without a word the other side is asked whether it is there. A stream may be silent for hours, so only this tells
/// one that has nothing to say from one whose machine is gone.
const KEEPALIVE: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_RETRIES: u32 = 3;
/// Seconds for which a watch waits for its run to begin; the platform allows no more.
const BEGIN: u64 = 60;

/// A connection pool to one platform. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Client {
    http: Hyper<HttpConnector, Full<Bytes>>,
    base: String,
    key: Option<String>,
}

/// A request before it is sent.
#[derive(Debug, Clone)]
pub struct Call {
    method: Method,
    path: String,
    headers: HeaderMap,
    body: Bytes,
    timeout: Option<Duration>,
}

impl Call {
    /// A request to `path`, which begins with `/` and is encoded already.
    pub fn new(method: Method, path: impl Into<String>) -> Self {
        Self {
            method,
            path: path.into(),
            headers: HeaderMap::new(),
            body: Bytes::new(),
            timeout: None,
        }
    }

    /// The same with a body.
    #[must_use]
    pub fn body(mut self, content_type: &'static str, body: impl Into<Bytes>) -> Self {
        self.headers
            .insert(header::CONTENT_TYPE, header::HeaderValue::from_static(content_type));
        self.body = body.into();
        self
    }

    /// The same with a header; one that cannot stand in HTTP is left out.
    #[must_use]
    pub fn header(mut self, name: &'static str, value: &str) -> Self {
        if let Ok(value) = header::HeaderValue::from_str(value) {
            self.headers.insert(name, value);
        }
        self
    }

    /// The same with another time until the answer begins; sending the body is part of it.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// How long it may take until the answer begins.
    fn patience(&self) -> Duration {
        let body = Duration::from_secs(self.body.len() as u64 / LEAST_RATE);
        self.timeout.unwrap_or(TIMEOUT + body)
    }
}

/// What a run is to be made of.
#[derive(Debug, Clone)]
pub struct NewRun<'a> {
    /// A flow, or `function/NAME`.
    pub target: &'a str,
    /// The image.
    pub image: Bytes,
    /// Same key, same run.
    pub idempotency_key: &'a str,
    /// Whether steps may share a request.
    pub fuse: bool,
    /// How long it may take until the platform has it.
    pub timeout: Duration,
}

impl NewRun<'_> {
    fn call(self) -> Result<Call, CliError> {
        let (kind, name) = self.target.split_once('/').unwrap_or(("flow", self.target));
        let kind = match kind {
            "flow" | "flows" => "flows",
            "function" | "functions" => "functions",
            _ => {
                return Err(CliError::Usage(format!(
                    "\"{}\" is neither a flow nor function/NAME",
                    self.target
                )));
            }
        };
        let fuse = if self.fuse { "" } else { "?fuse=false" };
        let content_type = content_type(&self.image);
        Ok(
            Call::new(Method::POST, format!("/v1/{kind}/{}/runs{fuse}", encode(name)))
                .body(content_type, self.image)
                .header("idempotency-key", self.idempotency_key)
                .timeout(self.timeout),
        )
    }
}

/// A run that was asked for and is sure to come.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub enum Started {
    /// As it stands.
    Run(Box<RunState>),
    /// Its id: the platform has so much to do that it did not look at it yet.
    Asked {
        /// The id.
        run: RunId,
    },
}

impl Started {
    /// The id.
    #[must_use]
    pub fn run(&self) -> &RunId {
        match self {
            Self::Run(state) => &state.run,
            Self::Asked { run } => run,
        }
    }
}

impl Client {
    /// A client for the platform at `base`, such as `http://127.0.0.1:8000`.
    ///
    /// # Errors
    /// When the address is not an http URL.
    pub fn new(base: &str, key: Option<String>) -> Result<Self, CliError> {
        let uri: http::Uri = base
            .parse()
            .map_err(|e| CliError::Usage(format!("--server \"{base}\" is not a URL: {e}")))?;
        if uri.scheme_str() != Some("http") || uri.host().is_none() {
            return Err(CliError::Usage(format!(
                "--server \"{base}\" must be of the form http://HOST:PORT"
            )));
        }
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(Duration::from_secs(5)));
        connector.set_nodelay(true);
        connector.set_keepalive(Some(KEEPALIVE));
        connector.set_keepalive_interval(Some(KEEPALIVE_INTERVAL));
        connector.set_keepalive_retries(Some(KEEPALIVE_RETRIES));
        let http = Hyper::builder(TokioExecutor::new()).build(connector);
        Ok(Self {
            http,
            base: base.trim_end_matches('/').to_owned(),
            key,
        })
    }

    /// The base address.
    #[must_use]
    pub fn base(&self) -> &str {
        &self.base
    }

    /// Sends a request and gives the answer if it is a success.
    ///
    /// # Errors
    /// The problem in the answer, or why there is none.
    pub async fn send(&self, call: Call) -> Result<Response<Incoming>, CliError> {
        let patience = call.patience();
        let mut request = Request::builder()
            .method(call.method)
            .uri(format!("{}{}", self.base, call.path));
        if let Some(headers) = request.headers_mut() {
            *headers = call.headers;
            headers.insert(
                header::USER_AGENT,
                header::HeaderValue::from_static(concat!("imageflow/", env!("CARGO_PKG_VERSION"))),
            );
        }
        if let Some(key) = &self.key {
            request = request.header(header::AUTHORIZATION, format!("Bearer {key}"));
        }
        let request = request
            .body(Full::new(call.body))
            .map_err(|e| CliError::Usage(format!("cannot make a request of these arguments: {e}")))?;
        let answer = tokio::time::timeout(patience, self.http.request(request))
            .await
            .map_err(|_| CliError::Timeout {
                server: self.base.clone(),
                seconds: patience.as_secs(),
            })?
            .map_err(|e| self.unreachable(e))?;
        if answer.status().is_success() {
            Ok(answer)
        } else {
            Err(self.problem(answer).await)
        }
    }

    /// Sends a request and reads the whole answer.
    ///
    /// # Errors
    /// As [`Self::send`], or when the answer breaks off.
    pub async fn bytes(&self, call: Call) -> Result<(HeaderMap, Bytes), CliError> {
        let (head, body) = self.send(call).await?.into_parts();
        Ok((head.headers, self.collect(body).await?))
    }

    /// Sends a request and reads the answer as JSON; an empty answer is `null`.
    ///
    /// # Errors
    /// As [`Self::send`], or when the answer is not what was expected.
    pub async fn json<T: DeserializeOwned>(&self, call: Call) -> Result<T, CliError> {
        let (_, body) = self.bytes(call).await?;
        let text: &[u8] = if body.is_empty() { b"null" } else { &body };
        serde_json::from_slice(text).map_err(|e| self.protocol(format!("JSON that cannot be used: {e}")))
    }

    /// `GET` as JSON.
    ///
    /// # Errors
    /// As [`Self::json`].
    pub async fn get_json<T: DeserializeOwned>(&self, path: impl Into<String>) -> Result<T, CliError> {
        self.json(Call::new(Method::GET, path)).await
    }

    /// The items of a list.
    ///
    /// # Errors
    /// As [`Self::json`].
    pub async fn items(&self, path: impl Into<String>) -> Result<Vec<Value>, CliError> {
        match self.get_json::<Value>(path).await? {
            Value::Array(items) => Ok(items),
            Value::Object(mut object) => match object.remove("items") {
                Some(Value::Array(items)) => Ok(items),
                _ => Err(self.protocol("JSON without items".to_owned())),
            },
            _ => Err(self.protocol("JSON without items".to_owned())),
        }
    }

    /// The first items of a long list, from as many pages as it takes.
    ///
    /// # Errors
    /// As [`Self::json`].
    pub async fn pages(&self, path: &str, asked: &[(&str, Option<&str>)], most: usize) -> Result<Vec<Value>, CliError> {
        let (mut items, mut after) = (Vec::new(), None::<String>);
        loop {
            let page = (most - items.len()).min(PAGE).to_string();
            let place = [("limit", Some(page.as_str())), ("after", after.as_deref())];
            let mut answer: Value = self
                .get_json(format!("{path}{}", query(&[asked, &place].concat())))
                .await?;
            items.extend(taken(&mut answer, "items"));
            after = answer.get("next").and_then(Value::as_str).map(str::to_owned);
            if after.is_none() || items.len() >= most {
                return Ok(items);
            }
        }
    }

    /// Applies manifests (YAML or JSON); the outcome of each document.
    ///
    /// # Errors
    /// As [`Self::json`].
    pub async fn apply(&self, manifests: String, dry_run: bool) -> Result<Value, CliError> {
        let path = if dry_run { "/v1/apply?dryRun=true" } else { "/v1/apply" };
        self.json(Call::new(Method::POST, path).body("application/yaml", manifests))
            .await
    }

    /// Starts a run of an image.
    ///
    /// # Errors
    /// As [`Self::json`].
    pub async fn start_run(&self, new: NewRun<'_>) -> Result<Started, CliError> {
        self.json(new.call()?).await
    }

    /// A run as it is now.
    ///
    /// # Errors
    /// As [`Self::json`].
    pub async fn run(&self, id: &str) -> Result<RunState, CliError> {
        self.get_json(format!("/v1/runs/{}", encode(id))).await
    }

    /// A run as it changes; one that was asked for a moment ago is waited for.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub async fn watch_run(&self, id: &str) -> Result<Lines, CliError> {
        let path = format!("/v1/runs/{}?watch=true&wait={BEGIN}", encode(id));
        self.lines_of(Call::new(Method::GET, path).timeout(TIMEOUT + Duration::from_secs(BEGIN)))
            .await
    }

    /// The image a step of a run made.
    ///
    /// # Errors
    /// As [`Self::bytes`].
    pub async fn run_output(&self, id: &str, step: &str) -> Result<Bytes, CliError> {
        let path = format!("/v1/runs/{}/output/{}", encode(id), encode(step));
        Ok(self.bytes(Call::new(Method::GET, path)).await?.1)
    }

    /// A stream of newline-delimited JSON.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub async fn lines(&self, path: impl Into<String>) -> Result<Lines, CliError> {
        self.lines_of(Call::new(Method::GET, path)).await
    }

    async fn lines_of(&self, call: Call) -> Result<Lines, CliError> {
        let body = self.send(call).await?.into_body();
        Ok(Lines {
            body,
            buffer: BytesMut::new(),
            client: self.clone(),
        })
    }

    async fn collect(&self, body: Incoming) -> Result<Bytes, CliError> {
        let mut body = Limited::new(body, ANSWER_LIMIT);
        let mut bytes = BytesMut::new();
        loop {
            match tokio::time::timeout(SILENCE, body.frame()).await {
                Ok(Some(Ok(frame))) => {
                    if let Some(data) = frame.data_ref() {
                        bytes.extend_from_slice(data);
                    }
                }
                Ok(None) => return Ok(bytes.freeze()),
                Ok(Some(Err(e))) if e.is::<LengthLimitError>() => {
                    return Err(self.protocol(format!("more than {} MiB", ANSWER_LIMIT >> 20)));
                }
                Ok(Some(Err(e))) => return Err(self.cut(e.to_string())),
                Err(_) => return Err(self.cut(format!("nothing came for {} s", SILENCE.as_secs()))),
            }
        }
    }

    async fn problem(&self, answer: Response<Incoming>) -> CliError {
        let status = answer.status();
        let body = match self.collect(answer.into_body()).await {
            Ok(body) => body,
            Err(e) => return e,
        };
        if let Ok(problem) = serde_json::from_slice::<Problem>(&body) {
            return problem.into();
        }
        // Not ours: a proxy in between, or another program at that address.
        let code = ErrorCode::ALL.iter().find(|c| c.http() == status.as_u16()).copied();
        let text: String = String::from_utf8_lossy(&body).trim().chars().take(300).collect();
        let mut problem = Problem::new(code.unwrap_or(ErrorCode::Internal), format!("HTTP {status}: {text}"));
        problem.status = status.as_u16();
        problem.into()
    }

    fn unreachable(&self, e: hyper_util::client::legacy::Error) -> CliError {
        CliError::Unreachable {
            server: self.base.clone(),
            source: Box::new(e),
        }
    }

    /// An answer that did not come to its end.
    pub(crate) fn cut(&self, what: String) -> CliError {
        CliError::Cut {
            server: self.base.clone(),
            what,
        }
    }

    fn protocol(&self, what: String) -> CliError {
        CliError::Protocol {
            server: self.base.clone(),
            what,
        }
    }
}

/// A stream of JSON values, one a line.
#[derive(Debug)]
pub struct Lines {
    body: Incoming,
    buffer: BytesMut,
    client: Client,
}

impl Lines {
    /// The next value; none at the end of the stream.
    ///
    /// # Errors
    /// When the stream breaks off or a line is not what was expected.
    pub async fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, CliError> {
        loop {
            if let Some(end) = self.buffer.iter().position(|b| *b == b'\n') {
                let line = self.buffer.split_to(end);
                self.buffer.advance(1);
                if line.trim_ascii().is_empty() {
                    continue;
                }
                return self.parse(&line).map(Some);
            }
            if self.buffer.len() > LINE_LIMIT {
                return Err(self.client.protocol("a line without end".to_owned()));
            }
            match self.body.frame().await {
                Some(Ok(frame)) => {
                    if let Some(data) = frame.data_ref() {
                        self.buffer.extend_from_slice(data);
                    }
                }
                Some(Err(e)) => return Err(self.client.cut(e.to_string())),
                None if self.buffer.trim_ascii().is_empty() => return Ok(None),
                None => {
                    let line = self.buffer.split();
                    return self.parse(&line).map(Some);
                }
            }
        }
    }

    fn parse<T: DeserializeOwned>(&self, line: &[u8]) -> Result<T, CliError> {
        serde_json::from_slice(line).map_err(|e| self.client.protocol(format!("JSON that cannot be used: {e}")))
    }
}

/// The list in a field of an answer; an empty one when there is none.
#[must_use]
pub fn taken(answer: &mut Value, field: &str) -> Vec<Value> {
    match answer.get_mut(field).map(Value::take) {
        Some(Value::Array(list)) => list,
        _ => Vec::new(),
    }
}

/// The content type of an image by its first bytes.
#[must_use]
pub fn content_type(image: &[u8]) -> &'static str {
    match image {
        [0xff, 0xd8, 0xff, ..] => "image/jpeg",
        [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1a, b'\n', ..] => "image/png",
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => "image/webp",
        _ => "application/octet-stream",
    }
}

/// Percent-encodes one segment of a path, or a value of a query.
#[must_use]
pub fn encode(text: &str) -> String {
    use std::fmt::Write as _;
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            // Writing to a string cannot fail.
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

/// A query string of the pairs that have a value, with its `?`.
#[must_use]
pub fn query(pairs: &[(&str, Option<&str>)]) -> String {
    let pairs: Vec<String> = pairs
        .iter()
        .filter_map(|(k, v)| Some(format!("{}={}", encode(k), encode((*v)?))))
        .collect();
    if pairs.is_empty() {
        String::new()
    } else {
        format!("?{}", pairs.join("&"))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[test]
    fn images_are_told_by_their_first_bytes() {
        assert_eq!(content_type(b"\xff\xd8\xff\xe0"), "image/jpeg");
        assert_eq!(content_type(b"\x89PNG\r\n\x1a\n.."), "image/png");
        assert_eq!(content_type(b"RIFF....WEBPVP8 "), "image/webp");
        assert_eq!(content_type(b"GIF89a"), "application/octet-stream");
    }

    #[test]
    fn what_means_something_in_a_url_is_encoded() {
        assert_eq!(encode("a b/ü?"), "a%20b%2F%C3%BC%3F");
        assert_eq!(
            query(&[("flow", None), ("limit", Some("5")), ("k", Some("a&b"))]),
            "?limit=5&k=a%26b"
        );
        assert_eq!(query(&[("flow", None)]), "");
    }

    #[test]
    fn only_http_addresses_are_taken() {
        assert_eq!(Client::new("https://x", None).unwrap_err().exit_code(), 64);
        assert_eq!(Client::new("localhost:8000", None).unwrap_err().exit_code(), 64);
        assert_eq!(
            Client::new("http://localhost:8000/", None).unwrap().base(),
            "http://localhost:8000"
        );
    }

    #[test]
    fn a_body_has_the_time_that_the_platform_gives_it_unless_the_user_says_how_long() {
        let upload = Call::new(Method::POST, "/v1/images").body("image/jpeg", vec![0; 20 << 20]);
        assert_eq!(upload.patience(), TIMEOUT + Duration::from_secs(320));
        let run = NewRun {
            target: "thumbs",
            image: vec![0; 20 << 20].into(),
            idempotency_key: "k",
            fuse: true,
            timeout: Duration::from_secs(1800),
        };
        assert_eq!(run.call().unwrap().patience(), Duration::from_secs(1800));
    }

    #[tokio::test]
    async fn an_answer_that_goes_silent_is_given_up() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let client = Client::new(&base, None).unwrap();
        let begin = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            // An answer before its question would not be one.
            assert!(stream.read(&mut [0; 4096]).await.unwrap() > 0);
            let head = b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nsome";
            stream.write_all(head).await.unwrap();
            stream
        };
        let (answer, _stream) = tokio::join!(client.send(Call::new(Method::GET, "/v1/status")), begin);
        let body = answer.unwrap().into_body();
        tokio::time::pause();
        let error = client.collect(body).await.unwrap_err();
        assert!(matches!(&error, CliError::Cut { .. }), "{error}");
    }
}
