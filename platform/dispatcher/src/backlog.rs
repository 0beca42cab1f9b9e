//! How much work waits for each function: what the autoscaler and the 429 of the gateway go by.
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

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
    /// Steps here whose results a function will work on.
    expected: Mutex<HashMap<FunctionName, u32>>,
    /// Whether the topics are read now.
    read: AtomicBool,
}

/// As long as it lives the topics are read.
pub(crate) struct Reading(Arc<Backlogs>);

impl Drop for Reading {
    fn drop(&mut self) {
        self.0.read.store(false, Ordering::Relaxed);
    }
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

    /// The topics are read from now on.
    pub(crate) fn reading(self: &Arc<Self>) -> Reading {
        self.read.store(true, Ordering::Relaxed);
        Reading(self.clone())
    }

    /// How many results of steps that are here each function will work on; those without any are left out.
    #[must_use]
    pub fn expected(&self) -> Vec<(FunctionName, u32)> {
        let expected = self.expected.lock().unwrap_or_else(PoisonError::into_inner);
        expected.iter().map(|(name, steps)| (name.clone(), *steps)).collect()
    }

    /// A step is here whose result these work on. Those are given back that expected nothing before.
    pub(crate) fn announce<'a>(&self, next: &'a [FunctionName]) -> Vec<&'a FunctionName> {
        if next.is_empty() {
            return Vec::new();
        }
        let mut expected = self.expected.lock().unwrap_or_else(PoisonError::into_inner);
        let mut new = Vec::new();
        for function in next {
            match expected.get_mut(function) {
                Some(steps) => *steps += 1,
                None => {
                    expected.insert(function.clone(), 1);
                    new.push(function);
                }
            }
        }
        new
    }

    /// It is done, or not here any more.
    pub(crate) fn announced(&self, next: &[FunctionName]) {
        if next.is_empty() {
            return;
        }
        let mut expected = self.expected.lock().unwrap_or_else(PoisonError::into_inner);
        for function in next {
            if let Some(steps) = expected.get_mut(function) {
                *steps = steps.saturating_sub(1);
            }
        }
        expected.retain(|_, steps| *steps > 0);
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
    fn reads(&self) -> bool {
        self.read.load(Ordering::Relaxed)
    }

    fn backlogs(&self) -> Vec<FunctionBacklog> {
        let mut expected: HashMap<FunctionName, u32> = self.expected().into_iter().collect();
        let all = self.all().into_iter().filter(|(_, backlog)| backlog.waiting > 0);
        let mut told: Vec<FunctionBacklog> = all
            .map(|(function, backlog)| FunctionBacklog {
                waiting: backlog.waiting,
                oldest_ms: backlog.oldest_ms,
                expected: expected.remove(&function).unwrap_or(0),
                function,
            })
            .collect();
        told.extend(expected.into_iter().map(|(function, expected)| FunctionBacklog {
            function,
            waiting: 0,
            oldest_ms: None,
            expected,
        }));
        told
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
    fn what_follows_a_step_is_expected_while_the_step_is_here() {
        let backlogs = Backlogs::default();
        let next = ["upscale", "archive"].map(|n| FunctionName::new(n).unwrap());
        assert_eq!(backlogs.announce(&next).len(), 2);
        assert_eq!(backlogs.announce(&next[..1]), Vec::<&FunctionName>::new());
        backlogs.taken(&next[0], 5);
        let mut told = backlogs.backlogs();
        told.sort_by(|a, b| a.function.cmp(&b.function));
        let told: Vec<_> = told.iter().map(|t| (t.waiting, t.expected)).collect();
        assert_eq!(told, [(0, 1), (1, 2)]);
        backlogs.announced(&next);
        backlogs.announced(&next[..1]);
        backlogs.finished(&next[0], 5);
        assert!(backlogs.backlogs().is_empty() && backlogs.expected().is_empty());
    }

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
