//! Problems as answers, and how handlers read what they are given.
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, StatusCode};
use imageflow_objects::ObjectError;
use imageflow_types::{ErrorCode, Problem};
use serde::de::DeserializeOwned;

/// A problem as an answer: RFC 9457.
pub struct Refused(pub Problem);

impl From<Problem> for Refused {
    fn from(problem: Problem) -> Self {
        Self(problem)
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let body = serde_json::to_vec(&self.0).unwrap_or_default();
        let mut response = (status, body).into_response();
        response
            .headers_mut()
            .insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if let Some(seconds) = self.0.retry_after {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

/// What handlers return.
pub type Answer<T = Response> = Result<T, Refused>;

/// An error of the object store as callers see it.
pub fn object_problem(error: &ObjectError) -> Problem {
    let code = match error {
        ObjectError::NoSuchKey { .. } | ObjectError::NoSuchBucket { .. } => ErrorCode::NotFound,
        ObjectError::AlreadyExists { .. } => ErrorCode::Conflict,
        ObjectError::PreconditionFailed { .. } => ErrorCode::InputChanged,
        ObjectError::AccessDenied { .. } => ErrorCode::Forbidden,
        ObjectError::Full => ErrorCode::StorageFull,
        ObjectError::TooLarge => ErrorCode::TooLarge,
        ObjectError::InvalidName { .. } => ErrorCode::InvalidArgument,
        ObjectError::Unavailable { .. } => ErrorCode::Unavailable,
    };
    Problem::new(code, error.to_string())
}

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
pub fn number(query_string: Option<&str>, name: &str, default: usize, most: usize) -> Result<usize, Problem> {
    let Some(text) = query(query_string, name) else {
        return Ok(default);
    };
    let fault = || {
        Problem::new(
            ErrorCode::InvalidArgument,
            format!("{name}: \"{text}\" is not a number from 1 to {most}"),
        )
    };
    let value: usize = text.parse().map_err(|_| fault())?;
    if (1..=most).contains(&value) {
        Ok(value)
    } else {
        Err(fault())
    }
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
