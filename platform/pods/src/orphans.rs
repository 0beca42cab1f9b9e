//! No process outlives its platform. Every pod carries the platform's id in its environment and stands in the platform's
//! record; whoever finds one whose platform is gone ends it. The warden does so the moment the platform's end of its pipe
//! closes, by whatever death; a platform that starts does so for the one before it, in case the warden was killed too.
use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

use crate::local::cgroups;
use crate::pod::PodId;

/// The variable that says which pod it is.
pub const POD: &str = "IMAGEFLOW_POD";
/// The variable that marks a pod.
pub const MARK: &str = "IMAGEFLOW_PLATFORM_ID";
/// The variable that tells the warden where the platform's record is.
pub const FOLDER: &str = "IMAGEFLOW_PODS_DIR";
/// How long processes may take to end by themselves. Nobody waits for their answers any more.
const GRACE: Duration = Duration::from_secs(1);
/// Longest that a reap goes on: a process that forks faster than it is killed must not hold the next start for ever.
const LONGEST_REAP: Duration = Duration::from_secs(10);

/// Process and start time: a pid alone may have been given to another process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Process {
    pub pid: i32,
    pub started: u64,
}

impl Process {
    /// The process that has that pid now.
    pub fn of(pid: i32) -> Option<Self> {
        Some(Self {
            pid,
            started: start_time(pid)?,
        })
    }

    fn lives(self) -> bool {
        start_time(self.pid) == Some(self.started)
    }

    /// Signals the process, and its group where it leads one; whether it was still there.
    fn signal(self, signal: Signal) -> bool {
        let Some(pid) = Pid::from_raw(self.pid) else {
            return false;
        };
        // The handle is taken before the check, so that the signal cannot reach another process with the same pid.
        let Ok(handle) = pidfd_open(pid, PidfdFlags::empty()) else {
            return false;
        };
        if !self.lives() {
            return false;
        }
        // Fails when it leads no group.
        let _ = kill_process_group(pid, signal);
        pidfd_send_signal(handle, signal).is_ok()
    }
}

/// What must be known about a platform after its death, kept in its folder.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub platform: String,
    pub process: Option<Process>,
    pub cgroups: Vec<PathBuf>,
    pub pods: BTreeSet<Process>,
}

impl Record {
    fn path(state_dir: &Path) -> PathBuf {
        state_dir.join("pods.json")
    }

    /// The record of a folder; `None` when there is none, or none that can be read.
    fn read(state_dir: &Path) -> io::Result<Option<Self>> {
        match fs::read(Self::path(state_dir)) {
            // It is replaced as a whole, so a broken one was not written by us; the marks in the environments remain.
            Ok(text) => Ok(serde_json::from_slice(&text).ok()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub fn write(&self, state_dir: &Path) -> io::Result<()> {
        let aside = state_dir.join("pods.json.new");
        fs::write(&aside, serde_json::to_vec(self)?)?;
        fs::rename(&aside, Self::path(state_dir))
    }
}

/// What `/proc/<pid>/stat` tells.
struct Stat {
    parent: i32,
    group: i32,
    started: u64,
}

/// Fields 4, 5 and 22, counted after the name, which may contain anything. A zombie is over.
fn stat(pid: i32) -> Option<Stat> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace();
    if matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    Some(Stat {
        parent: fields.next()?.parse().ok()?,
        group: fields.next()?.parse().ok()?,
        started: fields.nth(16)?.parse().ok()?,
    })
}

fn start_time(pid: i32) -> Option<u64> {
    stat(pid).map(|stat| stat.started)
}

fn all() -> impl Iterator<Item = i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten();
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
}

/// The processes whose environment has this variable with this value.
fn marked(name: &str, value: &str) -> impl Iterator<Item = Process> {
    let wanted = format!("{name}={value}").into_bytes();
    let has = move |pid: &i32| {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|b| *b == 0).any(|variable| variable == wanted)
    };
    all().filter(has).filter_map(Process::of)
}

/// The process, those of the group that it leads, and all that these started, as far as nobody between has ended.
pub fn family(leader: i32) -> BTreeSet<i32> {
    let stats: Vec<(i32, Stat)> = all().filter_map(|pid| Some((pid, stat(pid)?))).collect();
    let mut found = BTreeSet::from([leader]);
    loop {
        let related = |stat: &Stat| stat.group == leader || found.contains(&stat.parent);
        let more: Vec<i32> = stats
            .iter()
            .filter(|(pid, stat)| !found.contains(pid) && related(stat))
            .map(|(pid, _)| *pid)
            .collect();
        if more.is_empty() {
            return found;
        }
        found.extend(more);
    }
}

/// Ends what a pod that is over has started, wherever it went. This looks at every process of the machine: too much for
/// anything but the end of a pod.
pub fn end_pod(pod: &PodId) {
    let begun = Instant::now();
    let me = i32::try_from(std::process::id()).ok();
    let mut ended = BTreeSet::new();
    // Once more after each: what is killed may just have started another.
    while begun.elapsed() < GRACE {
        let found = marked(POD, pod.as_str()).filter(|process| Some(process.pid) != me);
        let new: Vec<Process> = found.filter(|process| !ended.contains(process)).collect();
        if new.is_empty() {
            return;
        }
        for process in new {
            process.signal(Signal::KILL);
            ended.insert(process);
        }
    }
    tracing::warn!(%pod, "it left processes that start others faster than they can be ended");
}

fn find(record: &Record) -> BTreeSet<Process> {
    let mut found: BTreeSet<Process> = marked(MARK, &record.platform).collect();
    // A program may have written over its environment, or its children may have been given another.
    found.extend(record.pods.iter().copied().filter(|process| process.lives()));
    found.extend(
        record
            .cgroups
            .iter()
            .flat_map(|dir| cgroups::members(dir))
            .filter_map(Process::of),
    );
    let me = i32::try_from(std::process::id()).ok();
    found.retain(|process| Some(process.pid) != me && Some(*process) != record.process);
    found
}

/// Ends every process of that platform, until none is found. What they were doing is done again by whoever comes next.
pub fn reap(record: &Record) -> usize {
    let begun = Instant::now();
    let mut ended = BTreeSet::new();
    while begun.elapsed() < LONGEST_REAP {
        let found = find(record);
        if found.is_empty() {
            break;
        }
        for process in found {
            if begun.elapsed() > GRACE {
                process.signal(Signal::KILL);
            } else if !ended.contains(&process) {
                process.signal(Signal::TERM);
            }
            ended.insert(process);
        }
        pause();
    }
    for dir in &record.cgroups {
        cgroups::remove_tree(dir);
    }
    ended.len()
}

#[expect(
    clippy::disallowed_methods,
    reason = "not on a thread of the runtime, and the warden has none; ended processes need a moment to go"
)]
pub fn pause() {
    std::thread::sleep(Duration::from_millis(10));
}

/// The warden: waits until its standard input ends, then ends every pod of the platform and removes its cgroups.
///
/// # Errors
/// When standard input cannot be read.
pub fn warden_main(platform: &str) -> io::Result<()> {
    let mut sink = [0_u8; 64];
    let mut input = io::stdin().lock();
    while input.read(&mut sink)? > 0 {}
    // Another platform may have taken the folder over; the marks in the environments lead to ours all the same.
    let folder = std::env::var_os(FOLDER);
    let record = folder.and_then(|folder| Record::read(Path::new(&folder)).ok().flatten());
    let record = record.filter(|record| record.platform == platform);
    let record = record.unwrap_or_else(|| Record {
        platform: platform.to_owned(),
        ..Record::default()
    });
    // The platform itself may live on for a moment when it ends in order: it is never a pod of its own.
    reap(&record);
    Ok(())
}

/// Ends what an earlier platform of the same folder left: how many processes. For who has the folder's lock only: the platform
/// of the record is not asked whether it lives.
pub fn take_over(state_dir: &Path) -> io::Result<usize> {
    Ok(Record::read(state_dir)?.map_or(0, |earlier| reap(&earlier)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_its_start_time_too() {
        let me = Process::of(i32::try_from(std::process::id()).unwrap()).unwrap();
        assert!(me.lives());
        let other = Process {
            started: me.started + 1,
            ..me
        };
        // Signalling "ourselves of another time" must do nothing, else this test would end here.
        assert!(!other.lives() && !other.signal(Signal::KILL));
    }

    #[test]
    fn a_record_is_read_back_and_a_broken_one_is_none() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Record::read(dir.path()).unwrap(), None);
        let pods = BTreeSet::from([Process { pid: 7, started: 9 }]);
        let record = Record {
            platform: "p".into(),
            process: Process::of(1),
            cgroups: vec!["/x".into()],
            pods,
        };
        record.write(dir.path()).unwrap();
        assert_eq!(Record::read(dir.path()).unwrap(), Some(record));
        fs::write(Record::path(dir.path()), "{").unwrap();
        assert_eq!(Record::read(dir.path()).unwrap(), None);
    }
}
