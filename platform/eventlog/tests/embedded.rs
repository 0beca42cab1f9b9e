//! The embedded log runs through the suite of every event log.

#![expect(clippy::unwrap_used, reason = "test code outside of test functions")]

use std::sync::Arc;

use async_trait::async_trait;
use imageflow_eventlog::conformance::Subject;
use imageflow_eventlog::{Embedded, EmbeddedConfig, EventLog};

struct OnDisk {
    folder: tempfile::TempDir,
    log: Option<Arc<Embedded>>,
}

async fn on_disk() -> OnDisk {
    let folder = tempfile::tempdir().unwrap();
    let log = Some(open(&folder).await);
    OnDisk { folder, log }
}

async fn open(folder: &tempfile::TempDir) -> Arc<Embedded> {
    Embedded::open(EmbeddedConfig {
        reserve_bytes: 0,
        ..EmbeddedConfig::new(folder.path())
    })
    .await
    .unwrap()
}

#[async_trait]
impl Subject for OnDisk {
    fn log(&self) -> Arc<dyn EventLog> {
        self.log.clone().unwrap()
    }

    /// Copies the folder as it is now, as a crash would leave it; the kill of a process is tested in `crash.rs`.
    async fn crash(&mut self) {
        let copy = tempfile::tempdir().unwrap();
        copy_folder(self.folder.path(), copy.path());
        if let Some(old) = self.log.take() {
            old.close().await.unwrap();
        }
        self.folder = copy;
        self.log = Some(open(&self.folder).await);
    }
}

fn copy_folder(from: &std::path::Path, to: &std::path::Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            std::fs::create_dir(&target).unwrap();
            copy_folder(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

imageflow_eventlog::conformance!(on_disk);
