//! One step from first attempt to a durable report: what happens between taking a record and marking it done.
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use imageflow_delivery::{Class, Delivery, DeliveryError, Demand};
use imageflow_eventlog::{EventLog, LogError, NewRecord};
use imageflow_events::invocation::{OutputTarget, StepReply, WrittenOutput};
use imageflow_objects::{ObjectError, ObjectStore, PutOptions};
use imageflow_process::trace;
use imageflow_resources::{FunctionEntry, ResourceStore};
use imageflow_types::error::ErrorCode;
use imageflow_types::function::FunctionSpec;
use imageflow_types::names::StepName;
use imageflow_types::work::{Attempt, Input, ObjectRef, OutputRef, RunEvent, StepError, StepResult};
use imageflow_types::{StepRequest, topics};
use serde_json::Value;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, Span};

use crate::backlog::Backlogs;
use crate::outcome::{self, Outcome};
use crate::request::{self, Signed};
use crate::{backoff, intake};

/// What every step needs.
pub(crate) struct Context {
    pub(crate) log: Arc<dyn EventLog>,
    pub(crate) objects: Arc<dyn ObjectStore>,
    pub(crate) resources: Arc<ResourceStore>,
    pub(crate) delivery: Arc<Delivery>,
    pub(crate) backlogs: Arc<Backlogs>,
    pub(crate) clock: fn() -> i64,
}

/// A step still running after this long is reported as started. Shorter ones go from queued to done:
/// a report costs a durable write and would double the work of the router for nothing that people could see.
const REPORT_STARTED_AFTER: Duration = Duration::from_millis(500);
/// How long a step waits for a slot before it looks again whether its function is still there.
const SLOT_PATIENCE: Duration = Duration::from_secs(60);
/// Signed URLs live as long as the call may take and this much for clocks that differ.
const CLOCK_SKEW: Duration = Duration::from_secs(60);
/// Pause before the log or the object store is asked again.
const STORAGE_PAUSE: Duration = Duration::from_millis(500);

/// The work was given up, because the platform stops or the partition was revoked. Its record stays undone.
pub(crate) struct GivenUp;

/// Does a step and reports its end. Returns when the report is durable.
pub(crate) async fn perform(context: &Context, step: StepRequest, stop: &CancellationToken) -> Result<(), GivenUp> {
    let event = tokio::select! {
        () = stop.cancelled() => return Err(GivenUp),
        event = attempts(context, &step) => event,
    };
    report(context, event, stop).await
}

/// Tries until it is done or cannot be.
async fn attempts(context: &Context, step: &StepRequest) -> RunEvent {
    let mut attempts: Vec<Attempt> = Vec::new();
    let mut demand = Demand::One;
    let mut gone = false;
    loop {
        let Some((entry, spec)) = function_of(context, step) else {
            let message = format!(
                "function {} or its revision {} was deleted",
                step.function, step.revision
            );
            return end_failed(context, step, plain(ErrorCode::NotFound, message), attempts);
        };
        let number = u32::try_from(attempts.len()).unwrap_or(u32::MAX).saturating_add(1);
        let span = tracing::info_span!("deliver", otel.kind = "client", run = %step.run, function = %step.function, attempt = number);
        trace::continue_from(&span, step.traceparent.as_deref());
        let tried = attempt(context, step, &spec, number, demand).instrument(span).await;
        let (error, retry, retry_after) = match tried {
            Ok(Tried::Done(result)) => {
                let at_ms = (context.clock)();
                return RunEvent::StageCompleted {
                    run: step.run.clone(),
                    stage: step.stage,
                    result,
                    at_ms,
                };
            }
            Ok(Tried::Failed {
                error,
                retry,
                retry_after,
            }) => (error, retry, retry_after),
            Err(Undelivered::NoAttempt { alone }) => {
                demand = if alone { Demand::Alone } else { demand };
                continue;
            }
            Err(Undelivered::Never(error)) => (error, false, None),
            Err(Undelivered::Gone(_)) if !gone => {
                gone = true;
                continue;
            }
            Err(Undelivered::Gone(error)) => (error, true, None),
            Err(Undelivered::Storage) => {
                // Our storage, not the function: no attempt, and the work stays.
                tokio::time::sleep(STORAGE_PAUSE).await;
                continue;
            }
        };
        metrics::counter!("imageflow_function_attempts_failed_total", "function" => step.function.to_string(), "code" => error.code.slug()).increment(1);
        let at_ms = (context.clock)();
        attempts.push(Attempt {
            number,
            at_ms,
            error: error.clone(),
        });
        let policy = &entry.spec().delivery;
        if !retry || number > policy.retry {
            return end_failed(context, step, error, attempts);
        }
        let wait = backoff::wait(policy, number, retry_after, rand::random());
        let next_ms = at_ms.saturating_add(i64::try_from(wait.as_millis()).unwrap_or(i64::MAX));
        if let Some(attempt) = attempts.last().cloned() {
            let event = RunEvent::AttemptFailed {
                run: step.run.clone(),
                stage: step.stage,
                attempt,
                next_ms,
            };
            tell(context, event).await;
        }
        tokio::time::sleep(wait).await;
    }
}

/// The function as it is now (for its retry policy) and the revision that the run was pinned to.
fn function_of(context: &Context, step: &StepRequest) -> Option<(Arc<FunctionEntry>, FunctionSpec)> {
    let catalog = context.resources.snapshot();
    let entry = catalog.functions.get(&step.function)?.clone();
    let spec = entry.revision(&step.revision)?.template.clone();
    Some((entry, spec))
}

enum Tried {
    Done(StepResult),
    Failed {
        error: StepError,
        retry: bool,
        retry_after: Option<Duration>,
    },
}

enum Undelivered {
    /// The function did not see it, or it is not known that it was at fault.
    NoAttempt { alone: bool },
    /// The object store is not to be had.
    Storage,
    /// The result that the pod found there is not there: it was removed meanwhile, or, the second time, the pod is wrong.
    Gone(StepError),
    /// What is asked of the object store can never be.
    Never(StepError),
}

async fn attempt(
    context: &Context,
    step: &StepRequest,
    spec: &FunctionSpec,
    number: u32,
    demand: Demand,
) -> Result<Tried, Undelivered> {
    let deadline = Instant::now() + SLOT_PATIENCE;
    let slot = match context
        .delivery
        .acquire(&step.function, &step.revision, Class::Batch, demand, deadline)
        .await
    {
        Ok(slot) => slot,
        Err(error) if error.is_attempt() => return Ok(undelivered(&error)),
        Err(DeliveryError::Closing) => {
            // The platform stops: wait to be given up.
            std::future::pending::<()>().await;
            return Err(Undelivered::NoAttempt { alone: false });
        }
        Err(_) => {
            return Err(Undelivered::NoAttempt {
                alone: demand == Demand::Alone,
            });
        }
    };
    let timeout = spec.timeout.0;
    let signed = sign(context, step, timeout).await?;
    let onward = trace::onward(&Span::current(), step.traceparent.as_deref());
    let request = match request::build(step, number, onward, &signed) {
        Ok(request) => request,
        Err(error) => return Ok(failed(plain(ErrorCode::Internal, error.to_string()), false)),
    };
    let cold = slot.cold();
    let working = Working::begin(context, step);
    let sent = {
        let send = context.delivery.send(&slot, request, timeout);
        tokio::pin!(send);
        match tokio::time::timeout(REPORT_STARTED_AFTER, &mut send).await {
            Ok(sent) => sent,
            Err(_) => {
                let started = RunEvent::StageStarted {
                    run: step.run.clone(),
                    stage: step.stage,
                    at_ms: (context.clock)(),
                };
                let (sent, ()) = tokio::join!(send, tell(context, started));
                sent
            }
        }
    };
    drop((working, slot));
    match sent {
        Ok(response) => finish(context, step, outcome::read(response), cold).await,
        Err(DeliveryError::PodLost { beside, .. }) if beside > 0 => Err(Undelivered::NoAttempt { alone: true }),
        Err(error) if error.is_attempt() => Ok(undelivered(&error)),
        Err(_) => {
            // Refused or not reached: the pod is busy with others or has just gone.
            tokio::time::sleep(Duration::from_millis(20)).await;
            Err(Undelivered::NoAttempt {
                alone: demand == Demand::Alone,
            })
        }
    }
}

/// Makes the result durable where the pod has not, and checks it where the pod found it there.
async fn finish(context: &Context, step: &StepRequest, outcome: Outcome, cold: bool) -> Result<Tried, Undelivered> {
    let reply = match outcome {
        Outcome::Failed {
            error,
            retry,
            retry_after,
        } => {
            return Ok(Tried::Failed {
                error,
                retry,
                retry_after,
            });
        }
        Outcome::Replied(reply) => reply,
        Outcome::Data(data) => StepReply {
            data,
            ..StepReply::default()
        },
        Outcome::Body { body, content_type } => store(context, step, body, content_type).await?,
    };
    let output = match &reply.output {
        None => None,
        Some(written) => Some(verified(context, step, written, &reply).await?),
    };
    Ok(Tried::Done(StepResult {
        output,
        step_ms: step_times(step, &reply),
        data: reply.data,
        service_ms: reply.service_ms,
        cold,
        reused: reply.reused,
    }))
}

/// Times of the single steps, by the names the run knows: what else a function may tell is not for its state.
fn step_times(step: &StepRequest, reply: &StepReply) -> BTreeMap<StepName, f64> {
    let known = step.steps.iter().map(|s| &s.name);
    known
        .filter_map(|name| {
            let timing = reply.steps.iter().find(|t| t.name == name.as_str())?;
            Some((name.clone(), timing.ms))
        })
        .collect()
}

/// Stores the answer of a foreign function as the step's result: data first, then the object, each once.
async fn store(
    context: &Context,
    step: &StepRequest,
    body: Bytes,
    content_type: String,
) -> Result<StepReply, Undelivered> {
    let size = body.len() as u64;
    let data = serde_json::json!({"contentType": content_type, "size": size});
    put_sidecar(context, step, &data).await?;
    let options = PutOptions {
        content_type: Some(content_type.clone()),
        metadata: written_by(step),
        if_none_match: true,
    };
    let (etag, reused) = match context
        .objects
        .put(&step.output.bucket, &step.output.key, body, options)
        .await
    {
        Ok(info) => (info.etag, false),
        Err(ObjectError::AlreadyExists { .. }) => (String::new(), true),
        Err(error) => return Err(storage(&error)),
    };
    let output = Some(WrittenOutput {
        etag,
        size,
        content_type,
    });
    Ok(StepReply {
        output,
        data,
        reused,
        ..StepReply::default()
    })
}

/// The object as it is in the store. Asked for when the pod did not write it itself or does not know its ETag.
async fn verified(
    context: &Context,
    step: &StepRequest,
    written: &WrittenOutput,
    reply: &StepReply,
) -> Result<ObjectRef, Undelivered> {
    let OutputRef { bucket, key, .. } = step.output.clone();
    if !reply.reused && !written.etag.is_empty() {
        let content_type = Some(written.content_type.clone());
        return Ok(ObjectRef {
            bucket,
            key,
            etag: written.etag.clone(),
            size: written.size,
            content_type,
        });
    }
    let info = match context.objects.head(&bucket, &key).await {
        Ok(Some(info)) => info,
        Ok(None) => {
            let message = format!("the function says that {bucket}/{key} is written, but it is not there");
            return Err(Undelivered::Gone(plain(ErrorCode::FunctionFailed, message)));
        }
        Err(error) => return Err(storage(&error)),
    };
    match context.objects.head(&bucket, &sidecar_key(&key)).await {
        Ok(Some(_)) => {}
        Ok(None) => put_sidecar(context, step, &reply.data).await?,
        Err(error) => return Err(storage(&error)),
    }
    Ok(ObjectRef {
        bucket,
        key,
        etag: info.etag,
        size: info.size,
        content_type: info.content_type,
    })
}

async fn put_sidecar(context: &Context, step: &StepRequest, data: &Value) -> Result<(), Undelivered> {
    let options = PutOptions {
        content_type: Some("application/json".to_owned()),
        metadata: written_by(step),
        if_none_match: true,
    };
    let key = sidecar_key(&step.output.key);
    match context
        .objects
        .put(&step.output.bucket, &key, data.to_string().into(), options)
        .await
    {
        Ok(_) | Err(ObjectError::AlreadyExists { .. }) => Ok(()),
        Err(error) => Err(storage(&error)),
    }
}

fn storage(error: &ObjectError) -> Undelivered {
    if !error.is_retryable() {
        let code = match error {
            ObjectError::AccessDenied { .. } => ErrorCode::Forbidden,
            ObjectError::TooLarge => ErrorCode::TooLarge,
            ObjectError::NoSuchBucket { .. } | ObjectError::NoSuchKey { .. } => ErrorCode::NotFound,
            _ => ErrorCode::InvalidArgument,
        };
        return Undelivered::Never(plain(code, error.to_string()));
    }
    tracing::warn!(%error, "the object store is not to be had, the step waits");
    Undelivered::Storage
}

/// The mark by which events of our own objects are told from those of others.
fn written_by(step: &StepRequest) -> std::collections::BTreeMap<String, String> {
    [(intake::METADATA_RUN.to_owned(), step.run.to_string())].into()
}

fn sidecar_key(key: &str) -> String {
    format!("{key}.json")
}

async fn sign(context: &Context, step: &StepRequest, timeout: Duration) -> Result<Signed, Undelivered> {
    let life = timeout + CLOCK_SKEW;
    let Input::Object(object) = &step.input else {
        return Ok(Signed {
            input: None,
            output: Some(sign_output(context, step, life).await?),
        });
    };
    let input = context
        .objects
        .sign_get(&object.bucket, &object.key, Some(&object.etag), life)
        .await
        .map_err(|e| storage(&e))?;
    Ok(Signed {
        input: Some(signed_request(&input)),
        output: Some(sign_output(context, step, life).await?),
    })
}

async fn sign_output(context: &Context, step: &StepRequest, life: Duration) -> Result<OutputTarget, Undelivered> {
    let sign = async |key: String| {
        let signed = context
            .objects
            .sign_put(&step.output.bucket, &key, &written_by(step), life)
            .await;
        signed.map(|s| signed_request(&s)).map_err(|e| storage(&e))
    };
    Ok(OutputTarget {
        object: sign(step.output.key.clone()).await?,
        sidecar: sign(sidecar_key(&step.output.key)).await?,
        intermediate: step.output.intermediate,
    })
}

fn signed_request(signed: &imageflow_objects::SignedUrl) -> imageflow_events::invocation::SignedRequest {
    imageflow_events::invocation::SignedRequest {
        url: signed.expose().to_owned(),
        method: signed.method.clone(),
        headers: signed.headers.iter().cloned().collect(),
    }
}

/// A delivery that counts as an attempt; whether another may help is the error's to say.
fn undelivered(error: &DeliveryError) -> Tried {
    let code = error.code();
    failed(
        plain(code, error.to_string()),
        code.retryable() || code == ErrorCode::FunctionFailed,
    )
}

/// A step is with a pod, until this is dropped: also when the step is given up.
struct Working<'a>(&'a Context, &'a StepRequest);

impl<'a> Working<'a> {
    fn begin(context: &'a Context, step: &'a StepRequest) -> Self {
        context.backlogs.working(&step.function, 1);
        Self(context, step)
    }
}

impl Drop for Working<'_> {
    fn drop(&mut self) {
        self.0.backlogs.working(&self.1.function, -1);
    }
}

const fn plain(code: ErrorCode, message: String) -> StepError {
    StepError {
        code,
        message,
        status: None,
        step: None,
    }
}

const fn failed(error: StepError, retry: bool) -> Tried {
    Tried::Failed {
        error,
        retry,
        retry_after: None,
    }
}

fn end_failed(context: &Context, step: &StepRequest, error: StepError, attempts: Vec<Attempt>) -> RunEvent {
    let at_ms = (context.clock)();
    RunEvent::StageFailed {
        run: step.run.clone(),
        stage: step.stage,
        error,
        attempts,
        at_ms,
    }
}

/// A report that people look at but nothing depends on: it is tried once.
async fn tell(context: &Context, event: RunEvent) {
    if let Some(record) = record(&event)
        && let Err(error) = context.log.produce(vec![record]).await
    {
        tracing::debug!(%error, run = %event.run(), "progress was not reported");
    }
}

/// The report that ends the work: repeated until it is durable, for the record may not be marked done before.
async fn report(context: &Context, mut event: RunEvent, stop: &CancellationToken) -> Result<(), GivenUp> {
    loop {
        let Some(record) = record(&event) else {
            return Err(GivenUp);
        };
        match context.log.produce(vec![record]).await {
            Ok(_) => return Ok(()),
            Err(error @ LogError::RecordTooLarge { .. }) if !is_short(&event) => {
                // The next try is small whatever the function said.
                event = too_large(event, &error);
                continue;
            }
            Err(error) => tracing::warn!(%error, run = %event.run(), "the result is not reported yet"),
        }
        tokio::select! {
            () = stop.cancelled() => return Err(GivenUp),
            () = tokio::time::sleep(STORAGE_PAUSE) => {}
        }
    }
}

const fn is_short(event: &RunEvent) -> bool {
    matches!(event, RunEvent::StageFailed { attempts, .. } if attempts.is_empty())
}

/// The end of a step whose own report does not fit into a record.
fn too_large(event: RunEvent, error: &LogError) -> RunEvent {
    let message = format!("what the function said does not fit into the report: {error}");
    let failed = |run, stage, at_ms| RunEvent::StageFailed {
        run,
        stage,
        error: plain(ErrorCode::TooLarge, message),
        attempts: Vec::new(),
        at_ms,
    };
    match event {
        RunEvent::StageCompleted { run, stage, at_ms, .. } | RunEvent::StageFailed { run, stage, at_ms, .. } => {
            failed(run, stage, at_ms)
        }
        other => other,
    }
}

fn record(event: &RunEvent) -> Option<NewRecord> {
    match serde_json::to_vec(event) {
        Ok(value) => Some(
            NewRecord::new(topics::RUN_EVENTS)
                .key(event.run().as_str().to_owned())
                .value(value),
        ),
        Err(error) => {
            tracing::error!(%error, run = %event.run(), "an event cannot be written");
            None
        }
    }
}
