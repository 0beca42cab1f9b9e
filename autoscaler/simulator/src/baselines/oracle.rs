//! Somebody who knows the future: every pod is started so that it is ready in the very moment in which it is needed, and ends
//! when the next need is further away than a cold start costs. It pays the same cold starts as all others.
use std::collections::BTreeSet;

use crate::metrics::{Counted, Figures};
use crate::workload::{Kind, Ms, Workload};

/// How long work may be put off for the sake of fewer pods, as a share of what its function may wait.
const SHARES: [f64; 7] = [0.0, 0.02, 0.1, 0.3, 0.6, 0.8, 1.0];
/// How long a slot waits for its next request instead of ending, in cold starts.
const IDLE: [u64; 4] = [1, 2, 4, 8];

/// The cheapest of several plans, by pods and waiting together. It is a bound for other policies as far as its packing (the pod
/// that was free last, of those that are free in time) is a good one; GPU cards are counted but not limited.
#[must_use]
pub fn oracle(load: &Workload) -> Figures {
    let plans = SHARES
        .iter()
        .flat_map(|share| IDLE.map(|idle| plan(load, *share, idle)));
    let cheapest = plans.min_by(|a, b| a.cost().total_cmp(&b.cost()));
    cheapest.unwrap_or_else(|| Figures::of(load, &Counted::new(load)))
}

struct Slot {
    /// When its pod must be ready, and when it is free again.
    from: Ms,
    free: Ms,
}

fn plan(load: &Workload, share: f64, idle: u64) -> Figures {
    let mut counted = Counted::new(load);
    let mut by_function: Vec<Vec<usize>> = vec![Vec::new(); load.functions.len()];
    for (i, request) in load.requests.iter().enumerate() {
        by_function[request.function as usize].push(i);
    }
    // The steps of a flow go from function to function upwards.
    for (function, mut requests) in load.functions.iter().zip(by_function) {
        requests.sort_by_key(|i| counted.came[*i]);
        let cold = function.cold.0.max(1.0) as Ms;
        let patience = match function.kind {
            Kind::Interactive => function.patience as f64 / 2.0,
            Kind::Batch => function.patience as f64,
        };
        let slack = (patience * share) as Ms;
        let (mut slots, mut free): (Vec<Slot>, BTreeSet<(Ms, usize)>) = (Vec::new(), BTreeSet::new());
        let mut spans: Vec<(Ms, Ms)> = Vec::new();
        for i in requests {
            let request = load.requests[i];
            let Some(came) = counted.came[i] else { continue };
            let stuck = load
                .stuck
                .filter(|(from, to)| request.partition == 0 && (*from..*to).contains(&came));
            let at = stuck.map_or(came, |(_, to)| to);
            // Attempts that fail cost their time as well.
            let service = request.service * u64::from(request.fails.min(4) + 1);
            let last = free.range(..=(at + slack, usize::MAX)).next_back().copied();
            let slot = match last {
                Some((since, slot)) if at <= since + idle * cold => {
                    free.remove(&(since, slot));
                    slot
                }
                _ => {
                    slots.push(Slot { from: at, free: at });
                    slots.len() - 1
                }
            };
            let begin = at.max(slots[slot].free);
            slots[slot].free = begin + service;
            free.insert((begin + service, slot));
            counted.ended[i] = (request.fails != u32::MAX).then_some(begin + service);
            if let Some(next) = request.next {
                counted.came[next as usize] = counted.ended[i];
            }
        }
        spans.extend(slots.iter().map(|slot| (slot.from.saturating_sub(cold), slot.free)));
        let (pods, time) = pack(spans, function.concurrency);
        counted.starts += pods;
        counted.pod_ms += time;
        counted.gpu_ms += time * u64::from(function.cards);
    }
    Figures::of(load, &counted)
}

/// Puts the times of slots onto pods with several slots each: of the slots that are used at a time as few pods as carry them.
fn pack(spans: Vec<(Ms, Ms)>, slots: u32) -> (u64, Ms) {
    let mut changes: Vec<(Ms, i64)> = spans.iter().flat_map(|(from, to)| [(*from, 1), (*to, -1)]).collect();
    changes.sort_unstable_by_key(|(at, change)| (*at, *change));
    let (mut used, mut pods, mut started, mut time, mut before) = (0_i64, 0_i64, 0, 0, 0);
    for (at, change) in changes {
        time += (at - before) * u64::try_from(pods).unwrap_or(0);
        before = at;
        used += change;
        let needed = (used + i64::from(slots) - 1) / i64::from(slots.max(1));
        started += u64::try_from(needed - pods).unwrap_or(0);
        pods = needed;
    }
    (started, time)
}
