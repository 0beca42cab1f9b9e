//! Signed URLs by the SDK's own signer. The SDK's `presigned()` goes through the whole pipeline of a request and costs some
//! 100 µs; every step of every run needs two or three of them.
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, SystemTime};

use aws_sdk_s3::config::Credentials;
use aws_sigv4::http_request::{
    PayloadChecksumKind, SignableBody, SignableRequest, SignatureLocation, SigningSettings, UriPathNormalizationMode,
    sign,
};
use aws_sigv4::sign::v4::SigningParams;

use crate::error::ObjectError;
use crate::names;
use crate::signed::SignedUrl;

/// S3 lets a signature live for a week.
const LONGEST: Duration = Duration::from_secs(7 * 24 * 3600);

#[derive(Debug, Clone)]
pub(crate) struct Presigner {
    pub(crate) endpoint: String,
    pub(crate) region: String,
    pub(crate) credentials: Credentials,
    pub(crate) path_style: bool,
}

impl Presigner {
    /// Signs a request without a body or with any body. `headers` must be sent as they are given.
    pub(crate) fn sign(
        &self,
        method: &str,
        (bucket, key): (&str, &str),
        headers: Vec<(String, String)>,
        now: SystemTime,
        life: Duration,
    ) -> Result<SignedUrl, ObjectError> {
        let mut settings = SigningSettings::default();
        settings.signature_location = SignatureLocation::QueryParams;
        settings.payload_checksum_kind = PayloadChecksumKind::NoHeader;
        settings.percent_encoding_mode = aws_sigv4::http_request::PercentEncodingMode::Single;
        settings.uri_path_normalization_mode = UriPathNormalizationMode::Disabled;
        settings.expires_in = Some(life.clamp(Duration::from_secs(1), LONGEST));
        let identity = self.credentials.clone().into();
        let params = SigningParams::builder()
            .identity(&identity)
            .region(&self.region)
            .name("s3")
            .time(now)
            .settings(settings)
            .build()
            .map_err(ObjectError::unavailable)?
            .into();
        let mut request = http::Request::builder()
            .method(method)
            .uri(self.url(bucket, key))
            .body(())
            .map_err(ObjectError::unavailable)?;
        let pairs = headers.iter().map(|(n, v)| (n.as_str(), v.as_str()));
        let signable = SignableRequest::new(method, request.uri().to_string(), pairs, SignableBody::UnsignedPayload)
            .map_err(ObjectError::unavailable)?;
        let (instructions, _) = sign(signable, &params).map_err(ObjectError::unavailable)?.into_parts();
        instructions.apply_to_request_http1x(&mut request);
        Ok(SignedUrl::new(request.uri().to_string(), method.to_owned(), headers))
    }

    fn url(&self, bucket: &str, key: &str) -> String {
        let endpoint = self.endpoint.trim_end_matches('/');
        let key = names::encode(key);
        // An address has no names below it, and a bucket with dots no certificate: the SDK too puts those into the path.
        match endpoint.split_once("://") {
            Some((scheme, host)) if !self.path_style && !bucket.contains('.') && !is_address(host) => {
                format!("{scheme}://{bucket}.{host}/{key}")
            }
            _ => format!("{endpoint}/{bucket}/{key}"),
        }
    }
}

fn is_address(host: &str) -> bool {
    host.parse::<IpAddr>().is_ok() || host.parse::<SocketAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    fn presigner(endpoint: &str, path_style: bool) -> Presigner {
        Presigner {
            endpoint: endpoint.into(),
            region: "us-east-1".into(),
            credentials: Credentials::new("access", "secret", None, None, "test"),
            path_style,
        }
    }

    /// The SDK's own presigned request is the peer: same parameters, same signature.
    #[tokio::test]
    async fn the_signature_is_the_one_that_the_sdk_gives() {
        let now = UNIX_EPOCH + Duration::from_secs(1_760_000_000);
        let life = Duration::from_secs(90);
        let local = "http://127.0.0.1:9000/";
        let hosts = [(local, true), (local, false), ("https://s3.example.org", false)];
        for (endpoint, path_style) in hosts {
            let ours = presigner(endpoint, path_style);
            let store = crate::S3Store::new(crate::S3Config {
                path_style,
                ..crate::S3Config::new(ours.endpoint.clone(), "access", "secret")
            });
            for key in ["a.jpg", "a b/ü+&=?#%41~_-.(x)!*'.png", "a//b", "../c"] {
                let sdk = aws_sdk_s3::presigning::PresigningConfig::builder()
                    .start_time(now)
                    .expires_in(life)
                    .build()
                    .unwrap();
                let request = store.client.get_object().bucket("raw").key(key).if_match("\"e\"");
                let theirs = request.presigned(sdk).await.unwrap();
                // The SDK names the operation in the URL, which no server reads.
                let theirs = theirs.uri().replace("x-id=GetObject&", "");
                let headers = vec![("if-match".to_owned(), "\"e\"".to_owned())];
                let ours = ours.sign("GET", ("raw", key), headers, now, life).unwrap();
                let bare = |url: &str| url.split("&X-Amz-Signature").next().unwrap().to_owned();
                assert_eq!(bare(ours.expose()), bare(&theirs), "{key}");
            }
        }
    }
}
