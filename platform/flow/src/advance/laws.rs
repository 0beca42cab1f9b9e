//! The laws of the module, over any plan and any sequence of events.
use std::collections::HashMap;

use proptest::prelude::*;

use super::tests::{done, error, fail, object, plan, request};
use super::*;

/// A plan as parents: stage `i` comes after `parents[i] - 1` of the earlier ones, 0 means the run's input.
fn plans() -> impl Strategy<Value = Plan> {
    prop::collection::vec((any::<prop::sample::Index>(), 1_usize..3), 1..7).prop_map(|shape| {
        let names: Vec<Vec<String>> = shape
            .iter()
            .enumerate()
            .map(|(i, (_, n))| (0..*n).map(|k| format!("s{i}x{k}")).collect())
            .collect();
        let names: Vec<Vec<&str>> = names.iter().map(|n| n.iter().map(String::as_str).collect()).collect();
        let stages: Vec<(&[&str], Option<u32>)> = shape
            .iter()
            .enumerate()
            .map(|(i, (parent, _))| {
                (
                    &names[i][..],
                    u32::try_from(parent.index(i + 1)).unwrap().checked_sub(1),
                )
            })
            .collect();
        plan(&stages)
    })
}

fn events() -> impl Strategy<Value = Vec<RunEvent>> {
    let run = || request().run;
    let one = (0_u32..8, 0_u32..24).prop_map(move |(stage, kind)| match kind {
        0..=11 => done(stage, (kind % 3 > 0).then(|| object(&format!("o{stage}")))),
        12..=14 => fail(stage, (kind == 12).then(|| format!("s{stage}x1")).as_deref()),
        15..=18 => RunEvent::StageStarted {
            run: run(),
            stage,
            at_ms: 3,
        },
        19..=21 => RunEvent::AttemptFailed {
            run: run(),
            stage,
            attempt: Attempt {
                number: kind,
                at_ms: i64::from(kind),
                error: error(None),
            },
            next_ms: 9,
        },
        22 => RunEvent::Requested(request()),
        _ => RunEvent::Cancel { run: run(), at_ms: 4 },
    });
    prop::collection::vec(one, 0..60)
}

fn stage_succeeded(state: &RunState, stage: u32) -> bool {
    state
        .steps
        .iter()
        .filter(|s| s.stage == stage)
        .all(|s| s.status == StepStatus::Succeeded)
}

fn stage_ended(state: &RunState, stage: u32) -> bool {
    !state
        .steps
        .iter()
        .any(|s| s.stage == stage && (under_way(s.status) || s.status == StepStatus::Waiting))
}

const fn stage_of(event: &RunEvent) -> Option<u32> {
    match event {
        RunEvent::StageStarted { stage, .. }
        | RunEvent::AttemptFailed { stage, .. }
        | RunEvent::StageCompleted { stage, .. }
        | RunEvent::StageFailed { stage, .. } => Some(*stage),
        RunEvent::Requested(_) | RunEvent::Cancel { .. } => None,
    }
}

proptest! {
    #[test]
    fn the_laws_hold_for_any_plan_and_any_events(plan in plans(), events in events()) {
        let stages = u32::try_from(plan.stages.len()).unwrap();
        let (mut state, mut effects) = start(&request(), plan, 0);
        let mut enqueued: HashMap<u32, u32> = HashMap::new();
        let (mut letters, mut finished) = (HashMap::new(), 0);
        let mut past: Vec<RunEvent> = Vec::new();
        for (i, event) in std::iter::once(None).chain(events.into_iter().map(Some)).enumerate() {
            if let Some(event) = event {
                let before = state.clone();
                (state, effects) = advance(&before, &event, i64::try_from(i).unwrap());
                prop_assert_eq!(state.version - before.version, u64::from(state != before));
                if state == before || before.status.is_final() {
                    prop_assert!(effects.is_empty() && state == before);
                }
                // At once again: the same event twice in a row is one.
                prop_assert_eq!(advance(&state, &event, 99), (state.clone(), Vec::new()));
                past.push(event);
            }
            for effect in &effects {
                match effect {
                    Effect::Enqueue(r) => {
                        *enqueued.entry(r.stage).or_default() += 1;
                        let after = state.plan.stages[r.stage as usize].after;
                        prop_assert!(after.is_none_or(|a| stage_succeeded(&state, a)));
                    }
                    Effect::DeadLetter(l) => *letters.entry(l.id.clone()).or_insert(0) += 1,
                    Effect::Finished(status) => {
                        finished += 1;
                        prop_assert_eq!(*status, state.status);
                    }
                }
            }
            // Whatever came before, for a stage that ended, comes again: nothing happens.
            for old in past.iter().filter(|e| stage_of(e).is_some_and(|s| stage_ended(&state, s))) {
                prop_assert_eq!(advance(&state, old, 99), (state.clone(), Vec::new()));
            }
        }
        prop_assert!(enqueued.values().all(|n| *n == 1), "{:?}", enqueued);
        let begun = |s: &&StepState| !matches!(s.status, StepStatus::Waiting | StepStatus::Skipped);
        let early = state.steps.iter().filter(begun).find(|s| !enqueued.contains_key(&s.stage));
        prop_assert!(early.is_none(), "never enqueued: {:?}", early);
        prop_assert!(letters.values().all(|n| *n == 1), "{:?}", letters);
        let all = (0..stages).all(|s| stage_succeeded(&state, s));
        prop_assert_eq!(state.status == RunStatus::Succeeded, all);
        prop_assert_eq!(finished, i32::from(state.status.is_final()));
        let open = state.steps.iter().any(|s| under_way(s.status) || s.status == StepStatus::Waiting);
        prop_assert_eq!(open, !state.status.is_final());
    }

    #[test]
    fn a_run_whose_stages_all_end_ends(plan in plans(), failing in any::<u8>()) {
        let (mut state, mut effects) = start(&request(), plan, 0);
        let mut rounds = 0;
        while !state.status.is_final() {
            let mut next = Vec::new();
            for effect in effects {
                let Effect::Enqueue(r) = effect else { continue };
                let event = if failing & (1 << r.stage) == 0 { done(r.stage, None) } else { fail(r.stage, None) };
                let (after, more) = advance(&state, &event, 1);
                state = after;
                next.extend(more);
            }
            effects = next;
            rounds += 1;
            prop_assert!(rounds < 20, "never ends: {:?}", state.steps);
        }
    }
}
