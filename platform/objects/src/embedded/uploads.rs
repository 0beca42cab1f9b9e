//! Objects that come in parts. Uploads under way live in memory: a client whose upload is gone after a restart starts it
//! anew, as S3 clients do.
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use md5::{Digest, Md5};
use s3s::dto::CompletedPart;
use s3s::{S3Result, s3_error};
use tokio::time::Instant;

use super::disk::{Disk, DiskError, Draft};
use super::staging::{Part, Staged};

/// Most uploads at a time.
const MOST: usize = 1000;
/// An upload that nobody completes gives its space back after this.
const LIFE: Duration = Duration::from_secs(24 * 3600);

/// An upload under way. To drop it removes its parts, which are files: not while others wait.
pub struct Upload {
    draft: Draft,
    parts: BTreeMap<i32, Arc<Part>>,
    started: Instant,
}

/// All uploads.
pub struct Uploads {
    uploads: Mutex<HashMap<String, Upload>>,
    counter: AtomicU64,
    /// Tells ids of this process from those before it, whose uploads are gone.
    boot: u128,
}

impl Default for Uploads {
    fn default() -> Self {
        let boot = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_nanos());
        Self {
            uploads: Mutex::default(),
            counter: AtomicU64::new(0),
            boot,
        }
    }
}

impl Uploads {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Upload>> {
        self.uploads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts one; `None` when there are too many.
    pub fn start(&self, draft: Draft, now: Instant) -> Option<String> {
        let mut uploads = self.lock();
        if uploads.len() >= MOST {
            return None;
        }
        let id = format!("{:x}-{}", self.boot, self.counter.fetch_add(1, Ordering::Relaxed));
        uploads.insert(
            id.clone(),
            Upload {
                draft,
                parts: BTreeMap::new(),
                started: now,
            },
        );
        Some(id)
    }

    /// Takes out those that nobody completed in time.
    #[must_use]
    pub fn take_expired(&self, now: Instant) -> Vec<Upload> {
        let mut uploads = self.lock();
        let expired = uploads.extract_if(|_, upload| now.duration_since(upload.started) >= LIFE);
        expired.map(|(_, upload)| upload).collect()
    }

    /// The draft of the upload of that id for that object.
    pub fn draft(&self, id: &str, bucket: &str, key: &str) -> S3Result<Draft> {
        let uploads = self.lock();
        let upload = uploads
            .get(id)
            .filter(|u| u.draft.bucket == bucket && u.draft.key == key);
        upload.map(|u| u.draft.clone()).ok_or_else(|| s3_error!(NoSuchUpload))
    }

    /// Adds a part, in place of an earlier one of that number.
    pub fn add(&self, id: &str, number: i32, part: Part) -> S3Result<()> {
        let mut uploads = self.lock();
        let upload = uploads.get_mut(id).ok_or_else(|| s3_error!(NoSuchUpload))?;
        upload.parts.insert(number, Arc::new(part));
        Ok(())
    }

    /// The parts that the client wants, in its order.
    pub fn chosen(&self, id: &str, wanted: &[CompletedPart]) -> S3Result<Vec<Arc<Part>>> {
        let numbers: Vec<i32> = wanted.iter().map(|part| part.part_number.unwrap_or(0)).collect();
        if numbers.is_empty() || !numbers.is_sorted_by(|a, b| a < b) {
            return Err(s3_error!(InvalidPartOrder));
        }
        let uploads = self.lock();
        let upload = uploads.get(id).ok_or_else(|| s3_error!(NoSuchUpload))?;
        let find = |part: &CompletedPart| {
            let known = upload.parts.get(&part.part_number.unwrap_or(0))?;
            let same = part
                .e_tag
                .as_ref()
                .is_none_or(|etag| etag.value() == hex::encode(known.md5()));
            same.then(|| known.clone())
        };
        wanted
            .iter()
            .map(|part| find(part).ok_or_else(|| s3_error!(InvalidPart)))
            .collect()
    }

    /// Takes out one that is over.
    #[must_use]
    pub fn take(&self, id: &str) -> Option<Upload> {
        self.lock().remove(id)
    }
}

/// One file of all parts, and its ETag: the digest of their digests and their number.
pub fn join(disk: &Disk, parts: &[Arc<Part>]) -> Result<(Staged, String), DiskError> {
    let mut digest = Md5::new();
    let mut staged = disk.stage()?;
    for part in parts {
        digest.update(part.md5());
        staged.append_part(part)?;
    }
    Ok((staged, format!("{}-{}", hex::encode(digest.finalize()), parts.len())))
}
