//! The error codes of the platform and their one table to HTTP, gRPC and retry.
use serde::{Deserialize, Serialize};

use crate::field::{FieldError, FieldErrors};

macro_rules! codes {
    ($($(#[$doc:meta])* $variant:ident, $slug:literal, $http:literal, $grpc:literal, $retry:literal;)*) => {
        /// What went wrong, in a set small enough to act on. Introduce a new one only when somebody must act differently.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "kebab-case")]
        pub enum ErrorCode { $($(#[$doc])* $variant,)* }

        impl ErrorCode {
            /// Every code, in the order of the table.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];
            /// The code in kebab case, as it stands in problem documents and dead letters.
            #[must_use]
            pub const fn slug(self) -> &'static str { match self { $(Self::$variant => $slug,)* } }
            /// The HTTP status.
            #[must_use]
            pub const fn http(self) -> u16 { match self { $(Self::$variant => $http,)* } }
            /// The gRPC status code (number).
            #[must_use]
            pub const fn grpc(self) -> i32 { match self { $(Self::$variant => $grpc,)* } }
            /// Whether the same request may succeed later.
            #[must_use]
            pub const fn retryable(self) -> bool { match self { $(Self::$variant => $retry,)* } }
        }
    };
}

codes! {
    /// A document, field or parameter is wrong.
    InvalidArgument, "invalid-argument", 400, 3, false;
    /// A CloudEvent that does not follow the specification.
    MalformedEvent, "malformed-event", 400, 3, false;
    /// The caller gave no key, or a wrong one.
    Unauthenticated, "unauthenticated", 401, 16, false;
    /// The caller's role, or the trigger, does not allow it.
    Forbidden, "forbidden", 403, 7, false;
    /// No such function, flow, run, object or route.
    NotFound, "not-found", 404, 5, false;
    /// The method is not one of the resource's.
    MethodNotAllowed, "method-not-allowed", 405, 12, false;
    /// It exists already, or changed meanwhile.
    Conflict, "conflict", 409, 10, false;
    /// The input object changed after the run was made.
    InputChanged, "input-changed", 412, 9, false;
    /// The body or picture is over the limit.
    TooLarge, "too-large", 413, 3, false;
    /// A picture format that cannot be read or written.
    UnsupportedFormat, "unsupported-format", 415, 3, false;
    /// The picture is corrupt or truncated, or the function cannot process it.
    Unprocessable, "unprocessable", 422, 3, false;
    /// Too much work is waiting; try again after the time given.
    Overloaded, "overloaded", 429, 8, true;
    /// A fault of ours.
    Internal, "internal", 500, 13, true;
    /// The function answered with a server error.
    FunctionFailed, "function-failed", 502, 14, true;
    /// The function's program could not be started.
    StartFailed, "start-failed", 503, 14, true;
    /// Not available now, for example while shutting down.
    Unavailable, "unavailable", 503, 14, true;
    /// The object store does not answer, or answers that it cannot now.
    StorageUnavailable, "storage-unavailable", 503, 14, true;
    /// It took longer than its timeout.
    Timeout, "timeout", 504, 4, true;
    /// No space is left for the event log or the object store.
    StorageFull, "storage-full", 507, 8, true;
    /// The run was cancelled.
    Cancelled, "cancelled", 499, 1, false;
}

/// An error as callers see it: RFC 9457 `application/problem+json`, and the text of the CLI.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// A stable reference for the kind of problem: `urn:imageflow:problem:<code>`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The code again, short.
    pub code: ErrorCode,
    /// One line for people.
    pub title: String,
    /// HTTP status.
    pub status: u16,
    /// What exactly was wrong and what to do.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
    /// The fields at fault.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<FieldError>,
    /// Seconds after which to try again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after: Option<u64>,
}

impl Problem {
    /// A problem with a code and what exactly was wrong.
    pub fn new(code: ErrorCode, detail: impl Into<String>) -> Self {
        Self {
            kind: format!("urn:imageflow:problem:{}", code.slug()),
            code,
            title: code.slug().replace('-', " "),
            status: code.http(),
            detail: detail.into(),
            errors: Vec::new(),
            retry_after: None,
        }
    }

    /// A name that is not there, with the nearest one that is.
    pub fn not_found<'a>(what: &str, name: &str, known: impl IntoIterator<Item = &'a str>) -> Self {
        let hint = match crate::names::nearest(name, known) {
            Some(near) => format!("; did you mean \"{near}\"?"),
            None => String::new(),
        };
        Self::new(ErrorCode::NotFound, format!("there is no {what} \"{name}\"{hint}"))
    }

    /// The same problem with a time after which to try again.
    #[must_use]
    pub fn retry_after(mut self, seconds: u64) -> Self {
        self.retry_after = Some(seconds);
        self
    }
}

impl From<FieldErrors> for Problem {
    fn from(errors: FieldErrors) -> Self {
        let mut problem = Self::new(ErrorCode::InvalidArgument, errors.to_string());
        problem.errors = errors.0;
        problem
    }
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.detail.is_empty() {
            f.write_str(&self.title)
        } else {
            f.write_str(&self.detail)
        }
    }
}

impl std::error::Error for Problem {}

/// Whether a function's HTTP answer asks for another attempt, by the Knative data-plane specification:
/// 404, 408, 409, 429 and all 5xx do, other 4xx do not.
#[must_use]
pub const fn http_status_retries(status: u16) -> bool {
    matches!(status, 404 | 408 | 409 | 429) || status >= 500
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_its_own_slug_and_an_error_status() {
        let mut slugs: Vec<_> = ErrorCode::ALL.iter().map(|c| c.slug()).collect();
        slugs.sort_unstable();
        slugs.dedup();
        assert_eq!(slugs.len(), ErrorCode::ALL.len());
        for code in ErrorCode::ALL {
            assert!((400..600).contains(&code.http()), "{code:?}");
            assert_eq!(serde_json::to_value(code).unwrap(), code.slug());
        }
    }

    #[test]
    fn the_status_table_is_knatives() {
        for status in [404, 408, 409, 429, 500, 502, 503, 504] {
            assert!(http_status_retries(status), "{status}");
        }
        for status in [200, 202, 400, 401, 403, 405, 410, 412, 413, 415, 422] {
            assert!(!http_status_retries(status), "{status}");
        }
    }
}
