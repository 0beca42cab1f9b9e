//! Limits by cgroups: one group a pod under `imageflow-<platform id>`, where we may make them.
//!
//! They come on top of the limits that a process has from its first moment on, see `run.rs`.
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use imageflow_types::function::Resources;
use rustix::process::{Pid, Signal, kill_process};

use crate::orphans;
use crate::pod::PodId;

/// The kernel's usual period, in microseconds, and the least quota that it takes.
const PERIOD: u64 = 100_000;
const LEAST_QUOTA: u64 = 1_000;
/// How often a group is tried to be removed: its members need some milliseconds to die, and it is not removed before.
const REMOVALS: u32 = 20;

/// What holds pods to their `resources`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Enforcement {
    /// As `Rlimits`, and from the second after a pod is ready memory and CPU by cgroups, version 2.
    Cgroup2,
    /// The same by cgroups, version 1.
    Cgroup1,
    /// Memory by `RLIMIT_DATA`, with 128 MiB of headroom for what a process needs beside its work; CPU is not limited.
    Rlimits,
}

/// The platform's groups. In version 2 both folders are the same.
#[derive(Debug, Clone)]
pub struct Cgroups {
    two: bool,
    memory: PathBuf,
    cpu: PathBuf,
}

impl Cgroups {
    /// Makes the platform's groups; `None` where that is not possible: no root, no controllers, a read-only mount.
    pub fn open(platform: &str) -> Option<Self> {
        let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
        let own = fs::read_to_string("/proc/self/cgroup").ok()?;
        let name = format!("imageflow-{platform}");
        let found = two(&mounts, &name).or_else(|| {
            let memory = one(&mounts, &own, "memory")?.join(&name);
            let cpu = one(&mounts, &own, "cpu")?.join(&name);
            Some(Self {
                two: false,
                memory,
                cpu,
            })
        })?;
        let made = found
            .dirs()
            .iter()
            .try_for_each(fs::create_dir_all)
            .and_then(|()| found.try_out());
        if let Err(error) = made {
            tracing::debug!(%error, "cgroups cannot be used");
            found.dirs().iter().for_each(|dir| remove_tree(dir));
            return None;
        }
        Some(found)
    }

    pub const fn enforcement(&self) -> Enforcement {
        if self.two {
            Enforcement::Cgroup2
        } else {
            Enforcement::Cgroup1
        }
    }

    /// The platform's folders, which hold one for each pod.
    pub fn dirs(&self) -> Vec<PathBuf> {
        if self.two {
            vec![self.memory.clone()]
        } else {
            vec![self.memory.clone(), self.cpu.clone()]
        }
    }

    fn try_out(&self) -> io::Result<()> {
        if self.two {
            fs::write(self.memory.join("cgroup.subtree_control"), "+memory +cpu")?;
        }
        let probe = PodId::new("probe");
        let limits = Resources::default();
        let tried = self.create(&probe, &limits);
        self.remove(&probe);
        tried
    }

    fn create(&self, pod: &PodId, limits: &Resources) -> io::Result<()> {
        for dir in self.dirs() {
            fs::create_dir_all(dir.join(pod.as_str()))?;
        }
        let memory = self.memory.join(pod.as_str());
        let bytes = limits.memory.bytes.to_string();
        if self.two {
            fs::write(memory.join("memory.max"), &bytes)?;
            // Not there without swap, or on older kernels.
            let _ = fs::write(memory.join("memory.swap.max"), "0");
            let _ = fs::write(memory.join("memory.oom.group"), "1");
        } else {
            fs::write(memory.join("memory.limit_in_bytes"), &bytes)?;
            let _ = fs::write(memory.join("memory.memsw.limit_in_bytes"), &bytes);
        }
        let quota = (u64::from(limits.cpu.millis) * PERIOD / 1000).max(LEAST_QUOTA);
        let cpu = self.cpu.join(pod.as_str());
        if self.two {
            return fs::write(cpu.join("cpu.max"), format!("{quota} {PERIOD}"));
        }
        fs::write(cpu.join("cpu.cfs_period_us"), PERIOD.to_string())?;
        fs::write(cpu.join("cpu.cfs_quota_us"), quota.to_string())
    }

    /// Makes the pod's group and puts the process into it, with all that it has started.
    pub fn admit(&self, pod: &PodId, limits: &Resources, pid: i32) -> io::Result<()> {
        self.create(pod, limits)?;
        self.put(pod, pid)?;
        // What those that are in start is in too. So each look finds less, until there is none that was not tried.
        let mut tried = BTreeSet::from([pid]);
        loop {
            let inside = self
                .dirs()
                .last()
                .map(|dir| members(&dir.join(pod.as_str())))
                .unwrap_or_default();
            tried.extend(inside);
            let family = orphans::family(pid);
            let outside: Vec<i32> = family.difference(&tried).copied().collect();
            if outside.is_empty() {
                return Ok(());
            }
            for process in outside {
                tried.insert(process);
                if let Err(error) = self.put(pod, process) {
                    // It may have ended.
                    tracing::debug!(%pod, process, %error, "a process of the pod is not in its cgroup");
                }
            }
        }
    }

    fn put(&self, pod: &PodId, process: i32) -> io::Result<()> {
        let dirs = self.dirs();
        let mut files = dirs.iter().map(|dir| dir.join(pod.as_str()).join("cgroup.procs"));
        files.try_for_each(|file| fs::write(file, process.to_string()))
    }

    /// Whether the kernel killed a process of the pod for its memory.
    pub fn out_of_memory(&self, pod: &PodId) -> bool {
        let file = if self.two {
            "memory.events"
        } else {
            "memory.oom_control"
        };
        let text = fs::read_to_string(self.memory.join(pod.as_str()).join(file)).unwrap_or_default();
        let kills = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        kills.is_some_and(|count| count.trim() != "0")
    }

    /// Ends what is left in the pod's group and removes it.
    pub fn remove(&self, pod: &PodId) {
        for dir in self.dirs() {
            let dir = dir.join(pod.as_str());
            for _ in 0..REMOVALS {
                for pid in members(&dir) {
                    if let Some(pid) = Pid::from_raw(pid) {
                        let _ = kill_process(pid, Signal::KILL);
                    }
                }
                remove_tree(&dir);
                if !dir.exists() {
                    break;
                }
                // If this was the last try, the platform's group takes it along at the end.
                orphans::pause();
            }
        }
    }
}

/// Version 2: groups hang on the root of the mount, whose own processes do not count against giving controllers to children.
fn two(mounts: &str, name: &str) -> Option<Cgroups> {
    let root = mounts.lines().find_map(|line| {
        let mut fields = line.split(' ');
        let (_, at, kind) = (fields.next()?, fields.next()?, fields.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(at))
    })?;
    let controllers = fs::read_to_string(root.join("cgroup.controllers")).ok()?;
    let has = |text: &str, wanted: &str| text.split_whitespace().any(|c| c == wanted);
    if !["memory", "cpu"].iter().all(|c| has(&controllers, c)) {
        return None;
    }
    let given = root.join("cgroup.subtree_control");
    let now = fs::read_to_string(&given).ok()?;
    if !["memory", "cpu"].iter().all(|c| has(&now, c)) {
        fs::write(&given, "+memory +cpu").ok()?;
    }
    let dir = root.join(name);
    Some(Cgroups {
        two: true,
        memory: dir.clone(),
        cpu: dir,
    })
}

/// Version 1: where our own group of that controller is, so that limits set on us hold for our pods too.
fn one(mounts: &str, own: &str, controller: &str) -> Option<PathBuf> {
    let root = mounts.lines().find_map(|line| {
        let mut fields = line.split(' ');
        let (_, at, kind, options) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
        (kind == "cgroup" && options.split(',').any(|o| o == controller)).then(|| PathBuf::from(at))
    })?;
    let path = own.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':');
        let (_, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        controllers
            .split(',')
            .any(|c| c == controller)
            .then(|| path.trim_start_matches('/').to_owned())
    })?;
    let inside = root.join(path);
    // In a container the path may be that of the world outside.
    Some(if inside.is_dir() { inside } else { root })
}

/// The processes of a group and of the groups below it.
pub fn members(dir: &Path) -> Vec<i32> {
    let mut found: Vec<i32> = fs::read_to_string(dir.join("cgroup.procs"))
        .unwrap_or_default()
        .lines()
        .filter_map(|line| line.parse().ok())
        .collect();
    found.extend(below(dir).iter().flat_map(|child| members(child)));
    found
}

/// Removes a group and those below it, as far as they are empty.
pub fn remove_tree(dir: &Path) {
    below(dir).iter().for_each(|child| remove_tree(child));
    let _ = fs::remove_dir(dir);
}

fn below(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .filter(|e| e.file_type().is_ok_and(|t| t.is_dir()))
        .map(|e| e.path())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_group_of_a_controller_is_our_own_where_it_is_visible() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().to_str().unwrap();
        fs::create_dir(dir.path().join("mine")).unwrap();
        let mounts = format!("tmpfs /x tmpfs rw 0 0\ncgroup {root} cgroup rw,cpu,cpuacct 0 0\n");
        let own = |path: &str| format!("4:memory:/a\n3:cpu,cpuacct:{path}\n");
        assert_eq!(one(&mounts, &own("/mine"), "cpu"), Some(dir.path().join("mine")));
        assert_eq!(one(&mounts, &own("/outside"), "cpu"), Some(dir.path().to_owned()));
        assert_eq!(one(&mounts, &own("/"), "memory"), None);
    }

    #[test]
    fn a_group_that_has_members_is_removed_too() {
        let Some(groups) = Cgroups::open(&uuid::Uuid::new_v4().simple().to_string()) else {
            return;
        };
        // Several, so that the last still dies when the first try is made.
        let sleep = || std::process::Command::new("sleep").arg("600").spawn().unwrap();
        let mut all = [0; 8].map(|_| sleep());
        let pids = all.each_ref().map(|member| i32::try_from(member.id()).unwrap());
        let pod = PodId::new("a");
        groups.admit(&pod, &Resources::default(), pids[0]).unwrap();
        pids[1..].iter().for_each(|pid| groups.put(&pod, *pid).unwrap());
        groups.remove(&pod);
        assert!(!groups.memory.join("a").exists() && !groups.cpu.join("a").exists());
        for member in &mut all {
            member.wait().unwrap();
        }
        groups.dirs().iter().for_each(|dir| remove_tree(dir));
    }
}
