//! How the end of a step becomes durable, and what is written instead of what does not fit into a record.
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures::FutureExt;
use imageflow_eventlog::{LogError, NewRecord};
use imageflow_process::overdue;
use imageflow_types::error::ErrorCode;
use imageflow_types::work::{Attempt, DeadLetter, RunEvent, StepError};
use imageflow_types::{StepRequest, topics};

use crate::delay::{self, Later};
use crate::letters;
use crate::outcome::{cut, plain};
use crate::stop::{GivenUp, Stop};
use crate::work::Context;

/// Pause before the log is asked again.
const PAUSE: Duration = Duration::from_millis(500);
/// So often a report is tried at which the dispatcher itself fails.
const REPORTS_THAT_PANIC: u32 = 3;
/// Most reports are not larger: a buffer that grows is copied again and again.
const USUAL_BYTES: usize = 512;

/// What is to be durable before the step's record is done.
pub(crate) enum End {
    /// It ended. Only the event of a failure names its attempts: those of others are beside it.
    Event(Box<RunEvent>, Vec<Attempt>),
    /// It is tried again later, by whoever reads the topic of delays.
    Later(Box<Later>),
    /// It is no step at all.
    Letter(Box<DeadLetter>),
}

/// Makes an end durable, also when the dispatcher itself fails at it, unless it always does. False when it cannot be tried later,
/// for it does not fit into the topic of delays.
pub(crate) async fn settle(context: &Context, end: &mut End, stop: &Stop) -> Result<bool, GivenUp> {
    let _wait = context.waits.begin();
    for _ in 0..REPORTS_THAT_PANIC {
        match AssertUnwindSafe(report(context, end, stop)).catch_unwind().await {
            Ok(reported) => return reported,
            Err(_) => tracing::error!("the report of a step panicked"),
        }
        stop.pause(PAUSE).await?;
    }
    // Its record stays open, so it is done again after a restart and never lost.
    Err(GivenUp)
}

/// A report that people look at but nothing depends on: it is tried once.
pub(crate) async fn tell(context: &Context, event: RunEvent) {
    if let Some(record) = record(&event)
        && let Err(error) = context.log.produce(vec![record]).await
    {
        tracing::debug!(%error, run = %event.run(), "progress was not reported");
    }
}

/// The report that ends the work: repeated until it is durable, for the record may not be marked done before.
async fn report(context: &Context, end: &mut End, stop: &Stop) -> Result<bool, GivenUp> {
    loop {
        let record = match &*end {
            End::Event(event, _) => record(event),
            End::Later(later) => delay::record(later),
            End::Letter(letter) => letters::record(letter),
        };
        let Some(record) = record else {
            let why = "the report of the step cannot be written as JSON".to_owned();
            match end.shortened(ErrorCode::Internal, why) {
                Some(shorter) => *end = shorter,
                None => return Err(GivenUp),
            }
            continue;
        };
        let produced = tokio::select! {
            produced = context.log.produce(vec![record]) => produced,
            () = overdue(&stop.gentle) => return Err(GivenUp),
            () = stop.hard.cancelled() => return Err(GivenUp),
        };
        match produced {
            Ok(_) => return Ok(true),
            Err(error @ LogError::RecordTooLarge { .. }) => {
                if matches!(end, End::Later(_)) {
                    return Ok(false);
                }
                let why = format!("what the function said does not fit into the report: {error}");
                if let Some(shorter) = end.shortened(ErrorCode::TooLarge, why) {
                    *end = shorter;
                    continue;
                }
                tracing::warn!(%error, topic = end.topic(), "the end of a step is not written yet");
            }
            Err(error) => tracing::warn!(%error, topic = end.topic(), "the end of a step is not written yet"),
        }
        stop.pause(PAUSE).await?;
    }
}

impl End {
    const fn topic(&self) -> &'static str {
        match self {
            Self::Event(..) => topics::RUN_EVENTS,
            Self::Later(_) => topics::DELAY,
            Self::Letter(_) => topics::DEAD_LETTERS,
        }
    }

    /// What is written instead; none when it says as little as can be.
    fn shortened(&self, code: ErrorCode, why: String) -> Option<Self> {
        match self {
            Self::Event(event, attempts) => {
                let shorter = shortened(event, attempts, plain(code, why))?;
                Some(Self::Event(Box::new(shorter), Vec::new()))
            }
            Self::Later(later) => {
                let Later { delayed, .. } = &**later;
                let attempts = delayed.step.attempts.clone();
                let event = stage_failed(&delayed.step, plain(code, why), attempts, delayed.due_ms);
                Some(Self::Event(Box::new(event), Vec::new()))
            }
            Self::Letter(letter) => letters::shortened(letter).map(|letter| Self::Letter(Box::new(letter))),
        }
    }
}

/// What is reported instead of an end that does not fit: first without what the function said, then without the attempts. None
/// when nothing can be left out. `attempts` are those that the event does not name itself.
pub(crate) fn shortened(event: &RunEvent, attempts: &[Attempt], error: StepError) -> Option<RunEvent> {
    match event {
        RunEvent::StageCompleted { run, stage, at_ms, .. } => {
            let mut attempts: Vec<Attempt> = attempts.iter().map(short).collect();
            attempts.push(Attempt {
                number: attempt_after(&attempts),
                at_ms: *at_ms,
                error: error.clone(),
            });
            Some(RunEvent::StageFailed {
                run: run.clone(),
                stage: *stage,
                error,
                attempts,
                at_ms: *at_ms,
            })
        }
        RunEvent::StageFailed {
            run,
            stage,
            error,
            attempts,
            at_ms,
        } if !attempts.is_empty() => {
            let shorter: Vec<Attempt> = attempts.iter().map(short).collect();
            let mut error = short_error(error);
            let attempts = match shorter == *attempts {
                false => shorter,
                true => {
                    error.message.push_str(" (its attempts do not fit into the report)");
                    Vec::new()
                }
            };
            Some(RunEvent::StageFailed {
                run: run.clone(),
                stage: *stage,
                error,
                attempts,
                at_ms: *at_ms,
            })
        }
        _ => None,
    }
}

/// The number of the next attempt.
pub(crate) fn attempt_after(attempts: &[Attempt]) -> u32 {
    u32::try_from(attempts.len()).unwrap_or(u32::MAX).saturating_add(1)
}

fn short(attempt: &Attempt) -> Attempt {
    Attempt {
        error: short_error(&attempt.error),
        ..attempt.clone()
    }
}

fn short_error(error: &StepError) -> StepError {
    StepError {
        message: cut(error.message.clone()),
        ..error.clone()
    }
}

/// That a step cannot be done.
pub(crate) fn stage_failed(step: &StepRequest, error: StepError, attempts: Vec<Attempt>, at_ms: i64) -> RunEvent {
    RunEvent::StageFailed {
        run: step.run.clone(),
        stage: step.stage,
        error,
        attempts,
        at_ms,
    }
}

/// The record of an event for the router.
pub(crate) fn record(event: &RunEvent) -> Option<NewRecord> {
    let mut value = Vec::with_capacity(USUAL_BYTES);
    match serde_json::to_writer(&mut value, event) {
        Ok(()) => Some(
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

#[cfg(test)]
mod tests {
    use imageflow_types::RunId;
    use imageflow_types::work::StepResult;

    use super::*;

    fn attempt(number: u32, message: String) -> Attempt {
        Attempt {
            number,
            at_ms: 5,
            error: StepError {
                message,
                ..plain(ErrorCode::FunctionFailed, String::new())
            },
        }
    }

    fn failed(event: Option<RunEvent>) -> (RunEvent, StepError, Vec<Attempt>) {
        let event = event.unwrap();
        match event.clone() {
            RunEvent::StageFailed { error, attempts, .. } => (event, error, attempts),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_does_not_fit_loses_what_the_function_said_then_the_attempts_and_never_why_it_failed() {
        let event = RunEvent::StageCompleted {
            run: RunId::derive(&["a"]),
            stage: 1,
            result: StepResult {
                output: None,
                data: serde_json::Value::Null,
                service_ms: 0.0,
                step_ms: std::collections::BTreeMap::new(),
                cold: false,
                reused: false,
            },
            at_ms: 7,
        };
        let before = [attempt(1, "short".to_owned()), attempt(2, "x".repeat(5_000))];
        let why = || plain(ErrorCode::TooLarge, "it says too much".to_owned());
        let (event, error, attempts) = failed(shortened(&event, &before, why()));
        let said: Vec<(u32, usize)> = attempts.iter().map(|a| (a.number, a.error.message.len())).collect();
        assert_eq!(said, [(1, 5), (2, 1_027), (3, 16)]);
        assert_eq!((error, attempts[2].at_ms), (why(), 7));
        let other = || plain(ErrorCode::TooLarge, "the failure says too much".to_owned());
        let (event, error, attempts) = failed(shortened(&event, &[], other()));
        assert!(
            attempts.is_empty() && error.message.starts_with("it says too much ("),
            "{error:?}"
        );
        assert_eq!(shortened(&event, &[], other()), None);
    }

    #[test]
    fn the_attempts_of_a_failure_are_cut_before_they_are_left_out() {
        let event = RunEvent::StageFailed {
            run: RunId::derive(&["a"]),
            stage: 1,
            error: attempt(1, "x".repeat(5_000)).error,
            attempts: vec![attempt(1, "x".repeat(5_000))],
            at_ms: 7,
        };
        let why = || plain(ErrorCode::TooLarge, "it says too much".to_owned());
        let (event, error, attempts) = failed(shortened(&event, &[], why()));
        assert_eq!((error.message.len(), attempts[0].error.message.len()), (1_027, 1_027));
        let (_, error, attempts) = failed(shortened(&event, &[], why()));
        assert_eq!((error.code, attempts.len()), (ErrorCode::FunctionFailed, 0));
    }
}
