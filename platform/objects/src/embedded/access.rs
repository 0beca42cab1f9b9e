//! What a signature must cover.
use s3s::access::{S3Access, S3AccessContext};
use s3s::{S3Result, s3_error};

/// Refuses requests without a signature, and those with `x-amz-` headers that the signature does not cover. Without the
/// latter, who holds a signed URL for one PUT could add `x-amz-copy-source` and read any object with it.
pub struct SignedHeaders;

/// These change nothing of what a request does.
const HARMLESS: [&str; 3] = ["x-amz-content-sha256", "x-amz-date", "x-amz-user-agent"];

#[async_trait::async_trait]
impl S3Access for SignedHeaders {
    async fn check(&self, cx: &mut S3AccessContext<'_>) -> S3Result<()> {
        if cx.credentials().is_none() {
            return Err(s3_error!(AccessDenied, "a signature is required"));
        }
        let authorization = cx.headers().get("authorization").and_then(|v| v.to_str().ok());
        // Version 2 signatures cover all of these headers by themselves.
        let Some(signed) = covered(authorization, cx.uri().query()) else { return Ok(()) };
        let names = cx.headers().keys().map(http::HeaderName::as_str);
        let mut loose = names.filter(|n| n.starts_with("x-amz-") && !HARMLESS.contains(n));
        match loose.find(|name| !signed.split(';').any(|s| s.eq_ignore_ascii_case(name))) {
            Some(_) => Err(s3_error!(AccessDenied, "there were headers present in the request which were not signed")),
            None => Ok(()),
        }
    }
}

/// The names of the headers that a version 4 signature covers, with `;` between them.
fn covered(authorization: Option<&str>, query: Option<&str>) -> Option<String> {
    if let Some(authorization) = authorization {
        let rest = authorization.split_once("SignedHeaders=")?.1;
        return Some(rest.split([',', ' ']).next().unwrap_or_default().to_owned());
    }
    let pairs = query?.split('&').filter_map(|pair| pair.split_once('='));
    let value = pairs.into_iter().find(|(name, _)| name.eq_ignore_ascii_case("X-Amz-SignedHeaders"))?.1;
    Some(value.replace("%3B", ";").replace("%3b", ";"))
}

#[cfg(test)]
mod tests {
    use super::covered;

    #[test]
    fn the_covered_headers_are_found_in_both_places() {
        let header = "AWS4-HMAC-SHA256 Credential=k/20260101/r/s3/aws4_request, SignedHeaders=host;x-amz-date, Signature=0";
        assert_eq!(covered(Some(header), None).as_deref(), Some("host;x-amz-date"));
        assert_eq!(covered(None, Some("a=b&X-Amz-SignedHeaders=host%3Bif-match")).as_deref(), Some("host;if-match"));
        assert_eq!(covered(None, Some("AWSAccessKeyId=k")), None);
    }
}
