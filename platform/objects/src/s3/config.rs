//! Where an S3 server is, and how long and how often it is asked.
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use aws_sdk_s3 as sdk;
use aws_smithy_http_client::tls;
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use sdk::config::retry::{RetryConfig, RetryPartition, TokenBucket};
use sdk::config::timeout::TimeoutConfig;
use sdk::config::{Credentials, Region, RequestChecksumCalculation, ResponseChecksumValidation};

/// Larger objects go up in parts of this size.
const PART: usize = 8 << 20;
/// S3 takes no smaller part, but for the last.
const SMALLEST_PART: usize = 5 << 20;
/// Parts under way at a time: one upload holds one part more than this in memory.
const PARTS_IN_FLIGHT: usize = 3;
/// Of the tokens that the SDK takes for each retry (5, 10 after a time-out) and gives back for each success: this many
/// allow a hundred retries on end in all calls together. A server that is down is then asked once per call, not five times.
const RETRY_TOKENS: usize = 500;
/// Before the first retry a random part of this, before each further one of twice as much.
const FIRST_BACKOFF: Duration = Duration::from_millis(100);
const LONGEST_BACKOFF: Duration = Duration::from_secs(5);

/// Where an S3 server is and who we are there. Its debug text hides the secret.
#[derive(Clone)]
pub struct S3Config {
    /// `http://host:port` or `https://...`.
    pub endpoint: String,
    /// Region, for signatures.
    pub region: String,
    /// Access key.
    pub access_key: String,
    /// Secret key.
    pub secret_key: String,
    /// Whether the bucket stands in the path (as most servers other than AWS's want it) and not in the host name.
    pub path_style: bool,
    /// The authorities that are trusted, instead of the system's.
    pub ca: Option<CaBundle>,
    /// Objects larger than this are not read by `get`, which holds them in memory; `get_stream` has no limit.
    pub max_get_bytes: u64,
    /// Whether a CRC32 goes with what is written and is checked on what is read. Off for servers that refuse the headers.
    pub checksums: bool,
    /// Objects larger than this are written in parts of this size; at least 5 MiB.
    pub part_bytes: usize,
    /// Parts of one upload under way at a time, at least 1.
    pub parts_in_flight: usize,
    /// How long and how often the server is asked.
    pub budget: RetryBudget,
}

/// How long and how often a server is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetryBudget {
    /// Longest for a connection.
    pub connect: Duration,
    /// Longest for one attempt, and between two pieces of a body.
    pub attempt: Duration,
    /// Longest for one request with all its attempts and the waits between them.
    pub total: Duration,
    /// Most attempts of one request, at least 1; and most times that a body is asked for again from where it broke off.
    pub attempts: u32,
}

impl Default for RetryBudget {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(3),
            attempt: Duration::from_secs(30),
            total: Duration::from_secs(60),
            attempts: 5,
        }
    }
}

impl RetryBudget {
    /// The wait before a body is asked for again for the `nth` time, counted from 0.
    pub(super) fn pause(nth: u32) -> Duration {
        FIRST_BACKOFF.saturating_mul(1 << nth.min(16)).min(LONGEST_BACKOFF)
    }
}

impl S3Config {
    /// A server in the region `us-east-1`, path style, the system's authorities, objects of up to 256 MiB.
    pub fn new(endpoint: impl Into<String>, access_key: impl Into<String>, secret_key: impl Into<String>) -> Self {
        Self {
            endpoint: endpoint.into(),
            region: "us-east-1".to_owned(),
            access_key: access_key.into(),
            secret_key: secret_key.into(),
            path_style: true,
            ca: None,
            max_get_bytes: 256 << 20,
            checksums: true,
            part_bytes: PART,
            parts_in_flight: PARTS_IN_FLIGHT,
            budget: RetryBudget::default(),
        }
    }

    pub(super) fn credentials(&self) -> Credentials {
        Credentials::new(&self.access_key, &self.secret_key, None, None, "imageflow")
    }

    pub(super) fn part_size(&self) -> usize {
        self.part_bytes.max(SMALLEST_PART)
    }

    pub(super) fn client(&self) -> sdk::Client {
        let http = aws_smithy_http_client::Builder::new();
        let http = if self.endpoint.starts_with("https://") {
            let http = http.tls_provider(tls::Provider::Rustls(tls::rustls_provider::CryptoMode::Ring));
            match &self.ca {
                Some(ca) => http.tls_context(ca.context.clone()).build_https(),
                None => http.build_https(),
            }
        } else {
            http.build_http()
        };
        let timeouts = TimeoutConfig::builder()
            .connect_timeout(self.budget.connect)
            .operation_attempt_timeout(self.budget.attempt)
            .operation_timeout(self.budget.total)
            .build();
        let retries = RetryConfig::standard()
            .with_max_attempts(self.budget.attempts.max(1))
            .with_initial_backoff(FIRST_BACKOFF)
            .with_max_backoff(LONGEST_BACKOFF);
        // A bucket of tokens of its own: by default all S3 clients of a process share one, and then a server that is down
        // takes the retries of one that is not.
        let partition = RetryPartition::custom("imageflow")
            .token_bucket(TokenBucket::new(RETRY_TOKENS))
            .build();
        let (sent, checked) = if self.checksums {
            (
                RequestChecksumCalculation::WhenSupported,
                ResponseChecksumValidation::WhenSupported,
            )
        } else {
            (
                RequestChecksumCalculation::WhenRequired,
                ResponseChecksumValidation::WhenRequired,
            )
        };
        let conf = sdk::Config::builder()
            .behavior_version_latest()
            .http_client(http)
            .endpoint_url(&self.endpoint)
            .region(Region::new(self.region.clone()))
            .force_path_style(self.path_style)
            .request_checksum_calculation(sent)
            .response_checksum_validation(checked)
            .retry_config(retries)
            .retry_partition(partition)
            .timeout_config(timeouts)
            .credentials_provider(self.credentials())
            .build();
        sdk::Client::from_conf(conf)
    }
}

impl fmt::Debug for S3Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("S3Config")
            .field("endpoint", &self.endpoint)
            .field("region", &self.region)
            .finish_non_exhaustive()
    }
}

/// Certificates of authorities, each of which can be used.
#[derive(Clone)]
pub struct CaBundle {
    context: tls::TlsContext,
    certificates: usize,
}

/// Why a file of authorities cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// It cannot be read.
    #[error("the certificates of authorities in {} cannot be read", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It is not what it should be.
    #[error("{} has no usable certificates of authorities ({why}): give a PEM file with CERTIFICATE blocks", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
}

impl CaBundle {
    /// Reads a PEM file and checks each certificate: the TLS client would only panic on a bad one.
    ///
    /// # Errors
    /// When it cannot be read, holds no certificate or one that is none of an authority.
    pub fn read(path: impl AsRef<Path>) -> Result<Self, CaError> {
        let path = path.as_ref();
        let pem = std::fs::read(path).map_err(|source| CaError::Read {
            path: path.to_owned(),
            source,
        })?;
        let content = |why: String| CaError::Content {
            path: path.to_owned(),
            why,
        };
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(&pem) {
            let certificate = certificate.map_err(|e| content(e.to_string()))?;
            roots.add(certificate).map_err(|e| content(e.to_string()))?;
        }
        if roots.is_empty() {
            return Err(content("it has none".to_owned()));
        }
        let trust = tls::TrustStore::empty().with_pem_certificate(pem);
        let context = tls::TlsContext::builder().with_trust_store(trust).build();
        Ok(Self {
            context: context.map_err(|e| content(e.to_string()))?,
            certificates: roots.len(),
        })
    }
}

impl fmt::Debug for CaBundle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CaBundle")
            .field("certificates", &self.certificates)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_bundle_of_authorities_is_told_by_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ca.pem");
        assert!(matches!(CaBundle::read(&path), Err(CaError::Read { .. })));
        let garbled = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        for text in ["", "no pem", "-----BEGIN CERTIFICATE-----\nAAAA", garbled] {
            std::fs::write(&path, text).unwrap();
            let error = CaBundle::read(&path).unwrap_err();
            assert!(matches!(&error, CaError::Content { .. }), "{text:?}: {error}");
            assert!(error.to_string().contains("ca.pem"), "{error}");
        }
    }

    #[test]
    fn pauses_grow_and_end() {
        let pauses: Vec<_> = [0, 1, 5, 6, 40].map(|n| RetryBudget::pause(n).as_millis()).into();
        assert_eq!(pauses, [100, 200, 3200, 5000, 5000]);
    }

    #[test]
    fn what_waits_before_a_retry_is_the_budgets_and_not_the_sdks() {
        let client = S3Config::new("http://127.0.0.1:1", "key", "secret").client();
        let retries = client.config().retry_config().unwrap();
        assert_eq!(retries.initial_backoff(), Duration::from_millis(100));
        assert_eq!(retries.max_backoff(), Duration::from_secs(5));
        assert_eq!(retries.max_attempts(), 5);
    }
}
