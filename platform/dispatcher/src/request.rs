//! What a pod is sent for one step.
use std::collections::BTreeMap;

use bytes::Bytes;
use http::Request;
use imageflow_events::invocation::{
    InputTarget, InvokedInput, InvokedStep, OutputTarget, SignedRequest, StepData, pack,
};
use imageflow_events::trace::TraceParent;
use imageflow_events::{Event, EventBuilder, EventBuilderV10, ext};
use imageflow_types::StepRequest;
use imageflow_types::work::Input;

/// Why a request could not be written. Each is a fault of ours, not of the function.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// The event breaks a rule.
    #[error("the event for the function cannot be made: {0}")]
    Event(String),
    /// A value cannot be written.
    #[error("a value cannot be written: {0}")]
    Json(#[from] serde_json::Error),
}

/// The signed parts, made when a slot is held so that they live as long as the call.
pub struct Signed {
    /// GET of the input.
    pub input: Option<SignedRequest>,
    /// PUTs of result and data.
    pub output: Option<OutputTarget>,
}

/// The request for one attempt; `trace` is who asks.
///
/// # Errors
/// [`RequestError`].
pub fn build(
    step: &StepRequest,
    attempt: u32,
    trace: TraceParent,
    signed: &Signed,
) -> Result<Request<Bytes>, RequestError> {
    let event = event(step, attempt, trace, signed)?;
    let (headers, body) =
        imageflow_events::http::write_binary(&event).map_err(|e| RequestError::Event(e.to_string()))?;
    let mut request = Request::new(body);
    *request.method_mut() = http::Method::POST;
    *request.headers_mut() = headers;
    Ok(request)
}

fn event(step: &StepRequest, attempt: u32, trace: TraceParent, signed: &Signed) -> Result<Event, RequestError> {
    let names: Vec<&str> = step.steps.iter().map(|s| s.name.as_str()).collect();
    let mut data = StepData {
        params: step.steps.last().map(|s| s.params.clone()).unwrap_or_default(),
        steps: step
            .steps
            .iter()
            .filter_map(|s| {
                let operation = s.operation.clone()?;
                Some(InvokedStep {
                    name: s.name.to_string(),
                    operation,
                    params: s.params.clone(),
                })
            })
            .collect(),
        ..StepData::default()
    };
    let mut builder = EventBuilderV10::new()
        .id(format!("{}/{}/{attempt}", step.run, step.stage))
        .source(format!("/imageflow/runs/{}", step.run))
        .ty(ext::TYPE_STEP_REQUESTED)
        .extension(ext::RUN, step.run.to_string())
        .extension(ext::STEP, names.join("+"))
        .extension(ext::ATTEMPT, i64::from(attempt))
        .extension(ext::TRACEPARENT, trace.to_string());
    match &step.input {
        Input::Object(object) => {
            builder = builder.subject(format!("{}/{}", object.bucket, object.key));
            data.input = Some(InvokedInput {
                bucket: object.bucket.clone(),
                key: object.key.clone(),
                etag: object.etag.clone(),
                content_type: object.content_type.clone(),
            });
        }
        Input::Event(value) => data.event = Some(value.clone()),
    }
    if let Some(input) = &signed.input {
        let target = InputTarget {
            headers: without_host(&input.headers),
        };
        builder = builder
            .extension(ext::DATAREF, input.url.clone())
            .extension(ext::INPUT, pack(&target)?);
    }
    if let Some(output) = &signed.output {
        builder = builder.extension(ext::OUTPUT, pack(output)?);
    }
    builder
        .data("application/json", serde_json::to_value(&data)?)
        .build()
        .map_err(|e| RequestError::Event(e.to_string()))
}

/// The client's HTTP library sets Host itself.
fn without_host(headers: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    headers
        .iter()
        .filter(|(n, _)| !n.eq_ignore_ascii_case("host"))
        .map(|(n, v)| (n.clone(), v.clone()))
        .collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use imageflow_types::names::{FunctionName, RevisionName, RunId, StepName};
    use imageflow_types::work::{ObjectRef, OutputRef, StageStep};

    pub(crate) fn step() -> StepRequest {
        let function = FunctionName::new("resize").unwrap();
        StepRequest {
            run: RunId::derive(&["t"]),
            stage: 1,
            revision: RevisionName::of(&function, 1),
            steps: vec![StageStep {
                name: StepName::new("thumb").unwrap(),
                function: function.clone(),
                operation: Some("resize".into()),
                params: serde_json::json!({"width": 3}).as_object().unwrap().clone(),
            }],
            function,
            input: Input::Object(ObjectRef {
                bucket: "raw-images".into(),
                key: "a b.jpg".into(),
                etag: "e".into(),
                size: 3,
                content_type: Some("image/jpeg".into()),
            }),
            output: OutputRef {
                bucket: "processed-images".into(),
                key: "k".into(),
                intermediate: false,
            },
            requested_ms: 0,
            traceparent: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into()),
            attempts: Vec::new(),
        }
    }

    #[test]
    fn the_event_says_all_that_the_pod_needs() {
        let input = SignedRequest {
            url: "http://s3/a%20b?sig=1".into(),
            method: "GET".into(),
            headers: BTreeMap::new(),
        };
        let output = OutputTarget {
            object: input.clone(),
            sidecar: input.clone(),
            intermediate: false,
        };
        let trace = TraceParent::generate();
        let request = build(
            &step(),
            2,
            trace,
            &Signed {
                input: Some(input),
                output: Some(output.clone()),
            },
        )
        .unwrap();
        let (parts, body) = request.into_parts();
        let event = imageflow_events::http::read(&parts.headers, &body).unwrap().remove(0);
        assert_eq!(ext::text(&event, ext::DATAREF).unwrap(), "http://s3/a%20b?sig=1");
        assert_eq!(ext::text(&event, ext::ATTEMPT).unwrap(), "2");
        assert_eq!(ext::text(&event, ext::TRACEPARENT).unwrap(), trace.to_string());
        let target: OutputTarget =
            imageflow_events::invocation::unpack(&ext::text(&event, ext::OUTPUT).unwrap()).unwrap();
        assert_eq!(target, output);
        let data: StepData = serde_json::from_value(imageflow_events::json_data(&event).unwrap()).unwrap();
        assert_eq!(data.steps[0].operation, "resize");
        assert_eq!(data.input.unwrap().key, "a b.jpg");
    }
}
