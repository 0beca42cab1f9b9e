//! Knative's pod autoscaler, decision for decision: what `pkg/autoscaler/scaling/autoscaler.go` of knative/serving computes, with
//! its windows (`window`), its bounds and its way to zero (`pkg/reconciler/autoscaling/kpa`). For users who come from Knative and
//! as a baseline; records that wait in a topic count as far as Knative's Kafka dispatcher would have them in flight.
use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::decide::Observation;

mod window;

pub use window::{Aggregation, Window};

/// Between two decisions, ms.
pub const TICK_MS: i64 = 2_000;

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Metric {
    /// Requests at a time.
    #[default]
    Concurrency,
    /// Requests per second.
    Rps,
}

/// Settings, with Knative's names and defaults (`config-autoscaler` and annotations).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct KpaConfig {
    /// What is measured.
    pub metric: Metric,
    /// What one pod should have of it at most; `None` for 100 requests at a time, or 200 each second.
    pub target: Option<f64>,
    /// Requests that a pod takes at most, 0 for any number.
    pub container_concurrency: u32,
    /// How much of the target is aimed at, 0 to 1.
    pub target_utilization: f64,
    /// Free room for a burst below which the activator stays in the way of requests; -1 for always.
    pub target_burst_capacity: f64,
    /// The stable window, s.
    pub stable_window_s: u32,
    /// The panic window in percent of the stable one.
    pub panic_window_percentage: f64,
    /// Panic begins when the pods wanted are so many percent of those there are.
    pub panic_threshold_percentage: f64,
    /// Most growth in one step, as a factor.
    pub max_scale_up_rate: f64,
    /// Most shrinking in one step, as a factor.
    pub max_scale_down_rate: f64,
    /// Fewer pods only after so long, s.
    pub scale_down_delay_s: u32,
    /// Pods with which a revision begins whatever there is to do, until so many were ready; 0 for none. Knative's default is 1, to
    /// see whether a revision can start; here a first pod is started by its first request.
    pub initial_scale: u32,
    /// Number of the newest revision that has traffic.
    pub revision: u32,
    /// Fewest pods when there are any.
    pub activation_scale: u32,
    /// From no traffic to the last pod's end the activator is in the way for at least so long, s.
    pub scale_to_zero_grace_s: u32,
    /// The last pod stays at least so long, s.
    pub scale_to_zero_pod_retention_s: u32,
    /// How the seconds of a window are averaged.
    pub aggregation: Aggregation,
    /// Records of the work topic that would be in flight: Knative's Kafka dispatcher takes 50 for each partition.
    pub records_in_flight: u32,
}

impl Default for KpaConfig {
    fn default() -> Self {
        Self {
            metric: Metric::Concurrency,
            target: None,
            container_concurrency: 0,
            target_utilization: 0.7,
            target_burst_capacity: 211.0,
            stable_window_s: 60,
            panic_window_percentage: 10.0,
            panic_threshold_percentage: 200.0,
            max_scale_up_rate: 1000.0,
            max_scale_down_rate: 2.0,
            scale_down_delay_s: 0,
            initial_scale: 0,
            revision: 0,
            activation_scale: 1,
            scale_to_zero_grace_s: 30,
            scale_to_zero_pod_retention_s: 0,
            aggregation: Aggregation::Linear,
            records_in_flight: 50,
        }
    }
}

impl KpaConfig {
    /// What a pod may have, and what is aimed at (`pkg/reconciler/autoscaling/resources/target.go`).
    #[must_use]
    pub fn targets(&self) -> (f64, f64) {
        let limit = f64::from(self.container_concurrency);
        let total = match (self.metric, self.target) {
            (Metric::Rps, target) => target.unwrap_or(200.0),
            (Metric::Concurrency, Some(target)) if limit > 0.0 => target.min(limit),
            (Metric::Concurrency, Some(target)) => target,
            (Metric::Concurrency, None) if limit > 0.0 => limit,
            (Metric::Concurrency, None) => 100.0,
        };
        (total, (total * self.target_utilization).max(0.01))
    }

    fn panic_window_s(&self) -> u32 {
        let seconds = (f64::from(self.stable_window_s) * self.panic_window_percentage / 100.0).round();
        (seconds.clamp(1.0, f64::from(u32::MAX))) as u32
    }

    fn spec(&self) -> Spec {
        let (total, target) = self.targets();
        Spec {
            target,
            total,
            burst: self.target_burst_capacity,
            panic_threshold: self.panic_threshold_percentage / 100.0,
            up: self.max_scale_up_rate,
            down: self.max_scale_down_rate,
            stable_window_ms: i64::from(self.stable_window_s) * 1_000,
            delay_ms: i64::from(self.scale_down_delay_s) * 1_000,
            activation: self.activation_scale,
            reachable: true,
        }
    }
}

/// What one decision needs of the settings; the names are short for those of Knative's `DeciderSpec`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spec {
    /// Aimed at, of one pod.
    pub target: f64,
    /// A pod has at most.
    pub total: f64,
    /// Target burst capacity.
    pub burst: f64,
    /// Pods wanted to pods there are, from which on it panics.
    pub panic_threshold: f64,
    /// Most growth.
    pub up: f64,
    /// Most shrinking.
    pub down: f64,
    /// Stable window, ms.
    pub stable_window_ms: i64,
    /// Delay of fewer pods, ms.
    pub delay_ms: i64,
    /// Fewest pods when there are any.
    pub activation: u32,
    /// Whether a route leads to it; without one it may shrink at once.
    pub reachable: bool,
}

/// What is kept between decisions.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct KpaState {
    /// The newest revision whose initial scale was reached.
    pub initialised: u32,
    /// Since when it panics, ms since 1970.
    pub panic_ms: Option<i64>,
    /// Most pods of this panic.
    pub max_panic_pods: u32,
    /// Wanted lately, by steps of a tick, the largest of each.
    delay: VecDeque<(i64, u32)>,
    stable: Window,
    panic: Window,
    decided_ms: Option<i64>,
    started: bool,
    /// The last number before the way to zero.
    wanted: u32,
    /// Since when there has been traffic, or none, ms since 1970.
    active_ms: Option<i64>,
    inactive_ms: Option<i64>,
    /// Since when the activator is in the way, ms since 1970.
    proxy_ms: Option<i64>,
}

impl KpaState {
    /// What is worth keeping when the decider was away.
    pub(crate) fn learned(&self) -> Self {
        Self {
            initialised: self.initialised,
            ..Self::default()
        }
    }
}

/// A decision as Knative's `ScaleResult`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scaled {
    /// Pods.
    pub pods: u32,
    /// Free room beyond the burst that must fit; negative keeps the activator in the way.
    pub excess_burst_capacity: i64,
}

/// One decision from the two averages.
pub fn scale(spec: &Spec, state: &mut KpaState, stable: f64, panic: f64, ready: u32, now_ms: i64) -> Scaled {
    let there = f64::from(ready.max(1));
    let (most, least) = (
        (spec.up * there).ceil(),
        if spec.reachable {
            (there / spec.down).floor()
        } else {
            0.0
        },
    );
    let (stable_pods, panic_pods) = ((stable / spec.target).ceil(), (panic / spec.target).ceil());
    let bounded = |pods: f64| {
        let bounded = pods.max(least).min(most) as u32;
        if spec.activation > 1 && pods > 0.0 {
            bounded.max(spec.activation)
        } else {
            bounded
        }
    };
    let over = panic_pods / there >= spec.panic_threshold;
    if over {
        state.panic_ms = Some(now_ms);
    } else if state
        .panic_ms
        .is_some_and(|since| since.saturating_add(spec.stable_window_ms) < now_ms)
    {
        (state.panic_ms, state.max_panic_pods) = (None, 0);
    }
    let mut pods = bounded(stable_pods);
    if state.panic_ms.is_some() {
        state.max_panic_pods = state.max_panic_pods.max(pods).max(bounded(panic_pods));
        pods = state.max_panic_pods;
    }
    if spec.delay_ms > 0 {
        pods = delayed(spec, state, pods, now_ms);
    }
    let room = f64::from(ready) * spec.total - spec.burst - panic;
    let excess_burst_capacity = match spec.burst {
        0.0 => 0,
        burst if burst > 0.0 => room.floor() as i64,
        _ => -1,
    };
    Scaled {
        pods,
        excess_burst_capacity,
    }
}

/// The most of the delay's time, in steps of a tick.
fn delayed(spec: &Spec, state: &mut KpaState, pods: u32, now_ms: i64) -> u32 {
    let step = now_ms.div_euclid(TICK_MS);
    let steps = (spec.delay_ms + TICK_MS - 1) / TICK_MS;
    match state.delay.back_mut() {
        Some((last, most)) if *last == step => *most = pods.max(*most),
        _ => state.delay.push_back((step, pods)),
    }
    state.delay.retain(|(at, _)| step - at < steps);
    if !spec.reachable {
        return pods;
    }
    state
        .delay
        .iter()
        .map(|(_, pods)| *pods)
        .max()
        .unwrap_or(pods)
        .max(pods)
}

/// What became of one look.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Outcome {
    /// Pods, within bounds.
    pub pods: u32,
    /// The averages.
    pub stable: f64,
    /// The same over the panic window.
    pub panic: f64,
    /// What one pod should have.
    pub target: f64,
    /// Whether it panics.
    pub panicking: bool,
    /// What is asked for before the way to zero and the bounds.
    pub asked: u32,
    /// Traffic is over, and the last pod is held for now.
    pub holding: bool,
    /// The initial scale of its newest revision was not reached yet.
    pub begins: bool,
}

/// Takes in a look, and decides when a tick is over, or work meets zero pods.
pub fn look(config: &KpaConfig, bounds: (u32, u32), state: &mut KpaState, seen: &Observation) -> Outcome {
    let now_ms = seen.now_ms;
    let second = now_ms.div_euclid(1_000);
    let (stable_s, panic_s) = (config.stable_window_s, config.panic_window_s());
    if !state.started {
        // Started anew over several pods it has no past: it panics, so that it goes down only when it knows.
        state.started = true;
        state.max_panic_pods = seen.ready;
        state.panic_ms = (seen.ready > 1).then_some(now_ms);
    }
    if state.stable.last().is_none_or(|last| second > last) {
        let value = measured(config, seen);
        state.stable.record(second, value, stable_s);
        state.panic.record(second, value, panic_s);
    }
    let stable = state.stable.average(config.aggregation, second, stable_s);
    let panic = state.panic.average(config.aggregation, second, panic_s);
    let waked = state.wanted == 0 && seen.has_work();
    if waked || state.decided_ms.is_none_or(|at| now_ms.saturating_sub(at) >= TICK_MS) {
        state.decided_ms = Some(now_ms);
        let scaled = scale(&config.spec(), state, stable, panic, seen.ready, now_ms);
        state.wanted = if waked { scaled.pods.max(1) } else { scaled.pods };
        let proxy = state.wanted == 0 || scaled.excess_burst_capacity < 0;
        state.proxy_ms = if proxy { state.proxy_ms.or(Some(now_ms)) } else { None };
    }
    if seen.ready >= config.initial_scale {
        state.initialised = state.initialised.max(config.revision);
    }
    let begins = config.initial_scale > 0 && state.initialised < config.revision;
    let (min, max) = match begins {
        true => (bounds.0.max(config.initial_scale), bounds.1),
        false => bounds,
    };
    let asked = state.wanted;
    let pods = match asked {
        0 => to_zero(config, state, seen),
        pods => {
            state.inactive_ms = None;
            state.active_ms.get_or_insert(now_ms);
            pods
        }
    };
    let holding = asked == 0 && pods > 0;
    Outcome {
        pods: pods.min(if max == 0 { u32::MAX } else { max }).max(min),
        stable,
        panic,
        target: config.targets().1,
        panicking: state.panic_ms.is_some(),
        asked,
        holding,
        begins,
    }
}

fn measured(config: &KpaConfig, seen: &Observation) -> f64 {
    match config.metric {
        Metric::Rps => seen.completed as f64,
        Metric::Concurrency => {
            let waiting = seen.backlog.unwrap_or(0);
            let taken = u64::from(config.records_in_flight.saturating_sub(seen.in_flight)).min(waiting);
            f64::from(seen.held) + f64::from(seen.in_flight) + taken as f64
        }
    }
}

/// 0, or 1 as long as the last pod is held: until it was active for a stable window, and then for the grace period, in which the
/// activator must have taken over.
fn to_zero(config: &KpaConfig, state: &mut KpaState, seen: &Observation) -> u32 {
    if seen.ready.saturating_add(seen.starting) == 0 {
        (state.active_ms, state.inactive_ms) = (None, None);
        return 0;
    }
    let now_ms = seen.now_ms;
    let since = |at: Option<i64>| at.map_or(i64::MAX, |at| now_ms.saturating_sub(at));
    if state.inactive_ms.is_none() && since(state.active_ms) < i64::from(config.stable_window_s) * 1_000 {
        return 1;
    }
    state.inactive_ms.get_or_insert(now_ms);
    let grace_ms = i64::from(config.scale_to_zero_grace_s) * 1_000;
    let retention_ms = i64::from(config.scale_to_zero_pod_retention_s) * 1_000;
    let inactive_ms = since(state.inactive_ms);
    let over = inactive_ms >= grace_ms.max(retention_ms)
        || (state.proxy_ms.is_some_and(|at| now_ms.saturating_sub(at) >= grace_ms) && inactive_ms >= retention_ms);
    u32::from(!over)
}

#[cfg(test)]
mod tests;
