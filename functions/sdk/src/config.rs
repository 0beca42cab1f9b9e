//! The pod's environment.
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde_json::{Map, Value};
use url::Url;

use crate::Env;
use crate::error::ConfigError;

/// Most bytes of a request body, and of an object fetched, unless set: a 50-megapixel photograph has less.
const DEFAULT_MAX_BYTES: u64 = 64 * 1024 * 1024;

/// What a pod is told by its environment.
#[derive(Debug, Clone)]
pub struct Config {
    /// Address to listen on: `IMAGEFLOW_BIND` (0.0.0.0) and `PORT` (8080; 0 picks a free one).
    pub addr: SocketAddr,
    /// Name of the function: `IMAGEFLOW_FUNCTION` (`function`).
    pub function: String,
    /// Name of its revision: `IMAGEFLOW_REVISION` (empty).
    pub revision: String,
    /// Id of this pod: `IMAGEFLOW_POD` (empty).
    pub pod: String,
    /// Parameters that every call has unless it sets them: `IMAGEFLOW_PARAMS`, a JSON object.
    pub params: Map<String, Value>,
    /// Most calls at once: `IMAGEFLOW_CONCURRENCY_LIMIT` (4).
    pub concurrency_limit: u32,
    /// Time limit of a call, with fetching and storing: `IMAGEFLOW_TIMEOUT_MS` (30000).
    pub timeout: Duration,
    /// Most bytes of a body or an object: `IMAGEFLOW_MAX_BODY_BYTES` (64 MiB). What a step of the platform made for the next
    /// may have 192 MiB (50 megapixels that hardly compress) all the same.
    pub max_bytes: u64,
    /// How long a connection may be without a request, the first included: `IMAGEFLOW_IDLE_MS` (300000). Well above the idle
    /// limit of every client, so that the client closes first and no request meets a closing connection.
    pub idle: Duration,
    /// Where it says that it listens: `IMAGEFLOW_ANNOUNCE_URL` (nowhere) with `IMAGEFLOW_ANNOUNCE_KEY`.
    pub announce: Option<Announce>,
    /// Authorities that object stores are trusted by: the file of `SSL_CERT_FILE`, in PEM (those of the web).
    pub roots: Option<RootCertStore>,
    /// Where spans go: `OTEL_EXPORTER_OTLP_ENDPOINT` (nowhere).
    pub otlp_endpoint: Option<String>,
    /// What is logged: `IMAGEFLOW_LOG`, such as `info` or `warn,imageflow_sdk=debug` (`info`).
    pub log: String,
}

/// Where a pod says that it listens.
#[derive(Clone, PartialEq, Eq)]
pub struct Announce {
    /// `http://HOST:PORT`; each address of the host is told.
    pub url: Url,
    /// The key of the revision.
    pub key: String,
}

impl std::fmt::Debug for Announce {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Announce")
            .field("url", &self.url.as_str())
            .finish_non_exhaustive()
    }
}

impl Config {
    /// Reads and checks the environment.
    ///
    /// # Errors
    /// [`ConfigError`] naming the variable.
    pub fn from_env(env: Env<'_>) -> Result<Self, ConfigError> {
        let ip = parse(
            env,
            "IMAGEFLOW_BIND",
            IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            "is not an IP address",
        )?;
        let port = parse(env, "PORT", 8080_u16, "is not a port: write a number from 0 to 65535")?;
        let limit = parse(env, "IMAGEFLOW_CONCURRENCY_LIMIT", 4_u32, "is not a number")?;
        if !(1..=1024).contains(&limit) {
            return Err(fault(
                "IMAGEFLOW_CONCURRENCY_LIMIT",
                limit.to_string(),
                "is out of range: write 1 to 1024",
            ));
        }
        let params = match set(env, "IMAGEFLOW_PARAMS") {
            None => Map::new(),
            Some(text) => match serde_json::from_str(&text) {
                Ok(params) => params,
                Err(error) => {
                    return Err(fault(
                        "IMAGEFLOW_PARAMS",
                        text,
                        format!("is not a JSON object: {error}"),
                    ));
                }
            },
        };
        Ok(Self {
            addr: SocketAddr::new(ip, port),
            function: set(env, "IMAGEFLOW_FUNCTION").unwrap_or_else(|| "function".to_owned()),
            revision: set(env, "IMAGEFLOW_REVISION").unwrap_or_default(),
            pod: set(env, "IMAGEFLOW_POD").unwrap_or_default(),
            params,
            concurrency_limit: limit,
            timeout: milliseconds(env, "IMAGEFLOW_TIMEOUT_MS", 30_000)?,
            max_bytes: parse(
                env,
                "IMAGEFLOW_MAX_BODY_BYTES",
                DEFAULT_MAX_BYTES,
                "is not a number of bytes",
            )?,
            idle: milliseconds(env, "IMAGEFLOW_IDLE_MS", 300_000)?,
            announce: announce(env)?,
            roots: roots(env)?,
            otlp_endpoint: set(env, "OTEL_EXPORTER_OTLP_ENDPOINT"),
            log: set(env, "IMAGEFLOW_LOG").unwrap_or_else(|| "info".to_owned()),
        })
    }
}

fn announce(env: Env<'_>) -> Result<Option<Announce>, ConfigError> {
    const VARIABLE: &str = "IMAGEFLOW_ANNOUNCE_URL";
    let Some(text) = set(env, VARIABLE) else {
        return Ok(None);
    };
    match Url::parse(&text) {
        Ok(url) if url.scheme() == "http" && url.host().is_some() => {
            let key = set(env, "IMAGEFLOW_ANNOUNCE_KEY").unwrap_or_default();
            Ok(Some(Announce { url, key }))
        }
        _ => Err(fault(VARIABLE, text, "is not a URL such as http://imageflow-pods:7003")),
    }
}

/// Read at the start: a file that cannot be used is to be told before there is work.
fn roots(env: Env<'_>) -> Result<Option<RootCertStore>, ConfigError> {
    const VARIABLE: &str = "SSL_CERT_FILE";
    let Some(path) = set(env, VARIABLE) else {
        return Ok(None);
    };
    let read = || {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_file_iter(&path).map_err(|e| e.to_string())? {
            let certificate = certificate.map_err(|e| e.to_string())?;
            roots.add(certificate).map_err(|e| e.to_string())?;
        }
        match roots.is_empty() {
            true => Err("it has none".to_owned()),
            false => Ok(roots),
        }
    };
    read().map(Some).map_err(|why| {
        let why = format!("has no usable certificates of authorities ({why}): write the path of a PEM file");
        fault(VARIABLE, path.clone(), why)
    })
}

fn set(env: Env<'_>, variable: &str) -> Option<String> {
    env(variable).filter(|value| !value.is_empty())
}

fn parse<T: FromStr>(env: Env<'_>, variable: &'static str, default: T, why: &str) -> Result<T, ConfigError> {
    match set(env, variable) {
        None => Ok(default),
        Some(text) => text.trim().parse().map_err(|_| fault(variable, text, why)),
    }
}

fn milliseconds(env: Env<'_>, variable: &'static str, default: u64) -> Result<Duration, ConfigError> {
    match parse(env, variable, default, "is not a number of milliseconds")? {
        0 => Err(fault(variable, "0".into(), "leaves no time: write at least 1")),
        ms => Ok(Duration::from_millis(ms)),
    }
}

fn fault(variable: &'static str, value: String, why: impl Into<String>) -> ConfigError {
    ConfigError {
        variable,
        value,
        why: why.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_variable_is_named_with_its_value() {
        for (name, value) in [
            ("PORT", "eighty"),
            ("PORT", "70000"),
            ("IMAGEFLOW_BIND", "localhost"),
            ("IMAGEFLOW_CONCURRENCY_LIMIT", "0"),
            ("IMAGEFLOW_TIMEOUT_MS", "0"),
            ("IMAGEFLOW_IDLE_MS", "0"),
            ("IMAGEFLOW_IDLE_MS", "5 min"),
            ("IMAGEFLOW_PARAMS", "[1]"),
            ("IMAGEFLOW_MAX_BODY_BYTES", "-1"),
            ("IMAGEFLOW_ANNOUNCE_URL", "imageflow-pods:7003"),
            ("SSL_CERT_FILE", "/nowhere/ca.pem"),
            ("SSL_CERT_FILE", "/dev/null"),
        ] {
            let error = Config::from_env(&|asked| (asked == name).then(|| value.to_owned()))
                .unwrap_err()
                .to_string();
            assert!(error.contains(name) && error.contains(value), "{error}");
        }
    }

    #[test]
    fn an_empty_environment_gives_the_documented_defaults() {
        let config = Config::from_env(&|_| None).unwrap();
        assert_eq!(config.addr.to_string(), "0.0.0.0:8080");
        assert_eq!(
            (config.concurrency_limit, config.timeout.as_secs(), config.max_bytes),
            (4, 30, 64 << 20)
        );
        assert_eq!(config.idle.as_secs(), 300);
    }
}
