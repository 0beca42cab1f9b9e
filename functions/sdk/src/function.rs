//! What a function is to the SDK.
use bytes::Bytes;
use imageflow_events::invocation::{InvokedStep, StepTiming};
use imageflow_types::Problem;
use serde_json::{Map, Value, json};

/// A function: what a pod does with one call.
pub trait Function: Send + Sync + 'static {
    /// Does the work. Runs on a thread of its own, at most as many at once as the concurrency limit, so it may compute and
    /// block. It cannot be stopped: after the time limit the caller is answered, and the slot is free when this returns.
    ///
    /// # Errors
    /// A [`Problem`]; its code decides the status, and whether the call is tried again.
    fn handle(&self, call: Call) -> Result<Reply, Problem>;

    /// Whether a call is done in no time: then it gets no thread of its own, which would cost more than the call. Everything
    /// else waits while [`handle`](Self::handle) runs, so say it only of what neither computes nor blocks.
    fn is_instant(&self, _call: &Call) -> bool {
        false
    }

    /// JSON Schema of the parameters, served at `/schema`; query values are converted by its types.
    fn schema(&self) -> Value {
        json!({ "type": "object" })
    }
}

/// Bytes with their media type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Content {
    /// The bytes.
    pub bytes: Bytes,
    /// Media type; `application/octet-stream` when the sender did not say.
    pub content_type: String,
}

/// One call.
#[derive(Debug, Clone, Default)]
pub struct Call {
    /// Parameters, the function's defaults merged in.
    pub params: Map<String, Value>,
    /// Catalogue steps to run in one pass; empty when the function itself is called with `params`.
    pub steps: Vec<InvokedStep>,
    /// The image, when there is one.
    pub input: Option<Content>,
    /// The CloudEvent as JSON, when the call is about an event without an object.
    pub event: Option<Value>,
    /// Whether the output must be lossless, with the state that the next step needs.
    pub intermediate: bool,
}

/// What came of a call.
#[derive(Debug, Clone, Default)]
pub struct Reply {
    /// The image made, if any.
    pub output: Option<Content>,
    /// The step's data, such as sizes or counts; the expressions of a flow read it.
    pub data: Value,
    /// Times of the single steps.
    pub steps: Vec<StepTiming>,
}
