//! Objects as files: one file an object, its metadata behind its bytes, written aside and renamed once.
//!
//! `<root>/<bucket>/<sha256 of the key>` holds the bytes, the metadata as JSON, the JSON's length (4 bytes, big endian) and
//! `IFO1`. So a key may be anything, an object is never seen half-written nor without its metadata, and the index in memory
//! is rebuilt from the files at start. Everything here blocks: callers run it on the blocking pool, and whoever writes or
//! removes a key holds that key's lock (`Keys`), which makes look-then-write one step.
use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::ops::Bound;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::staging::{Staged, Staging};
use crate::store::{ObjectInfo, check_bucket};

const MAGIC: &[u8; 4] = b"IFO1";
/// Length of the metadata and magic.
const FOOT: u64 = 8;
/// Read from a file's end at once: holds nearly every object's metadata.
const TAIL: u64 = 4 << 10;
const LONGEST_META: u64 = 1 << 20;

/// Why the disk refused.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    #[error("no such bucket")]
    NoBucket,
    #[error("the object exists")]
    Exists,
    /// Over the limit, or no space left on the device.
    #[error("no space is left")]
    Full,
    /// The bytes are not those that the client announced.
    #[error("the {0} does not match the bytes")]
    BadDigest(&'static str),
    /// Another server has the folder.
    #[error("the folder is in use by another process")]
    InUse,
    #[error(transparent)]
    Io(io::Error),
}

impl From<io::Error> for DiskError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full,
            _ => Self::Io(error),
        }
    }
}

#[derive(Serialize, Deserialize)]
struct Meta {
    key: String,
    etag: String,
    modified_ms: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    content_type: Option<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    metadata: BTreeMap<String, String>,
}

/// What a listing shows of an object. The rest is in the file, so that many objects cost little memory.
#[derive(Debug, Clone)]
pub struct Entry {
    pub etag: Box<str>,
    pub size: u64,
    pub modified_ms: i64,
}

type Bucket = BTreeMap<String, Entry>;

/// What an object is to be, but for its bytes.
#[derive(Debug, Clone)]
pub struct Draft {
    pub bucket: String,
    pub key: String,
    pub content_type: Option<String>,
    pub metadata: BTreeMap<String, String>,
    /// Only when the key is not there yet.
    pub only_new: bool,
}

/// What to do after an object of a scan.
pub enum Next {
    /// Take the next key.
    Step,
    /// Take the first key that does not start with this one's first `n` bytes.
    Over(usize),
    /// End.
    Stop,
}

/// The objects of one server.
pub struct Disk {
    root: PathBuf,
    staging: Staging,
    buckets: Mutex<BTreeMap<String, Bucket>>,
    /// Read by who writes objects, written by who makes or removes buckets.
    gate: RwLock<()>,
    /// Held while this lives: two servers on one folder would remove each other's files.
    _lock: File,
}

impl Disk {
    /// Reads what is there; files that were being written when the process died are removed.
    pub fn open(root: &Path, limit: Option<u64>) -> Result<Self, DiskError> {
        fs::create_dir_all(root)?;
        let lock = File::create(root.join(".lock"))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(DiskError::InUse),
            Err(TryLockError::Error(error)) => return Err(error.into()),
        }
        let mut buckets = BTreeMap::new();
        let mut used = 0;
        for entry in fs::read_dir(root)? {
            let entry = entry?;
            let Ok(name) = entry.file_name().into_string() else {
                continue;
            };
            if check_bucket(&name).is_ok() && entry.file_type()?.is_dir() {
                let bucket = read_bucket(&entry.path(), &name)?;
                used += bucket.values().map(|e| e.size).sum::<u64>();
                buckets.insert(name, bucket);
            }
        }
        Ok(Self {
            root: root.to_owned(),
            staging: Staging::open(root.join(".writing"), limit, used)?,
            buckets: Mutex::new(buckets),
            gate: RwLock::new(()),
            _lock: lock,
        })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Bucket>> {
        self.buckets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a bucket; false when it was there.
    pub fn create_bucket(&self, bucket: &str) -> Result<bool, DiskError> {
        let _alone = self.gate.write().unwrap_or_else(PoisonError::into_inner);
        if self.has_bucket(bucket) {
            return Ok(false);
        }
        fs::create_dir_all(self.root.join(bucket))?;
        sync_dir(&self.root)?;
        self.lock().insert(bucket.to_owned(), Bucket::new());
        Ok(true)
    }

    /// Removes an empty bucket; false when it holds something.
    pub fn delete_bucket(&self, bucket: &str) -> Result<bool, DiskError> {
        let _alone = self.gate.write().unwrap_or_else(PoisonError::into_inner);
        if !self.lock().get(bucket).ok_or(DiskError::NoBucket)?.is_empty() {
            return Ok(false);
        }
        fs::remove_dir_all(self.root.join(bucket))?;
        sync_dir(&self.root)?;
        self.lock().remove(bucket);
        Ok(true)
    }

    /// The buckets and when they were made, where the file system knows.
    pub fn buckets(&self) -> Vec<(String, SystemTime)> {
        let names: Vec<String> = self.lock().keys().cloned().collect();
        let made =
            |name: &String| fs::metadata(self.root.join(name)).and_then(|m| m.created().or_else(|_| m.modified()));
        let with_time = |name: String| {
            let at = made(&name).unwrap_or(UNIX_EPOCH);
            (name, at)
        };
        names.into_iter().map(with_time).collect()
    }

    pub fn has_bucket(&self, bucket: &str) -> bool {
        self.lock().contains_key(bucket)
    }

    /// Whether the key is there.
    pub fn has(&self, bucket: &str, key: &str) -> Result<bool, DiskError> {
        Ok(self.lock().get(bucket).ok_or(DiskError::NoBucket)?.contains_key(key))
    }

    /// Objects after `after` in the order of their keys, until `visit` stops or steps over some.
    pub fn scan(
        &self,
        bucket: &str,
        prefix: &str,
        after: Option<&str>,
        mut visit: impl FnMut(&str, &Entry) -> Next,
    ) -> Result<(), DiskError> {
        let buckets = self.lock();
        let bucket = buckets.get(bucket).ok_or(DiskError::NoBucket)?;
        let mut from = match after {
            Some(after) if after >= prefix => Bound::Excluded(after.to_owned()),
            _ => Bound::Included(prefix.to_owned()),
        };
        loop {
            let mut over = None;
            for (key, entry) in bucket.range::<str, _>((from.as_ref().map(String::as_str), Bound::Unbounded)) {
                if !key.starts_with(prefix) {
                    return Ok(());
                }
                match visit(key, entry) {
                    Next::Step => {}
                    Next::Stop => return Ok(()),
                    Next::Over(n) => {
                        over = Some(successor(&key[..n]));
                        break;
                    }
                }
            }
            match over.flatten() {
                Some(next) => from = Bound::Included(next),
                None => return Ok(()),
            }
        }
    }

    /// A new file aside, to be committed.
    pub fn stage(&self) -> Result<Staged, DiskError> {
        self.staging.create()
    }

    /// Makes the staged bytes the object: synced, renamed, the folder synced. The caller holds the key's lock.
    pub fn commit(&self, mut staged: Staged, draft: &Draft, etag: String) -> Result<ObjectInfo, DiskError> {
        self.refuse_existing(draft)?;
        let modified_ms = now_ms();
        let meta = Meta {
            key: draft.key.clone(),
            etag: etag.clone(),
            modified_ms,
            content_type: draft.content_type.clone(),
            metadata: draft.metadata.clone(),
        };
        let mut tail = serde_json::to_vec(&meta).map_err(io::Error::other)?;
        let length = u32::try_from(tail.len()).map_err(io::Error::other)?;
        tail.extend_from_slice(&length.to_be_bytes());
        tail.extend_from_slice(MAGIC);
        staged.file().write_all(&tail)?;
        staged.file().sync_all()?;
        let size = staged.size();
        let path = self.path(&draft.bucket, &draft.key);

        let _shared = self.gate.read().unwrap_or_else(PoisonError::into_inner);
        if !self.has_bucket(&draft.bucket) {
            return Err(DiskError::NoBucket);
        }
        staged.rename(&path)?;
        // In the index whatever the sync says: the file is in its place now, and a reader may as well have it.
        let synced = sync_dir(&self.root.join(&draft.bucket));
        let entry = Entry {
            etag: etag.as_str().into(),
            size,
            modified_ms,
        };
        let before = self
            .lock()
            .get_mut(&draft.bucket)
            .and_then(|b| b.insert(draft.key.clone(), entry));
        self.staging.give_back(before.map_or(0, |e| e.size));
        synced?;
        Ok(ObjectInfo {
            bucket: draft.bucket.clone(),
            key: draft.key.clone(),
            etag,
            size,
            content_type: draft.content_type.clone(),
            version: None,
            metadata: draft.metadata.clone(),
            last_modified_ms: modified_ms,
        })
    }

    /// Refuses a draft that is only for a new key when the key is there: before its bytes are synced for nothing.
    pub fn refuse_existing(&self, draft: &Draft) -> Result<(), DiskError> {
        if self.has(&draft.bucket, &draft.key)? && draft.only_new {
            Err(DiskError::Exists)
        } else {
            Ok(())
        }
    }

    /// Removes an object; `None` when it was not there. The caller holds the key's lock.
    pub fn delete(&self, bucket: &str, key: &str) -> Result<Option<ObjectInfo>, DiskError> {
        let _shared = self.gate.read().unwrap_or_else(PoisonError::into_inner);
        let Some((info, _)) = self.read(bucket, key)? else {
            return Ok(None);
        };
        fs::remove_file(self.path(bucket, key))?;
        let before = self.lock().get_mut(bucket).and_then(|b| b.remove(key));
        self.staging.give_back(before.map_or(0, |e| e.size));
        sync_dir(&self.root.join(bucket))?;
        Ok(Some(info))
    }

    /// Opens an object at its first byte. The info is the file's own, so both belong together; its bytes end at `info.size`.
    pub fn read(&self, bucket: &str, key: &str) -> Result<Option<(ObjectInfo, File)>, DiskError> {
        if !self.has(bucket, key)? {
            return Ok(None);
        }
        match read_file(&self.path(bucket, key), bucket) {
            Ok(found) => Ok(Some(found)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn path(&self, bucket: &str, key: &str) -> PathBuf {
        self.root.join(bucket).join(hex::encode(Sha256::digest(key.as_bytes())))
    }
}

fn read_bucket(path: &Path, name: &str) -> Result<Bucket, DiskError> {
    let mut bucket = Bucket::new();
    for file in fs::read_dir(path)? {
        let path = file?.path();
        match read_file(&path, name) {
            Ok((info, _)) => {
                let entry = Entry {
                    etag: info.etag.into(),
                    size: info.size,
                    modified_ms: info.last_modified_ms,
                };
                bucket.insert(info.key, entry);
            }
            // No crash of ours makes one. The others are worth more than a server that does not start.
            Err(error) => tracing::error!(path = %path.display(), %error, "an object cannot be read"),
        }
    }
    Ok(bucket)
}

fn read_file(path: &Path, bucket: &str) -> io::Result<(ObjectInfo, File)> {
    let damaged = || io::Error::new(io::ErrorKind::InvalidData, "not an object's file");
    let file = File::open(path)?;
    let length = file.metadata()?.len();
    let read = |bytes: u64| -> io::Result<Vec<u8>> {
        let mut tail = vec![0; usize::try_from(bytes).map_err(io::Error::other)?];
        file.read_exact_at(&mut tail, length - bytes)?;
        Ok(tail)
    };
    let mut tail = read(length.min(TAIL))?;
    let Some((front, [a, b, c, d, magic @ ..])) = tail.split_last_chunk::<8>() else {
        return Err(damaged());
    };
    let meta_length = u64::from(u32::from_be_bytes([*a, *b, *c, *d]));
    if magic != MAGIC || meta_length > LONGEST_META || meta_length + FOOT > length {
        return Err(damaged());
    }
    if meta_length > front.len() as u64 {
        tail = read(meta_length + FOOT)?;
    }
    let end = tail.len() - 8;
    let start = end - usize::try_from(meta_length).map_err(io::Error::other)?;
    let meta: Meta = serde_json::from_slice(&tail[start..end]).map_err(io::Error::other)?;
    let info = ObjectInfo {
        bucket: bucket.to_owned(),
        key: meta.key,
        etag: meta.etag,
        size: length - meta_length - FOOT,
        content_type: meta.content_type,
        version: None,
        metadata: meta.metadata,
        last_modified_ms: meta.modified_ms,
    };
    Ok((info, file))
}

/// The least text that is greater than all that start with `prefix`; `None` when there is none.
fn successor(prefix: &str) -> Option<String> {
    let mut text = prefix.to_owned();
    while let Some(last) = text.pop() {
        // A range steps over the surrogates, which are no characters.
        if let Some(next) = (last..=char::MAX).nth(1) {
            text.push(next);
            return Some(text);
        }
    }
    None
}

fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

fn now_ms() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    i64::try_from(now.as_millis()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(disk: &Disk, key: &str, bytes: &[u8], metadata: BTreeMap<String, String>) -> ObjectInfo {
        let mut staged = disk.stage().unwrap();
        staged.append(bytes).unwrap();
        let draft = Draft {
            bucket: "b-1".into(),
            key: key.into(),
            content_type: None,
            metadata,
            only_new: false,
        };
        let etag = staged.md5_hex();
        disk.commit(staged, &draft, etag).unwrap()
    }

    #[test]
    fn what_was_not_renamed_leaves_no_object_and_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::open(dir.path(), None).unwrap();
        disk.create_bucket("b-1").unwrap();
        put(&disk, "old", b"old", BTreeMap::new());
        let mut staged = disk.stage().unwrap();
        staged.append(b"half").unwrap();
        // As a SIGKILL would: nothing is cleaned up.
        std::mem::forget(staged);
        drop(disk);
        let disk = Disk::open(dir.path(), Some(10)).unwrap();
        assert!(disk.has("b-1", "old").unwrap());
        assert_eq!(fs::read_dir(dir.path().join(".writing")).unwrap().count(), 0);
        let mut seven = disk.stage().unwrap();
        seven.append(b"1234567").unwrap();
        assert!(
            matches!(seven.append(b"8"), Err(DiskError::Full)),
            "the dead one's bytes count no more, the old one's do"
        );
    }

    #[test]
    fn metadata_longer_than_the_first_read_comes_back_whole() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::open(dir.path(), None).unwrap();
        disk.create_bucket("b-1").unwrap();
        let metadata: BTreeMap<_, _> = [("long".to_owned(), "x".repeat(10_000))].into();
        let info = put(&disk, "k", b"bytes", metadata);
        assert_eq!(disk.read("b-1", "k").unwrap().unwrap().0, info);
    }

    #[test]
    fn a_second_server_on_the_folder_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let _first = Disk::open(dir.path(), None).unwrap();
        assert!(matches!(Disk::open(dir.path(), None), Err(DiskError::InUse)));
    }

    #[test]
    fn a_damaged_file_hides_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::open(dir.path(), None).unwrap();
        disk.create_bucket("b-1").unwrap();
        put(&disk, "good", b"x", BTreeMap::new());
        drop(disk);
        for (name, bytes) in [
            ("empty", &b""[..]),
            ("short", b"IFO1"),
            ("lies", b"\xff\xff\xff\xffIFO1"),
        ] {
            fs::write(dir.path().join("b-1").join(name), bytes).unwrap();
        }
        let disk = Disk::open(dir.path(), None).unwrap();
        let mut keys = Vec::new();
        disk.scan("b-1", "", None, |key, _| {
            keys.push(key.to_owned());
            Next::Step
        })
        .unwrap();
        assert_eq!(keys, ["good"]);
    }

    #[test]
    fn the_successor_is_past_every_key_of_the_prefix() {
        assert_eq!(successor("a/").as_deref(), Some("a0"));
        assert_eq!(successor("a\u{10ffff}").as_deref(), Some("b"));
        assert_eq!(successor("\u{d7ff}").as_deref(), Some("\u{e000}"));
        assert_eq!(successor("\u{10ffff}"), None);
    }
}
