//! What a signature must cover.
use http::{HeaderMap, HeaderName};
use s3s::access::{S3Access, S3AccessContext};
use s3s::{S3Result, s3_error};

use crate::names;

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
        if covered(cx.headers(), cx.uri().query().unwrap_or_default()) {
            return Ok(());
        }
        Err(s3_error!(
            AccessDenied,
            "there were headers present in the request which were not signed"
        ))
    }
}

/// Whether the signature, which is right, covers all headers that it must.
fn covered(headers: &HeaderMap, query: &str) -> bool {
    let authorization = headers.get("authorization").and_then(|v| v.to_str().ok());
    let (mut lists, mut second_version) = (Vec::new(), authorization.is_some_and(|v| v.starts_with("AWS ")));
    lists.extend(authorization.and_then(in_header));
    for (name, value) in parameters(query) {
        if name.eq_ignore_ascii_case("X-Amz-SignedHeaders") {
            lists.push(value);
        } else if name == "AWSAccessKeyId" {
            second_version = true;
        }
    }
    // All lists count when there are more: which of the signatures was checked is not ours to know. Version 2 signatures
    // have no list, they cover all of these headers by themselves.
    let in_list = |list: &String, name: &str| list.split(';').any(|signed| signed.eq_ignore_ascii_case(name));
    let in_all = |name: &str| (second_version || !lists.is_empty()) && lists.iter().all(|list| in_list(list, name));
    headers
        .keys()
        .map(HeaderName::as_str)
        .filter(|name| name.starts_with("x-amz-") && !HARMLESS.contains(name))
        .all(in_all)
}

/// The names of the headers that the signature in the header covers, with `;` between them.
fn in_header(authorization: &str) -> Option<String> {
    let rest = authorization.split_once("SignedHeaders=")?.1;
    Some(rest.split([',', ' ']).next().unwrap_or_default().to_owned())
}

/// The parameters of a URL, names and values decoded as s3s does: it knows a name in whatever way it is written.
fn parameters(query: &str) -> impl Iterator<Item = (String, String)> {
    query.split('&').map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        (names::decode_text(name), names::decode_text(value))
    })
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderName};

    use super::covered;

    const COPY: &str = "x-amz-copy-source";

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let pairs = pairs.iter().map(|(name, value)| {
            let name = HeaderName::from_static(name);
            (name, value.parse().unwrap())
        });
        pairs.collect()
    }

    #[test]
    fn a_header_counts_as_signed_when_the_signature_names_it() {
        let signed = "AWS4-HMAC-SHA256 Credential=k/20260101/r/s3/aws4_request, \
             SignedHeaders=host;x-amz-meta-run;x-amz-copy-source, Signature=0";
        let other = "AWS4-HMAC-SHA256 Credential=k/20260101/r/s3/aws4_request,SignedHeaders=host,Signature=0";
        for (authorization, expected) in [(signed, true), (other, false)] {
            let headers = headers(&[("authorization", authorization), (COPY, "/b/k"), ("x-amz-date", "0")]);
            assert_eq!(covered(&headers, ""), expected, "{authorization}");
        }
        let both = headers(&[("authorization", signed), (COPY, "/b/k")]);
        assert!(
            !covered(&both, "X-Amz-SignedHeaders=host"),
            "both signatures must name it"
        );
    }

    #[test]
    fn the_list_in_a_url_is_found_however_its_name_is_written() {
        let copy = headers(&[("host", "h"), (COPY, "/b/k")]);
        for name in [
            "X-Amz-SignedHeaders",
            "X%2DAmz-SignedHeaders",
            "X%2damz%2DSigned%48eaders",
            "%58-Amz-SignedHeaders",
            "x-amz-signedheaders",
        ] {
            let query = |list: &str| format!("a=b&{name}={list}&c");
            assert!(!covered(&copy, &query("host")), "{name}");
            assert!(!covered(&copy, &query("host%3Bif-match")), "{name}");
            assert!(covered(&copy, &query("host;x-amz-copy-source")), "{name}");
            assert!(covered(&copy, &query("host%3bx%2Damz-copy-source")), "{name}");
            assert!(covered(&headers(&[("host", "h")]), &query("host")), "{name}");
        }
        assert!(
            !covered(
                &copy,
                "X-Amz-SignedHeaders=x-amz-copy-source&X%2DAmz-SignedHeaders=host"
            ),
            "every one of them counts"
        );
    }

    #[test]
    fn without_a_list_only_a_version_2_signature_covers_these_headers() {
        let copy = headers(&[(COPY, "/b/k")]);
        assert!(!covered(&copy, ""));
        assert!(!covered(&copy, "X-Amz-Signature=0"));
        assert!(covered(&copy, "AWSAccessKeyId=k&Expires=1&Signature=s"));
        let second = headers(&[("authorization", "AWS k:s"), (COPY, "/b/k")]);
        assert!(covered(&second, ""));
        assert!(!covered(&second, "X-Amz-SignedHeaders=host"));
        assert!(
            covered(&headers(&[("x-amz-date", "0")]), ""),
            "what is harmless needs no list"
        );
    }
}
