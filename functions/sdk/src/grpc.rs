//! gRPC on the same port: `imageflow.v1.FunctionService`, and `grpc.health.v1` beside it.
use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use futures::{Stream, StreamExt, future, stream};
use imageflow_events::invocation::InvokedStep;
use imageflow_events::trace::TraceParent;
use imageflow_proto::v1::function_service_server::{FunctionService, FunctionServiceServer};
use imageflow_proto::v1::process_response::Outcome;
use imageflow_proto::v1::{ProcessError, ProcessRequest, ProcessResponse, ProcessResult, StepTiming};
use imageflow_types::{ErrorCode, Problem};
use serde_json::{Map, Value};
use tokio::sync::oneshot;
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::service::Routes;
use tonic::{Code, Request, Response, Status, Streaming};
use tonic_health::server::HealthReporter;
use tracing::Instrument;

use crate::admission::{Permit, Refusal};
use crate::app::App;
use crate::function::{Call, Content};
use crate::intake::Admitted;
use crate::{REFUSED_HEADER, response, telemetry};

/// Paths of the calls that carry images.
pub(crate) const PROCESS: &str = "/imageflow.v1.FunctionService/Process";
pub(crate) const PROCESS_STREAM: &str = "/imageflow.v1.FunctionService/ProcessStream";
/// What a message holds beside the image.
const ENVELOPE: usize = 1024 * 1024;

type Health = FunctionServiceServer<Service>;

/// The services, and the switch of the health service.
pub(crate) fn routes(app: &Arc<App>) -> (Routes, HealthReporter) {
    let largest = usize::try_from(app.config.max_bytes)
        .unwrap_or(usize::MAX)
        .saturating_add(ENVELOPE);
    let service = FunctionServiceServer::new(Service { app: Arc::clone(app) })
        .max_decoding_message_size(largest)
        .max_encoding_message_size(largest);
    let (reporter, health) = tonic_health::server::health_reporter();
    (Routes::new(service).add_service(health).prepare(), reporter)
}

/// Tells the health service's watchers.
pub(crate) async fn report(reporter: &HealthReporter, serving: bool) {
    let status = if serving {
        tonic_health::ServingStatus::Serving
    } else {
        tonic_health::ServingStatus::NotServing
    };
    reporter.set_service_status("", status).await;
    if serving {
        reporter.set_serving::<Health>().await;
    } else {
        reporter.set_not_serving::<Health>().await;
    }
}

pub(crate) struct Service {
    app: Arc<App>,
}

type Answers = Pin<Box<dyn Stream<Item = Result<ProcessResponse, Status>> + Send>>;

#[tonic::async_trait]
impl FunctionService for Service {
    async fn process(&self, mut request: Request<ProcessRequest>) -> Result<Response<ProcessResponse>, Status> {
        let permit: Permit = request.extensions_mut().remove().ok_or_else(not_admitted)?;
        let trace = trace_of(request.metadata());
        let message = request.into_inner();
        let correlation_id = message.correlation_id.clone();
        let result = process(&self.app, message, &permit, trace)
            .await
            .map_err(|problem| status(&problem))?;
        Ok(Response::new(ProcessResponse {
            correlation_id,
            outcome: Some(Outcome::Result(result)),
        }))
    }

    type ProcessStreamStream = Answers;

    async fn process_stream(
        &self,
        mut request: Request<Streaming<ProcessRequest>>,
    ) -> Result<Response<Self::ProcessStreamStream>, Status> {
        let admitted: Admitted = request.extensions_mut().remove().ok_or_else(not_admitted)?;
        let trace = trace_of(request.metadata());
        let app = Arc::clone(&self.app);
        let draining = Arc::clone(&self.app);
        let (broke, mut broken) = oneshot::channel();
        let reading = (request.into_inner(), admitted, broke);
        let messages = stream::unfold(reading, |(mut messages, admitted, broke)| async move {
            match next_call(&mut messages, &admitted).await {
                Ok(call) => Some((call?, (messages, admitted, broke))),
                // It would end the body before the answers that are still to come. The permit of what broke goes with the
                // reader.
                Err(status) => {
                    let _ = broke.send(status);
                    None
                }
            }
        });
        let answers = messages
            // What is read is answered; a drain stops the reading.
            .take_until(async move { draining.admission.drained().await })
            .map(move |(permit, message)| {
                let app = Arc::clone(&app);
                async move { answer(&app, message, &permit, trace).await }
            })
            .buffer_unordered(self.app.config.concurrency_limit as usize)
            .map(Ok)
            .chain(
                stream::once(async move { broken.try_recv() }).filter_map(|broke| future::ready(broke.ok().map(Err))),
            );
        Ok(Response::new(Box::pin(answers)))
    }
}

/// The next message of a stream, with its permit.
async fn next_call(
    messages: &mut Streaming<ProcessRequest>,
    admitted: &Admitted,
) -> Result<Option<(Permit, ProcessRequest)>, Status> {
    let Some(message) = messages.message().await? else {
        return Ok(None);
    };
    // It came with the message's first bytes.
    let permit = admitted.next().ok_or_else(not_admitted)?;
    Ok(Some((permit, message)))
}

/// One answer of a stream.
async fn answer(app: &App, message: ProcessRequest, permit: &Permit, trace: Option<TraceParent>) -> ProcessResponse {
    let correlation_id = message.correlation_id.clone();
    let outcome = match process(app, message, permit, trace).await {
        Ok(result) => Outcome::Result(result),
        Err(problem) => Outcome::Error(ProcessError {
            code: problem.code.slug().to_owned(),
            message: problem.to_string(),
            retryable: problem.code.retryable(),
        }),
    };
    ProcessResponse {
        correlation_id,
        outcome: Some(outcome),
    }
}

async fn process(
    app: &App,
    message: ProcessRequest,
    permit: &Permit,
    trace: Option<TraceParent>,
) -> Result<ProcessResult, Problem> {
    let started = Instant::now();
    let span = telemetry::request_span(&app.config);
    telemetry::continue_trace(&span, trace);
    let outcome = match tokio::time::timeout(app.config.timeout, run(app, message, permit).instrument(span)).await {
        Ok(outcome) => outcome,
        Err(_) => Err(timed_out()),
    };
    let name = outcome.as_ref().map_or_else(|problem| problem.code.slug(), |_| "ok");
    app.metrics.ended(name, started.elapsed());
    outcome
}

async fn run(app: &App, message: ProcessRequest, permit: &Permit) -> Result<ProcessResult, Problem> {
    let params = object("params_json", &message.params_json)?;
    let mut steps = Vec::with_capacity(message.steps.len());
    for step in message.steps {
        let params = object(&format!("params_json of step \"{}\"", step.name), &step.params_json)?;
        steps.push(InvokedStep {
            name: step.name,
            operation: step.operation,
            params,
        });
    }
    let content_type = match message.content_type {
        empty if empty.is_empty() => "application/octet-stream".to_owned(),
        given => given,
    };
    let call = Call {
        params: app.with_defaults(params),
        steps,
        input: Some(Content {
            bytes: message.image,
            content_type,
        }),
        event: None,
        intermediate: message.intermediate,
    };
    let done = app.execute(call, permit).await?;
    let service_ms = done.service_ms();
    let (image, content_type) = done.reply.output.map(|o| (o.bytes, o.content_type)).unwrap_or_default();
    let timing = |s: imageflow_events::invocation::StepTiming| StepTiming {
        name: s.name,
        ms: s.ms,
        width: s.width,
        height: s.height,
    };
    Ok(ProcessResult {
        image,
        content_type,
        data_json: done.reply.data.to_string(),
        service_ms,
        steps: done.reply.steps.into_iter().map(timing).collect(),
    })
}

fn object(what: &str, json: &str) -> Result<Map<String, Value>, Problem> {
    if json.is_empty() {
        return Ok(Map::new());
    }
    serde_json::from_str(json).map_err(|error| {
        Problem::new(
            ErrorCode::InvalidArgument,
            format!("{what} is not a JSON object: {error}"),
        )
    })
}

fn trace_of(metadata: &MetadataMap) -> Option<TraceParent> {
    TraceParent::parse(metadata.get("traceparent")?.to_str().ok()?)
}

pub(crate) fn timed_out() -> Problem {
    Problem::new(ErrorCode::Timeout, "the call took longer than its time limit")
}

fn not_admitted() -> Status {
    Status::internal("the call was not admitted")
}

pub(crate) fn status(problem: &Problem) -> Status {
    let mut metadata = MetadataMap::new();
    metadata.insert("imageflow-code", MetadataValue::from_static(problem.code.slug()));
    Status::with_metadata(Code::from_i32(problem.code.grpc()), problem.to_string(), metadata)
}

pub(crate) fn refused(refusal: Refusal) -> Status {
    let mut status = status(&response::refusal_problem(refusal));
    status
        .metadata_mut()
        .insert(REFUSED_HEADER, MetadataValue::from_static(refusal.reason()));
    status
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::Mutex;
    use std::sync::mpsc::{Receiver, channel};

    use bytes::Bytes;
    use futures::FutureExt;
    use http_body::Frame;
    use http_body_util::{BodyExt, StreamBody};
    use tower::ServiceExt;

    use super::*;
    use crate::intake::Intake;
    use crate::{Config, Function, Reply};

    /// Gives its input back when the test says so.
    struct Held(Mutex<Receiver<()>>);

    impl Function for Held {
        fn handle(&self, call: Call) -> Result<Reply, Problem> {
            self.0.lock().unwrap().recv().unwrap();
            Ok(Reply {
                output: call.input,
                ..Reply::default()
            })
        }
    }

    #[tokio::test]
    async fn a_message_that_cannot_be_read_is_told_after_the_answers_of_those_before_it() {
        let (open, gate) = channel();
        let limit = |name: &str| (name == "IMAGEFLOW_CONCURRENCY_LIMIT").then(|| "2".to_owned());
        let config = Config::from_env(&limit).unwrap();
        let app = Arc::new(App::new(Arc::new(Held(Mutex::new(gate))), config));
        // An image of three bytes, and the head of a message of 1 GiB.
        let whole = [&[0, 0, 0, 0, 5, 0x12, 3][..], b"abc"].concat();
        let huge = [&[0][..], &(1_u32 << 30).to_be_bytes()].concat();
        let parts = [whole, huge].map(|part| Ok::<_, Infallible>(Frame::data(Bytes::from(part))));
        let body = StreamBody::new(stream::iter(parts).chain(stream::pending()));
        let admitted = Admitted::default();
        let request = http::Request::post(PROCESS_STREAM)
            .header("content-type", "application/grpc")
            .extension(admitted.clone())
            .body(response::Body::new(Intake::new(body, Arc::clone(&app), admitted)))
            .unwrap();
        let (routes, _health) = routes(&app);
        let mut answers = routes.oneshot(request).await.unwrap().into_body();

        assert!(answers.frame().now_or_never().is_none(), "the first is still at work");
        assert_eq!(app.admission.in_flight(), 1, "what cannot be read holds no place");
        open.send(()).unwrap();
        let answer = answers.frame().await.unwrap().unwrap().into_data().unwrap();
        assert!(answer.windows(3).any(|bytes| bytes == b"abc"), "{answer:?}");
        let end = answers.frame().await.unwrap().unwrap().into_trailers().unwrap();
        assert_eq!(end["grpc-status"], "11", "{end:?}");
        assert!(answers.frame().await.is_none());
        assert_eq!(app.admission.in_flight(), 0);
    }
}
