//! Functions that are about to get work, as one who has no pods and no work itself tells of them.
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use imageflow_types::FunctionName;
use tokio::sync::broadcast;
use tokio::time::Instant;

/// So long a function is not told of again: the autoscaler has decided by then, and its tick sees what came later.
const QUIET: Duration = Duration::from_secs(1);
/// Functions that wait to be told of. More than that are lost; the tick finds their work.
const WAITING: usize = 1024;

/// Tells a [`Reporter`](crate::Reporter) of work that is on its way.
#[derive(Debug)]
pub struct Announcer {
    pokes: broadcast::Sender<FunctionName>,
    told: Mutex<HashMap<FunctionName, Instant>>,
}

impl Default for Announcer {
    fn default() -> Self {
        Self {
            pokes: broadcast::channel(WAITING).0,
            told: Mutex::default(),
        }
    }
}

impl Announcer {
    /// A function is about to get work.
    pub fn announce(&self, function: &FunctionName, now: Instant) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.get(function).is_some_and(|at| now - *at < QUIET) {
            return;
        }
        told.retain(|_, at| now - *at < QUIET);
        told.insert(function.clone(), now);
        drop(told);
        // Nobody listens while the autoscaler is away; its tick finds the work then.
        let _ = self.pokes.send(function.clone());
    }

    /// What was announced from now on.
    #[must_use]
    pub fn pokes(&self) -> broadcast::Receiver<FunctionName> {
        self.pokes.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_function_is_told_of_once_a_second() {
        let (announcer, start) = (Announcer::default(), Instant::now());
        let mut pokes = announcer.pokes();
        let [resize, blur] = ["resize", "blur"].map(|n| FunctionName::new(n).unwrap());
        announcer.announce(&resize, start);
        announcer.announce(&resize, start + QUIET / 2);
        announcer.announce(&blur, start + QUIET / 2);
        announcer.announce(&resize, start + QUIET);
        let told: Vec<_> = std::iter::from_fn(|| pokes.try_recv().ok()).collect();
        assert_eq!(told, [resize.clone(), blur, resize]);
        assert_eq!(announcer.told.lock().unwrap().len(), 2);
    }
}
