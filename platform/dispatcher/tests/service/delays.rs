//! Retries that are far off leave the work topic, and come back.
use std::time::Duration;

use http::header::{HeaderValue, RETRY_AFTER};
use imageflow_types::RunEvent;
use imageflow_types::manifest::Kind;
use serde_json::json;
use tokio::time::Instant;

use crate::support::{FUNCTION, World, status, step, work};

fn come_again(seconds: &'static str) -> axum::response::Response {
    let mut answer = status(503, "");
    answer
        .headers_mut()
        .insert(RETRY_AFTER, HeaderValue::from_static(seconds));
    answer
}

#[tokio::test]
async fn a_step_that_waits_long_holds_no_offset_and_keeps_its_attempts_over_a_restart() {
    let world = World::with(json!({"retry": 1})).await;
    let step = step("a");
    let running = world.dispatch();
    world.give(&step, 0).await;
    let asked = Instant::now();
    world.pod.call().await.answer(come_again("5"));
    world.log.committed(&work(), 0, 1).await;
    world.assert_idle();
    running.stop().await;

    let world = world.reopen().await;
    let running = world.dispatch();
    let call = world.pod.call().await;
    assert!(call.at - asked >= Duration::from_secs(5), "{:?}", call.at - asked);
    assert_eq!(call.attempt, 2);
    call.answer(status(503, ""));
    let RunEvent::StageFailed { attempts, .. } = world.log.end(&step.run).await else {
        panic!()
    };
    assert_eq!(attempts.iter().map(|a| a.number).collect::<Vec<_>>(), [1, 2]);
    running.stop().await;
}

#[tokio::test]
async fn a_step_whose_function_went_away_meanwhile_fails() {
    let world = World::with(json!({"retry": 1})).await;
    let step = step("a");
    let running = world.dispatch();
    world.give(&step, 0).await;
    world.pod.call().await.answer(come_again("5"));
    world.log.committed(&work(), 0, 1).await;
    world.resources.delete(Kind::Function, FUNCTION).await.unwrap();
    assert!(matches!(world.log.end(&step.run).await, RunEvent::StageFailed { .. }));
    running.stop().await;
}
