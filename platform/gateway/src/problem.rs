//! Problems as answers.
use axum::response::{IntoResponse, Response};
use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, StatusCode};
use imageflow_objects::ObjectError;
use imageflow_types::{ErrorCode, Problem};

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
        ObjectError::InvalidName { .. } | ObjectError::Refused { .. } => ErrorCode::InvalidArgument,
        ObjectError::Unavailable { .. } => ErrorCode::Unavailable,
    };
    Problem::new(code, error.to_string())
}
