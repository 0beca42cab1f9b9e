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
        let lists = [in_header(authorization), in_query(cx.uri().query())];
        let covers = |list: &String, name: &str| list.split(';').any(|signed| signed.eq_ignore_ascii_case(name));
        let mut names = cx.headers().keys().map(http::HeaderName::as_str);
        // Both lists count when both are there: which of the signatures was checked is not ours to know. Version 2
        // signatures have no list, they cover all of these headers by themselves.
        let loose = |name: &str| {
            name.starts_with("x-amz-") && !HARMLESS.contains(&name) && lists.iter().flatten().any(|l| !covers(l, name))
        };
        if names.any(loose) {
            return Err(s3_error!(
                AccessDenied,
                "there were headers present in the request which were not signed"
            ));
        }
        Ok(())
    }
}

/// The names of the headers that the signature in the header covers, with `;` between them.
fn in_header(authorization: Option<&str>) -> Option<String> {
    let rest = authorization?.split_once("SignedHeaders=")?.1;
    Some(rest.split([',', ' ']).next().unwrap_or_default().to_owned())
}

/// The same of the signature in the URL.
fn in_query(query: Option<&str>) -> Option<String> {
    let mut pairs = query?.split('&').filter_map(|pair| pair.split_once('='));
    let value = pairs
        .find(|(name, _)| name.eq_ignore_ascii_case("X-Amz-SignedHeaders"))?
        .1;
    Some(value.replace("%3B", ";").replace("%3b", ";"))
}

#[cfg(test)]
mod tests {
    use super::{in_header, in_query};

    #[test]
    fn the_covered_headers_are_found_in_both_places() {
        let header =
            "AWS4-HMAC-SHA256 Credential=k/20260101/r/s3/aws4_request, SignedHeaders=host;x-amz-date, Signature=0";
        assert_eq!(in_header(Some(header)).as_deref(), Some("host;x-amz-date"));
        assert_eq!(
            in_query(Some("a=b&X-Amz-SignedHeaders=host%3Bif-match")).as_deref(),
            Some("host;if-match")
        );
        assert_eq!(in_query(Some("AWSAccessKeyId=k")), None);
    }
}
