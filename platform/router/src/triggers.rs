//! Which runs an event asks for.
use imageflow_events::{AttributesReader, Event, attributes, ext, json_event, object};
use imageflow_objects::ObjectStore;
use imageflow_resources::Catalog;
use imageflow_types::RunId;
use imageflow_types::error::ErrorCode;
use imageflow_types::manifest::Document;
use imageflow_types::names::{TriggerName, digest};
use imageflow_types::trigger::TriggerSpec;
use imageflow_types::work::{DeadLetter, Input, ObjectRef, RunRequest, StepError, Target};

/// What a trigger makes of an event.
#[derive(Debug, Clone, PartialEq)]
pub enum Match {
    /// A run.
    Run(Box<RunRequest>),
    /// It matched, but no run can be made of it.
    Refused(Box<DeadLetter>),
}

/// The object store is not to be had: the event must be looked at again.
#[derive(Debug, thiserror::Error)]
#[error("the object that an event refers to cannot be looked up: {0}")]
pub struct LookupFailed(#[from] imageflow_objects::ObjectError);

/// All that the triggers make of an event.
///
/// # Errors
/// [`LookupFailed`] when an object's ETag is needed and cannot be had now.
pub async fn matches(
    catalog: &Catalog,
    objects: &dyn ObjectStore,
    event: &Event,
    now_ms: i64,
) -> Result<Vec<Match>, LookupFailed> {
    let ours = event.extension(ext::WRITTEN_BY).is_some();
    let mut found = Vec::new();
    for (name, trigger) in &catalog.triggers {
        // What the platform wrote starts nothing, unless the trigger asks for it: a flow cannot start itself.
        if (ours && !trigger.spec.platform_objects)
            || !trigger.spec.matches(|attribute| attributes::get(event, attribute))
        {
            continue;
        }
        found.push(make(name, trigger, objects, event, now_ms).await?);
    }
    Ok(found)
}

async fn make(
    name: &TriggerName,
    trigger: &Document<TriggerName, TriggerSpec>,
    objects: &dyn ObjectStore,
    event: &Event,
    now_ms: i64,
) -> Result<Match, LookupFailed> {
    let refuse = |code, message: String| {
        let error = StepError {
            code,
            message,
            status: None,
            step: None,
        };
        Match::Refused(Box::new(DeadLetter {
            id: format!(
                "event-{}",
                &digest(&["event", name.as_str(), &event.source().to_string(), event.id()])[..24]
            ),
            run: None,
            function: "-".to_owned(),
            error,
            attempts: Vec::new(),
            request: None,
            event: serde_json::to_value(event).ok(),
            at_ms: now_ms,
        }))
    };
    let (Some(target), spec) = (target(&trigger.spec), &trigger.spec) else {
        return Ok(refuse(
            ErrorCode::Internal,
            format!("trigger {name} names no flow and no function"),
        ));
    };
    // Of an object that was removed there is nothing to fetch: the event itself is the input.
    let removed = event.ty() == ext::TYPE_OBJECT_REMOVED;
    let pinned = object::own_object(event);
    let referred = pinned
        .as_ref()
        .map(|o| (o.bucket.clone(), o.key.clone(), Some(o.etag.clone())));
    let Some((bucket, key, etag)) = referred.or_else(|| object::referred_object(event).filter(|_| !removed)) else {
        let run = RunId::derive(&["trigger", name.as_str(), &event.source().to_string(), event.id()]);
        let input = Input::Event(json_event(event).unwrap_or_default());
        return Ok(Match::Run(Box::new(request(
            run, target, name, spec, input, event, now_ms,
        ))));
    };
    if !spec.buckets.contains(&bucket) {
        let allowed = spec.buckets.join(", ");
        return Ok(refuse(
            ErrorCode::Forbidden,
            format!(
                "the event refers to bucket \"{bucket}\", but trigger {name} may read only {allowed}; add it to spec.buckets"
            ),
        ));
    }
    let object = match pinned {
        Some(object) => object,
        None => match objects.head(&bucket, &key).await {
            Ok(None) => {
                return Ok(refuse(
                    ErrorCode::NotFound,
                    format!("the event refers to {bucket}/{key}, which does not exist"),
                ));
            }
            Ok(Some(info)) if etag.as_ref().is_some_and(|wanted| *wanted != info.etag) => {
                return Ok(refuse(
                    ErrorCode::InputChanged,
                    format!("{bucket}/{key} is not the one the event refers to any more"),
                ));
            }
            Ok(Some(info)) => ObjectRef {
                bucket,
                key,
                etag: info.etag,
                size: info.size,
                content_type: info.content_type,
            },
            Err(error) if error.is_retryable() => return Err(error.into()),
            Err(error) => {
                return Ok(refuse(
                    ErrorCode::NotFound,
                    format!("{bucket}/{key} cannot be read: {error}"),
                ));
            }
        },
    };
    let run = RunId::derive(&["trigger", name.as_str(), &object.bucket, &object.key, &object.etag]);
    Ok(Match::Run(Box::new(request(
        run,
        target,
        name,
        spec,
        Input::Object(object),
        event,
        now_ms,
    ))))
}

fn request(
    run: RunId,
    target: Target,
    trigger: &TriggerName,
    spec: &TriggerSpec,
    input: Input,
    event: &Event,
    now_ms: i64,
) -> RunRequest {
    RunRequest {
        run,
        target,
        trigger: Some(trigger.clone()),
        input,
        params: spec.params.clone(),
        fuse: true,
        requested_ms: event.time().map_or(now_ms, |t| t.timestamp_millis()),
        traceparent: ext::text(event, ext::TRACEPARENT),
    }
}

fn target(spec: &TriggerSpec) -> Option<Target> {
    spec.flow
        .clone()
        .map(Target::Flow)
        .or_else(|| spec.function.clone().map(Target::Function))
}
