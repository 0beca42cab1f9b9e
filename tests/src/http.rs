//! A small client of the HTTP API.
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;
use tokio::time::MissedTickBehavior;

/// Longest that any call of a test may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// The API of one platform.
#[derive(Clone)]
pub struct Api {
    client: Client<HttpConnector, Full<Bytes>>,
    base: String,
}

impl Api {
    /// A client of the API at `base`.
    pub fn new(base: &str) -> Self {
        Self {
            client: Client::builder(TokioExecutor::new()).build(HttpConnector::new()),
            base: base.to_owned(),
        }
    }

    /// Sends a request; `None` when the server could not be reached or went away.
    pub async fn try_send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Option<Response<Bytes>> {
        let mut request = Request::builder().method(method).uri(format!("{}{path}", self.base));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(body.into())).expect("a request");
        let call = async {
            let response = self.client.request(request).await.ok()?;
            let (head, body) = response.into_parts();
            let body = body.collect().await.ok()?.to_bytes();
            Some(Response::from_parts(head, body))
        };
        tokio::time::timeout(PATIENCE, call)
            .await
            .expect("an answer within a minute")
    }

    /// Sends a request to a server that is there.
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Response<Bytes> {
        self.try_send(method, path, headers, body)
            .await
            .expect("the server answers")
    }

    /// GET of JSON; panics when the status is not 200.
    pub async fn get(&self, path: &str) -> Value {
        let response = self.send(Method::GET, path, &[], "").await;
        assert_eq!(
            response.status(),
            200,
            "GET {path}: {}",
            String::from_utf8_lossy(response.body())
        );
        json(&response)
    }

    /// Applies manifests; panics when they are refused.
    pub async fn apply(&self, yaml: &str) -> Value {
        let headers = [("content-type", "application/yaml")];
        let response = self.send(Method::POST, "/v1/apply", &headers, yaml.to_owned()).await;
        assert_eq!(
            response.status(),
            200,
            "apply: {}",
            String::from_utf8_lossy(response.body())
        );
        json(&response)
    }

    /// Asks again and again until `there` says so, at most a minute. For states that only polling can show.
    pub async fn until(&self, path: &str, there: impl Fn(&Value) -> bool) -> Value {
        self.until_within(PATIENCE, path, there).await
    }

    /// The same with another patience.
    pub async fn until_within(&self, patience: Duration, path: &str, there: impl Fn(&Value) -> bool) -> Value {
        let deadline = tokio::time::Instant::now() + patience;
        let mut ticks = tokio::time::interval(Duration::from_millis(20));
        // An answer that takes longer than that is not asked for again at once.
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let value = self.get(path).await;
            if there(&value) {
                return value;
            }
            assert!(tokio::time::Instant::now() < deadline, "{path} stayed {value}");
        }
    }
}

impl Api {
    /// The sum of a metric over the series whose labels hold all of `labels`, such as `status=\"succeeded\"`.
    pub async fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        let answer = self.send(Method::GET, "/metrics", &[], "").await;
        let text = String::from_utf8_lossy(answer.body()).into_owned();
        let series = text
            .lines()
            .filter_map(|line| line.strip_prefix(name)?.rsplit_once(' '));
        series
            .filter(|(with, _)| (with.is_empty() || with.starts_with('{')) && labels.iter().all(|l| with.contains(l)))
            .filter_map(|(_, value)| value.parse::<f64>().ok())
            .sum()
    }
}

/// The body as JSON.
pub fn json(response: &Response<Bytes>) -> Value {
    serde_json::from_slice(response.body())
        .unwrap_or_else(|e| panic!("{e} in {}", String::from_utf8_lossy(response.body())))
}
