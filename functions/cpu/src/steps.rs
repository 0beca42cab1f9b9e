//! The one place that speaks to the operations.
use std::time::Duration;

use bytes::Bytes;
use imageflow_events::invocation::{InvokedStep, StepTiming};
use imageflow_ops::{Assets, Encode, Limits, OpError, OpErrorKind, StepReport, StepSpec};
use imageflow_types::{ErrorCode, Problem};
use serde_json::{Map, Value};

/// A catalogue operation that a function was made of.
pub(crate) struct Operation(&'static imageflow_ops::Operation);

impl Operation {
    pub(crate) fn find(name: &str) -> Result<Self, Problem> {
        imageflow_ops::find(name).map(Self).map_err(|error| problem(&error))
    }

    pub(crate) fn schema(&self) -> Value {
        self.0.schema()
    }
}

/// The steps of a flow's stage.
pub(crate) fn of_flow(steps: Vec<InvokedStep>) -> Vec<StepSpec> {
    let spec = |s: InvokedStep| StepSpec {
        name: s.name,
        operation: s.operation,
        params: Value::Object(s.params),
    };
    steps.into_iter().map(spec).collect()
}

/// The function itself as one step.
pub(crate) fn of_function(operation: &Operation, params: Map<String, Value>) -> Vec<StepSpec> {
    let name = operation.0.name.to_owned();
    vec![StepSpec {
        operation: name.clone(),
        name,
        params: Value::Object(params),
    }]
}

/// What the steps made.
pub(crate) struct Made {
    pub(crate) bytes: Bytes,
    pub(crate) content_type: &'static str,
    pub(crate) data: Value,
    reports: Vec<StepReport>,
}

pub(crate) fn run(input: &[u8], steps: &[StepSpec], intermediate: bool) -> Result<Made, Problem> {
    let mode = if intermediate {
        Encode::Intermediate
    } else {
        Encode::Final
    };
    let output = imageflow_ops::run(input, steps, &Assets::default(), &Limits::default(), mode)
        .map_err(|error| problem(&error))?;
    Ok(Made {
        content_type: output.format.content_type(),
        bytes: output.bytes.into(),
        data: output.data,
        reports: output.steps,
    })
}

impl Made {
    /// Times of the steps. Fused steps share one decode and one encode, so the whole is theirs in common.
    pub(crate) fn timings(&self, whole: Duration) -> Vec<StepTiming> {
        let ms = whole.as_secs_f64() * 1000.0 / self.reports.len().max(1) as f64;
        let timing = |r: &StepReport| StepTiming {
            name: r.name.clone(),
            ms,
            width: r.width,
            height: r.height,
        };
        self.reports.iter().map(timing).collect()
    }
}

fn problem(error: &OpError) -> Problem {
    let code = match error.kind() {
        OpErrorKind::BadImage => ErrorCode::Unprocessable,
        OpErrorKind::TooLarge => ErrorCode::TooLarge,
        OpErrorKind::Unsupported => ErrorCode::UnsupportedFormat,
        // Not 404: that would be tried again.
        OpErrorKind::BadParameter | OpErrorKind::UnknownOperation => ErrorCode::InvalidArgument,
        OpErrorKind::Internal => ErrorCode::Internal,
    };
    Problem::new(code, error.to_string())
}
