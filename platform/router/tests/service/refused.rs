//! Runs that were promised to somebody and cannot be made: they end all the same, and say why.
use imageflow_types::work::{Input, RunRequest, Target};
use imageflow_types::{ErrorCode, RunEvent, RunState, RunStatus, topics};
use serde_json::{Value, json};

use crate::support::{NOW_MS, World, run_of, uploaded_data};

/// What the gateway asks for when somebody starts a run: without a trigger.
fn asked(target: Value, params: Value) -> RunRequest {
    let request = json!({
        "run": run_of("test", "cat.png", "e1"), "target": target, "requestedMs": NOW_MS, "params": params,
        "input": {"object": {"bucket": topics::BUCKET_RAW, "key": "cat.png", "etag": "e1"}},
    });
    serde_json::from_value(request).unwrap()
}

/// The only run there is.
async fn only(world: &World) -> RunState {
    let [run] = world.log.runs().await.try_into().unwrap();
    run
}

fn why(run: &RunState) -> (RunStatus, &str, ErrorCode) {
    let (step, error) = run.error().unwrap();
    (run.status, step.as_str(), error.code)
}

#[tokio::test]
async fn a_run_whose_flow_is_gone_fails_with_a_dead_letter_that_can_be_sent_again() {
    let world = World::new().await;
    let running = world.route();
    let request = asked(json!({"flow": "nowhere"}), json!({}));
    world.report(&RunEvent::Requested(request.clone())).await;
    world.log.settled().await;
    let run = only(&world).await;
    assert_eq!(why(&run), (RunStatus::Failed, "nowhere", ErrorCode::NotFound));
    assert_eq!(run.request, request);
    let letters = world.log.dead_letters().await;
    assert_eq!(letters.len(), 1);
    assert_eq!(
        (letters[0].error.code, letters[0].request.as_ref()),
        (ErrorCode::NotFound, Some(&request))
    );
    // It has ended: asked for again, after a restart too, it is neither made nor refused a second time.
    running.stop().await;
    let world = world.reopen().await;
    let steps = json!([{"name": "lines", "function": "outline"}]);
    world.apply("Flow", "nowhere", json!({"steps": steps})).await;
    let running = world.route();
    world.report(&RunEvent::Requested(request)).await;
    world.log.settled().await;
    assert_eq!(world.log.dead_letters().await.len(), 1);
    assert!(world.log.work("outline").await.is_empty());
    running.stop().await;
}

/// The parameters stand in the request and in the plan.
#[tokio::test]
async fn a_run_whose_parameters_fit_once_but_not_twice_fails_and_keeps_what_was_asked_for() {
    let world = World::new().await;
    let mut running = world.route();
    let request = asked(json!({"function": "outline"}), json!({"text": "x".repeat(600 * 1024)}));
    world.report(&RunEvent::Requested(request.clone())).await;
    running.during(world.log.settled()).await;
    let run = only(&world).await;
    assert_eq!(why(&run), (RunStatus::Failed, "outline", ErrorCode::TooLarge));
    assert!(run.request == request, "who asks again is told that it is the same");
    assert_eq!(world.log.dead_letters().await.len(), 1);
    assert!(world.log.work("outline").await.is_empty());
    running.stop().await;
}

#[tokio::test]
async fn a_run_whose_request_fills_a_record_fails_without_its_parameters() {
    let world = World::new().await;
    let mut running = world.route();
    let params = json!({"text": "x".repeat(1024 * 1024 - 1200)});
    let request = asked(json!({"function": "outline"}), params);
    world.report(&RunEvent::Requested(request.clone())).await;
    running.during(world.log.settled()).await;
    let run = only(&world).await;
    assert_eq!(why(&run), (RunStatus::Failed, "outline", ErrorCode::TooLarge));
    assert!(run.request.params.is_empty() && run.request.input == request.input);
    running.stop().await;
}

#[tokio::test]
async fn a_run_of_a_trigger_that_cannot_be_made_is_seen_among_the_runs() {
    let world = World::new().await;
    let mut running = world.route();
    // Fits into its own record, but not into one that says more besides.
    let large = uploaded_data("1", json!({"text": "x".repeat(1024 * 1024 - 400)}));
    world.events(&[&large, &large]).await;
    running.during(world.log.settled()).await;
    let run = only(&world).await;
    assert_eq!(why(&run), (RunStatus::Failed, "sketch", ErrorCode::TooLarge));
    assert_eq!(run.request.input, Input::Event(Value::Null));
    assert!(matches!(run.request.target, Target::Flow(_)));
    assert_eq!(world.log.dead_letters().await.len(), 1, "refused once");
    running.stop().await;
}
