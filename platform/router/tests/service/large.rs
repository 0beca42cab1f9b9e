//! What is too large for a record, and how it ends all the same.
use imageflow_eventlog::{EventLog, NewRecord};
use imageflow_types::work::{Attempt, StepError};
use imageflow_types::{ErrorCode, RunEvent, RunStatus, topics};
use serde_json::json;

use crate::support::{NOW_MS, World, completed, run_of, uploaded, uploaded_data};

#[tokio::test]
async fn an_event_too_large_to_be_carried_by_its_run_does_not_end_the_router() {
    let world = World::new().await;
    world.objects.add("cat.png", "e1");
    let mut running = world.route();
    // Fits into its own record, but not into one that says more besides.
    let large = uploaded_data("1", json!({"text": "x".repeat(1024 * 1024 - 400)}));
    world.events(&[&large, &uploaded("2", "cat.png")]).await;
    running.during(world.log.settled()).await;
    let runs = world.log.runs().await;
    let made: Vec<_> = runs.iter().filter(|r| r.status == RunStatus::Running).collect();
    assert_eq!((runs.len(), made.len()), (2, 1));
    assert_eq!(made[0].run, run_of("on-upload", "cat.png", "e1"));
    let letters = world.log.dead_letters().await;
    assert_eq!(letters.len(), 1);
    assert_eq!(letters[0].error.code, ErrorCode::TooLarge);
    running.stop().await;
}

#[tokio::test]
async fn results_too_large_for_the_state_of_their_run_fail_it_and_do_not_end_the_router() {
    let world = World::new().await;
    world.objects.add("cat.png", "e1");
    let mut running = world.route();
    world.events(&[&uploaded("1", "cat.png")]).await;
    running.during(world.log.settled()).await;
    let run = run_of("on-upload", "cat.png", "e1");
    // Each fits into its report; the state of the run keeps both.
    for stage in 0..2 {
        let mut event = completed(&run, stage, "big.png");
        if let RunEvent::StageCompleted { result, .. } = &mut event {
            result.data = json!({"text": "x".repeat(600 * 1024)});
        }
        world.report(&event).await;
        running.during(world.log.settled()).await;
    }
    let runs = world.log.runs().await;
    assert_eq!((runs.len(), runs[0].status), (1, RunStatus::Failed));
    running.stop().await;
}

/// A run whose state has no room for an attempt more.
async fn nearly_full(running: &mut crate::support::Running, world: &World) -> imageflow_types::RunId {
    world.objects.add("cat.png", "e1");
    world.events(&[&uploaded("1", "cat.png")]).await;
    running.during(world.log.settled()).await;
    let run = run_of("on-upload", "cat.png", "e1");
    let mut first = completed(&run, 0, "big.png");
    if let RunEvent::StageCompleted { result, .. } = &mut first {
        result.data = json!({"text": "x".repeat(1000 * 1024 - 12 * 1024)});
    }
    world.report(&first).await;
    running.during(world.log.settled()).await;
    assert_eq!(world.log.runs().await[0].status, RunStatus::Running, "it fits");
    run
}

#[tokio::test]
async fn a_run_that_is_nearly_full_can_still_fail() {
    let world = World::new().await;
    let mut running = world.route();
    let run = nearly_full(&mut running, &world).await;
    let error = StepError {
        code: ErrorCode::FunctionFailed,
        message: format!("it said {}", "y".repeat(30 * 1024)),
        status: Some(500),
        step: None,
    };
    let attempt = |number| Attempt {
        number,
        at_ms: NOW_MS + i64::from(number),
        error: error.clone(),
    };
    let failed = RunEvent::StageFailed {
        run,
        stage: 1,
        error: error.clone(),
        attempts: (1..=3).map(attempt).collect(),
        at_ms: NOW_MS,
    };
    world.report(&failed).await;
    running.during(world.log.settled()).await;
    assert_eq!(world.log.runs().await[0].status, RunStatus::Failed);
    let letters = world.log.dead_letters().await;
    assert_eq!((letters.len(), letters[0].error.code), (1, ErrorCode::FunctionFailed));
    assert!(letters[0].error.message.starts_with("it said y"));
    assert_eq!(letters[0].attempts.len(), 3, "none of them is lost");
    running.stop().await;
}

#[tokio::test]
async fn a_refusal_that_quotes_a_large_event_is_a_letter_that_fits() {
    let world = World::new().await;
    let mut running = world.route();
    let bucket = "b".repeat(1024 * 1024 - 1200);
    let event = json!({"specversion": "1.0", "id": "1", "source": "urn:test", "type": crate::support::UPLOADED,
        "data": {"bucket": bucket, "key": "k"}});
    let record = NewRecord::new(topics::EVENTS)
        .header("content-type", "application/cloudevents+json")
        .value(event.to_string());
    world.log.produce(vec![record]).await.unwrap();
    running.during(world.log.settled()).await;
    let letters = world.log.dead_letters().await;
    assert_eq!((letters.len(), letters[0].error.code), (1, ErrorCode::Forbidden));
    assert!(
        letters[0].error.message.contains("stays in its topic"),
        "{}",
        letters[0].error.message
    );
    running.stop().await;
}
