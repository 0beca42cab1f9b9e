//! A pod host for tests: its pods are what the test says, and it tells what it was asked for.
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use imageflow_types::{FunctionName, RevisionName};
use tokio::sync::{broadcast, watch};

use crate::host::{LogLine, LogQuery, PodError, PodHost};
use crate::pod::{Pod, PodId, PodState, PodTable};

/// A host without pods of its own.
#[derive(Debug)]
pub struct FakeHost {
    /// The pods that it shows.
    pub table: watch::Sender<Arc<PodTable>>,
    /// The lines that its pods write.
    pub lines: broadcast::Sender<LogLine>,
    loads: Mutex<HashMap<PodId, u32>>,
    scaled: Mutex<HashMap<RevisionName, u32>>,
}

impl Default for FakeHost {
    fn default() -> Self {
        Self {
            table: watch::channel(Arc::default()).0,
            lines: broadcast::channel(16).0,
            loads: Mutex::default(),
            scaled: Mutex::default(),
        }
    }
}

impl FakeHost {
    /// A pod more, of the first revision of a function, for 16 requests at a time.
    pub fn add(&self, function: &FunctionName, addr: SocketAddr, state: PodState) -> PodId {
        let mut table = PodTable::clone(&self.table.borrow());
        let id = PodId::new(format!("{function}-{}", table.pods.len()));
        let revision = RevisionName::of(function, 1);
        let pod = Pod::new(id.clone(), function.clone(), revision, addr, 16, state);
        table.pods.insert(id.clone(), pod);
        self.table.send_replace(Arc::new(table));
        id
    }

    /// The load of a pod as told last.
    #[must_use]
    pub fn load(&self, pod: &PodId) -> Option<u32> {
        self.loads
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(pod)
            .copied()
    }

    /// The numbers of pods that were asked for.
    #[must_use]
    pub fn scaled(&self) -> HashMap<RevisionName, u32> {
        self.scaled.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[async_trait]
impl PodHost for FakeHost {
    /// Knows the revisions of the pods that it shows.
    async fn scale(&self, revision: &RevisionName, replicas: u32) -> Result<(), PodError> {
        if !self.table.borrow().pods.values().any(|p| &p.revision == revision) {
            return Err(PodError::UnknownRevision(revision.clone()));
        }
        let mut scaled = self.scaled.lock().unwrap_or_else(PoisonError::into_inner);
        scaled.insert(revision.clone(), replicas);
        Ok(())
    }
    fn set_load(&self, pod: &PodId, requests: u32) {
        self.loads
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(pod.clone(), requests);
    }
    fn watch(&self) -> watch::Receiver<Arc<PodTable>> {
        self.table.subscribe()
    }
    async fn logs(&self, _: LogQuery) -> Result<Vec<LogLine>, PodError> {
        Ok(Vec::new())
    }
    fn follow_logs(&self) -> broadcast::Receiver<LogLine> {
        self.lines.subscribe()
    }
}
