//! A trace across the services: a span continues what a `traceparent` says, and says in turn what comes after it.
use imageflow_events::trace::TraceParent;
use opentelemetry::Context;
use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

/// Makes a span part of the caller's trace. Nothing happens where the text is no `traceparent`, or no spans are exported.
pub fn continue_from(span: &Span, traceparent: Option<&str>) {
    let Some(parent) = traceparent.and_then(TraceParent::parse) else {
        return;
    };
    let context = SpanContext::new(
        TraceId::from(parent.trace_id),
        SpanId::from(parent.span_id),
        TraceFlags::new(parent.flags),
        true,
        TraceState::default(),
    );
    // Fails when no spans are exported, and then there is nothing to do.
    let _ = span.set_parent(Context::new().with_remote_span_context(context));
}

/// What to tell whoever works on behalf of the span: the span itself where spans are exported, else what the span's own
/// caller said, so that a trace passes through a service that exports nothing; a new trace when nobody began one.
#[must_use]
pub fn onward(span: &Span, traceparent: Option<&str>) -> TraceParent {
    let context = span.context();
    let own = context.span().span_context().clone();
    if own.is_valid() {
        return TraceParent {
            trace_id: u128::from_be_bytes(own.trace_id().to_bytes()),
            span_id: u64::from_be_bytes(own.span_id().to_bytes()),
            flags: own.trace_flags().to_u8(),
        };
    }
    traceparent
        .and_then(TraceParent::parse)
        .unwrap_or_else(TraceParent::generate)
}
