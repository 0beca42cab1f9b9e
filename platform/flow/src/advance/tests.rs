use imageflow_types::work::{ObjectRef, StageStep, Target};
use imageflow_types::{ErrorCode, FlowName, FunctionName, RevisionName, RunId, StepName};
use serde_json::{Map, json};

use super::*;

pub(super) fn object(etag: &str) -> ObjectRef {
    ObjectRef {
        bucket: "raw-images".into(),
        key: "in/cat.jpg".into(),
        etag: etag.into(),
        size: 5,
        content_type: Some("image/jpeg".into()),
    }
}

pub(super) fn request() -> RunRequest {
    RunRequest {
        run: RunId::derive(&["test"]),
        target: Target::Flow(FlowName::new("photo").unwrap()),
        trigger: None,
        input: Input::Object(object("e0")),
        params: Map::new(),
        fuse: true,
        requested_ms: 1,
        traceparent: Some("00-trace".into()),
    }
}

/// One stage for each entry: names of its steps and what it comes after.
pub(super) fn plan(stages: &[(&[&str], Option<u32>)]) -> Plan {
    let function = |step: &str| FunctionName::new(format!("do-{step}")).unwrap();
    let stages = stages.iter().enumerate().map(|(i, (steps, after))| Stage {
        function: function(steps[0]),
        revision: RevisionName::of(&function(steps[0]), 1),
        digest: format!("d{i}"),
        steps: steps
            .iter()
            .map(|s| StageStep {
                name: StepName::new(*s).unwrap(),
                function: function(s),
                operation: Some("x".into()),
                params: Map::new(),
            })
            .collect(),
        after: *after,
        intermediate: stages.iter().any(|(_, a)| *a == u32::try_from(i).ok()),
    });
    Plan {
        stages: stages.collect(),
        bucket: "processed-images".into(),
    }
}

pub(super) fn done(stage: u32, output: Option<ObjectRef>) -> RunEvent {
    let result = StepResult {
        output,
        data: json!({"n": stage}),
        service_ms: 7.0,
        step_ms: std::collections::BTreeMap::default(),
        cold: true,
        reused: false,
    };
    RunEvent::StageCompleted {
        run: request().run,
        stage,
        result,
        at_ms: 50,
    }
}

pub(super) fn error(step: Option<&str>) -> StepError {
    StepError {
        code: ErrorCode::Unprocessable,
        message: "broken".into(),
        status: Some(422),
        step: step.map(|s| StepName::new(s).unwrap()),
    }
}

pub(super) fn fail(stage: u32, step: Option<&str>) -> RunEvent {
    let attempts = vec![Attempt {
        number: 1,
        at_ms: 40,
        error: error(step),
    }];
    RunEvent::StageFailed {
        run: request().run,
        stage,
        error: error(step),
        attempts,
        at_ms: 60,
    }
}

fn enqueued(effects: &[Effect]) -> Vec<&StepRequest> {
    effects
        .iter()
        .filter_map(|e| {
            if let Effect::Enqueue(request) = e {
                Some(request)
            } else {
                None
            }
        })
        .collect()
}

fn statuses(state: &RunState) -> Vec<&'static str> {
    state.steps.iter().map(|s| s.status.as_str()).collect()
}

#[test]
fn a_result_is_the_pinned_input_of_what_follows_and_the_trace_goes_along() {
    let (state, effects) = start(&request(), plan(&[(&["a"], None), (&["b"], Some(0))]), 10);
    let first = enqueued(&effects)[0];
    assert_eq!(first.input, Input::Object(object("e0")));
    let stage = |at: usize| &state.plan.stages[at].function;
    assert_eq!(first.next, [stage(1).clone()], "so that its pod can be there in time");
    assert!(
        first.output.key.starts_with(".steps/photo/a/cat-"),
        "{}",
        first.output.key
    );
    let (state, effects) = advance(&state, &done(0, Some(object("e1"))), 20);
    let second = enqueued(&effects)[0];
    assert_eq!((second.stage, &second.input), (1, &Input::Object(object("e1"))));
    assert_eq!(second.traceparent.as_deref(), Some("00-trace"));
    assert!(second.next.is_empty());
    assert!(second.output.key.starts_with("photo/b/cat-"), "{}", second.output.key);
    let (state, effects) = advance(&state, &done(1, Some(object("e2"))), 30);
    assert_eq!((state.status, state.version), (RunStatus::Succeeded, 3));
    assert_eq!(effects, vec![Effect::Finished(RunStatus::Succeeded)]);
    assert_eq!(
        state
            .results()
            .map(|(n, o)| (n.as_str(), o.etag.as_str()))
            .collect::<Vec<_>>(),
        [("b", "e2")]
    );
    assert_eq!(
        (state.steps[1].service_ms, state.steps[1].ended_ms),
        (Some(7.0), Some(50))
    );
}

#[test]
fn the_steps_of_a_stage_have_their_own_times_where_the_pod_told_them_apart() {
    let (state, _) = start(&request(), plan(&[(&["a", "b"], None)]), 10);
    let whole = advance(&state, &done(0, None), 20).0;
    let times = |s: &RunState| s.steps.iter().map(|s| s.service_ms).collect::<Vec<_>>();
    assert_eq!(times(&whole), [None, Some(7.0)]);
    let RunEvent::StageCompleted {
        run,
        stage,
        mut result,
        at_ms,
    } = done(0, None)
    else {
        unreachable!("made above")
    };
    let names = ["a", "b"].map(|n| StepName::new(n).unwrap());
    result.step_ms = names.into_iter().zip([5.0, 2.0]).collect();
    let event = RunEvent::StageCompleted {
        run,
        stage,
        result,
        at_ms,
    };
    assert_eq!(times(&advance(&state, &event, 20).0), [Some(5.0), Some(2.0)]);
}

#[test]
fn a_step_that_gives_only_data_hands_on_what_it_got() {
    let (state, _) = start(
        &request(),
        plan(&[(&["a"], None), (&["b"], Some(0)), (&["c"], Some(1))]),
        10,
    );
    let (state, effects) = advance(&state, &done(0, None), 20);
    assert_eq!(enqueued(&effects)[0].input, Input::Object(object("e0")));
    let (_, effects) = advance(&state, &done(1, None), 20);
    assert_eq!(enqueued(&effects)[0].input, Input::Object(object("e0")));
}

#[test]
fn a_run_on_an_event_names_its_results_by_its_own_id() {
    let mut on_event = request();
    on_event.input = Input::Event(json!({"id": "1"}));
    let (_, effects) = start(&on_event, plan(&[(&["a"], None)]), 10);
    let first = enqueued(&effects)[0];
    assert_eq!(first.input, on_event.input);
    assert!(
        first.output.key.starts_with(&format!("photo/a/{}-", on_event.run)),
        "{}",
        first.output.key
    );
}

#[test]
fn the_other_branch_goes_on_and_the_run_fails_when_it_is_done() {
    let stages: &[(&[&str], Option<u32>)] = &[
        (&["a"], None),
        (&["b", "c", "d"], Some(0)),
        (&["e"], Some(1)),
        (&["f"], Some(0)),
    ];
    let (state, _) = start(&request(), plan(stages), 10);
    let (state, _) = advance(&state, &done(0, Some(object("e1"))), 20);
    let (state, effects) = advance(&state, &fail(1, Some("c")), 30);
    assert_eq!(
        statuses(&state),
        ["succeeded", "succeeded", "failed", "skipped", "skipped", "queued"]
    );
    let [Effect::DeadLetter(letter)] = &effects[..] else {
        panic!("one dead letter, not {effects:?}")
    };
    assert_eq!(
        (letter.function.as_str(), letter.request.as_ref()),
        ("do-c", Some(&request()))
    );
    assert_eq!(
        letter.run,
        Some(request().run),
        "letters of one run are sent again as one"
    );
    assert_eq!(state.status, RunStatus::Running);
    let (state, effects) = advance(&state, &done(3, None), 40);
    assert_eq!(effects, vec![Effect::Finished(RunStatus::Failed)]);
    assert_eq!(
        state.error().map(|(name, e)| (name.as_str(), e.message.as_str())),
        Some(("c", "broken"))
    );
}

#[test]
fn when_nobody_knows_which_step_failed_none_is_called_done() {
    let (state, _) = start(&request(), plan(&[(&["a", "b"], None)]), 10);
    let (state, effects) = advance(&state, &fail(0, None), 30);
    assert_eq!(statuses(&state), ["failed", "failed"]);
    assert!(
        matches!(&effects[..], [Effect::DeadLetter(l), Effect::Finished(RunStatus::Failed)] if l.function == "do-a")
    );
}

#[test]
fn attempts_are_counted_once_and_only_the_last_are_kept() {
    let (mut state, _) = start(&request(), plan(&[(&["a"], None)]), 10);
    let failed_attempt = |number: u32| RunEvent::AttemptFailed {
        run: request().run,
        stage: 0,
        attempt: Attempt {
            number,
            at_ms: i64::from(number),
            error: error(None),
        },
        next_ms: 0,
    };
    for number in 1..=25 {
        state = advance(&state, &failed_attempt(number), 20).0;
        assert_eq!(advance(&state, &failed_attempt(number), 21).0, state);
    }
    assert_eq!(state.steps[0].attempts.len(), MAX_ATTEMPTS_KEPT);
    assert_eq!(
        advance(&state, &failed_attempt(2), 21).0,
        state,
        "an attempt already forgotten comes again"
    );
    assert_eq!(statuses(&state), ["retrying"]);
    let begun = RunEvent::StageStarted {
        run: request().run,
        stage: 0,
        at_ms: 90,
    };
    assert_eq!(statuses(&advance(&state, &begun, 91).0), ["running"]);
}

#[test]
fn after_a_cancel_results_come_too_late() {
    let (state, _) = start(&request(), plan(&[(&["a"], None), (&["b"], Some(0))]), 10);
    let (state, effects) = advance(
        &state,
        &RunEvent::Cancel {
            run: request().run,
            at_ms: 15,
        },
        15,
    );
    assert_eq!(effects, vec![Effect::Finished(RunStatus::Cancelled)]);
    assert_eq!(statuses(&state), ["skipped", "skipped"]);
    assert_eq!(advance(&state, &done(0, None), 20), (state.clone(), Vec::new()));
}

#[test]
fn an_event_of_another_run_changes_nothing() {
    let (state, _) = start(&request(), plan(&[(&["a"], None)]), 10);
    let other = RunEvent::Cancel {
        run: RunId::derive(&["other"]),
        at_ms: 15,
    };
    assert_eq!(advance(&state, &other, 15), (state.clone(), Vec::new()));
}

#[test]
fn a_run_that_cannot_be_made_has_failed_and_says_why_in_the_name_of_its_target() {
    let named = |target| RunRequest { target, ..request() };
    let long = format!("{}-{}", "a".repeat(39), "b".repeat(5));
    let of_function = named(Target::Function(FunctionName::new(&long).unwrap()));
    for (request, name) in [(request(), "photo"), (of_function, &long[..39])] {
        let state = refused(&request, &error(None), 10);
        assert_eq!((state.status, state.request.clone()), (RunStatus::Failed, request));
        assert_eq!(
            state.error().map(|(step, e)| (step.as_str(), e.clone())),
            Some((name, error(None)))
        );
        assert_eq!(state.results().count(), 0);
        assert_eq!(
            advance(&state, &done(0, None), 20),
            (state.clone(), Vec::new()),
            "it has ended"
        );
    }
}
