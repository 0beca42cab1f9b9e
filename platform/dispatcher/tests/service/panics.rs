//! The dispatcher itself fails at a step.
use imageflow_types::{ErrorCode, RunEvent, RunId, StepRequest, topics};
use serde_json::json;

use crate::support::{Entry, World, status, step, work};

#[tokio::test]
async fn a_step_at_which_the_dispatcher_panics_fails_and_those_of_its_key_go_on_in_order() {
    let world = World::with(json!({"ordering": "key"})).await;
    let first = step("a");
    let [second, third] = [1, 2].map(|stage| StepRequest { stage, ..first.clone() });
    for step in [&first, &second, &third] {
        world.give(step, 0).await;
    }
    world.store.panic(1);
    let running = world.dispatch();
    let RunEvent::StageFailed { stage, error, .. } = world.log.end(&first.run).await else {
        panic!()
    };
    assert_eq!((stage, error.code), (0, ErrorCode::Internal));
    assert!(error.message.contains("has the store panic"), "{error:?}");
    world.pod.call().await.answer(status(202, ""));
    world.pod.call().await.answer(status(202, ""));
    world.log.committed(&work(), 0, 3).await;
    let stages: Vec<u32> = world
        .log
        .reports(&first.run)
        .into_iter()
        .map(|event| match event {
            RunEvent::StageFailed { stage, .. } | RunEvent::StageCompleted { stage, .. } => stage,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(stages, [0, 1, 2]);
    running.stop().await;
    world.assert_idle();
}

#[tokio::test]
async fn a_report_that_panics_is_tried_thrice_and_its_partition_can_still_move() {
    let world = World::new().await;
    let running = world.dispatch_hasty();
    let panics = |partition: u32| step(&format!("panics{partition}"));
    for partition in 0..topics::WORK_PARTITIONS {
        let step = panics(partition);
        world.log.panic_at(&step.run);
        world.give(&step, partition).await;
        world.pod.call().await.answer(status(202, ""));
    }
    let tries = |journal: &[Entry]| -> Vec<usize> {
        let of = |run: RunId| {
            journal
                .iter()
                .filter(move |e| matches!(e, Entry::Panicked(at) if *at == run))
        };
        let partitions = 0..topics::WORK_PARTITIONS;
        partitions.map(|at| of(panics(at).run).count()).collect()
    };
    let tried = |journal: &[Entry]| Some(tries(journal)).filter(|tries| tries.iter().all(|n| *n >= 3));
    let tried = world.log.until("three tries of each report", tried).await;
    assert_eq!(tried, vec![3; tried.len()]);
    // Something of each partition is under way, so that there is something left to wait for.
    let mut calls = Vec::new();
    for partition in 0..topics::WORK_PARTITIONS {
        world.give(&step(&format!("p{partition}")), partition).await;
        calls.push(world.pod.call().await);
    }
    let second = world.dispatch_as("dispatcher-1");
    // Both steps of each partition that moved.
    for _ in 0..topics::WORK_PARTITIONS {
        calls.push(world.pod.call().await);
    }
    running.stop().await;
    second.stop().await;
    world.assert_idle();
}
