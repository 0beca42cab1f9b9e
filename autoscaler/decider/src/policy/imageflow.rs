//! Our law: keep up with what arrives, drain what waits in time, and serve at once whoever waits. See `README.md`.
use crate::decide::Observation;
use crate::memory::Memory;
use crate::policy::{PolicyConfig, Wanted};
use crate::reason::Reason;

/// This much of a pod is ignored when rounding up.
pub const TOLERANCE: f64 = 0.1;
/// With a known service time, pods grow at most by this factor at a time.
const MAX_GROWTH: u32 = 10;
/// With a guessed one, by this.
const CAREFUL_GROWTH: u32 = 2;
/// A missed drain target raises the backlog's share at most by this factor.
const MAX_OVERDUE: f64 = 2.0;

/// Spare slots for callers, in roots of the slots that they keep busy (square-root staffing of Halfin and Whitt): of a stream with
/// chance, hardly one then waits.
const SPARE: f64 = 1.5;

/// The pods that the work asks for.
pub fn wanted(config: &PolicyConfig, memory: &Memory, seen: &Observation) -> Wanted {
    let items = seen.known_items();
    if items == 0 {
        return Wanted::default();
    }
    let mut reasons = Vec::new();
    let target = f64::from(config.target.max(1));
    let service_ms = service_time(memory, seen, &mut reasons);
    let held = held_slots(memory, seen, target, service_ms, &mut reasons);
    let (rate, callers) = (memory.load.rate(), memory.load.callers);

    let at_work = f64::from(seen.in_flight).min(f64::from(seen.ready) * target);
    let keep_up = rate * service_ms / 1_000.0;
    let spare = SPARE * callers * keep_up.sqrt();
    let drain = drain_slots(config, memory, seen, service_ms, &mut reasons);
    let busy = memory.load.busy.min(at_work);
    // Not the sum of all: while a backlog drains, the requests at work are those that drain it.
    let needed = held + busy.max(keep_up + drain);

    if at_work > 0.0 || held > 0.0 {
        reasons.push(Reason::AtWork {
            in_flight: seen.in_flight,
            held: seen.held,
            slots: busy + held,
        });
    }
    if keep_up > 0.0 {
        reasons.push(Reason::Arrivals {
            per_second: rate,
            service_ms,
            slots: keep_up,
            spare,
        });
    }
    // Room to spare is worth the nearest number of pods, not the next.
    let mut pods = pods(needed, target).max(((needed + spare) / target).round() as u32);
    let there = seen.ready.saturating_add(seen.starting).max(1);
    let growth = if memory.service.trusted() {
        MAX_GROWTH
    } else {
        CAREFUL_GROWTH
    };
    // Callers that wait need no estimate: only what rests on one is held back.
    let most = there.saturating_mul(growth).max(rounded(held / target));
    if pods > most {
        reasons.push(Reason::Growth { pods, most });
        pods = most;
    }
    if pods == 0 {
        reasons.push(Reason::AnyWork);
        pods = 1;
    }
    if u64::from(pods) > items {
        pods = u32::try_from(items).unwrap_or(u32::MAX);
        reasons.push(Reason::OneEach { items });
    }
    Wanted {
        pods,
        slots: needed + spare,
        reasons,
    }
}

/// Slots for callers that wait: one each, but none when the slots there are serve them sooner than a new pod would be ready.
fn held_slots(memory: &Memory, seen: &Observation, target: f64, service_ms: f64, reasons: &mut Vec<Reason>) -> f64 {
    let held = f64::from(seen.held);
    let slots = f64::from(seen.ready.saturating_add(seen.starting)) * target;
    if held == 0.0 || slots == 0.0 {
        return held;
    }
    let (wait_ms, start_ms) = (held * service_ms / slots, memory.load.start_estimate_ms());
    if wait_ms >= start_ms {
        return held;
    }
    reasons.push(Reason::SoonFree {
        held: seen.held,
        wait_ms,
        start_ms,
    });
    0.0
}

/// The learned mean, but at least the time in which nothing completed although work is in flight: a slow function is
/// known to be slow before its first request ends.
pub fn service_time(memory: &Memory, seen: &Observation, reasons: &mut Vec<Reason>) -> f64 {
    let estimate = memory.service.estimate_ms();
    let stalled_ms = memory.stalled_for(seen);
    if stalled_ms as f64 > estimate {
        reasons.push(Reason::NothingCompleted {
            in_flight: seen.in_flight,
            for_ms: stalled_ms,
        });
        return stalled_ms as f64;
    }
    if !memory.service.trusted() {
        reasons.push(Reason::ServiceTimeGuessed { service_ms: estimate });
    }
    estimate
}

fn drain_slots(
    config: &PolicyConfig,
    memory: &Memory,
    seen: &Observation,
    service_ms: f64,
    reasons: &mut Vec<Reason>,
) -> f64 {
    let backlog = seen.backlog.unwrap_or(0).saturating_sub(memory.unreached);
    if memory.unreached > 0 {
        reasons.push(Reason::Unreached {
            records: memory.unreached,
        });
    }
    if backlog == 0 {
        return 0.0;
    }
    let target_ms = config.drain_target_ms.max(1);
    let oldest_ms = seen.oldest_ms.unwrap_or(0);
    let overdue = (oldest_ms as f64 / target_ms as f64).clamp(1.0, MAX_OVERDUE);
    let slots = backlog as f64 * service_ms / target_ms as f64 * overdue;
    reasons.push(Reason::Backlog {
        backlog,
        service_ms,
        target_ms,
        slots,
    });
    if overdue > 1.0 {
        reasons.push(Reason::Overdue {
            oldest_ms,
            target_ms,
            factor: overdue,
        });
    }
    slots
}

/// Slots to pods; a little more than a whole pod is no pod more.
fn pods(slots: f64, target: f64) -> u32 {
    rounded(slots / target - TOLERANCE)
}

/// Up to a whole number; the cast is saturating and the value neither negative nor NaN.
pub fn rounded(pods: f64) -> u32 {
    pods.ceil().clamp(0.0, f64::from(u32::MAX)) as u32
}
