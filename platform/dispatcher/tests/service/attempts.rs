//! Which failures are attempts, which are tried again, and when.
use std::sync::Arc;
use std::time::Duration;

use http::header::{HeaderValue, RETRY_AFTER};
use imageflow_events::invocation::StepReply;
use imageflow_pods::{PodState, PodTable};
use imageflow_types::manifest::{Kind, Resource};
use imageflow_types::work::Input;
use imageflow_types::{ErrorCode, RunEvent, StepRequest};
use serde_json::json;
use tokio::time::Instant;

use crate::support::{FUNCTION, World, body, broken, function, problem, replied, status, step, within, work};

#[tokio::test]
async fn a_503_is_tried_again_after_a_growing_wait_and_each_failure_is_reported() {
    let world = World::with(json!({"retry": 5, "backoff": "exponential", "backoffDelay": "60ms"})).await;
    let step = step("a");
    let running = world.dispatch();
    world.give(&step, 0).await;
    let mut ended = None;
    for attempt in 1..=3_u32 {
        let call = world.pod.call().await;
        assert_eq!((&call.run, call.attempt), (&step.run, attempt));
        if let Some(ended) = ended.replace(Instant::now()) {
            // Upper half of the delay, doubled after the second failure.
            let least = Duration::from_millis(30 << (attempt - 2));
            assert!(
                call.at - ended >= least,
                "attempt {attempt} came after {:?}",
                call.at - ended
            );
        }
        call.answer(status(503, "out of paint"));
    }
    let call = world.pod.call().await;
    assert_eq!(call.attempt, 4);
    call.answer(status(202, ""));
    world.completed(&step).await;
    let failures: Vec<_> = world
        .log
        .reports(&step.run)
        .into_iter()
        .filter_map(|event| match event {
            RunEvent::AttemptFailed { attempt, next_ms, .. } => Some((attempt, next_ms)),
            _ => None,
        })
        .collect();
    let numbers: Vec<u32> = failures.iter().map(|(a, _)| a.number).collect();
    assert_eq!(numbers, [1, 2, 3]);
    for (attempt, next_ms) in &failures {
        assert_eq!(
            (attempt.error.code, attempt.error.status),
            (ErrorCode::FunctionFailed, Some(503))
        );
        assert!(attempt.error.message.contains("out of paint"), "{attempt:?}");
        let wait = next_ms - attempt.at_ms;
        let most = 60 << (attempt.number - 1);
        assert!(
            (most / 2..=most).contains(&wait),
            "attempt {}: {wait} ms",
            attempt.number
        );
    }
    world.log.committed(&work(), 0, 1).await;
    running.stop().await;
    world.assert_idle();
}

#[tokio::test]
async fn what_the_function_asks_for_by_retry_after_is_the_least_wait() {
    let world = World::new().await;
    let step = step("a");
    let running = world.dispatch();
    world.give(&step, 0).await;
    let mut answer = status(503, "");
    answer.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
    let asked = Instant::now();
    world.pod.call().await.answer(answer);
    let call = world.pod.call().await;
    assert!(call.at - asked >= Duration::from_secs(1), "{:?}", call.at - asked);
    call.answer(status(202, ""));
    world.completed(&step).await;
    running.stop().await;
}

#[tokio::test]
async fn a_422_fails_the_step_at_once() {
    let world = World::new().await;
    let step = step("a");
    let running = world.dispatch();
    world.give(&step, 0).await;
    world.pod.call().await.answer(status(422, "the PNG is truncated"));
    let RunEvent::StageFailed { error, attempts, .. } = world.log.end(&step.run).await else {
        panic!()
    };
    assert_eq!((error.code, error.status), (ErrorCode::Unprocessable, Some(422)));
    assert!(error.message.contains("the PNG is truncated"), "{error:?}");
    assert_eq!(attempts.len(), 1);
    world.log.committed(&work(), 0, 1).await;
    assert_eq!(world.log.reports(&step.run).len(), 1, "no AttemptFailed beside it");
    running.stop().await;
    assert!(world.pod.is_quiet().await);
    world.assert_idle();
}

#[tokio::test]
async fn when_the_retries_are_used_up_the_step_fails_with_all_its_attempts() {
    let world = World::with(json!({"retry": 2, "backoffDelay": "5ms"})).await;
    let step = step("a");
    let running = world.dispatch();
    world.give(&step, 0).await;
    for answer in ["one", "two", "three"] {
        world.pod.call().await.answer(status(500, answer));
    }
    let RunEvent::StageFailed { error, attempts, .. } = world.log.end(&step.run).await else {
        panic!()
    };
    assert!(error.message.contains("three"), "{error:?}");
    let said: Vec<(u32, bool)> = attempts
        .iter()
        .zip(["one", "two", "three"])
        .map(|(a, said)| (a.number, a.error.message.contains(said)))
        .collect();
    assert_eq!(said, [(1, true), (2, true), (3, true)]);
    world.log.committed(&work(), 0, 1).await;
    running.stop().await;
    assert!(world.pod.is_quiet().await);
}

#[tokio::test]
async fn a_refusal_is_no_attempt() {
    // Without a single retry: an attempt would end the step.
    let world = World::with(json!({"retry": 0})).await;
    let step = step("a");
    let running = world.dispatch();
    world.give(&step, 0).await;
    for _ in 0..3 {
        let call = world.pod.call().await;
        assert_eq!(call.attempt, 1);
        let mut answer = status(503, "");
        let refused = HeaderValue::from_static("all slots are taken");
        answer.headers_mut().insert("imageflow-refused", refused);
        call.answer(answer);
    }
    let call = world.pod.call().await;
    assert_eq!(call.attempt, 1);
    call.answer(status(202, ""));
    world.completed(&step).await;
    assert_eq!(world.log.reports(&step.run).len(), 1);
    running.stop().await;
    world.assert_idle();
}

#[tokio::test]
async fn that_a_pod_does_not_get_at_the_store_is_no_attempt() {
    let world = World::with(json!({"retry": 0})).await;
    let step = step("a");
    let running = world.dispatch();
    world.give(&step, 0).await;
    for _ in 0..2 {
        let call = world.pod.call().await;
        assert_eq!(call.attempt, 1);
        call.answer(problem(ErrorCode::StorageUnavailable));
    }
    // Neither is it when nobody gets at it: then it is not even counted how often.
    let call = world.pod.call().await;
    world.store.down(true);
    call.answer(problem(ErrorCode::StorageUnavailable));
    world.store.refused(1).await;
    world.store.down(false);
    let call = world.pod.call().await;
    assert_eq!(call.attempt, 1);
    call.answer(status(202, ""));
    world.completed(&step).await;
    assert_eq!(world.log.reports(&step.run).len(), 1);
    running.stop().await;
    world.assert_idle();
}

/// Its view of the resources may be behind that of the router, which has seen the function.
#[tokio::test]
async fn a_step_waits_for_the_function_that_its_writer_had_seen() {
    let world = World::new().await;
    let running = world.dispatch();
    // What is read once it works: the view of its start says nothing of that.
    world.give(&step("first"), 0).await;
    world.pod.call().await.answer(status(202, ""));
    world.log.committed(&work(), 0, 1).await;
    let kept = world.resources.snapshot().functions[FUNCTION].document.clone();
    world.resources.delete(Kind::Function, FUNCTION).await.unwrap();
    let step = step("a");
    world.give_as_of(&step, &world.seen_with_one_more()).await;
    world.passed_by().await;
    assert!(world.log.reports(&step.run).is_empty() && world.pod.is_quiet().await);
    let backlog = world.backlogs.get(&function());
    assert_eq!((backlog.waiting, backlog.working), (1, 0));
    world.resources.apply(Resource::Function(kept)).await.unwrap();
    world.pod.call().await.answer(status(202, ""));
    world.completed(&step).await;
    world.log.committed(&work(), 0, 3).await;
    running.stop().await;
    world.assert_idle();
}

#[tokio::test]
async fn a_step_of_a_deleted_function_fails_as_not_found() {
    let world = World::new().await;
    let step = step("a");
    world.give(&step, 0).await;
    world.resources.delete(Kind::Function, FUNCTION).await.unwrap();
    let running = world.dispatch();
    let RunEvent::StageFailed { error, attempts, .. } = world.log.end(&step.run).await else {
        panic!()
    };
    assert_eq!((error.code, attempts.len()), (ErrorCode::NotFound, 0));
    assert!(error.message.contains(FUNCTION), "{error:?}");
    world.log.committed(&work(), 0, 1).await;
    running.stop().await;
    assert!(world.pod.is_quiet().await);
    world.assert_idle();
}

#[tokio::test]
async fn a_call_over_the_functions_timeout_is_an_attempt() {
    // Long enough for each call to get to the pod before, on a machine that is busy, too.
    let spec = json!({"timeout": "2s", "delivery": {"retry": 1, "backoffDelay": "5ms"}});
    let world = World::without_pod(spec).await;
    world.host.add(&function(), world.pod.addr, PodState::Ready);
    let step = step("a");
    let running = world.dispatch();
    world.give(&step, 0).await;
    for attempt in 1..=2 {
        let call = world.pod.call().await;
        assert_eq!(call.attempt, attempt);
        call.abandoned().await;
    }
    let RunEvent::StageFailed { error, attempts, .. } = world.log.end(&step.run).await else {
        panic!()
    };
    assert_eq!((error.code, attempts.len()), (ErrorCode::Timeout, 2));
    running.stop().await;
    world.assert_idle();
}

#[tokio::test]
async fn a_long_step_is_reported_as_started_once() {
    let world = World::new().await;
    let step = step("a");
    let running = world.dispatch();
    world.give(&step, 0).await;
    let call = world.pod.call().await;
    let started = |event: &RunEvent| matches!(event, RunEvent::StageStarted { .. });
    world
        .log
        .until("the start", |_| {
            world.log.all_reports(&step.run).iter().any(started).then_some(())
        })
        .await;
    assert_eq!(world.backlogs.get(&function()).working, 1);
    call.answer(status(202, ""));
    world.completed(&step).await;
    assert_eq!(world.log.all_reports(&step.run).len(), 2);
    running.stop().await;
    world.assert_idle();
}

#[tokio::test]
async fn a_step_waits_for_a_pod_to_start_and_is_marked_as_cold() {
    let world = World::without_pod(json!({})).await;
    let mut pokes = world.delivery.pokes();
    let step = step("a");
    let running = world.dispatch();
    world.give(&step, 0).await;
    assert_eq!(within("a poke", pokes.recv()).await.unwrap(), function());
    let backlog = world.backlogs.get(&function());
    assert_eq!(
        (backlog.waiting, backlog.working, backlog.oldest_ms),
        (1, 0, Some(step.requested_ms))
    );
    world.host.add(&function(), world.pod.addr, PodState::Ready);
    world.pod.call().await.answer(status(202, ""));
    assert!(world.completed(&step).await.cold);
    running.stop().await;
    world.assert_idle();
}

/// The function's pod has failed to start so often that callers are told.
fn fail_pods(world: &World) {
    let failed = PodState::BackOff {
        until_ms: i64::MAX,
        failed_starts: 3,
        reason: "no such program".to_owned(),
    };
    world.host.add(&function(), world.pod.addr, failed);
}

async fn assert_start_failed(world: &World, step: &StepRequest) {
    let RunEvent::StageFailed { error, attempts, .. } = world.log.end(&step.run).await else {
        panic!()
    };
    assert_eq!((error.code, attempts.len()), (ErrorCode::StartFailed, 2));
    assert!(error.message.contains("no such program"), "{error:?}");
}

#[tokio::test]
async fn pods_that_do_not_start_fail_the_step_with_their_reason() {
    let world = World::without_pod(json!({"delivery": {"retry": 1, "backoffDelay": "5ms"}})).await;
    let mut pokes = world.delivery.pokes();
    let step = step("a");
    let running = world.dispatch();
    world.give(&step, 0).await;
    within("a poke", pokes.recv()).await.unwrap();
    fail_pods(&world);
    assert_start_failed(&world, &step).await;
    running.stop().await;
    world.assert_idle();
}

#[tokio::test]
async fn a_step_that_comes_after_its_pods_failed_to_start_fails_with_their_reason() {
    let world = World::without_pod(json!({"delivery": {"retry": 1, "backoffDelay": "5ms"}})).await;
    fail_pods(&world);
    let step = step("a");
    let running = world.dispatch();
    world.give(&step, 0).await;
    assert_start_failed(&world, &step).await;
    running.stop().await;
}

#[tokio::test]
async fn a_pod_that_dies_of_a_step_alone_is_an_attempt() {
    let world = World::with(json!({"retry": 1, "backoffDelay": "5ms"})).await;
    let step = step("a");
    let running = world.dispatch();
    world.give(&step, 0).await;
    for attempt in 1..=2 {
        let call = world.pod.call().await;
        assert_eq!(call.attempt, attempt);
        call.answer(broken());
    }
    let RunEvent::StageFailed { error, attempts, .. } = world.log.end(&step.run).await else {
        panic!()
    };
    assert_eq!((error.code, attempts.len()), (ErrorCode::FunctionFailed, 2));
    running.stop().await;
}

/// Who else had a step in the pod is not known then.
#[tokio::test]
async fn a_pod_that_several_dispatchers_share_may_die_twice_before_an_attempt_counts() {
    let world = World::with(json!({"retry": 0})).await;
    world.host.table.send_modify(|table| {
        let mut shared = PodTable::clone(table);
        shared.sharers = shared.pods.values().map(|pod| (pod.revision.clone(), 2)).collect();
        *table = Arc::new(shared);
    });
    let step = step("a");
    let running = world.dispatch();
    world.give(&step, 0).await;
    for _ in 0..3 {
        let call = world.pod.call().await;
        assert_eq!(call.attempt, 1);
        call.answer(broken());
    }
    let RunEvent::StageFailed { error, attempts, .. } = world.log.end(&step.run).await else {
        panic!()
    };
    assert_eq!((error.code, attempts.len()), (ErrorCode::FunctionFailed, 1));
    running.stop().await;
}

#[tokio::test]
async fn when_a_pod_dies_all_that_it_held_is_tried_alone_before_an_attempt_counts() {
    // Without a single retry: an attempt would end the step.
    let world = World::with(json!({"retry": 0})).await;
    let (one, other) = (step("one"), step("other"));
    let running = world.dispatch();
    world.give(&one, 0).await;
    world.give(&other, 1).await;
    let (one_call, other_call) = world.pod.two(&one.run, &other.run).await;
    one_call.answer(broken());
    other_call.answer(broken());
    let first = tokio::select! {
        call = world.pod.call() => call,
        event = world.log.end(&one.run) => panic!("the first was blamed: {event:?}"),
        event = world.log.end(&other.run) => panic!("the second was blamed: {event:?}"),
    };
    assert_eq!(first.attempt, 1);
    assert!(world.pod.is_quiet().await, "it is not alone");
    first.answer(status(202, ""));
    let second = world.pod.call().await;
    assert_eq!(second.attempt, 1);
    second.answer(status(202, ""));
    world.completed(&one).await;
    world.completed(&other).await;
    running.stop().await;
}

#[tokio::test]
async fn an_answer_with_more_data_than_a_report_takes_fails_the_step() {
    let world = World::with(json!({"retry": 1, "backoffDelay": "5ms"})).await;
    let step = step("a");
    let running = world.dispatch();
    world.give(&step, 0).await;
    world.pod.call().await.answer(status(503, "out of paint"));
    // Fits into the answer's event, but not into the record of the report, which says more besides.
    let data = json!({"text": "x".repeat(1024 * 1024 - 100)});
    world.pod.call().await.answer(replied(&StepReply {
        data,
        ..StepReply::default()
    }));
    let RunEvent::StageFailed { error, attempts, .. } = world.log.end(&step.run).await else {
        panic!()
    };
    assert!(attempts[0].error.message.contains("out of paint"), "{attempts:?}");
    assert!(error.message.contains("does not fit"), "{error:?}");
    assert_eq!((error.code, &attempts[1].error), (ErrorCode::TooLarge, &error));
    assert_eq!(attempts.iter().map(|a| a.number).collect::<Vec<_>>(), [1, 2]);
    world.log.committed(&work(), 0, 1).await;
    running.stop().await;
}

#[tokio::test]
async fn an_answer_that_cannot_be_read_and_is_as_long_as_a_record_ends_the_step() {
    let world = World::with(json!({"retry": 0})).await;
    let step = step("a");
    let running = world.dispatch();
    world.give(&step, 0).await;
    let text = "x".repeat(1024 * 1024);
    let event = json!({"specversion": text, "id": "1", "source": "urn:x", "type": "com.example.done"});
    let answer = body("application/cloudevents+json", event.to_string().as_bytes());
    world.pod.call().await.answer(answer);
    let RunEvent::StageFailed { error, attempts, .. } = world.log.end(&step.run).await else {
        panic!()
    };
    assert!(error.message.contains("is no event"), "{error:?}");
    assert_eq!(attempts.len(), 1);
    world.log.committed(&work(), 0, 1).await;
    running.stop().await;
}

/// The step ends as failed, and its function is not asked again and again.
async fn assert_ends(world: &World, step: &StepRequest) {
    let event = tokio::select! {
        event = world.log.end(&step.run) => event,
        call = world.pod.call() => panic!("the function was asked again: attempt {}", call.attempt),
    };
    assert!(matches!(event, RunEvent::StageFailed { .. }), "{event:?}");
    world.log.committed(&work(), 0, 1).await;
}

#[tokio::test]
async fn an_answer_that_can_never_be_stored_fails_the_step() {
    let world = World::with(json!({"retry": 0})).await;
    let mut step = step("a");
    step.output.bucket = "no-such-bucket".to_owned();
    let running = world.dispatch();
    world.give(&step, 0).await;
    world.pod.call().await.answer(body("image/png", b"drawn by hand"));
    assert_ends(&world, &step).await;
    running.stop().await;
}

#[tokio::test]
async fn an_input_that_can_never_be_signed_fails_the_step() {
    let world = World::with(json!({"retry": 0})).await;
    let mut step = step("a");
    if let Input::Object(object) = &mut step.input {
        object.key = "albums/../photo.png".to_owned();
    }
    let running = world.dispatch();
    world.give(&step, 0).await;
    assert_ends(&world, &step).await;
    running.stop().await;
}
