//! How handlers read what they are given.
use std::ops::RangeInclusive;

use bytes::Bytes;
use chrono::DateTime;
use http::HeaderMap;
use imageflow_events::ext::TRACEPARENT;
use imageflow_process::trace::onward;
use imageflow_types::names::nearest;
use imageflow_types::{ErrorCode, HumanDuration, Problem};
use serde::de::DeserializeOwned;
use tracing::Span;

/// Bytes after which a page of a list ends before its limit: a run or a dead letter may have 1 MiB.
pub const PAGE_BYTES: usize = 8 << 20;

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

/// Refuses a query that says what is not asked for, or the same twice: where it selects what is to be done, a slip in a name
/// would select everything.
pub fn only(raw: Option<&str>, names: &[&str]) -> Result<(), Problem> {
    let mut seen = Vec::new();
    for (name, _) in pairs(raw) {
        let fault = if !names.contains(&name.as_str()) {
            let near = nearest(&name, names.iter().copied());
            let hint = near.map_or_else(|| names.join(", "), |near| format!("did you mean \"{near}\"?"));
            format!("there is no query parameter \"{name}\" here: {hint}")
        } else if seen.contains(&name) {
            format!("the query parameter \"{name}\" stands there twice")
        } else {
            seen.push(name);
            continue;
        };
        return Err(Problem::new(ErrorCode::InvalidArgument, fault));
    }
    Ok(())
}

/// A time in the query, in ms since 1970: RFC 3339, or a duration before now.
pub fn time(raw: Option<&str>, name: &str, now_ms: i64) -> Result<Option<i64>, Problem> {
    let Some(text) = query(raw, name) else {
        return Ok(None);
    };
    let ago = text.parse::<HumanDuration>().ok();
    let ago = ago.map(|d| now_ms.saturating_sub_unsigned(d.as_millis()));
    let at = || DateTime::parse_from_rfc3339(&text).ok().map(|at| at.timestamp_millis());
    let Some(ms) = ago.or_else(at) else {
        let detail = format!(
            "{name}: \"{text}\" is no time: write it by RFC 3339, such as 2026-11-29T22:00:00Z (+ as %2B), or how long ago it is, such as 90m or 2h"
        );
        return Err(Problem::new(ErrorCode::InvalidArgument, detail));
    };
    Ok(Some(ms))
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

    #[test]
    fn times_are_points_or_so_long_ago() {
        let at = |text: &str| time(Some(&format!("since={text}")), "since", 10_000_000);
        assert_eq!(at("2h").unwrap(), Some(2_800_000));
        assert_eq!(at("1970-01-01T00:00:01.500Z").unwrap(), Some(1_500));
        assert_eq!(at("1970-01-01T01:00:00%2B01:00").unwrap(), Some(0));
        assert_eq!(time(Some("until=2h"), "since", 0).unwrap(), None);
        for bad in ["", "yesterday", "2", "2026-11-29", "1970-01-01T01:00:00+01:00"] {
            let detail = at(bad).unwrap_err().detail;
            assert!(
                detail.starts_with("since: ") && detail.contains("RFC 3339"),
                "{bad}: {detail}"
            );
        }
    }

    #[test]
    fn queries_say_nothing_that_is_not_asked() {
        let refused = |raw: &str| only(Some(raw), &["code", "since"]).unwrap_err().detail;
        assert!(only(Some("since=2h&code=a"), &["code", "since"]).is_ok());
        assert!(refused("cod=a").ends_with("did you mean \"code\"?"));
        assert!(refused("flow=a").ends_with("here: code, since"));
        assert!(refused("code=a&code=b").contains("twice"));
    }
}
