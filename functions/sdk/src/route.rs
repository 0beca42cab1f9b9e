//! From a request to what answers it.
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body::Body as _;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use imageflow_types::{ErrorCode, Problem};
use tonic::service::Routes;
use tower::ServiceExt;
use tracing::Instrument;

use crate::admission::Permit;
use crate::app::App;
use crate::event::Attributes;
use crate::intake::{Admitted, Intake};
use crate::response::{self, Body};
use crate::transfer::{ReadError, read_limited, too_large};
use crate::{event, grpc, plain, telemetry};

pub(crate) async fn route(
    app: Arc<App>,
    services: Routes,
    request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    if is_grpc(request.headers()) {
        return match request.uri().path() {
            grpc::PROCESS => process(&app, services, request).await,
            grpc::PROCESS_STREAM => {
                let admitted = Admitted::default();
                let mut request = request.map(|body| Body::new(Intake::new(body, Arc::clone(&app), admitted.clone())));
                request.extensions_mut().insert(admitted);
                services.oneshot(request).await
            }
            _ => services.oneshot(request.map(Body::new)).await,
        };
    }
    let get = matches!(*request.method(), Method::GET | Method::HEAD);
    Ok(match (request.uri().path(), get) {
        ("/", false) if request.method() == Method::POST => invoke(&app, request).await,
        ("/healthz/live", true) => response::full(StatusCode::OK, "text/plain", "live"),
        ("/healthz/ready", true) if app.admission.is_draining() => {
            response::full(StatusCode::SERVICE_UNAVAILABLE, "text/plain", "draining")
        }
        ("/healthz/ready", true) => response::full(StatusCode::OK, "text/plain", "ready"),
        ("/metrics", true) => {
            let text = app.metrics.render(app.admission.in_flight());
            response::full(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", text)
        }
        ("/schema", true) => response::json(StatusCode::OK, app.schema()),
        ("/", _) => not_allowed("POST"),
        ("/healthz/live" | "/healthz/ready" | "/metrics" | "/schema", _) => not_allowed("GET"),
        (path, _) => {
            let known = ["/", "/healthz/live", "/healthz/ready", "/metrics", "/schema"];
            // 404 asks for another attempt by the Knative table, so a wrong path is told apart by its problem only.
            response::problem(&Problem::not_found("route", path, known))
        }
    })
}

/// One resident call. It is admitted before its message is read: five bytes announce how much memory the message gets.
async fn process(app: &Arc<App>, services: Routes, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    let permit = match app.admission.try_admit() {
        Ok(permit) => permit,
        Err(refusal) => {
            app.metrics.refused(refusal.reason());
            return Ok(grpc::refused(refusal).into_http());
        }
    };
    let started = Instant::now();
    let mut request = request.map(Body::new);
    request.extensions_mut().insert(permit);
    let answered = tokio::time::timeout(app.config.timeout, services.oneshot(request)).await;
    answered.unwrap_or_else(|_| {
        let problem = grpc::timed_out();
        app.metrics.ended(problem.code.slug(), started.elapsed());
        Ok(grpc::status(&problem).into_http())
    })
}

fn is_grpc(headers: &HeaderMap) -> bool {
    headers
        .get(CONTENT_TYPE)
        .is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}

fn not_allowed(allow: &'static str) -> Response<Body> {
    let mut response = response::problem(&Problem::new(
        ErrorCode::MethodNotAllowed,
        format!("use {allow} with this path"),
    ));
    response.headers_mut().insert(ALLOW, HeaderValue::from_static(allow));
    response
}

async fn invoke(app: &Arc<App>, request: Request<Incoming>) -> Response<Body> {
    let permit = match app.admission.try_admit() {
        Ok(permit) => permit,
        Err(refusal) => {
            app.metrics.refused(refusal.reason());
            discard(request.into_body()).await;
            return response::refused(refusal);
        }
    };
    let started = Instant::now();
    let answer = match tokio::time::timeout(app.config.timeout, work(app, request, &permit)).await {
        Ok(answer) => answer,
        Err(_) => Err(Problem::new(
            ErrorCode::Timeout,
            format!("the call took longer than its {} ms", app.config.timeout.as_millis()),
        )),
    };
    let (outcome, response) = match answer {
        Ok(response) => ("ok", response),
        Err(problem) => {
            tracing::info!(code = problem.code.slug(), detail = %problem, "call failed");
            (problem.code.slug(), response::problem(&problem))
        }
    };
    app.metrics.ended(outcome, started.elapsed());
    response
}

async fn work(app: &Arc<App>, request: Request<Incoming>, permit: &Permit) -> Result<Response<Body>, Problem> {
    let (parts, body) = request.into_parts();
    let body = read_limited(body, app.config.max_bytes)
        .await
        .map_err(|error| match error {
            ReadError::TooLarge => too_large("the body", app.config.max_bytes),
            ReadError::Broken(error) => Problem::new(
                ErrorCode::InvalidArgument,
                format!("the body could not be read whole: {error}"),
            ),
        })?;
    let span = telemetry::request_span(&app.config);
    let headers = &parts.headers;
    let traced = |event: &Attributes<'_>| {
        telemetry::continue_trace(&span, telemetry::header_trace(headers).or_else(|| event.trace()));
    };
    if event::is_step(headers, &body) {
        traced(&Attributes::Headers(headers));
        event::handle_step(app, headers, &body, permit).instrument(span).await
    } else if imageflow_events::http::mode(headers).is_some() {
        let event = event::read(headers, &body)?;
        traced(&Attributes::Event(&event));
        event::handle(app, event, permit).instrument(span).await
    } else {
        telemetry::continue_trace(&span, telemetry::header_trace(headers));
        plain::handle(app, &parts, body, permit).instrument(span).await
    }
}

/// Reads what is left of a refused body, within reason: a sender that is cut off while it writes does not see the answer.
async fn discard(mut body: Incoming) {
    const MOST: u64 = 4 * 1024 * 1024;
    const LONGEST: Duration = Duration::from_secs(1);
    if body.size_hint().lower() > MOST {
        return;
    }
    // Nothing of it is kept: refusing must cost less than the work.
    let reading = async {
        let mut read = 0;
        while let Some(Ok(frame)) = body.frame().await {
            read += frame.data_ref().map_or(0, |data| data.len() as u64);
            if read > MOST {
                break;
            }
        }
    };
    let _ = tokio::time::timeout(LONGEST, reading).await;
}
