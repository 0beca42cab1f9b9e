//! What a step reads and writes in the object store: signed for the pod, or stored for a function that only answers.
use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use imageflow_events::invocation::{OutputTarget, SignedRequest, StepReply, WrittenOutput};
use imageflow_objects::{ObjectError, PutOptions, SignedUrl};
use imageflow_types::StepRequest;
use imageflow_types::error::ErrorCode;
use imageflow_types::names::StepName;
use imageflow_types::work::{Input, ObjectRef, OutputRef, StepError, StepResult};
use serde_json::Value;

use crate::intake;
use crate::outcome::{Outcome, plain};
use crate::request::Signed;
use crate::work::{Context, Tried, Undelivered};

/// Signed URLs live as long as the call may take and this much for clocks that differ.
const CLOCK_SKEW: Duration = Duration::from_secs(60);

/// Makes the result durable where the pod has not, and checks it where the pod found it there.
pub(crate) async fn finish(
    context: &Context,
    step: &StepRequest,
    outcome: Outcome,
    cold: bool,
) -> Result<Tried, Undelivered> {
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
        Outcome::NoStorage { error } => return Err(unreached(context, step, error).await),
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

/// What it means that a pod did not get at the object store: nothing about the step when we do not get at it either.
async fn unreached(context: &Context, step: &StepRequest, error: StepError) -> Undelivered {
    match context.objects.head(&step.output.bucket, &step.output.key).await {
        Err(ours) if ours.is_retryable() => storage(&ours),
        _ => {
            tracing::warn!(run = %step.run, error = error.message, "a pod does not get at the object store, the step waits");
            Undelivered::NoStorageForPod(error)
        }
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

pub(crate) async fn sign(context: &Context, step: &StepRequest, timeout: Duration) -> Result<Signed, Undelivered> {
    let life = timeout + CLOCK_SKEW;
    let Input::Object(object) = &step.input else {
        let output = if makes_no_object(step) {
            None
        } else {
            Some(sign_output(context, step, life).await?)
        };
        return Ok(Signed { input: None, output });
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

/// Operations of the catalogue make an image of an image: of an event alone they make none, and to sign where it would go
/// costs as much as all else that the dispatcher does for such a step. (What a pod makes without being told where to put it
/// comes in its answer and is stored here.)
fn makes_no_object(step: &StepRequest) -> bool {
    matches!(step.input, Input::Event(_)) && step.steps.iter().all(|s| s.operation.is_some())
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

fn signed_request(signed: &SignedUrl) -> SignedRequest {
    SignedRequest {
        url: signed.expose().to_owned(),
        method: signed.method.clone(),
        headers: signed.headers.iter().cloned().collect(),
    }
}
