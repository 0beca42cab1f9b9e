//! How handlers read what they are given.
use std::ops::RangeInclusive;

use bytes::Bytes;
use http::HeaderMap;
use imageflow_events::ext::TRACEPARENT;
use imageflow_process::trace::onward;
use imageflow_types::{ErrorCode, Problem};
use serde::de::DeserializeOwned;
use tracing::Span;

/// A JSON body.
pub fn json<T: DeserializeOwned>(body: &Bytes) -> Result<T, Problem> {
    serde_json::from_slice(body).map_err(|e| {
        Problem::new(
            ErrorCode::InvalidArgument,
            format!("the body is not the JSON expected: {e}"),
        )
    })
}

/// One value of a query string.
pub fn query(query: Option<&str>, name: &str) -> Option<String> {
    pairs(query).into_iter().find(|(n, _)| n == name).map(|(_, v)| v)
}

/// All pairs of a query string, decoded.
pub fn pairs(query: Option<&str>) -> Vec<(String, String)> {
    let query = query.unwrap_or_default().split('&').filter(|p| !p.is_empty());
    query
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(name), decode(value))
        })
        .collect()
}

fn decode(text: &str) -> String {
    let bytes = text.replace('+', " ").into_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        let hex = bytes
            .get(i + 1..i + 3)
            .filter(|_| bytes[i] == b'%')
            .and_then(|h| std::str::from_utf8(h).ok());
        if let Some(byte) = hex.and_then(|h| u8::from_str_radix(h, 16).ok()) {
            out.push(byte);
            i += 3;
        } else {
            out.push(bytes[i]);
            i += 1;
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// A number in the query, within bounds.
pub fn number(raw: Option<&str>, name: &str, default: usize, bounds: RangeInclusive<usize>) -> Result<usize, Problem> {
    let Some(text) = query(raw, name) else {
        return Ok(default);
    };
    let value = text.parse().ok().filter(|n| bounds.contains(n));
    value.ok_or_else(|| {
        let (least, most) = bounds.into_inner();
        let detail = format!("{name}: \"{text}\" is not a number from {least} to {most}");
        Problem::new(ErrorCode::InvalidArgument, detail)
    })
}

/// A switch in the query: on when it is named, unless it says `false`.
pub fn flag(raw: Option<&str>, name: &str, default: bool) -> bool {
    query(raw, name).map_or(default, |v| v != "false")
}

/// A header that is text.
pub fn header<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    headers.get(name).and_then(|v| v.to_str().ok())
}

/// The caller's trace goes on; without one a trace begins here.
pub fn trace(headers: &HeaderMap) -> String {
    onward(&Span::current(), header(headers, TRACEPARENT)).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_decoded() {
        let found = pairs(Some("a=1&b=x%20y+z&c&%C3%BC=%zz"));
        let expected = [("a", "1"), ("b", "x y z"), ("c", ""), ("ü", "%zz")];
        assert_eq!(found, expected.map(|(n, v)| (n.to_owned(), v.to_owned())));
    }
}
