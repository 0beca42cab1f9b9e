//! The log fails for a while: the service goes on.
use imageflow_delivery::BacklogSource;
use imageflow_dispatcher::DispatcherConfig;
use imageflow_types::StepRequest;

use crate::support::{Entry, World, function, status, step, within, work};

#[tokio::test]
async fn what_cannot_be_counted_stays_unknown_until_the_log_is_back() {
    let world = World::new().await;
    let config = DispatcherConfig {
        window: 2,
        ..DispatcherConfig::default()
    };
    world.log.fail(0, 2, 0);
    let steps: Vec<StepRequest> = (0..6).map(|n| step(&format!("s{n}"))).collect();
    for step in &steps {
        world.give(step, 0).await;
    }
    let running = world.dispatch_with(config, world.backlogs.clone());
    let held = (world.pod.call().await, world.pod.call().await);
    world
        .log
        .until("two counts in vain", |journal| {
            let vain = journal.iter().filter(|e| matches!(e, Entry::Counted(false))).count();
            (vain == 2).then_some(())
        })
        .await;
    assert_eq!(world.backlogs.get(&function()).unread, 0, "it is not known");
    held.0.answer(status(202, ""));
    held.1.answer(status(202, ""));
    for _ in 2..6 {
        world.pod.call().await.answer(status(202, ""));
    }
    world.log.committed(&work(), 0, 6).await;
    running.stop().await;
    world.assert_idle();
}

#[tokio::test]
async fn a_log_that_fails_is_joined_again_and_what_was_under_way_is_done() {
    let world = World::new().await;
    let step = step("a");
    world.log.fail(1, 0, 0);
    let running = world.dispatch();
    world.give(&step, 0).await;
    let call = world.pod.call().await;
    // Whichever of the two consumers it is, both go on together.
    world.log.fail(0, 0, 1);
    world.give(&step, 1).await;
    let again = world.pod.call().await;
    assert_eq!(again.attempt, 1);
    again.answer(status(202, ""));
    drop(call);
    world.pod.call().await.answer(status(202, ""));
    world.log.committed(&work(), 0, 1).await;
    world.log.committed(&work(), 1, 1).await;
    running.stop().await;
    world.assert_idle();
}

#[tokio::test]
async fn while_the_log_fails_it_is_said_that_nothing_is_read() {
    let world = World::new().await;
    let reads = async |now: bool| {
        let told = async {
            while world.backlogs.reads() != now {
                tokio::task::yield_now().await;
            }
        };
        within("it is said whether work is read", told).await;
    };
    world.log.fail(1, 0, 0);
    let running = world.dispatch_hasty();
    assert!(!world.backlogs.reads(), "it has joined nothing");
    reads(true).await;
    // It cannot join again before it is told that it may.
    world.log.fail(u32::MAX, 0, 1);
    world.give(&step("a"), 0).await;
    reads(false).await;
    world.log.fail(0, 0, 0);
    reads(true).await;
    running.stop().await;
    assert!(!world.backlogs.reads());
}
