//! A CloudEvent in, a CloudEvent out. A step of the platform has its input and output behind signed URLs; any other event
//! is the input itself.
use std::borrow::Cow;

use bytes::Bytes;
use http::{HeaderMap, Response, StatusCode};
use imageflow_events::http::{attribute, binary_headers, binary_type};
use imageflow_events::invocation::{InputTarget, OutputTarget, StepData, StepReply, WrittenOutput, unpack};
use imageflow_events::trace::TraceParent;
use imageflow_events::{
    AttributesReader, Data, Event, EventError, MAX_EVENT_BYTES, data_bytes, ext, json_data, json_event,
};
use imageflow_types::{ErrorCode, Problem};
use tracing::Instrument;

use crate::admission::Permit;
use crate::app::{App, Done};
use crate::function::{Call, Content, Reply};
use crate::response::{self, Body};
use crate::transfer::{Stored, must_be_put};

fn malformed(detail: impl Into<String>) -> Problem {
    Problem::new(ErrorCode::MalformedEvent, detail)
}

/// Where the attributes of an event are read from.
pub(crate) enum Attributes<'a> {
    /// A step in binary mode, which is what the platform sends: as it came, for the detour over an [`Event`] would cost
    /// more than the rest of a short call.
    Headers(&'a HeaderMap),
    Event(&'a Event),
}

impl Attributes<'_> {
    fn id(&self) -> Cow<'_, str> {
        match self {
            Self::Headers(headers) => attribute(headers, "ce-id").unwrap_or_default(),
            Self::Event(event) => event.id().into(),
        }
    }

    fn subject(&self) -> Option<Cow<'_, str>> {
        match self {
            Self::Headers(headers) => attribute(headers, "ce-subject"),
            Self::Event(event) => event.subject().map(Cow::from),
        }
    }

    fn extension(&self, name: &str) -> Option<Cow<'_, str>> {
        match self {
            Self::Headers(headers) => attribute(headers, &format!("ce-{name}")),
            Self::Event(event) => ext::text(event, name).map(Cow::from),
        }
    }

    /// The trace that the event belongs to.
    pub(crate) fn trace(&self) -> Option<TraceParent> {
        TraceParent::parse(&self.extension(ext::TRACEPARENT)?)
    }

    fn name(&self, span: &tracing::Span) {
        span.record("event", &*self.id());
        for (field, name) in [("run", ext::RUN), ("step", ext::STEP)] {
            if let Some(text) = self.extension(name) {
                span.record(field, &*text);
            }
        }
    }
}

/// Whether a request is a step of the platform in binary mode, of no more bytes than an event may have.
pub(crate) fn is_step(headers: &HeaderMap, body: &Bytes) -> bool {
    body.len() <= MAX_EVENT_BYTES && binary_type(headers) == Some(ext::TYPE_STEP_REQUESTED)
}

/// The one event of a request.
pub(crate) fn read(headers: &HeaderMap, body: &Bytes) -> Result<Event, Problem> {
    let mut events = imageflow_events::http::read(headers, body).map_err(|error| {
        let code = match error {
            EventError::TooLarge { .. } => ErrorCode::TooLarge,
            _ => ErrorCode::MalformedEvent,
        };
        Problem::new(code, error.to_string())
    })?;
    match (events.pop(), events.is_empty()) {
        (Some(event), true) => Ok(event),
        _ => Err(malformed(
            "a function takes one event at a time: send the events of a batch one by one",
        )),
    }
}

pub(crate) async fn handle(app: &App, event: Event, permit: &Permit) -> Result<Response<Body>, Problem> {
    if event.ty() != ext::TYPE_STEP_REQUESTED {
        return foreign(app, &event, permit).await;
    }
    let data = match json_data(&event) {
        None if event.data().is_some() => return Err(malformed("the data of the event is not JSON")),
        None => StepData::default(),
        Some(value) => step_data(value)?,
    };
    step(app, &Attributes::Event(&event), data, permit).await
}

/// A step in binary mode.
pub(crate) async fn handle_step(
    app: &App,
    headers: &HeaderMap,
    body: &Bytes,
    permit: &Permit,
) -> Result<Response<Body>, Problem> {
    let data = if body.is_empty() {
        StepData::default()
    } else {
        let mut json = serde_json::Deserializer::from_slice(body);
        let data = step_data(&mut json)?;
        json.end()
            .map_err(|error| malformed(format!("the data of the event is not JSON: {error}")))?;
        data
    };
    step(app, &Attributes::Headers(headers), data, permit).await
}

fn step_data<'de>(json: impl serde::Deserializer<'de>) -> Result<StepData, Problem> {
    serde_path_to_error::deserialize(json)
        .map_err(|error| malformed(format!("the data of the event is not a step's: {error}")))
}

async fn step(app: &App, event: &Attributes<'_>, data: StepData, permit: &Permit) -> Result<Response<Body>, Problem> {
    event.name(&tracing::Span::current());
    let target: Option<OutputTarget> = extension(event, ext::OUTPUT)?;
    // Before anything is fetched: nothing of an event that asks for more than a PUT is done.
    if let Some(target) = &target {
        must_be_put("output", &target.object)?;
        must_be_put("sidecar", &target.sidecar)?;
    }
    let input = match event.extension(ext::DATAREF) {
        Some(url) => {
            let headers = extension::<InputTarget>(event, ext::INPUT)?.unwrap_or_default().headers;
            Some(
                app.transfer
                    .get(&url, &headers)
                    .instrument(tracing::info_span!("fetch"))
                    .await?,
            )
        }
        None if data.input.is_some() => {
            return Err(malformed(
                "the event names an input object but has no dataref to fetch it from",
            ));
        }
        None => None,
    };
    let call = Call {
        params: data.params,
        steps: data.steps,
        input,
        event: data.event,
        intermediate: target.as_ref().is_some_and(|t| t.intermediate),
    };
    let Done { reply, service } = app.execute(call, permit).await?;
    let Reply {
        output,
        data,
        mut steps,
    } = reply;
    for step in &mut steps {
        step.ms = hundredths(step.ms);
    }
    let mut answer = StepReply {
        data,
        steps,
        service_ms: hundredths(service.as_secs_f64() * 1000.0),
        ..StepReply::default()
    };
    if let Some(output) = output {
        let Some(target) = target else {
            // Nowhere to put it: whoever asked stores it, as with a foreign function.
            return Ok(response::full(StatusCode::OK, &output.content_type, output.bytes));
        };
        store(app, &target, &output, &mut answer)
            .instrument(tracing::info_span!("store"))
            .await?;
        answer.output = answer.output.map(|o| WrittenOutput {
            content_type: output.content_type,
            ..o
        });
    }
    let body = serde_json::to_vec(&answer).map_err(|e| internal(&e))?;
    respond(app, event, "application/json", body.into())
}

/// The step's data first: whoever sees the object can rely on the data being there.
async fn store(app: &App, target: &OutputTarget, output: &Content, answer: &mut StepReply) -> Result<(), Problem> {
    let json = serde_json::to_vec(&answer.data).map_err(|e| internal(&e))?;
    let sidecar = Content {
        bytes: json.into(),
        content_type: "application/json".to_owned(),
    };
    app.transfer.put("sidecar", &target.sidecar, &sidecar).await?;
    let (etag, reused) = match app.transfer.put("output", &target.object, output).await? {
        Stored::Written { etag } => (etag, false),
        Stored::AlreadyThere => (String::new(), true),
    };
    answer.reused = reused;
    answer.output = Some(WrittenOutput {
        etag,
        size: output.bytes.len() as u64,
        content_type: output.content_type.clone(),
    });
    Ok(())
}

/// An event that the platform did not make, for example from a Knative broker: its data is the input.
async fn foreign(app: &App, event: &Event, permit: &Permit) -> Result<Response<Body>, Problem> {
    let attributes = Attributes::Event(event);
    attributes.name(&tracing::Span::current());
    if event.extension(ext::DATAREF).is_some() {
        return Err(malformed(format!(
            "a dataref is followed only in events of type {}",
            ext::TYPE_STEP_REQUESTED
        )));
    }
    let content_type = event.datacontenttype().unwrap_or("application/json").to_owned();
    let input = match event.data() {
        Some(Data::Binary(_)) if !content_type.contains("json") => Some(Content {
            bytes: data_bytes(event).into(),
            content_type,
        }),
        _ => None,
    };
    let value = match &input {
        Some(_) => None,
        None => Some(json_event(event).map_err(|e| internal(&e))?),
    };
    let call = Call {
        params: app.with_defaults(serde_json::Map::new()),
        input,
        event: value,
        ..Call::default()
    };
    let done = app.execute(call, permit).await?;
    match done.reply.output {
        Some(output) => respond(app, &attributes, &output.content_type, output.bytes),
        None => {
            let data = serde_json::to_vec(&done.reply.data).map_err(|e| internal(&e))?;
            respond(app, &attributes, "application/json", data.into())
        }
    }
}

/// The event in the JSON format. The SDK writes the JSON of a binary-mode body as base64; a function wants to read it.
fn respond(app: &App, to: &Attributes<'_>, content_type: &str, body: Bytes) -> Result<Response<Body>, Problem> {
    let (id, source) = (
        format!("{}/reply", to.id()),
        format!("/imageflow/functions/{}", app.config.function),
    );
    let passed = [
        ("ce-subject", to.subject()),
        ("ce-imageflowrun", to.extension(ext::RUN)),
        ("ce-imageflowstep", to.extension(ext::STEP)),
        ("ce-imageflowattempt", to.extension(ext::ATTEMPT)),
        ("ce-traceparent", to.extension(ext::TRACEPARENT)),
    ];
    let own = [
        ("ce-id", id.as_str()),
        ("ce-source", &source),
        ("ce-type", ext::TYPE_STEP_COMPLETED),
    ];
    let passed = passed.iter().filter_map(|(name, text)| Some((*name, text.as_deref()?)));
    let headers = binary_headers(content_type, own.into_iter().chain(passed)).map_err(|e| internal(&e))?;
    Ok(response::with_headers(headers, body))
}

fn extension<T: serde::de::DeserializeOwned>(event: &Attributes<'_>, name: &str) -> Result<Option<T>, Problem> {
    event
        .extension(name)
        .map(|text| unpack(&text).map_err(|error| malformed(format!("extension \"{name}\": {error}"))))
        .transpose()
}

/// Finer than a hundredth of a millisecond is noise that every log record would carry.
fn hundredths(ms: f64) -> f64 {
    (ms * 100.0).round() / 100.0
}

fn internal(error: &dyn std::error::Error) -> Problem {
    Problem::new(ErrorCode::Internal, format!("the reply could not be written: {error}"))
}
