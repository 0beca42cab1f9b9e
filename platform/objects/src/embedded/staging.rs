//! Files that are being written, and the space that they and the objects take.
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use md5::{Digest, Md5};

use super::disk::DiskError;

/// Where files are written aside.
pub struct Staging {
    folder: PathBuf,
    space: Arc<Space>,
    counter: AtomicU64,
}

struct Space {
    limit: u64,
    used: AtomicU64,
}

impl Space {
    fn take(&self, bytes: u64) -> Result<(), DiskError> {
        let more = |used: u64| used.checked_add(bytes).filter(|sum| *sum <= self.limit);
        self.used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, more)
            .map_err(|_| DiskError::Full)?;
        Ok(())
    }

    fn give_back(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Staging {
    /// Empties the folder: what is in it was being written by a process that died.
    pub fn open(folder: PathBuf, limit: Option<u64>, used: u64) -> io::Result<Self> {
        fs::create_dir_all(&folder)?;
        for entry in fs::read_dir(&folder)? {
            fs::remove_file(entry?.path())?;
        }
        let space = Space {
            limit: limit.unwrap_or(u64::MAX),
            used: AtomicU64::new(used),
        };
        Ok(Self {
            folder,
            space: Arc::new(space),
            counter: AtomicU64::new(0),
        })
    }

    pub fn create(&self) -> Result<Staged, DiskError> {
        let path = self
            .folder
            .join(self.counter.fetch_add(1, Ordering::Relaxed).to_string());
        let file = File::create_new(&path)?;
        Ok(Staged {
            file,
            md5: Md5::new(),
            held: Held {
                path: Some(path),
                size: 0,
                space: self.space.clone(),
            },
        })
    }

    /// An object of this size is no more.
    pub fn give_back(&self, bytes: u64) {
        self.space.give_back(bytes);
    }
}

/// A file aside and the space it takes: both are given back when it is dropped before it was renamed.
pub struct Held {
    path: Option<PathBuf>,
    size: u64,
    space: Arc<Space>,
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(path) = self.path.take() {
            if let Err(error) = fs::remove_file(&path) {
                tracing::warn!(path = %path.display(), %error, "a file aside could not be removed");
            }
            self.space.give_back(self.size);
        }
    }
}

/// A file that is being written.
pub struct Staged {
    file: File,
    md5: Md5,
    held: Held,
}

impl Staged {
    /// Appends bytes of the object.
    pub fn append(&mut self, bytes: &[u8]) -> Result<(), DiskError> {
        self.held.space.take(bytes.len() as u64)?;
        self.held.size += bytes.len() as u64;
        self.md5.update(bytes);
        Ok(self.file.write_all(bytes)?)
    }

    /// Appends the first `length` bytes that are left in an object's file.
    pub fn append_from(&mut self, source: File, length: u64) -> Result<(), DiskError> {
        let mut source = BufReader::with_capacity(64 << 10, source.take(length));
        loop {
            let chunk = source.fill_buf()?;
            let n = chunk.len();
            if n == 0 {
                return Ok(());
            }
            self.append(chunk)?;
            source.consume(n);
        }
    }

    /// Appends a part's bytes. The object's ETag is made of the parts' digests, so these bytes need none.
    pub fn append_part(&mut self, part: &Part) -> Result<(), DiskError> {
        self.held.space.take(part.size())?;
        self.held.size += part.size();
        let path = part
            .held
            .path
            .as_deref()
            .ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        io::copy(&mut File::open(path)?, &mut self.file)?;
        Ok(())
    }

    pub fn size(&self) -> u64 {
        self.held.size
    }

    pub fn md5(&self) -> [u8; 16] {
        self.md5.clone().finalize().into()
    }

    pub fn md5_hex(&self) -> String {
        hex::encode(self.md5())
    }

    pub fn file(&mut self) -> &mut File {
        &mut self.file
    }

    /// Puts the file in its place; its space stays taken.
    pub fn rename(&mut self, to: &Path) -> io::Result<()> {
        if let Some(from) = &self.held.path {
            fs::rename(from, to)?;
        }
        self.held.path = None;
        Ok(())
    }

    /// Closes the file, to be a part of an object later: thousands of open files are too many.
    pub fn into_part(self) -> Part {
        Part {
            md5: self.md5(),
            held: self.held,
        }
    }
}

/// A part of an object that comes in parts.
pub struct Part {
    md5: [u8; 16],
    held: Held,
}

impl Part {
    pub fn md5(&self) -> [u8; 16] {
        self.md5
    }

    pub fn size(&self) -> u64 {
        self.held.size
    }
}
