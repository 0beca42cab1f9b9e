//! Numaflow's scaling of a source vertex (`pkg/reconciler/vertex/scaling/scaling.go` of numaproj/numaflow): pending over rate against a
//! time to process, two replicas at a time, with cool-downs.
use std::collections::VecDeque;

use crate::policy::{Look, Policy};
use crate::workload::Workload;

/// Settings, with Numaflow's names and defaults.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NumaflowConfig {
    /// In what time what is pending should be processed, s.
    pub target_processing_seconds: f64,
    /// Most replicas more at a time.
    pub replicas_per_scale_up: u32,
    /// Most replicas fewer at a time.
    pub replicas_per_scale_down: u32,
    /// After a change up no other for so long, s.
    pub scale_up_cooldown_s: i64,
    /// The same down.
    pub scale_down_cooldown_s: i64,
    /// Rates and pending records are averages of so long, s.
    pub lookback_s: i64,
    /// Zero replicas are looked at again after so long, s.
    pub zero_replica_sleep_s: i64,
    /// Between two looks, s.
    pub look_s: i64,
}

impl Default for NumaflowConfig {
    fn default() -> Self {
        Self {
            target_processing_seconds: 20.0,
            replicas_per_scale_up: 2,
            replicas_per_scale_down: 2,
            scale_up_cooldown_s: 90,
            scale_down_cooldown_s: 90,
            lookback_s: 120,
            zero_replica_sleep_s: 120,
            look_s: 30,
        }
    }
}

#[derive(Debug, Clone, Default)]
struct Vertex {
    replicas: u32,
    /// By looks of a second: when, completed, pending.
    seen: VecDeque<(i64, u64, u64)>,
    looked_ms: Option<i64>,
    changed_ms: Option<i64>,
}

/// Numaflow for all functions of a world.
pub struct Numaflow {
    config: NumaflowConfig,
    bounds: Vec<(u32, u32)>,
    vertices: Vec<Vertex>,
}

impl Numaflow {
    /// For a workload.
    #[must_use]
    pub fn new(config: NumaflowConfig, load: &Workload) -> Self {
        Self {
            config,
            bounds: load.functions.iter().map(|f| f.bounds).collect(),
            vertices: vec![Vertex::default(); load.functions.len()],
        }
    }
}

impl Policy for Numaflow {
    fn decide(&mut self, looks: &[Look]) -> Vec<(u32, Option<i64>)> {
        looks
            .iter()
            .map(|look| {
                let vertex = &mut self.vertices[look.function as usize];
                let bounds = self.bounds[look.function as usize];
                vertex.look(&self.config, bounds, look);
                // It has no other way to hear of work.
                let again = look.seen.now_ms + self.config.zero_replica_sleep_s * 1_000;
                (vertex.replicas, Some(again))
            })
            .collect()
    }

    fn wakes(&self) -> bool {
        false
    }
}

impl Vertex {
    fn look(&mut self, config: &NumaflowConfig, (min, max): (u32, u32), look: &Look) {
        let (seen, now_ms) = (&look.seen, look.seen.now_ms);
        let pending = seen
            .backlog
            .map(|waiting| waiting + u64::from(seen.held) + u64::from(seen.in_flight));
        let Some(pending) = pending else { return };
        self.seen.push_back((now_ms, seen.completed, pending));
        self.seen.retain(|(at, ..)| now_ms - at <= config.lookback_s * 1_000);
        let past = |at: Option<i64>, s: i64| at.is_none_or(|at| now_ms - at >= s * 1_000);
        if !past(self.looked_ms, config.look_s) {
            return;
        }
        self.looked_ms = Some(now_ms);
        let wanted = if self.replicas == 0 {
            if pending == 0 || !past(self.changed_ms, config.zero_replica_sleep_s) {
                return;
            }
            1
        } else {
            if seen.ready == 0 {
                return;
            }
            let span_s = self
                .seen
                .front()
                .map_or(1.0, |(at, ..)| (now_ms - at).max(1_000) as f64 / 1_000.0);
            let rate = self.seen.iter().map(|(_, completed, _)| *completed as f64).sum::<f64>() / span_s;
            let mean = self.seen.iter().map(|(.., pending)| *pending as f64).sum::<f64>() / self.seen.len() as f64;
            match (rate, mean) {
                (0.0, 0.0) => 0,
                (0.0, _) => return,
                _ => {
                    let replicas = mean / rate / config.target_processing_seconds * f64::from(seen.ready);
                    // Never more replicas than records, nor none while there are some.
                    (replicas.round().max(1.0) as u32).min(u32::try_from(pending.max(1)).unwrap_or(u32::MAX))
                }
            }
        };
        let wanted = wanted.clamp(min, max);
        let (up, cooldown_s) = match wanted > self.replicas {
            true => (true, config.scale_up_cooldown_s),
            false => (false, config.scale_down_cooldown_s),
        };
        if wanted == self.replicas || !past(self.changed_ms, cooldown_s) {
            return;
        }
        self.replicas = if up {
            wanted.min(self.replicas + config.replicas_per_scale_up)
        } else {
            wanted.max(self.replicas.saturating_sub(config.replicas_per_scale_down))
        };
        self.changed_ms = Some(now_ms);
    }
}
