//! Our law: keep up with what arrives, drain what waits in time, and serve at once whoever waits. See `README.md`.
use crate::decide::Observation;
use crate::memory::Memory;
use crate::policy::{PolicyConfig, Wanted};
use crate::reason::Reason;

/// This much of a pod is ignored when rounding up.
const TOLERANCE: f64 = 0.1;
/// With a known service time, pods grow at most by this factor at a time.
const MAX_GROWTH: u32 = 10;
/// With a guessed one, by this.
const CAREFUL_GROWTH: u32 = 2;
/// A missed drain target raises the backlog's share at most by this factor.
const MAX_OVERDUE: f64 = 2.0;

/// The pods that the work asks for.
pub fn wanted(config: &PolicyConfig, memory: &Memory, seen: &Observation) -> Wanted {
    let items = seen.known_items();
    if items == 0 {
        return Wanted {
            pods: 0,
            slots: 0.0,
            reasons: Vec::new(),
        };
    }
    let mut reasons = Vec::new();
    let target = f64::from(config.target.max(1));
    let service_ms = service_time(memory, seen, &mut reasons);
    let held = f64::from(seen.held);

    let now = f64::from(seen.in_flight).min(f64::from(seen.ready) * target) + held;
    let keep_up = memory.rate.max(0.0) * service_ms / 1000.0;
    let drain = drain_slots(config, seen, service_ms, &mut reasons);
    let flow = held + keep_up + drain;

    if now > 0.0 {
        reasons.push(Reason::AtWork {
            in_flight: seen.in_flight,
            held: seen.held,
            slots: now,
        });
    }
    if keep_up > 0.0 {
        reasons.push(Reason::Arrivals {
            per_second: memory.rate,
            service_ms,
            slots: keep_up,
        });
    }
    let (pods_now, mut pods_flow) = (pods(now, target), pods(flow, target));
    let there = seen.ready.saturating_add(seen.starting).max(1);
    let growth = if memory.service.trusted() {
        MAX_GROWTH
    } else {
        CAREFUL_GROWTH
    };
    let most = there.saturating_mul(growth);
    // Callers that wait need no estimate: only what rests on one is held back.
    let most = most.max(pods(held, target));
    if pods_flow > most {
        reasons.push(Reason::Growth { pods: pods_flow, most });
        pods_flow = most;
    }
    let mut pods = pods_now.max(pods_flow);
    if pods == 0 {
        reasons.push(Reason::AnyWork);
        pods = 1;
    }
    if u64::from(pods) > items {
        pods = u32::try_from(items).unwrap_or(u32::MAX);
        reasons.push(Reason::OneEach { items });
    }
    if let Some(capacity) = seen.capacity_pods.map(|c| c.max(1)).filter(|c| *c < pods) {
        reasons.push(Reason::Capacity { pods, capacity });
        pods = capacity;
    }
    Wanted {
        pods,
        slots: now.max(flow),
        reasons,
    }
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

fn drain_slots(config: &PolicyConfig, seen: &Observation, service_ms: f64, reasons: &mut Vec<Reason>) -> f64 {
    let backlog = seen.backlog.unwrap_or(0);
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

/// Slots to pods; the cast is saturating and the value neither negative nor NaN.
fn pods(slots: f64, target: f64) -> u32 {
    (slots / target - TOLERANCE).ceil().clamp(0.0, f64::from(u32::MAX)) as u32
}
