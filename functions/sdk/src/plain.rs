//! Plain invocation: an image in the body, parameters in the query, the image back.
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::request::Parts;
use http::{Response, StatusCode};
use imageflow_types::{ErrorCode, Problem};

use crate::admission::Permit;
use crate::app::App;
use crate::function::{Call, Content};
use crate::query::params_from_query;
use crate::response::{self, Body};

pub(crate) async fn handle(app: &App, parts: &Parts, body: Bytes, permit: &Permit) -> Result<Response<Body>, Problem> {
    let content_type = media_type(parts)?;
    let query = parts.uri.query().unwrap_or_default();
    // The schema is made only when there is something to convert.
    let params = if query.is_empty() {
        serde_json::Map::new()
    } else {
        params_from_query(app.schema(), query)?
    };
    let call = Call {
        params: app.with_defaults(params),
        input: Some(Content {
            bytes: body,
            content_type,
        }),
        ..Call::default()
    };
    let done = app.execute(call, permit).await?;
    let timing = format!("function;dur={:.3}", done.service_ms());
    let mut response = match done.reply.output {
        Some(output) => response::full(StatusCode::OK, &output.content_type, output.bytes),
        None => response::json(StatusCode::OK, &done.reply.data),
    };
    if let Ok(value) = HeaderValue::try_from(timing) {
        response.headers_mut().insert("server-timing", value);
    }
    Ok(response)
}

fn media_type(parts: &Parts) -> Result<String, Problem> {
    let Some(value) = parts.headers.get(CONTENT_TYPE) else {
        return Ok("application/octet-stream".to_owned());
    };
    let text = value.to_str().unwrap_or_default();
    let essence = text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    if essence.starts_with("image/") || essence == "application/octet-stream" {
        return Ok(essence);
    }
    Err(Problem::new(
        ErrorCode::UnsupportedFormat,
        format!(
            "a body of type \"{essence}\" is not taken: send a CloudEvent, or the image itself as image/* or application/octet-stream"
        ),
    ))
}
