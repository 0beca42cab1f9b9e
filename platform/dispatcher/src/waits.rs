//! For how long what is to be written waits for the log: by that people hear of a topic that takes nothing, while the offsets of
//! what is not written stay uncommitted.
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior};

/// How often it is told.
const TELL_EVERY: Duration = Duration::from_millis(500);

/// All that waits in a dispatcher.
#[derive(Debug, Default)]
pub(crate) struct Waits(Mutex<Begun>);

/// When each of them began, by their numbers: the first is the oldest.
#[derive(Debug, Default)]
struct Begun {
    count: u64,
    since: BTreeMap<u64, Instant>,
}

/// Something is to be written, until this is dropped.
#[derive(Debug)]
pub(crate) struct Wait {
    all: Arc<Waits>,
    number: u64,
}

impl Waits {
    pub(crate) fn begin(self: &Arc<Self>) -> Wait {
        let mut begun = self.lock();
        begun.count += 1;
        let number = begun.count;
        begun.since.insert(number, Instant::now());
        Wait {
            all: self.clone(),
            number,
        }
    }

    /// How long that waits which has waited longest; zero when nothing does.
    fn longest(&self, now: Instant) -> Duration {
        let begun = self.lock();
        let first = begun.since.first_key_value();
        first.map_or(Duration::ZERO, |(_, since)| now.duration_since(*since))
    }

    /// Tells it, as the alert DispatcherWaits sees it, for as long as this is not dropped. On its own: a write may take as long as
    /// the log allows, which is a minute and more.
    pub(crate) async fn tell(&self) -> Infallible {
        let told = Told(metrics::gauge!("imageflow_function_write_waits_seconds"));
        let mut ticks = tokio::time::interval(TELL_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            told.0.set(self.longest(Instant::now()).as_secs_f64());
        }
    }

    fn lock(&self) -> MutexGuard<'_, Begun> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        self.all.lock().since.remove(&self.number);
    }
}

struct Told(metrics::Gauge);

/// However it ends: nothing comes after it that would say so.
impl Drop for Told {
    fn drop(&mut self) {
        self.0.set(0.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_longest_wait_counts() {
        let waits = Arc::new(Waits::default());
        assert_eq!(waits.longest(Instant::now()), Duration::ZERO);
        let first = waits.begin();
        tokio::time::advance(Duration::from_secs(40)).await;
        let second = waits.begin();
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!(waits.longest(Instant::now()), Duration::from_secs(42));
        drop(first);
        assert_eq!(waits.longest(Instant::now()), Duration::from_secs(2));
        drop(second);
        assert_eq!(waits.longest(Instant::now()), Duration::ZERO);
    }
}
