//! Store and state together, as the writer and the readers share them.

use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};

use tokio::sync::Notify;

use super::EmbeddedConfig;
use super::state::State;
use super::store::Store;
use crate::error::{LogError, Result};

pub struct Core {
    pub config: EmbeddedConfig,
    /// `None` once closed, and while the writer opens it again after a failure.
    store: RwLock<Option<Store>>,
    state: Mutex<State>,
    /// The log is nearly full: what every group has done with may go before its time.
    pub pressed: Notify,
}

impl Core {
    pub fn open(config: EmbeddedConfig) -> Result<Self> {
        let store = Store::open(&config.path)?;
        let mut state = State::default();
        state.load(&store)?;
        Ok(Self {
            config,
            store: RwLock::new(Some(store)),
            state: Mutex::new(state),
            pressed: Notify::new(),
        })
    }

    /// Whether `used` bytes are so near the limit that what was consumed should make room.
    pub fn is_pressed(&self, used: u64) -> bool {
        self.config.limit_bytes.is_some_and(|limit| used > limit / 5 * 3)
    }

    /// The state; never held over a disk write. A panicked holder left it consistent: each change is one assignment.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state, unless the log is closed.
    pub fn open_state(&self) -> Result<MutexGuard<'_, State>> {
        let state = self.state();
        if state.closed { Err(LogError::Closed) } else { Ok(state) }
    }

    pub fn with_store<T>(&self, work: impl FnOnce(&Store) -> Result<T>) -> Result<T> {
        let store = self.store.read().unwrap_or_else(PoisonError::into_inner);
        match store.as_ref() {
            Some(store) => work(store),
            None if self.state().closed => Err(LogError::Closed),
            None => Err(LogError::storage(
                "using the database",
                "it could not be opened again after a failed write",
            )),
        }
    }

    /// Opens the database again after it refused further writes, and reads back what is in it.
    pub fn reopen(&self) -> Result<()> {
        let mut slot = self.store.write().unwrap_or_else(PoisonError::into_inner);
        // The folder's lock is free only when the old handles are gone.
        drop(slot.take());
        let store = Store::open(&self.config.path)?;
        let mut state = self.state();
        state.load(&store)?;
        *slot = Some(store);
        for topic in state.topics() {
            topic.changed.notify_waiters();
        }
        for group in state.groups.values() {
            group.wake_all();
        }
        Ok(())
    }

    /// Marks the log closed and lets everyone who waits find out.
    pub fn close(&self) -> Result<()> {
        {
            let mut state = self.state();
            state.closed = true;
            for topic in state.topics() {
                topic.changed.notify_waiters();
            }
            for group in state.groups.values() {
                group.wake_all();
            }
        }
        let store = self.store.write().unwrap_or_else(PoisonError::into_inner).take();
        match store {
            // Synced writes are durable already; and a store whose background work failed refuses to sync.
            Some(store) if !self.config.sync => store.persist(),
            _ => Ok(()),
        }
    }
}
