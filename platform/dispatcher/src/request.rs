//! What a pod is sent for one step.
use std::collections::BTreeMap;

use bytes::Bytes;
use http::Request;
use imageflow_events::ext;
use imageflow_events::invocation::{
    InputTarget, InvokedInput, InvokedStep, OutputTarget, SignedRequest, StepData, pack,
};
use imageflow_events::trace::TraceParent;
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
    let (id, source) = (
        format!("{}/{}/{attempt}", step.run, step.stage),
        format!("/imageflow/runs/{}", step.run),
    );
    let names: Vec<&str> = step.steps.iter().map(|s| s.name.as_str()).collect();
    let (names, attempt, trace) = (names.join("+"), attempt.to_string(), trace.to_string());
    let mut attributes = vec![
        ("ce-id", id.as_str()),
        ("ce-source", &source),
        ("ce-type", ext::TYPE_STEP_REQUESTED),
        ("ce-imageflowrun", step.run.as_str()),
        ("ce-imageflowstep", &names),
        ("ce-imageflowattempt", &attempt),
        ("ce-traceparent", &trace),
    ];
    let subject = match &step.input {
        Input::Object(object) => Some(format!("{}/{}", object.bucket, object.key)),
        Input::Event(_) => None,
    };
    attributes.extend(subject.as_deref().map(|subject| ("ce-subject", subject)));
    let input = match &signed.input {
        Some(input) => {
            let target = InputTarget {
                headers: without_host(&input.headers),
            };
            Some((&input.url, pack(&target)?))
        }
        None => None,
    };
    if let Some((url, target)) = &input {
        attributes.extend([("ce-dataref", url.as_str()), ("ce-imageflowinput", target)]);
    }
    let output = signed.output.as_ref().map(pack).transpose()?;
    attributes.extend(output.as_deref().map(|output| ("ce-imageflowoutput", output)));
    let headers = imageflow_events::http::binary_headers("application/json", attributes)
        .map_err(|e| RequestError::Event(e.to_string()))?;
    let mut request = Request::new(serde_json::to_vec(&data(step))?.into());
    *request.method_mut() = http::Method::POST;
    *request.headers_mut() = headers;
    Ok(request)
}

fn data(step: &StepRequest) -> StepData {
    let catalogue = step.steps.iter().filter_map(|s| {
        Some(InvokedStep {
            name: s.name.to_string(),
            operation: s.operation.clone()?,
            params: s.params.clone(),
        })
    });
    let (input, event) = match &step.input {
        Input::Object(object) => {
            let input = InvokedInput {
                bucket: object.bucket.clone(),
                key: object.key.clone(),
                etag: object.etag.clone(),
                content_type: object.content_type.clone(),
            };
            (Some(input), None)
        }
        Input::Event(value) => (None, Some(value.clone())),
    };
    StepData {
        params: step.steps.last().map(|s| s.params.clone()).unwrap_or_default(),
        steps: catalogue.collect(),
        input,
        event,
    }
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
    use imageflow_events::AttributesReader;
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
            next: Vec::new(),
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
        assert_eq!(ext::text(&event, ext::RUN).unwrap(), step().run.as_str());
        assert_eq!(ext::text(&event, ext::STEP).unwrap(), "thumb");
        assert_eq!(event.ty(), ext::TYPE_STEP_REQUESTED);
        assert_eq!(event.subject(), Some("raw-images/a b.jpg"));
        assert_eq!(ext::text(&event, ext::TRACEPARENT).unwrap(), trace.to_string());
        let target: OutputTarget =
            imageflow_events::invocation::unpack(&ext::text(&event, ext::OUTPUT).unwrap()).unwrap();
        assert_eq!(target, output);
        let data: StepData = serde_json::from_value(imageflow_events::json_data(&event).unwrap()).unwrap();
        assert_eq!(data.steps[0].operation, "resize");
        assert_eq!(data.input.unwrap().key, "a b.jpg");
    }
}
