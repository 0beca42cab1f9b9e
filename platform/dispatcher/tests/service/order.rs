//! Steps of one key of a function that wants them in order.
use imageflow_types::manifest::{Kind, Resource};
use imageflow_types::{RunEvent, StepRequest};
use serde_json::json;

use crate::support::{FUNCTION, World, function, status, step, work};

/// Stages of one run: their records have one key, and come in order.
fn stages<const N: usize>(name: &str) -> [StepRequest; N] {
    let mut stage = 0;
    [(); N].map(|()| {
        let step = StepRequest { stage, ..step(name) };
        stage += 1;
        step
    })
}

#[tokio::test]
async fn ordered_steps_of_one_key_go_one_after_another() {
    let world = World::with(json!({"ordering": "key"})).await;
    // Records of one run have one key, and stages of it come in order.
    let first = step("a");
    let second = StepRequest {
        stage: 1,
        ..first.clone()
    };
    let other = step("b");
    let running = world.dispatch();
    for step in [&first, &second, &other] {
        world.give(step, 0).await;
    }
    let (call, other_call) = world.pod.two(&first.run, &other.run).await;
    other_call.answer(status(202, ""));
    world.completed(&other).await;
    assert!(world.pod.is_quiet().await, "the second did not wait for the first");
    call.answer(status(202, ""));
    world.pod.call().await.answer(status(202, ""));
    world.log.committed(&work(), 0, 3).await;
    let stages: Vec<u32> = world
        .log
        .reports(&first.run)
        .into_iter()
        .map(|event| match event {
            RunEvent::StageCompleted { stage, .. } => stage,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(stages, [0, 1]);
    running.stop().await;
    world.assert_idle();
}

/// Until the view shows the function nobody knows whether it wants an order.
#[tokio::test]
async fn steps_of_a_function_that_is_not_seen_yet_go_in_order() {
    let world = World::with(json!({"ordering": "key"})).await;
    let kept = world.resources.snapshot().functions[FUNCTION].document.clone();
    world.resources.delete(Kind::Function, FUNCTION).await.unwrap();
    let seen = world.seen_with_one_more();
    let [first, second] = stages("a");
    let running = world.dispatch();
    for step in [&first, &second] {
        world.give_as_of(step, &seen).await;
    }
    world.passed_by().await;
    world.resources.apply(Resource::Function(kept)).await.unwrap();
    let call = world.pod.call().await;
    let other = step("b");
    world.give(&other, 0).await;
    let other_call = world.pod.call().await;
    assert_eq!(other_call.run, other.run, "the second did not wait for the first");
    other_call.answer(status(202, ""));
    call.answer(status(202, ""));
    world.pod.call().await.answer(status(202, ""));
    world.log.committed(&work(), 0, 4).await;
    running.stop().await;
    world.assert_idle();
}

#[tokio::test]
async fn a_step_begun_without_an_order_gives_no_key_back() {
    let world = World::new().await;
    let [first, second, third] = stages("a");
    let running = world.dispatch();
    world.give(&first, 0).await;
    let first_call = world.pod.call().await;
    world.apply(&function(), json!({"delivery": {"ordering": "key"}})).await;
    world.give(&second, 0).await;
    let second_call = world.pod.call().await;
    world.give(&third, 0).await;
    first_call.answer(status(202, ""));
    let other = step("b");
    world.give(&other, 0).await;
    let other_call = world.pod.call().await;
    assert_eq!(other_call.run, other.run, "the third did not wait for the second");
    other_call.answer(status(202, ""));
    world.completed(&other).await;
    assert!(world.pod.is_quiet().await, "the third did not wait for the second");
    second_call.answer(status(202, ""));
    world.pod.call().await.answer(status(202, ""));
    world.log.committed(&work(), 0, 4).await;
    running.stop().await;
    world.assert_idle();
}
