//! What becomes of a resource that is applied: its generation, and for a function its revisions.
use std::time::Duration;

use imageflow_types::Revision;
use imageflow_types::function::{FunctionSpec, TrafficTarget};
use imageflow_types::manifest::{Document, Resource};
use imageflow_types::names::{FlowName, FunctionName, TriggerName};

use super::{Kept, Outcome, SCHEMA, WORK_KEPT};
use crate::catalog::Catalog;

/// Newest revisions kept of a function beside those that have traffic: enough to roll back.
const KEPT_REVISIONS: usize = 20;
/// An older one is kept for so long after the next was made: runs that began before that wait with it, in the queue and between
/// attempts (50 of them, an hour apart, at most). What waits for longer has left its topic, too.
const KEPT_FOR: Duration = WORK_KEPT;
/// So many are kept in all by that, and so many bytes of those beyond [`KEPT_REVISIONS`]: all stand in one record, of 1 MiB at most.
const MOST_REVISIONS: usize = 100;
const MOST_BYTES: usize = 256 << 10;

/// What is kept when a resource is applied to what is there, and what that does.
pub fn merge(catalog: &Catalog, resource: Resource, now_ms: i64) -> (Kept, Outcome) {
    match resource {
        Resource::Function(document) => merge_function(catalog, document, now_ms),
        Resource::Flow(mut document) => {
            let before = catalog.flows.get::<FlowName>(&document.metadata.name);
            let outcome = settle(before.map(|b| &**b), &mut document);
            (
                Kept {
                    schema: SCHEMA,
                    resource: Resource::Flow(document),
                    revisions: Vec::new(),
                },
                outcome,
            )
        }
        Resource::Trigger(mut document) => {
            let before = catalog.triggers.get::<TriggerName>(&document.metadata.name);
            let outcome = settle(before.map(|b| &**b), &mut document);
            (
                Kept {
                    schema: SCHEMA,
                    resource: Resource::Trigger(document),
                    revisions: Vec::new(),
                },
                outcome,
            )
        }
    }
}

/// Sets the generation and says what changes.
fn settle<N: PartialEq, S: PartialEq>(before: Option<&Document<N, S>>, document: &mut Document<N, S>) -> Outcome {
    document.metadata.generation = before.map_or(1, |b| b.metadata.generation);
    match before {
        None => Outcome::Created,
        Some(before) if before == document => Outcome::Unchanged,
        Some(before) => {
            if before.spec != document.spec {
                document.metadata.generation += 1;
            }
            Outcome::Configured
        }
    }
}

fn merge_function(
    catalog: &Catalog,
    mut document: Document<FunctionName, FunctionSpec>,
    now_ms: i64,
) -> (Kept, Outcome) {
    let before = catalog.functions.get(&document.metadata.name);
    let outcome = settle(before.map(|b| &b.document), &mut document);
    let mut revisions = before.map(|b| b.revisions.clone()).unwrap_or_default();
    let next = revisions.last().map_or(1, |r| r.number + 1);
    let candidate = Revision::new(&document.metadata.name, next, &document.spec, now_ms);
    if revisions.last().is_none_or(|latest| latest.digest != candidate.digest) {
        revisions.push(candidate);
    }
    let revisions = needed(revisions, &document.spec.traffic, now_ms);
    (
        Kept {
            schema: SCHEMA,
            resource: Resource::Function(document),
            revisions,
        },
        outcome,
    )
}

/// Without the revisions that nobody can need any more.
fn needed(mut revisions: Vec<Revision>, traffic: &[TrafficTarget], now_ms: i64) -> Vec<Revision> {
    let surplus = revisions.len().saturating_sub(KEPT_REVISIONS);
    let replaced_ms: Vec<i64> = revisions.iter().skip(1).map(|next| next.created_ms).collect();
    let waited_for = |index: usize| now_ms.saturating_sub(replaced_ms[index]) < KEPT_FOR.as_millis() as i64;
    let most = MOST_REVISIONS - KEPT_REVISIONS;
    let mut bytes = 0;
    // The newer ones first: of those that are many more runs wait.
    let kept: Vec<bool> = (0..surplus)
        .rev()
        .map(|index| {
            let revision = &revisions[index];
            bytes += serde_json::to_vec(revision).map_or(MOST_BYTES, |json| json.len());
            let has_room = surplus - index <= most && bytes <= MOST_BYTES;
            let routed = traffic
                .iter()
                .any(|share| share.revision.as_ref() == Some(&revision.name));
            routed || (has_room && waited_for(index))
        })
        .collect();
    let mut kept = kept.into_iter().rev();
    revisions.retain(|_| kept.next().unwrap_or(true));
    revisions
}

#[cfg(test)]
mod tests {
    use super::*;
    use imageflow_types::names::RevisionName;

    const DAY_MS: i64 = 24 * 3600 * 1000;

    fn name() -> FunctionName {
        FunctionName::new("resize").unwrap()
    }

    /// One made a day, from day 1 on; the schema of each takes so many bytes.
    fn daily(count: u32, bytes: usize) -> Vec<Revision> {
        let revision = |number: u32| {
            let mut spec = FunctionSpec::of_operation("resize");
            spec.params.insert("text".to_owned(), "x".repeat(bytes).into());
            Revision::new(&name(), number, &spec, i64::from(number) * DAY_MS)
        };
        (1..=count).map(revision).collect()
    }

    fn numbers(revisions: &[Revision]) -> Vec<u32> {
        revisions.iter().map(|r| r.number).collect()
    }

    #[test]
    fn a_revision_outlasts_the_runs_that_wait_with_it_however_many_come_after_it() {
        let at_once: Vec<Revision> = daily(40, 0)
            .into_iter()
            .map(|r| Revision { created_ms: 0, ..r })
            .collect();
        let days = |days: i64| needed(at_once.clone(), &[], days * DAY_MS).len();
        assert_eq!((days(0), days(6), days(7)), (40, 40, KEPT_REVISIONS));
        // What counts is when it was replaced, not when it was made.
        let left = needed(daily(24, 0), &[], 11 * DAY_MS);
        assert_eq!(numbers(&left), (4..=24).collect::<Vec<_>>());
    }

    #[test]
    fn one_that_has_traffic_stays_at_any_age() {
        let routed = TrafficTarget {
            revision: Some(RevisionName::of(&name(), 2)),
            percent: 100,
            tag: None,
        };
        let left = needed(daily(30, 0), &[routed], 365 * DAY_MS);
        assert_eq!(left[0].number, 2);
        assert_eq!(numbers(&left[1..]), (11..=30).collect::<Vec<_>>());
    }

    #[test]
    fn however_young_they_are_there_is_an_end_to_their_number_and_their_bytes() {
        let many = needed(daily(300, 0), &[], 0);
        assert_eq!(numbers(&many), (201..=300).collect::<Vec<_>>());
        let large = needed(daily(40, MOST_BYTES / 4), &[], 0);
        assert_eq!(large.len(), KEPT_REVISIONS + 3);
    }
}
