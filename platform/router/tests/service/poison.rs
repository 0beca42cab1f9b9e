//! Records at which the router itself fails.
use imageflow_types::ErrorCode;

use crate::support::{POISON, World, run_of, uploaded};

#[tokio::test]
async fn a_record_at_which_the_router_panics_is_a_dead_letter_and_takes_no_other_with_it() {
    let world = World::new().await;
    for key in ["cat.png", "dog.png"] {
        world.objects.add(key, "e1");
    }
    let poison = [uploaded("2", POISON), uploaded("3", POISON)];
    let (cat, dog) = (uploaded("1", "cat.png"), uploaded("4", "dog.png"));
    // All of it is there before the router begins, so it is one batch.
    world.events(&[&cat, &poison[0], &poison[1], &dog]).await;
    let mut running = world.route();
    running.during(world.log.settled()).await;
    let letters = world.log.dead_letters().await;
    let ids: Vec<&str> = letters.iter().map(|l| l.id.as_str()).collect();
    assert_eq!(ids, ["record-0-1", "record-0-2"]);
    let letter = &letters[0];
    assert_eq!(letter.error.code, ErrorCode::Internal);
    assert!(
        letter.error.message.contains("a test's poison"),
        "{}",
        letter.error.message
    );
    let kept = letter.event.as_ref().unwrap()["value"].as_str().unwrap();
    assert!(kept.contains(POISON), "its bytes: {kept}");
    let mut runs: Vec<_> = world.log.runs().await.into_iter().map(|r| r.run).collect();
    runs.sort();
    let mut wanted = ["cat.png", "dog.png"].map(|key| run_of("on-upload", key, "e1"));
    wanted.sort();
    assert_eq!(runs, wanted);
    assert_eq!(world.log.work("outline").await.len(), 2, "each once");
    running.stop().await;
}
