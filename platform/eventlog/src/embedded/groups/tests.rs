use super::*;
use proptest::prelude::*;

const TIMEOUT: Duration = Duration::from_secs(10);

fn tp(topic: u32, partition: u32) -> Tp {
    Tp { topic, partition }
}

fn all(partitions: u32) -> Vec<(&'static str, Tp)> {
    (0..partitions).map(|p| ("t", tp(0, p))).collect()
}

fn join(group: &mut Group, id: u64, partitions: u32, now: Instant) {
    let name = format!("m{id}");
    group.join(id, &name, Topics::one("t"), TIMEOUT, all(partitions).into_iter(), now);
}

fn assigned(group: &mut Group, id: u64) -> Vec<Tp> {
    std::mem::take(&mut group.member(id).unwrap().to_assign)
        .into_iter()
        .collect()
}

fn revoked(group: &mut Group, id: u64) -> Vec<Tp> {
    group.member(id).unwrap().tell_revoked()
}

#[test]
fn a_partition_moves_only_after_its_owner_was_told_and_polled_again() {
    let (mut group, now) = (Group::default(), Instant::now());
    join(&mut group, 1, 4, now);
    assert_eq!(assigned(&mut group, 1).len(), 4);
    join(&mut group, 2, 4, now);
    assert_eq!(assigned(&mut group, 2), []);
    let lost = revoked(&mut group, 1);
    assert_eq!(lost.len(), 2);
    assert!(group.owns(1, lost[0]), "still its own until it polls again");
    assert_eq!(assigned(&mut group, 2), []);
    group.give_up(1, now);
    assert_eq!(assigned(&mut group, 2), lost);
    assert!(group.owns(2, lost[0]) && !group.owns(1, lost[0]));
}

#[test]
fn a_partition_that_was_never_told_moves_at_once() {
    let (mut group, now) = (Group::default(), Instant::now());
    join(&mut group, 1, 2, now);
    join(&mut group, 2, 2, now);
    assert_eq!((assigned(&mut group, 1).len(), assigned(&mut group, 2).len()), (1, 1));
    assert_eq!(revoked(&mut group, 1), []);
}

#[test]
fn an_owner_that_does_not_poll_loses_the_partition_at_its_timeout_and_hears_of_it_later() {
    let (mut group, now) = (Group::default(), Instant::now());
    join(&mut group, 1, 2, now);
    assigned(&mut group, 1);
    join(&mut group, 2, 2, now);
    assert_eq!(group.take_overdue(2, now), Some(now + TIMEOUT));
    assert_eq!(assigned(&mut group, 2), []);
    assert_eq!(group.take_overdue(2, now + TIMEOUT), None);
    let taken = assigned(&mut group, 2);
    assert_eq!(taken.len(), 1);
    assert!(!group.owns(1, taken[0]));
    assert_eq!(revoked(&mut group, 1), taken);
    group.give_up(1, now + TIMEOUT);
    assert!(
        group.owns(2, taken[0]),
        "giving up what is lost takes nothing from its new owner"
    );
}

#[test]
fn a_member_of_the_same_name_replaces_the_older_one() {
    let (mut group, now) = (Group::default(), Instant::now());
    join(&mut group, 1, 3, now);
    assigned(&mut group, 1);
    group.join(2, "m1", Topics::one("t"), TIMEOUT, all(3).into_iter(), now);
    assert!(group.member(1).is_none());
    assert_eq!(assigned(&mut group, 2).len(), 3);
}

#[test]
fn new_topics_are_shared_out_without_moving_others() {
    let (mut group, now) = (Group::default(), Instant::now());
    for id in [1, 2] {
        group.join(
            id,
            &format!("m{id}"),
            Topics::Pattern("w.".into()),
            TIMEOUT,
            [].into_iter(),
            now,
        );
    }
    for topic in 0..10 {
        group.add_topic(&format!("w.{topic}"), topic, 1, now);
    }
    group.add_topic("other", 99, 1, now);
    assert_eq!((assigned(&mut group, 1).len(), assigned(&mut group, 2).len()), (5, 5));
    assert_eq!((revoked(&mut group, 1), revoked(&mut group, 2)), (vec![], vec![]));
}

#[derive(Debug, Clone)]
enum Step {
    Join(u64),
    Leave(u64),
    Poll(u64),
    AddTopic(u32),
    RemoveTopic(u32),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (1..5u64).prop_map(Step::Join),
        (1..5u64).prop_map(Step::Leave),
        (1..5u64).prop_map(Step::Poll),
        (1..5u64).prop_map(Step::Poll),
        (0..4u32).prop_map(Step::AddTopic),
        (0..4u32).prop_map(Step::RemoveTopic),
    ]
}

proptest! {
    /// What each member believes to hold never overlaps, and once everyone has polled, everything is shared fairly.
    #[test]
    fn no_partition_has_two_owners_and_none_is_forgotten(steps in proptest::collection::vec(step(), 1..60)) {
        const PARTITIONS: u32 = 3;
        let (mut group, now) = (Group::default(), Instant::now());
        let mut topics: BTreeSet<u32> = BTreeSet::new();
        let mut held: BTreeMap<u64, BTreeSet<Tp>> = BTreeMap::new();
        // As EmbeddedConsumer::poll: give up, then revocations, then assignments.
        let poll = |group: &mut Group, held: &mut BTreeMap<u64, BTreeSet<Tp>>, id: u64| {
            let Some(mine) = held.get_mut(&id) else { return };
            group.give_up(id, now);
            let lost = revoked(group, id);
            if lost.is_empty() {
                mine.extend(assigned(group, id));
            }
            for tp in lost {
                mine.remove(&tp);
            }
        };
        for step in steps {
            match step {
                Step::Join(id) if !held.contains_key(&id) => {
                    let known: Vec<_> =
                        topics.iter().flat_map(|t| (0..PARTITIONS).map(|p| ("t", tp(*t, p)))).collect();
                    group.join(id, &format!("m{id}"), Topics::one("t"), TIMEOUT, known.into_iter(), now);
                    held.insert(id, BTreeSet::new());
                }
                Step::Leave(id) if held.remove(&id).is_some() => {
                    group.leave(id, now);
                    if group.is_empty() {
                        group = Group::default();
                    }
                }
                Step::Poll(id) => poll(&mut group, &mut held, id),
                Step::AddTopic(t) if topics.insert(t) => group.add_topic("t", t, PARTITIONS, now),
                Step::RemoveTopic(t) if topics.remove(&t) => {
                    group.remove_topic(t, PARTITIONS, now);
                    for mine in held.values_mut() {
                        mine.retain(|tp| tp.topic != t);
                    }
                }
                _ => {}
            }
            let total: usize = held.values().map(BTreeSet::len).sum();
            let distinct: BTreeSet<Tp> = held.values().flatten().copied().collect();
            prop_assert_eq!(total, distinct.len());
        }
        // A topic that went leaves revocations to be told, each of which may let another partition move.
        for _ in 0..6 {
            for id in held.keys().copied().collect::<Vec<_>>() {
                poll(&mut group, &mut held, id);
            }
        }
        if !held.is_empty() {
            let shares: Vec<usize> = held.values().map(BTreeSet::len).collect();
            prop_assert_eq!(shares.iter().sum::<usize>(), topics.len() * PARTITIONS as usize);
            prop_assert!(shares.iter().max().unwrap() - shares.iter().min().unwrap() <= 1, "{:?}", shares);
        }
    }
}
