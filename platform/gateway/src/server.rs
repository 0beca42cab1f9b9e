//! Routes, what stands before every one of them, and the server.
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{DefaultBodyLimit, MatchedPath, Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use http::header::{CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use http::{Method, StatusCode};
use imageflow_events::ext::TRACEPARENT;
use imageflow_process::trace;
use imageflow_types::{ErrorCode, Problem};
use tokio::net::TcpListener;
use tracing::{Instrument, Span};

use crate::auth::{AuthError, needed};
use crate::bodies;
use crate::connections::{self, HttpLimits};
use crate::problem::Refused;
use crate::read::header;
use crate::reconcile::Reconciler;
use crate::state::Gateway;
use crate::{
    apply, dead_letters, events, functions, images, invoke, logs, reconcile, runs, scaling, start_run, status,
};

/// Why the gateway could not serve.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// The listener is not allowed.
    #[error(transparent)]
    Auth(#[from] AuthError),
    /// The listener failed.
    #[error("the API cannot be served: {0}")]
    Listen(#[from] std::io::Error),
}

fn router(gateway: &Arc<Gateway>, limits: HttpLimits) -> Router {
    let api = Router::new()
        .route("/v1/apply", post(apply::apply))
        .route("/v1/functions", get(functions::list))
        .route(
            "/v1/functions/{name}",
            get(functions::get)
                .put(apply::put_function)
                .delete(apply::delete_function),
        )
        .route("/v1/functions/{name}/rollback", post(apply::rollback))
        .route("/v1/functions/{name}/invoke", post(invoke::invoke))
        .route("/v1/functions/{name}/runs", post(start_run::function))
        .route("/v1/functions/{name}/logs", get(logs::get))
        .route("/v1/flows", get(functions::flows))
        .route(
            "/v1/flows/{name}",
            get(functions::flow).put(apply::put_flow).delete(apply::delete_flow),
        )
        .route("/v1/flows/{name}/runs", post(start_run::flow))
        .route("/v1/triggers", get(functions::triggers))
        .route(
            "/v1/triggers/{name}",
            get(functions::trigger)
                .put(apply::put_trigger)
                .delete(apply::delete_trigger),
        )
        .route("/v1/operations", get(functions::operations))
        .route("/v1/runs", get(runs::list))
        .route("/v1/runs/{id}", get(runs::get))
        .route("/v1/runs/{id}/cancel", post(runs::cancel))
        .route("/v1/runs/{id}/output", get(runs::output))
        .route("/v1/runs/{id}/output/{step}", get(runs::step_output))
        .route("/v1/images", get(images::list).post(images::upload))
        .route("/v1/images/{bucket}/{*key}", get(images::get).delete(images::delete))
        .route("/v1/buckets/{bucket}/reconcile", post(reconcile::post))
        .route("/v1/events", post(events::post))
        .route("/v1/dead-letters", get(dead_letters::list))
        .route("/v1/dead-letters/replay", post(dead_letters::replay_all))
        .route("/v1/dead-letters/{id}", get(dead_letters::get))
        .route("/v1/dead-letters/{id}/replay", post(dead_letters::replay))
        .route("/v1/scaling", get(scaling::list))
        .route("/v1/scaling/{function}", get(scaling::get))
        .route("/v1/status", get(status::get))
        .route_layer(from_fn_with_state(gateway.clone(), allowed));
    Router::new()
        .merge(api)
        .route("/healthz/live", get(status::live))
        .route("/healthz/ready", get(status::ready))
        .route("/metrics", get(status::metrics))
        .fallback(unknown)
        .method_not_allowed_fallback(wrong_method)
        .layer(DefaultBodyLimit::max(gateway.config.max_body_bytes))
        .layer(from_fn_with_state((gateway.clone(), limits), bodies::reserved))
        .layer(from_fn_with_state(gateway.clone(), around))
        .with_state(gateway.clone())
}

async fn unknown(request: Request) -> Refused {
    let detail = format!("there is nothing at {}; the API is under /v1", request.uri().path());
    Problem::new(ErrorCode::NotFound, detail).into()
}

async fn wrong_method(request: Request) -> Refused {
    let detail = format!("{} is not a method of {}", request.method(), request.uri().path());
    Problem::new(ErrorCode::MethodNotAllowed, detail).into()
}

/// Who asks, and whether they may.
async fn allowed(State(gateway): State<Arc<Gateway>>, request: Request, next: Next) -> Response {
    let role = match gateway.config.auth.role(request.headers()) {
        Ok(role) => role,
        Err(problem) => return Refused(problem).into_response(),
    };
    let needed = needed(request.method(), request.uri().path());
    if role < needed {
        let detail = format!("this needs the role {needed:?}, the key has {role:?}");
        return Refused(Problem::new(ErrorCode::Forbidden, detail)).into_response();
    }
    next.run(request).await
}

/// A method as a label. Callers can make methods up, and every label is kept for good.
fn label(method: &Method) -> &'static str {
    const KNOWN: [Method; 7] = [
        Method::GET,
        Method::HEAD,
        Method::POST,
        Method::PUT,
        Method::DELETE,
        Method::PATCH,
        Method::OPTIONS,
    ];
    const NAMES: [&str; 7] = ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"];
    KNOWN
        .iter()
        .position(|known| known == method)
        .map_or("other", |at| NAMES[at])
}

/// The span of a request that may cause work; it goes on with the caller's trace. Who only looks leaves none.
fn span(request: &Request, method: &'static str, route: &str) -> Span {
    if request.method() != Method::POST {
        return Span::none();
    }
    let span = tracing::info_span!("api", otel.name = format!("{method} {route}"), otel.kind = "server");
    trace::continue_from(&span, header(request.headers(), TRACEPARENT));
    span
}

/// What callers put and pods answer has the media type that they say, and comes from the origin of the API: opened in a browser it
/// must run nothing there. Pages that show it as an image do not mind.
fn inert(response: &mut Response) {
    let headers = response.headers_mut();
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    let policy = HeaderValue::from_static("sandbox; default-src 'none'");
    headers.insert(CONTENT_SECURITY_POLICY, policy);
}

/// Counts and times every request, and makes a problem document of what the framework refuses by itself.
async fn around(State(gateway): State<Arc<Gateway>>, request: Request, next: Next) -> Response {
    let begun = Instant::now();
    let method = label(request.method());
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map_or("none", MatchedPath::as_str)
        .to_owned();
    let span = span(&request, method, &route);
    let mut response = next.run(request).instrument(span).await;
    inert(&mut response);
    let status = response.status();
    metrics::counter!("imageflow_api_requests_total", "route" => route.clone(), "method" => method, "status" => status.as_u16().to_string()).increment(1);
    metrics::histogram!("imageflow_api_request_seconds", "route" => route).record(begun.elapsed().as_secs_f64());
    if response.extensions().get::<invoke::FromPod>().is_some() {
        return response;
    }
    let plain = response
        .headers()
        .get(CONTENT_TYPE)
        .is_none_or(|t| t.as_bytes().starts_with(b"text/plain"));
    if status == StatusCode::PAYLOAD_TOO_LARGE && plain {
        let detail = format!("the body is over the limit of {} bytes", gateway.config.max_body_bytes);
        return Refused(Problem::new(ErrorCode::TooLarge, detail)).into_response();
    }
    if status.is_client_error() && plain {
        let detail = status
            .canonical_reason()
            .unwrap_or("the request was refused")
            .to_lowercase();
        let mut problem = Problem::new(ErrorCode::InvalidArgument, detail);
        problem.status = status.as_u16();
        return Refused(problem).into_response();
    }
    response
}

/// Serves until the gateway's stop, then finishes what is under way, within the time that `limits` has for it.
///
/// # Errors
/// [`GatewayError`] when the listener is not allowed or fails.
pub async fn serve(listener: TcpListener, gateway: Arc<Gateway>, limits: HttpLimits) -> Result<(), GatewayError> {
    gateway.config.auth.check_listen(listener.local_addr()?)?;
    let stop = gateway.stop.clone();
    let reconciling = tokio::spawn(keep_reconciled(gateway.clone()));
    connections::serve(listener, router(&gateway, limits), limits, stop).await;
    reconciling.abort();
    Ok(())
}

/// Tells the reconciler of each change of the triggers, until there will be none. Cut off between two, it begins with one.
async fn follow_triggers(gateway: &Gateway) {
    let mut resources = gateway.deps.resources.watch();
    loop {
        if let Some(open) = gateway.reconciler.lock().await.as_mut()
            && let Err(problem) = open.follow(gateway).await
        {
            tracing::warn!(%problem, "a bucket that a trigger reads is not marked yet, the next pass does it");
        }
        if resources.changed().await.is_err() {
            return;
        }
    }
}

async fn keep_reconciled(gateway: Arc<Gateway>) {
    let period = gateway.config.reconcile_every;
    if period.is_zero() {
        return;
    }
    let mut rest = Duration::ZERO;
    loop {
        tokio::select! {
            () = gateway.stop.cancelled() => return,
            () = follow_triggers(&gateway) => return,
            () = tokio::time::sleep(rest) => {}
        }
        let mut reconciler = gateway.reconciler.lock().await;
        let begun = Instant::now();
        match Reconciler::opened(&mut reconciler, &gateway).await {
            Ok(open) => {
                let pass = open.run(&gateway).await;
                rest = reconcile::rest(period, open.listed());
                if pass.raised > 0 {
                    tracing::info!(raised = pass.raised, "events of objects were missing and are raised");
                }
            }
            Err(error) => {
                rest = period;
                tracing::warn!(%error, "buckets and events were not reconciled, it is tried again");
            }
        }
        let took = begun.elapsed();
        metrics::histogram!("imageflow_storage_reconcile_seconds").record(took.as_secs_f64());
    }
}
