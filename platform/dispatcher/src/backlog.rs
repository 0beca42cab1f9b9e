//! How much work waits for each function: what the autoscaler and the 429 of the gateway go by.
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use imageflow_delivery::{BacklogSource, FunctionBacklog};
use imageflow_types::FunctionName;

/// Work of one function that is not done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Backlog {
    /// Records not with a pod: unread in the log, waiting for a slot, or waiting for a retry.
    pub waiting: u64,
    /// Records with a pod.
    pub working: u64,
    /// Of those waiting, records not read from the log yet.
    pub unread: u64,
    /// When the oldest was asked for, ms since 1970.
    pub oldest_ms: Option<i64>,
}

/// The backlog of every function that has one.
#[derive(Debug, Default)]
pub struct Backlogs {
    functions: Mutex<HashMap<FunctionName, Counts>>,
}

#[derive(Debug, Default)]
struct Counts {
    taken: u64,
    working: u64,
    unread: u64,
    /// Requested times of what is taken, with how many share each.
    since: std::collections::BTreeMap<i64, u32>,
}

impl Backlogs {
    /// The backlog of a function; zero when it has none.
    #[must_use]
    pub fn get(&self, function: &FunctionName) -> Backlog {
        self.lock().get(function).map(Counts::view).unwrap_or_default()
    }

    /// Every function with work.
    #[must_use]
    pub fn all(&self) -> Vec<(FunctionName, Backlog)> {
        self.lock()
            .iter()
            .map(|(name, counts)| (name.clone(), counts.view()))
            .collect()
    }

    pub(crate) fn taken(&self, function: &FunctionName, requested_ms: i64) {
        let mut functions = self.lock();
        let counts = functions.entry(function.clone()).or_default();
        counts.taken += 1;
        *counts.since.entry(requested_ms).or_default() += 1;
    }

    pub(crate) fn finished(&self, function: &FunctionName, requested_ms: i64) {
        self.change(function, |counts| {
            counts.taken = counts.taken.saturating_sub(1);
            if let Some(n) = counts.since.get_mut(&requested_ms) {
                *n -= 1;
                if *n == 0 {
                    counts.since.remove(&requested_ms);
                }
            }
        });
    }

    pub(crate) fn working(&self, function: &FunctionName, delta: i64) {
        self.change(function, |counts| {
            counts.working = counts.working.saturating_add_signed(delta)
        });
    }

    pub(crate) fn unread(&self, function: &FunctionName, unread: u64) {
        let mut functions = self.lock();
        if unread > 0 || functions.contains_key(function) {
            functions.entry(function.clone()).or_default().unread = unread;
        }
        functions.retain(|_, c| c.taken > 0 || c.unread > 0);
    }

    fn change(&self, function: &FunctionName, change: impl FnOnce(&mut Counts)) {
        let mut functions = self.lock();
        if let Some(counts) = functions.get_mut(function) {
            change(counts);
            if counts.taken == 0 && counts.unread == 0 {
                functions.remove(function);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<FunctionName, Counts>> {
        self.functions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl BacklogSource for Backlogs {
    fn backlogs(&self) -> Vec<FunctionBacklog> {
        let all = self.all().into_iter();
        all.filter(|(_, backlog)| backlog.waiting > 0)
            .map(|(function, backlog)| FunctionBacklog {
                function,
                waiting: backlog.waiting,
                oldest_ms: backlog.oldest_ms,
            })
            .collect()
    }
}

impl Counts {
    fn view(&self) -> Backlog {
        Backlog {
            waiting: self.taken.saturating_sub(self.working) + self.unread,
            working: self.working,
            unread: self.unread,
            oldest_ms: self.since.keys().next().copied(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_function_has_no_backlog_and_no_entry() {
        let backlogs = Backlogs::default();
        let name = FunctionName::new("resize").unwrap();
        backlogs.taken(&name, 5);
        backlogs.taken(&name, 3);
        backlogs.unread(&name, 7);
        backlogs.working(&name, 1);
        let now = backlogs.get(&name);
        assert_eq!((now.waiting, now.working, now.oldest_ms), (8, 1, Some(3)));
        backlogs.working(&name, -1);
        backlogs.finished(&name, 3);
        backlogs.finished(&name, 5);
        backlogs.unread(&name, 0);
        assert_eq!(backlogs.get(&name), Backlog::default());
        assert!(backlogs.all().is_empty());
    }
}
