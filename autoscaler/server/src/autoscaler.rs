//! The autoscaler as others see it.
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use imageflow_decider::Memory;
use imageflow_types::FunctionName;
use imageflow_types::scaling::DecisionRecord;
use tokio::sync::{broadcast, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::history::History;
use crate::inputs::{DecisionSink, Functions, Replicas, StatsSource};
use crate::scaling_loop::ScalingLoop;
use crate::store::store;

/// How the loop behaves.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Settings {
    /// Time between two looks.
    pub tick: Duration,
    /// Patience on the way down: the number of pods is the largest of so long a time.
    pub window: Duration,
    /// A call to the pod host is given up after this, and made again at the next look.
    pub scale_timeout: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            tick: Duration::from_secs(1),
            window: Duration::from_secs(30),
            scale_timeout: Duration::from_secs(5),
        }
    }
}

/// What the autoscaler is made of.
pub struct Parts {
    /// All functions, as they are applied. Must be loaded before the start: pods of a function that is not in it go.
    pub functions: watch::Receiver<Arc<Functions>>,
    /// Their work.
    pub stats: Arc<dyn StatsSource>,
    /// Their pods.
    pub replicas: Arc<dyn Replicas>,
    /// Where decisions are kept.
    pub sink: Arc<dyn DecisionSink>,
    /// What was stored before: read from the sink's topic at start.
    pub learned: HashMap<FunctionName, Memory>,
    /// Functions whose work met zero pods.
    pub pokes: broadcast::Receiver<FunctionName>,
}

/// What loop and handle share.
#[derive(Debug, Default)]
pub struct Shared {
    pub history: History,
    pub desired: HashMap<FunctionName, u32>,
    pub active: usize,
}

/// Handle of the running autoscaler. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Autoscaler {
    shared: Arc<Mutex<Shared>>,
}

impl Autoscaler {
    /// Starts the loop. It ends when `stop` is cancelled, stores what is left, and then the task is done: await it.
    #[must_use]
    pub fn spawn(parts: Parts, settings: Settings, stop: CancellationToken) -> (Self, JoinHandle<()>) {
        let shared = Arc::new(Mutex::new(Shared::default()));
        let (store, writer) = store(parts.sink.clone());
        let scaling = ScalingLoop::new(parts, settings, Arc::clone(&shared), store, clock());
        let task = tokio::spawn(async move {
            // The loop drops its end of the store when it ends, and so ends the writer.
            tokio::join!(scaling.run(stop), writer.run());
        });
        (Self { shared }, task)
    }

    /// The last decisions of a function, newest first.
    #[must_use]
    pub fn decisions(&self, function: &FunctionName) -> Vec<DecisionRecord> {
        self.lock().history.of(function)
    }

    /// How many pods a function should have; 0 when nothing was ever decided.
    #[must_use]
    pub fn desired(&self, function: &FunctionName) -> u32 {
        self.lock().desired.get(function).copied().unwrap_or(0)
    }

    /// How many functions are looked at now: those with work or pods.
    #[must_use]
    pub fn active(&self) -> usize {
        self.lock().active
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Wall-clock milliseconds that never go back: read once, counted on by the monotonic clock.
fn clock() -> impl Fn() -> i64 + Send + 'static {
    let start = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let since = Instant::now();
    move || i64::try_from((start + since.elapsed()).as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
