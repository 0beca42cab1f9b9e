//! One step from first attempt to a durable report: what happens between taking a record and marking it done.
use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use imageflow_delivery::{Class, Delivery, DeliveryError, Demand, Slot, Target};
use imageflow_eventlog::EventLog;
use imageflow_objects::ObjectStore;
use imageflow_process::trace;
use imageflow_resources::{FunctionEntry, ResourceStore};
use imageflow_types::StepRequest;
use imageflow_types::error::ErrorCode;
use imageflow_types::function::Ordering;
use imageflow_types::work::{Attempt, DeadLetter, Delayed, RunEvent, StepError, StepResult};
use tokio::time::Instant;
use tracing::{Instrument, Span};

use crate::backlog::Backlogs;
use crate::delay::Later;
use crate::outcome::plain;
use crate::report::{self, End, attempt_after, tell};
use crate::stop::{GivenUp, Stop};
use crate::stored::{finish, sign};
use crate::waits::Waits;
use crate::{backoff, outcome, request};

/// What every step needs.
pub(crate) struct Context {
    pub(crate) log: Arc<dyn EventLog>,
    pub(crate) objects: Arc<dyn ObjectStore>,
    pub(crate) resources: Arc<ResourceStore>,
    pub(crate) delivery: Arc<Delivery>,
    pub(crate) backlogs: Arc<Backlogs>,
    pub(crate) clock: fn() -> i64,
    /// What is to be written and is not yet.
    pub(crate) waits: Arc<Waits>,
}

/// A step still running after this long is reported as started. Shorter ones go from queued to done:
/// a report costs a durable write and would double the work of the router for nothing that people could see.
const REPORT_STARTED_AFTER: Duration = Duration::from_millis(500);
/// How long a step waits for a slot before it looks again whether its function is still there.
const SLOT_PATIENCE: Duration = Duration::from_secs(60);
/// So often a step may lose its pod before that counts as an attempt, where other dispatchers give work to the same pods: none
/// of them knows whose step it was.
const LOST_WITH_STRANGERS: u32 = 2;
/// A wait of this length leaves the work topic, so that the window of uncommitted offsets stays short.
const DELAY_FROM: Duration = Duration::from_secs(5);
/// Pause before the object store is asked again.
const STORAGE_PAUSE: Duration = Duration::from_millis(500);
/// Does a step and reports its end. Returns when the report is durable. `seen` is what its writer said of the resources.
pub(crate) async fn perform(
    context: &Context,
    mut step: StepRequest,
    seen: Option<Bytes>,
    stop: &Stop,
) -> Result<(), GivenUp> {
    let mut may_leave = true;
    loop {
        let tried = AssertUnwindSafe(attempts(context, &step, seen.as_ref(), may_leave, stop)).catch_unwind();
        let mut end = tokio::select! {
            () = stop.hard.cancelled() => return Err(GivenUp),
            end = tried => end.unwrap_or_else(|panic| Ok(panicked(context, &step, &*panic)))?,
        };
        if report::settle(context, &mut end, stop).await? {
            return Ok(());
        }
        let End::Later(later) = end else { return Ok(()) };
        // It has grown by its attempts: its record in the work topic is smaller, and stays.
        let Delayed { due_ms, step: waits } = later.delayed;
        let wait = u64::try_from(due_ms.saturating_sub((context.clock)())).unwrap_or(0);
        stop.pause(Duration::from_millis(wait).min(backoff::LONGEST)).await?;
        (step, may_leave) = (waits, false);
    }
}

/// Keeps what is no step. Returns when that is durable.
pub(crate) async fn keep(context: &Context, letter: DeadLetter, stop: &Stop) -> Result<(), GivenUp> {
    report::settle(context, &mut End::Letter(Box::new(letter)), stop)
        .await
        .map(drop)
}

/// A step at which the dispatcher itself fails would fail it again: it ends as any that failed.
fn panicked(context: &Context, step: &StepRequest, panic: &(dyn Any + Send)) -> End {
    let said = panic.downcast_ref::<&str>().copied();
    let said = said.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    tracing::error!(run = %step.run, "the work on a step panicked");
    let message = format!("the dispatcher failed at it: {}", said.unwrap_or("no reason was given"));
    end_failed(
        context,
        step,
        plain(ErrorCode::Internal, message),
        step.attempts.clone(),
    )
}

/// Tries until it is done or cannot be, or not for a while: then it leaves the work topic, if it may.
async fn attempts(
    context: &Context,
    step: &StepRequest,
    seen: Option<&Bytes>,
    may_leave: bool,
    stop: &Stop,
) -> Result<End, GivenUp> {
    let mut attempts: Vec<Attempt> = step.attempts.clone();
    let mut demand = Demand::One;
    let mut gone = false;
    let mut lost = 0;
    let mut turned_away = 0;
    loop {
        let Some((entry, timeout)) = function_of(context, step) else {
            let message = format!(
                "function {} or its revision {} was deleted",
                step.function, step.revision
            );
            return Ok(end_failed(context, step, plain(ErrorCode::NotFound, message), attempts));
        };
        let number = attempt_after(&attempts);
        let span = tracing::info_span!("deliver", otel.kind = "client", run = %step.run, function = %step.function, attempt = number);
        trace::continue_from(&span, step.traceparent.as_deref());
        let tried = attempt(context, step, stop, timeout, number, demand)
            .instrument(span)
            .await;
        let (error, retry, retry_after) = match tried {
            Ok(Tried::Done(result)) => {
                let at_ms = (context.clock)();
                let event = RunEvent::StageCompleted {
                    run: step.run.clone(),
                    stage: step.stage,
                    result,
                    at_ms,
                };
                return Ok(End::Event(Box::new(event), attempts));
            }
            Ok(Tried::Failed {
                error,
                retry,
                retry_after,
            }) => (error, retry, retry_after),
            Err(Undelivered::GivenUp) => return Err(GivenUp),
            Err(Undelivered::NoAttempt { alone }) => {
                demand = if alone { Demand::Alone } else { demand };
                continue;
            }
            Err(Undelivered::WithStrangers(_)) if lost < LOST_WITH_STRANGERS => {
                lost += 1;
                demand = Demand::Alone;
                continue;
            }
            Err(Undelivered::WithStrangers(error)) => (error, true, None),
            Err(Undelivered::Never(error)) => (error, false, None),
            Err(Undelivered::Gone(_)) if !gone => {
                gone = true;
                continue;
            }
            Err(Undelivered::Gone(error)) => (error, true, None),
            Err(Undelivered::Storage) => {
                // Our storage, not the function: no attempt, and the work stays.
                stop.pause(STORAGE_PAUSE).await?;
                continue;
            }
            Err(Undelivered::NoStorageForPod(error)) => {
                if let Some(wait) = backoff::for_storage(turned_away) {
                    turned_away += 1;
                    stop.pause(wait).await?;
                    continue;
                }
                turned_away = 0;
                (error, true, None)
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
            return Ok(end_failed(context, step, error, attempts));
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
        // What keeps an order holds those behind it up in any case.
        if wait >= DELAY_FROM && policy.ordering == Ordering::Unordered && may_leave {
            let step = StepRequest {
                attempts,
                ..step.clone()
            };
            return Ok(End::Later(Box::new(Later {
                delayed: Delayed { due_ms: next_ms, step },
                seen: seen.cloned(),
            })));
        }
        stop.pause(wait).await?;
    }
}

/// The function as it is now (for its retry policy) and the time limit of the revision that the run was pinned to.
fn function_of(context: &Context, step: &StepRequest) -> Option<(Arc<FunctionEntry>, Duration)> {
    let catalog = context.resources.snapshot();
    let entry = catalog.functions.get(&step.function)?.clone();
    let timeout = entry.revision(&step.revision)?.template.timeout.0;
    Some((entry, timeout))
}

/// Whether the resources that this process sees have the function and the revision of a step.
pub(crate) fn is_known(context: &Context, step: &StepRequest) -> bool {
    function_of(context, step).is_some()
}

pub(crate) enum Tried {
    Done(StepResult),
    Failed {
        error: StepError,
        retry: bool,
        retry_after: Option<Duration>,
    },
}

pub(crate) enum Undelivered {
    /// Nothing is to be begun any more.
    GivenUp,
    /// The function did not see it, or it is not known that it was at fault.
    NoAttempt { alone: bool },
    /// The pod was lost, and another dispatcher may have had a step there that was at fault.
    WithStrangers(StepError),
    /// The object store is not to be had.
    Storage,
    /// It is for us, but not for the pod.
    NoStorageForPod(StepError),
    /// The result that the pod found there is not there: it was removed meanwhile, or, the second time, the pod is wrong.
    Gone(StepError),
    /// What is asked of the object store can never be.
    Never(StepError),
}

/// The pod that is kept for a step that must be alone is empty when the last of its requests has ended. Whoever went before would
/// find it full of others, each time anew.
fn patience(demand: Demand, timeout: Duration) -> Duration {
    match demand {
        Demand::One => SLOT_PATIENCE,
        Demand::Alone => SLOT_PATIENCE + timeout,
    }
}

async fn attempt(
    context: &Context,
    step: &StepRequest,
    stop: &Stop,
    timeout: Duration,
    number: u32,
    demand: Demand,
) -> Result<Tried, Undelivered> {
    let deadline = Instant::now() + patience(demand, timeout);
    let stand_in = {
        let catalog = context.resources.snapshot();
        let entry = catalog.functions.get(&step.function);
        entry.and_then(|entry| catalog.stand_in(entry))
    };
    let target = Target {
        function: &step.function,
        revision: &step.revision,
        stand_in: stand_in.as_ref(),
    };
    let acquired = tokio::select! {
        acquired = context.delivery.acquire_for(target, Class::Batch, demand, deadline) => acquired,
        () = stop.gentle.cancelled() => return Err(Undelivered::GivenUp),
    };
    let slot = match acquired {
        Ok(slot) => slot,
        Err(error) if error.is_attempt() => return Ok(undelivered(&error)),
        Err(DeliveryError::Closing) => {
            // The platform stops: wait to be given up.
            stop.gentle.cancelled().await;
            return Err(Undelivered::GivenUp);
        }
        Err(_) => {
            return Err(Undelivered::NoAttempt {
                alone: demand == Demand::Alone,
            });
        }
    };
    // Thousands may wait for a slot: what only those with one need is made when they have it.
    Box::pin(hand_over(context, step, stop, slot, timeout, number, demand)).await
}

/// Sends it to the pod of the slot, and looks at what comes back.
async fn hand_over(
    context: &Context,
    step: &StepRequest,
    stop: &Stop,
    slot: Slot,
    timeout: Duration,
    number: u32,
    demand: Demand,
) -> Result<Tried, Undelivered> {
    let signed = sign(context, step, timeout).await?;
    let onward = trace::onward(&Span::current(), step.traceparent.as_deref());
    let request = match request::build(step, number, onward, &signed) {
        Ok(request) => request,
        Err(error) => return Ok(failed(plain(ErrorCode::Internal, error.to_string()), false)),
    };
    // What is not with a pod by now would only keep it from what is.
    if stop.gentle.is_cancelled() {
        return Err(Undelivered::GivenUp);
    }
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
        Ok(response) => {
            let answer = outcome::read(response, (context.clock)());
            finish(context, step, answer, cold).await
        }
        Err(DeliveryError::PodLost { beside, .. }) if beside > 0 => Err(Undelivered::NoAttempt { alone: true }),
        Err(error @ DeliveryError::PodLost { strangers: true, .. }) => {
            Err(Undelivered::WithStrangers(plain(error.code(), error.to_string())))
        }
        Err(error) if error.is_attempt() => Ok(undelivered(&error)),
        Err(_) => {
            // Refused or not reached: the pod is busy with others or has just gone. Or we had no room for its answer.
            tokio::time::sleep(Duration::from_millis(20)).await;
            Err(Undelivered::NoAttempt {
                alone: demand == Demand::Alone,
            })
        }
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

const fn failed(error: StepError, retry: bool) -> Tried {
    Tried::Failed {
        error,
        retry,
        retry_after: None,
    }
}

fn end_failed(context: &Context, step: &StepRequest, error: StepError, attempts: Vec<Attempt>) -> End {
    let event = report::stage_failed(step, error, attempts, (context.clock)());
    End::Event(Box::new(event), Vec::new())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_that_must_be_alone_outlasts_what_the_pod_works_on() {
        let timeout = Duration::from_secs(600);
        assert!(patience(Demand::Alone, timeout) > timeout);
        assert!(
            patience(Demand::One, timeout) < timeout,
            "a function that was deleted is noticed"
        );
    }

    fn size<'a, F>(_: impl FnOnce(&'a Context, StepRequest, Option<Bytes>, &'a Stop) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn a_step_that_waits_takes_little() {
        let bytes = size(perform);
        assert!(bytes <= 2_560, "{bytes} bytes, for each of thousands");
    }
}
