//! Multipart uploads under way. They live in memory: a client whose upload is gone after a restart starts it anew, as S3 clients do.
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// One part.
#[derive(Debug, Clone)]
pub struct Part {
    pub md5: [u8; 16],
    pub size: u64,
}

/// One upload.
#[derive(Debug, Clone)]
pub struct Upload {
    pub bucket: String,
    pub key: String,
    pub content_type: Option<String>,
    pub metadata: BTreeMap<String, String>,
    pub parts: BTreeMap<i32, Part>,
}

/// Most uploads at a time.
const MOST: usize = 1000;

/// All uploads.
#[derive(Default)]
pub struct Uploads {
    uploads: Mutex<HashMap<String, Upload>>,
    counter: AtomicU64,
}

impl Uploads {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Upload>> {
        self.uploads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts one; `None` when there are too many.
    pub fn start(&self, upload: Upload) -> Option<String> {
        let mut uploads = self.lock();
        if uploads.len() >= MOST {
            return None;
        }
        let id = format!("upload{:08}", self.counter.fetch_add(1, Ordering::Relaxed));
        uploads.insert(id.clone(), upload);
        Some(id)
    }

    /// The upload of that id for that object.
    pub fn get(&self, id: &str, bucket: &str, key: &str) -> Option<Upload> {
        self.lock().get(id).filter(|u| u.bucket == bucket && u.key == key).cloned()
    }

    /// Adds a part.
    pub fn part(&self, id: &str, number: i32, part: Part) {
        if let Some(upload) = self.lock().get_mut(id) {
            upload.parts.insert(number, part);
        }
    }

    /// Ends one.
    pub fn end(&self, id: &str) -> Option<Upload> {
        self.lock().remove(id)
    }
}
