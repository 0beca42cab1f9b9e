//! How a run moves: one event in, the new state and what is to be done out.
//!
//! Laws, each checked by a property test beside this file:
//! - an event that comes again, or late, after its stage ended, changes nothing and does nothing;
//! - a run that ended never changes;
//! - a stage is enqueued at most once, and only after the stage it works on succeeded;
//! - a run succeeds exactly when all its stages did, and ends when nothing is under way.
use imageflow_types::names::digest;
use imageflow_types::run::{Plan, RUN_STATE_SCHEMA, Stage, output_ref};
use imageflow_types::work::{Attempt, DeadLetter, Input, RunRequest, StageStep, StepError, StepResult, Target};
use imageflow_types::{FunctionName, RunEvent, RunState, RunStatus, StepName, StepRequest, StepState, StepStatus};
use serde_json::Value;

use crate::compile::step_named;
use crate::output::event_output_ref;

/// A step remembers this many of its attempts, the last ones.
pub const MAX_ATTEMPTS_KEPT: usize = 20;

/// What the router does besides storing the state, in the same transaction.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Put a stage into its function's work topic.
    Enqueue(StepRequest),
    /// Keep what failed, so that somebody can look at it and send it again.
    DeadLetter(DeadLetter),
    /// The run ended; said once.
    Finished(RunStatus),
}

/// The first state of a run, with the stages that can begin at once.
#[must_use]
pub fn start(request: &RunRequest, plan: Plan, now_ms: i64) -> (RunState, Vec<Effect>) {
    let steps = plan.stages.iter().zip(0_u32..).flat_map(|(stage, at)| {
        let step = move |step: &StageStep| waiting(step.name.clone(), step.function.clone(), at);
        stage.steps.iter().map(step)
    });
    let mut state = RunState {
        schema: RUN_STATE_SCHEMA,
        run: request.run.clone(),
        status: RunStatus::Running,
        request: request.clone(),
        steps: steps.collect(),
        plan,
        created_ms: now_ms,
        updated_ms: now_ms,
        version: 1,
    };
    let mut effects = enqueue_after(&mut state, None, now_ms);
    effects.extend(finish_if_done(&mut state));
    (state, effects)
}

/// The only state of a run that cannot be made: it failed before it began, and one step in the name of its target says why.
#[must_use]
pub fn refused(request: &RunRequest, error: &StepError, now_ms: i64) -> RunState {
    let target = match &request.target {
        Target::Flow(name) => name.as_str(),
        Target::Function(name) => name.as_str(),
    };
    let step = step_named(target).zip(FunctionName::new(target).ok());
    let step = step.map(|(name, function)| StepState {
        status: StepStatus::Failed,
        error: Some(error.clone()),
        ended_ms: Some(now_ms),
        ..waiting(name, function, 0)
    });
    RunState {
        schema: RUN_STATE_SCHEMA,
        run: request.run.clone(),
        status: RunStatus::Failed,
        request: request.clone(),
        steps: step.into_iter().collect(),
        plan: Plan {
            stages: Vec::new(),
            bucket: String::new(),
        },
        created_ms: now_ms,
        updated_ms: now_ms,
        version: 1,
    }
}

const fn waiting(name: StepName, function: FunctionName, stage: u32) -> StepState {
    StepState {
        name,
        function,
        stage,
        status: StepStatus::Waiting,
        attempts: Vec::new(),
        output: None,
        data: Value::Null,
        error: None,
        queued_ms: None,
        ended_ms: None,
        service_ms: None,
        cold: false,
        reused: false,
    }
}

/// The state after an event. An event that changes nothing gives back an equal state and no effects.
#[must_use]
pub fn advance(state: &RunState, event: &RunEvent, now_ms: i64) -> (RunState, Vec<Effect>) {
    let mut next = state.clone();
    if state.status.is_final() || event.run() != &state.run {
        return (next, Vec::new());
    }
    let effects = match event {
        // The run is there already: a repeated request makes no second one.
        RunEvent::Requested(_) => None,
        RunEvent::StageStarted { stage, .. } => started(&mut next, *stage),
        RunEvent::AttemptFailed { stage, attempt, .. } => attempt_failed(&mut next, *stage, attempt),
        RunEvent::StageCompleted {
            stage, result, at_ms, ..
        } => completed(&mut next, *stage, result, *at_ms, now_ms),
        RunEvent::StageFailed {
            stage,
            error,
            attempts,
            at_ms,
            ..
        } => failed(&mut next, *stage, error, attempts, *at_ms),
        RunEvent::Cancel { at_ms, .. } => Some(cancelled(&mut next, *at_ms)),
    };
    let Some(mut effects) = effects else {
        return (state.clone(), Vec::new());
    };
    effects.extend(finish_if_done(&mut next));
    next.version += 1;
    next.updated_ms = now_ms;
    (next, effects)
}

const fn under_way(status: StepStatus) -> bool {
    matches!(status, StepStatus::Queued | StepStatus::Running | StepStatus::Retrying)
}

/// The steps of a stage, when it is with the dispatcher; `None` when it has not begun, or has ended.
fn live_steps(state: &mut RunState, stage: u32) -> Option<Vec<&mut StepState>> {
    let steps: Vec<&mut StepState> = state.steps.iter_mut().filter(|s| s.stage == stage).collect();
    let live = !steps.is_empty() && steps.iter().all(|s| under_way(s.status));
    live.then_some(steps)
}

fn started(state: &mut RunState, stage: u32) -> Option<Vec<Effect>> {
    let steps = live_steps(state, stage)?;
    if steps.iter().all(|s| s.status == StepStatus::Running) {
        return None;
    }
    for step in steps {
        step.status = StepStatus::Running;
    }
    Some(Vec::new())
}

fn attempt_failed(state: &mut RunState, stage: u32, attempt: &Attempt) -> Option<Vec<Effect>> {
    let mut steps = live_steps(state, stage)?;
    let known = steps.iter().any(|s| {
        let again = s
            .attempts
            .iter()
            .any(|a| a.number == attempt.number && a.at_ms == attempt.at_ms);
        let forgotten = s.attempts.len() >= MAX_ATTEMPTS_KEPT && s.attempts[0].at_ms >= attempt.at_ms;
        again || forgotten
    });
    if known {
        return None;
    }
    for step in &mut steps {
        step.status = StepStatus::Retrying;
    }
    let at = named_step(&steps, &attempt.error).unwrap_or_default();
    let kept = &mut steps.get_mut(at)?.attempts;
    kept.push(attempt.clone());
    keep_last(kept);
    Some(Vec::new())
}

fn completed(state: &mut RunState, stage: u32, result: &StepResult, at_ms: i64, now_ms: i64) -> Option<Vec<Effect>> {
    let mut steps = live_steps(state, stage)?;
    for step in &mut steps {
        step.status = StepStatus::Succeeded;
        step.ended_ms = Some(at_ms);
        step.cold = result.cold;
        step.reused = result.reused;
        step.service_ms = result.step_ms.get(&step.name).copied();
    }
    let last = steps.last_mut()?;
    last.output.clone_from(&result.output);
    last.data = result.data.clone();
    if result.step_ms.is_empty() {
        last.service_ms = Some(result.service_ms);
    }
    Some(enqueue_after(state, Some(stage), now_ms))
}

fn failed(
    state: &mut RunState,
    stage: u32,
    error: &StepError,
    attempts: &[Attempt],
    at_ms: i64,
) -> Option<Vec<Effect>> {
    let mut steps = live_steps(state, stage)?;
    let named = named_step(&steps, error);
    for (i, step) in steps.iter_mut().enumerate() {
        // Steps of one stage share one pod and one go: unless the function says which failed, nobody knows.
        step.status = match named {
            Some(at) if i < at => StepStatus::Succeeded,
            Some(at) if i > at => StepStatus::Skipped,
            _ => StepStatus::Failed,
        };
        step.ended_ms = Some(at_ms);
        if step.status == StepStatus::Failed {
            step.error = Some(error.clone());
        }
    }
    let guilty = steps.get_mut(named.unwrap_or_default())?;
    if !attempts.is_empty() {
        guilty.attempts = attempts.to_vec();
        keep_last(&mut guilty.attempts);
    }
    // By the step's own function when it is known: a fused stage runs on the pods of another.
    let function = named.map(|_| guilty.function.to_string());
    let function = function.or_else(|| Some(state.plan.stages.get(stage as usize)?.function.to_string()));
    skip_descendants(state, stage, at_ms);
    Some(vec![Effect::DeadLetter(DeadLetter {
        id: dead_letter_id(state, stage),
        run: Some(state.run.clone()),
        function: function.unwrap_or_else(|| "-".to_owned()),
        error: error.clone(),
        attempts: attempts.to_vec(),
        request: Some(state.request.clone()),
        event: None,
        at_ms,
    })])
}

fn cancelled(state: &mut RunState, at_ms: i64) -> Vec<Effect> {
    for step in &mut state.steps {
        if under_way(step.status) || step.status == StepStatus::Waiting {
            step.status = StepStatus::Skipped;
            step.ended_ms = Some(at_ms);
        }
    }
    state.status = RunStatus::Cancelled;
    vec![Effect::Finished(RunStatus::Cancelled)]
}

fn named_step(steps: &[&mut StepState], error: &StepError) -> Option<usize> {
    let name = error.step.as_ref()?;
    steps.iter().position(|s| &s.name == name)
}

fn keep_last(attempts: &mut Vec<Attempt>) {
    let over = attempts.len().saturating_sub(MAX_ATTEMPTS_KEPT);
    attempts.drain(..over);
}

fn dead_letter_id(state: &RunState, stage: u32) -> String {
    let hash = digest(&["dead-letter", state.run.as_str(), &stage.to_string()]);
    format!("dl-{}", &hash[..24])
}

/// Whatever works on the result of `stage`, near or far, will never be done. Stages come after earlier ones: one pass.
fn skip_descendants(state: &mut RunState, stage: u32, at_ms: i64) {
    let mut lost = vec![stage];
    for (at, one) in (0_u32..).zip(&state.plan.stages) {
        if one.after.is_some_and(|a| lost.contains(&a)) {
            lost.push(at);
        }
    }
    for step in state
        .steps
        .iter_mut()
        .filter(|s| s.status == StepStatus::Waiting && lost.contains(&s.stage))
    {
        step.status = StepStatus::Skipped;
        step.ended_ms = Some(at_ms);
    }
}

/// Enqueues the waiting stages that work on the result of `done` (`None`: on the run's input).
fn enqueue_after(state: &mut RunState, done: Option<u32>, now_ms: i64) -> Vec<Effect> {
    let RunState {
        plan,
        steps,
        request,
        run,
        ..
    } = state;
    let mut effects = Vec::new();
    for (at, stage) in (0_u32..).zip(&plan.stages).filter(|(_, s)| s.after == done) {
        let mut waiting = false;
        for step in steps
            .iter_mut()
            .filter(|s| s.stage == at && s.status == StepStatus::Waiting)
        {
            step.status = StepStatus::Queued;
            step.queued_ms = Some(now_ms);
            waiting = true;
        }
        if !waiting {
            continue;
        }
        let input = input_of(plan, steps, request, stage);
        let target = request.target.to_string();
        let output = match &input {
            Input::Object(object) => output_ref(plan, stage, &target, object),
            Input::Event(_) => event_output_ref(plan, stage, &target, run),
        };
        effects.push(Effect::Enqueue(StepRequest {
            run: run.clone(),
            stage: at,
            function: stage.function.clone(),
            revision: stage.revision.clone(),
            steps: stage.steps.clone(),
            input,
            output,
            requested_ms: now_ms,
            traceparent: request.traceparent.clone(),
            attempts: Vec::new(),
            next: following(plan, at),
        }));
    }
    effects
}

/// Functions of the stages that work on the result of one, each once.
fn following(plan: &Plan, at: u32) -> Vec<FunctionName> {
    let mut next: Vec<FunctionName> = Vec::new();
    for stage in plan.stages.iter().filter(|stage| stage.after == Some(at)) {
        if !next.contains(&stage.function) {
            next.push(stage.function.clone());
        }
    }
    next
}

/// The nearest object made before: a function that only gives data hands on what it got.
fn input_of(plan: &Plan, steps: &[StepState], request: &RunRequest, stage: &Stage) -> Input {
    let mut after = stage.after;
    while let Some(at) = after {
        let made = steps
            .iter()
            .rev()
            .filter(|s| s.stage == at)
            .find_map(|s| s.output.clone());
        if let Some(object) = made {
            return Input::Object(object);
        }
        // Only ever backwards, so that a plan that was tampered with cannot hold us for ever.
        after = plan
            .stages
            .get(at as usize)
            .and_then(|s| s.after)
            .filter(|before| *before < at);
    }
    request.input.clone()
}

fn finish_if_done(state: &mut RunState) -> Option<Effect> {
    let open = |s: &StepState| under_way(s.status) || s.status == StepStatus::Waiting;
    if state.status.is_final() || state.steps.iter().any(open) {
        return None;
    }
    let failed = state.steps.iter().any(|s| s.status == StepStatus::Failed);
    state.status = if failed {
        RunStatus::Failed
    } else {
        RunStatus::Succeeded
    };
    Some(Effect::Finished(state.status))
}

#[cfg(test)]
mod laws;
#[cfg(test)]
mod tests;
