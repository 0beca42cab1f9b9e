//! What the operations are asked and what they say.
use std::time::{Duration, Instant};

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
    /// When each step was done, from the begin.
    done: Vec<Duration>,
    whole: Duration,
}

pub(crate) fn run(input: &[u8], steps: &[StepSpec], assets: &Assets, intermediate: bool) -> Result<Made, Problem> {
    let mode = if intermediate {
        Encode::Intermediate
    } else {
        Encode::Final
    };
    // How many bytes come in is the pod's to say, and it has: more where a step before made them.
    let limits = Limits {
        max_bytes: u64::MAX,
        ..Limits::default()
    };
    let started = Instant::now();
    let mut done = Vec::with_capacity(steps.len());
    let mut observe = |_| done.push(started.elapsed());
    let output = imageflow_ops::run_observed(input, steps, assets, &limits, mode, &mut observe)
        .map_err(|error| problem(&error))?;
    Ok(Made {
        content_type: output.format.content_type(),
        bytes: output.bytes.into(),
        data: output.data,
        reports: output.steps,
        whole: started.elapsed(),
        done,
    })
}

/// Whether the steps need no image: nothing is done to nothing, for events that refer to none.
pub(crate) fn need_no_image(steps: &[StepSpec]) -> bool {
    !steps.is_empty() && steps.iter().all(|step| step.operation == "noop")
}

impl Made {
    /// Times of the steps. The first one's holds the decode and the last one's the encode, so together they are the whole.
    pub(crate) fn timings(&self) -> Vec<StepTiming> {
        let last = self.reports.len().saturating_sub(1);
        let mut before = Duration::ZERO;
        let mut timings = Vec::with_capacity(self.reports.len());
        for (at, report) in self.reports.iter().enumerate() {
            let until = match self.done.get(at) {
                Some(&done) if at < last => done,
                _ => self.whole,
            };
            timings.push(StepTiming {
                name: report.name.clone(),
                ms: until.saturating_sub(before).as_secs_f64() * 1000.0,
                width: report.width,
                height: report.height,
            });
            before = until;
        }
        timings
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
