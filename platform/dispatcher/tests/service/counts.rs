//! What the log holds that is not read, as it is told.
use imageflow_dispatcher::DispatcherConfig;
use imageflow_types::{RunId, StepRequest, topics};

use crate::support::{Call, Running, World, function, status, step, work};

/// A dispatcher that has two records of a partition open at most, and waits for nothing when it is to end.
fn dispatch(world: &World) -> Running {
    let config = DispatcherConfig {
        window: 2,
        drain: std::time::Duration::ZERO,
        ..DispatcherConfig::default()
    };
    world.dispatch_with(config, world.backlogs.clone())
}

fn steps(name: &str, count: usize) -> Vec<StepRequest> {
    (0..count).map(|n| step(&format!("{name}{n}"))).collect()
}

/// The next calls: those of these runs, and the others.
async fn calls(world: &World, count: usize, of: &[StepRequest]) -> (Vec<Call>, Vec<Call>) {
    let mut calls = Vec::new();
    for _ in 0..count {
        calls.push(world.pod.call().await);
    }
    let runs: Vec<&RunId> = of.iter().map(|step| &step.run).collect();
    calls.into_iter().partition(|call| runs.contains(&&call.run))
}

#[tokio::test]
async fn a_function_that_is_done_has_nothing_unread_while_another_one_waits() {
    let world = World::new().await;
    let other = world.another("other").await;
    let (own, others) = (steps("own", 6), steps("other", 6));
    world.give_all(&function(), &own, 0).await;
    world.give_all(&other, &others, 0).await;
    let running = dispatch(&world);
    let (first, held) = calls(&world, 4, &own).await;
    world.unread(&function(), 4).await;
    world.unread(&other, 4).await;
    for call in first {
        call.answer(status(202, ""));
    }
    for _ in 2..6 {
        world.pod.call().await.answer(status(202, ""));
    }
    world.log.committed(&work(), 0, 6).await;
    world.unread(&function(), 0).await;
    world.assert_idle();
    assert_eq!(world.backlogs.get(&other).unread, 4);
    drop(held);
    running.stop().await;
    assert!(world.backlogs.all().is_empty(), "{:?}", world.backlogs);
}

#[tokio::test]
async fn what_another_dispatcher_has_by_now_is_not_told_as_unread() {
    let world = World::new().await;
    let running = dispatch(&world);
    // Which partitions move is learnt by having them move once, with nothing in them.
    let half = topics::WORK_PARTITIONS as usize / 2;
    world.give(&step("first"), 0).await;
    world.pod.call().await.answer(status(202, ""));
    world.log.committed(&work(), 0, 1).await;
    let second = world.dispatch_as("dispatcher-1");
    let moved = world.log.revoked(&work(), half).await;
    second.stop().await;
    for partition in 0..topics::WORK_PARTITIONS {
        let step = step(&format!("back{partition}"));
        world.give(&step, partition).await;
        world.pod.call().await.answer(status(202, ""));
        world.completed(&step).await;
    }
    let to_move = steps("moves", 4);
    world.give_all(&function(), &to_move, moved[0]).await;
    let before = calls(&world, 2, &to_move).await;
    world.unread(&function(), 2).await;
    let second = world.dispatch_as("dispatcher-1");
    let again = world.log.revoked(&work(), 2 * half).await;
    assert!(again[half..].contains(&moved[0]), "{again:?}");
    let after = calls(&world, 4, &to_move).await;
    world.assert_idle();
    drop((before, after));
    second.stop().await;
    running.stop().await;
}

#[tokio::test]
async fn while_the_log_is_not_to_be_had_nothing_is_told_as_unread() {
    let world = World::new().await;
    world.give_all(&function(), &steps("own", 6), 0).await;
    let running = dispatch(&world);
    let first = [world.pod.call().await, world.pod.call().await];
    world.unread(&function(), 4).await;
    // The session ends, and no other one begins.
    world.log.fail(u32::MAX, 0, 1);
    for call in first {
        call.abandoned().await;
    }
    assert_eq!(world.backlogs.get(&function()).unread, 0);
    world.log.fail(0, 0, 0);
    for _ in 0..6 {
        world.pod.call().await.answer(status(202, ""));
    }
    world.log.committed(&work(), 0, 6).await;
    running.stop().await;
    world.assert_idle();
}

#[tokio::test]
async fn topics_that_do_not_tell_what_they_hold_hold_up_no_other() {
    let world = World::new().await;
    // More than are asked about at a time.
    for n in 0..9 {
        let silent = world.another(&format!("silent{n}")).await;
        world.log.silence(topics::work(&silent));
        world.give_all(&silent, &steps(silent.as_str(), 3), 0).await;
    }
    let running = dispatch(&world);
    let held = calls(&world, 18, &[]).await;
    // They are under way when the function of the test has something, and it is counted anew when it has more.
    world.give_all(&function(), &steps("own", 6), 0).await;
    let own = calls(&world, 2, &[]).await;
    world.unread(&function(), 4).await;
    world.give(&step("more"), 0).await;
    world.unread(&function(), 5).await;
    drop((held, own));
    running.stop().await;
}
