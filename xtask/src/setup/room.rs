//! Room on the disk: the folder of what is built grows with every change until the disk is full, for cargo deletes nothing.
use std::collections::BTreeMap;
use std::fs::{self, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use crate::tool::{self, Outcome};

const GIB: u64 = 1 << 30;

/// Below this much free what is stale is deleted: more than a cold build and the tests' servers take.
const WANTED: u64 = 15 * GIB;

/// Below this much free nothing is begun: a run would end with a full disk, in the midst of something else.
const NEEDED: u64 = 4 * GIB;

/// Programs of a name that stay: each is built with the features of its crate alone and with those of the workspace.
const KEPT: usize = 2;

/// Sees to it that a run of the tests has room where it builds.
pub fn make() -> Outcome {
    let target = tool::target();
    fs::create_dir_all(&target).map_err(|e| format!("{} cannot be made: {e}", target.display()))?;
    let before = free(&target)?;
    if before >= WANTED {
        return Ok(());
    }
    for profile in ["debug", "release"] {
        let profile = target.join(profile);
        let swept = sweep(&profile).map_err(|e| format!("{}: {e}", profile.display()))?;
        let told = if swept {
            "programs that newer ones have replaced are deleted"
        } else {
            "nothing is deleted, for a build is under way there"
        };
        eprintln!("room: {}: {told}", profile.display());
    }
    let after = free(&target)?;
    eprintln!(
        "room: {} GiB were free in {}, now {} GiB are",
        before / GIB,
        target.display(),
        after / GIB
    );
    if after < NEEDED {
        return Err(format!(
            "{} has {} GiB free and {} are needed: delete something, or set CARGO_TARGET_DIR and XDG_CACHE_HOME to folders of another disk",
            target.display(),
            after / GIB,
            NEEDED / GIB
        ));
    }
    Ok(())
}

/// Bytes free for us where a folder is.
fn free(folder: &Path) -> Result<u64, String> {
    let table = tool::output(Command::new("df").arg("-Pk").arg(folder))?;
    available(&table).ok_or_else(|| format!("df does not tell what is free: {table}"))
}

/// The fourth column of the second line of `df -Pk`, in bytes.
fn available(table: &str) -> Option<u64> {
    let kibibytes: u64 = table.lines().nth(1)?.split_whitespace().nth(3)?.parse().ok()?;
    Some(kibibytes * 1024)
}

/// Deletes what cargo makes again by itself if it ever wants it: the compiler's notes, and programs with newer ones of their name.
/// Returns false, and deletes nothing, while a cargo builds there.
fn sweep(profile: &Path) -> io::Result<bool> {
    if !profile.exists() {
        return Ok(true);
    }
    // The file that cargo locks as long as it builds. Ours until the end of the sweep, a cargo that comes waits.
    let mut open = fs::File::options();
    let lock = open
        .create(true)
        .truncate(false)
        .write(true)
        .open(profile.join(".cargo-lock"))?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(false),
        Err(TryLockError::Error(error)) => return Err(error),
    }
    gone(fs::remove_dir_all(profile.join("incremental")))?;
    let Ok(entries) = fs::read_dir(profile.join("deps")) else {
        return Ok(true);
    };
    let mut programs = Vec::new();
    for entry in entries {
        let entry = entry?;
        let made = match entry.metadata() {
            Ok(made) => made,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        if made.is_file() {
            programs.push((entry.path(), made.modified()?));
        }
    }
    stale(programs)
        .iter()
        .try_for_each(|program| gone(fs::remove_file(program)))?;
    Ok(true)
}

/// `cargo clean` asks nobody: what somebody else has deleted is gone as well.
fn gone(deleted: io::Result<()>) -> io::Result<()> {
    deleted.or_else(|error| match error.kind() {
        io::ErrorKind::NotFound => Ok(()),
        _ => Err(error),
    })
}

/// Of all files, the programs that have `KEPT` newer ones of the same name. A program's file is its name, a dash, and 16 digits.
fn stale(files: Vec<(PathBuf, SystemTime)>) -> Vec<PathBuf> {
    let mut named: BTreeMap<String, Vec<(SystemTime, PathBuf)>> = BTreeMap::new();
    for (path, made) in files {
        let file = path.file_name().unwrap_or_default().to_string_lossy();
        if let Some((name, digits)) = file.rsplit_once('-')
            && digits.len() == 16
            && digits.bytes().all(|b| b.is_ascii_hexdigit())
        {
            named.entry(name.to_owned()).or_default().push((made, path));
        }
    }
    let mut stale = Vec::new();
    for mut programs in named.into_values() {
        programs.sort_unstable_by(|a, b| b.cmp(a));
        stale.extend(programs.into_iter().skip(KEPT).map(|(_, path)| path));
    }
    stale
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn what_is_free_is_read_from_the_table() {
        let table = "Filesystem     1024-blocks     Used Available Capacity Mounted on\n/dev/vda  264212084 95000000    493568      100% /\n";
        assert_eq!(available(table), Some(493_568 * 1024));
        assert_eq!(available("Filesystem\n"), None);
    }

    #[test]
    fn only_programs_with_two_newer_ones_of_their_name_are_stale() {
        let at = |s| SystemTime::UNIX_EPOCH + Duration::from_secs(s);
        let file = |name: &str, s| (PathBuf::from(name), at(s));
        let files = vec![
            file("load-0000000000000001", 1),
            file("load-0000000000000003", 3),
            file("load-0000000000000002", 2),
            file("bench_kafka-0000000000000001", 1),
            // No programs, however old.
            file("libload-0000000000000001.rlib", 0),
            file("libload-0000000000000002.rlib", 2),
            file("libload-0000000000000003.rlib", 3),
            file("load-0000000000000001.d", 0),
            file("load-short", 0),
        ];
        assert_eq!(stale(files), [PathBuf::from("load-0000000000000001")]);
    }

    /// A folder as cargo leaves it, with three programs of one name.
    fn built(name: &str) -> io::Result<PathBuf> {
        let profile = std::env::temp_dir().join(format!("xtask-room-{name}-{}", std::process::id()));
        fs::create_dir_all(profile.join("incremental/a"))?;
        fs::create_dir_all(profile.join("deps"))?;
        for (digit, age) in [(1, 30), (2, 20), (3, 10)] {
            let file = fs::File::create(profile.join(format!("deps/load-000000000000000{digit}")))?;
            file.set_modified(SystemTime::now() - Duration::from_secs(age))?;
        }
        Ok(profile)
    }

    #[test]
    fn a_sweep_deletes_the_notes_and_the_stale() -> io::Result<()> {
        let profile = built("stale")?;
        let swept = sweep(&profile)?;
        let left = fs::read_dir(profile.join("deps"))?.count();
        let notes = profile.join("incremental").exists();
        let oldest = profile.join("deps/load-0000000000000001").exists();
        // Where there is nothing is nothing to do.
        let again = sweep(&profile)?;
        fs::remove_dir_all(&profile)?;
        assert_eq!((swept, left, notes, oldest, again), (true, 2, false, false, true));
        Ok(())
    }

    #[test]
    fn nothing_is_deleted_under_a_build() -> io::Result<()> {
        let profile = built("locked")?;
        let build = fs::File::create(profile.join(".cargo-lock"))?;
        build.lock()?;
        let swept = sweep(&profile)?;
        let left = fs::read_dir(profile.join("deps"))?.count();
        let notes = profile.join("incremental").exists();
        fs::remove_dir_all(&profile)?;
        assert_eq!((swept, left, notes), (false, 3, true));
        Ok(())
    }
}
