//! Messages between gateway, router and dispatcher.
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::ErrorCode;
use crate::names::{FlowName, FunctionName, RevisionName, RunId, StepName, TriggerName};

/// An object, pinned to the bytes it had when it was seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ObjectRef {
    /// Bucket.
    pub bucket: String,
    /// Key.
    pub key: String,
    /// ETag without quotes.
    pub etag: String,
    /// Size in bytes.
    #[serde(default)]
    pub size: u64,
    /// Media type.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content_type: Option<String>,
}

/// What a step works on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Input {
    /// An object in a bucket.
    Object(ObjectRef),
    /// A CloudEvent that refers to no object, as JSON.
    Event(Value),
}

/// What a run runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Target {
    /// A flow.
    Flow(FlowName),
    /// A function, as a flow of one step.
    Function(FunctionName),
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Flow(name) => write!(f, "{name}"),
            Self::Function(name) => write!(f, "function/{name}"),
        }
    }
}

/// A run that is wanted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RunRequest {
    /// Its id, derived from its cause.
    pub run: RunId,
    /// What to run.
    pub target: Target,
    /// The trigger that asked for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trigger: Option<TriggerName>,
    /// The input.
    pub input: Input,
    /// Parameters for a `Target::Function`.
    #[serde(default, skip_serializing_if = "serde_json::Map::is_empty")]
    pub params: serde_json::Map<String, Value>,
    /// Whether adjacent catalogue steps may become one stage.
    #[serde(default = "yes")]
    pub fuse: bool,
    /// When it was asked for, ms since 1970.
    pub requested_ms: i64,
    /// W3C trace context of the cause.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
}

const fn yes() -> bool {
    true
}

/// One step inside a stage.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StageStep {
    /// The step.
    pub name: StepName,
    /// Its function.
    pub function: FunctionName,
    /// The catalogue operation, when it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation: Option<String>,
    /// Parameters, the function's defaults merged in.
    pub params: serde_json::Map<String, Value>,
}

/// Where a stage's result goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OutputRef {
    /// Bucket.
    pub bucket: String,
    /// Key, derived from content: input ETag, operations, parameters and revision.
    pub key: String,
    /// True for what an unfused step hands on: lossless, with the state that the next step needs.
    #[serde(default)]
    pub intermediate: bool,
}

/// One stage to do: the value of a record in `imageflow.work.<function>`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StepRequest {
    /// The run.
    pub run: RunId,
    /// Index of the stage in the run's plan.
    pub stage: u32,
    /// The function on whose pods it runs.
    pub function: FunctionName,
    /// The revision chosen for this run.
    pub revision: RevisionName,
    /// The steps, in order; more than one when fused.
    pub steps: Vec<StageStep>,
    /// What it works on.
    pub input: Input,
    /// Where the result goes.
    pub output: OutputRef,
    /// When the router asked for it, ms since 1970.
    pub requested_ms: i64,
    /// W3C trace context of the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
    /// Attempts made before the step was put off.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attempts: Vec<Attempt>,
    /// Functions of the stages that work on its result: they have work as soon as it is done.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub next: Vec<FunctionName>,
}

/// A step that is tried again later: the value of a record in `imageflow.delay`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Delayed {
    /// When, ms since 1970.
    pub due_ms: i64,
    /// The step.
    pub step: StepRequest,
}

/// What a step produced.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StepResult {
    /// The object written, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<ObjectRef>,
    /// Data of the step, small.
    #[serde(default)]
    pub data: Value,
    /// The function's own time for the whole stage, ms.
    pub service_ms: f64,
    /// Of that each step's, ms, where the pod told them apart.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub step_ms: BTreeMap<StepName, f64>,
    /// Whether a pod had to be started for it.
    #[serde(default)]
    pub cold: bool,
    /// True when the result was there already.
    #[serde(default)]
    pub reused: bool,
}

/// Why an attempt or a step failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StepError {
    /// The code.
    pub code: ErrorCode,
    /// What exactly.
    pub message: String,
    /// HTTP status that the function answered, when it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// Which step of a fused stage, when known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<StepName>,
}

/// One attempt that failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Attempt {
    /// Counted from 1.
    pub number: u32,
    /// When it ended, ms since 1970.
    pub at_ms: i64,
    /// Why it failed.
    pub error: StepError,
}

/// The router's input: the value of a record in `imageflow.run-events`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum RunEvent {
    /// A run is wanted.
    Requested(RunRequest),
    /// A stage was given to a pod.
    StageStarted {
        /// The run.
        run: RunId,
        /// The stage.
        stage: u32,
        /// When, ms since 1970.
        at_ms: i64,
    },
    /// An attempt failed and another will follow.
    AttemptFailed {
        /// The run.
        run: RunId,
        /// The stage.
        stage: u32,
        /// The attempt.
        attempt: Attempt,
        /// When the next attempt is due, ms since 1970.
        next_ms: i64,
    },
    /// A stage is done and its effect is durable.
    StageCompleted {
        /// The run.
        run: RunId,
        /// The stage.
        stage: u32,
        /// What it produced.
        result: StepResult,
        /// When, ms since 1970.
        at_ms: i64,
    },
    /// A stage cannot be done.
    StageFailed {
        /// The run.
        run: RunId,
        /// The stage.
        stage: u32,
        /// Why, after the last attempt.
        error: StepError,
        /// All attempts.
        attempts: Vec<Attempt>,
        /// When, ms since 1970.
        at_ms: i64,
    },
    /// Somebody wants the run to end.
    Cancel {
        /// The run.
        run: RunId,
        /// When, ms since 1970.
        at_ms: i64,
    },
}

impl RunEvent {
    /// The run it is about.
    #[must_use]
    pub const fn run(&self) -> &RunId {
        match self {
            Self::Requested(request) => &request.run,
            Self::StageStarted { run, .. }
            | Self::AttemptFailed { run, .. }
            | Self::StageCompleted { run, .. }
            | Self::StageFailed { run, .. }
            | Self::Cancel { run, .. } => run,
        }
    }

    /// Its name, as in the record.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Requested(_) => "requested",
            Self::StageStarted { .. } => "stageStarted",
            Self::AttemptFailed { .. } => "attemptFailed",
            Self::StageCompleted { .. } => "stageCompleted",
            Self::StageFailed { .. } => "stageFailed",
            Self::Cancel { .. } => "cancel",
        }
    }
}

/// Work that could not be done: the value of a record in `imageflow.dead-letters`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeadLetter {
    /// Its id, derived from run and stage, or from the event.
    pub id: String,
    /// The run, when there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<RunId>,
    /// The function that failed, or `-` when none was reached.
    pub function: String,
    /// Why.
    pub error: StepError,
    /// All attempts.
    #[serde(default)]
    pub attempts: Vec<Attempt>,
    /// What can be sent again: the run as it was wanted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<RunRequest>,
    /// The original event, when no run could be made of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event: Option<Value>,
    /// When, ms since 1970.
    pub at_ms: i64,
}
