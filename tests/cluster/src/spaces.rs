//! A node's namespaces, which one process holds: with its end all else in them ends.
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::node::{NODES, Node};
use crate::process::{self, Servers, run_with};
use crate::{ClusterError, Result, cgroups, file};

/// What a node has for itself. Elsewhere it sees the machine's files.
const OWN: [&str; 7] = [
    "/etc/cni/net.d",
    "/run/containerd",
    "/var/lib/cni",
    "/var/lib/containerd",
    "/var/lib/kubelet",
    "/var/log/containers",
    "/var/log/pods",
];
const SCRIPT: &str = include_str!("../node/space.sh");
/// Longest until a node's namespaces are there. Measured 0.1 s.
const READY: Duration = Duration::from_secs(30);
/// Longest until all that was in them is gone. Measured 1 to 3 s.
const GONE: Duration = Duration::from_secs(60);

/// Makes the namespaces of a node, whose folder is `dir`. Ready when [`holder`] finds their holder.
pub fn make(servers: &mut Servers, node: &Node, dir: &Path, hold: &Path) -> Result<()> {
    for path in OWN {
        fs::create_dir_all(path).map_err(file(Path::new(path)))?;
        let own = PathBuf::from(format!("{}/own{path}", dir.display()));
        fs::create_dir_all(&own).map_err(file(&own))?;
    }
    let mut unshare = Command::new("unshare");
    unshare
        .args(["--net", "--mount", "--uts", "--ipc", "--pid", "--fork"])
        .args([
            "--kill-child=KILL",
            "--propagation",
            "private",
            "sh",
            "-c",
            SCRIPT,
            "sh",
        ])
        .arg(node.name)
        .arg(dir)
        .arg(hold)
        .args(OWN);
    servers.start(&format!("{}-space", node.name), &unshare)
}

/// Waits until the namespaces of a node are there.
pub fn wait(servers: &mut Servers, node: &Node, dir: &Path, hold: &Path) -> Result<()> {
    servers.wait(&format!("the namespaces of {}", node.name), READY, || {
        holder(dir, hold).is_some()
    })
}

/// The process that holds a node's namespaces, while it lives. The number alone could be another's by now.
pub fn holder(dir: &Path, hold: &Path) -> Option<u32> {
    let id: u32 = fs::read_to_string(dir.join("holder")).ok()?.trim().parse().ok()?;
    let program = fs::read_link(format!("/proc/{id}/exe")).ok()?;
    let program = program.to_string_lossy();
    // What is replaced on disk while it runs has that added.
    let program = program.strip_suffix(" (deleted)").unwrap_or(&program);
    (Path::new(program) == hold).then_some(id)
}

/// Runs in a node's network only: it sees the machine's files and processes.
pub fn network(holder: u32) -> Command {
    let mut command = Command::new("nsenter");
    command.args(["--target", &holder.to_string(), "--net", "--"]);
    command
}

/// Runs in all of a node's namespaces.
pub fn enter(holder: u32) -> Command {
    let mut command = Command::new("nsenter");
    command.args(["--target", &holder.to_string()]);
    command.args(["--net", "--mount", "--pid", "--uts", "--ipc", "--"]);
    command
}

/// A bridge on the first node joins all; each knows the way to the others' pods. The holders are those of [`NODES`].
pub fn connect(holders: &[u32]) -> Result<()> {
    let [first, others @ ..] = &NODES;
    let mut bridge = format!(
        "link add lan0 type bridge\naddr add {}/24 dev lan0\nlink set lan0 up\n",
        first.address()
    );
    // Without a default way the addresses of services would be refused before a rule sees them.
    bridge.push_str("route add default dev lan0\n");
    for (node, holder) in others.iter().zip(holders.iter().skip(1)) {
        let card = format!("to-{}", node.name);
        bridge.push_str(&format!("link add {card} type veth peer name eth0 netns {holder}\n"));
        bridge.push_str(&format!("link set {card} master lan0 up\n"));
    }
    for (node, holder) in NODES.iter().zip(holders) {
        let commands = if node.name == first.name {
            bridge.clone()
        } else {
            let (own, gateway) = (node.address(), first.address());
            format!("addr add {own}/24 dev eth0\nlink set eth0 up\nroute add default via {gateway}\n")
        };
        let others = NODES.iter().filter(|to| to.name != node.name);
        let routes = others.map(|to| format!("route add {} via {}\n", to.pods(), to.address()));
        let mut ip = network(*holder);
        ip.args(["ip", "-batch", "-"]);
        let commands = routes.fold(commands, |commands, route| commands + &route);
        run_with(&format!("the network of {}", node.name), &mut ip, &commands)?;
    }
    Ok(())
}

/// Ends all nodes with everything in them, and what else was started on their networks, and waits until it is gone.
pub fn end(holders: &[u32]) -> Result<()> {
    let networks: BTreeSet<PathBuf> = holders.iter().filter_map(|id| network_of(*id)).collect();
    for id in holders {
        kill(*id);
    }
    let gone = process::until(GONE, || {
        let left = on(&networks);
        left.iter().for_each(|id| kill(*id));
        // A holder ends after all others in its node; while it does, neither it nor they have a network any more.
        let held = holders.iter().any(|id| is_there(*id));
        let cgroups = NODES.iter().map(|node| cgroups::remove(node.name));
        // All of them each time, not only up to the first that is still in use.
        cgroups.fold(left.is_empty() && !held, |all, one| all & one)
    });
    if gone {
        return Ok(());
    }
    Err(ClusterError::Failed {
        what: "the end of the nodes".to_owned(),
        said: format!("there are processes or cgroups left: {:?}", on(&networks)),
    })
}

fn kill(id: u32) {
    // One that has just ended is as good.
    let _sent = i32::try_from(id)
        .ok()
        .and_then(Pid::from_raw)
        .map(|pid| kill_process(pid, Signal::KILL));
}

/// Whether there is such a process, other than one that has ended and is not yet missed by its parent.
fn is_there(id: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{id}/status")).unwrap_or_default();
    let state = status.lines().find_map(|line| line.strip_prefix("State:"));
    state.is_some_and(|state| !state.trim().starts_with('Z'))
}

fn network_of(id: u32) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{id}/ns/net")).ok()
}

/// The processes on these networks, without us and those that wait for us: whoever takes a cluster down may sit in it.
fn on(networks: &BTreeSet<PathBuf>) -> Vec<u32> {
    let ours = ourselves();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|id| !ours.contains(id) && network_of(*id).is_some_and(|network| networks.contains(&network)))
        .collect()
}

fn ourselves() -> BTreeSet<u32> {
    let mut all = BTreeSet::new();
    let mut next = Some(std::process::id());
    while let Some(id) = next.filter(|id| all.insert(*id)) {
        let status = fs::read_to_string(format!("/proc/{id}/status")).unwrap_or_default();
        let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"));
        next = parent.and_then(|id| id.trim().parse().ok());
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_that_is_another_programs_is_no_holder() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("holder");
        assert_eq!(holder(dir.path(), Path::new("/nowhere")), None);
        fs::write(&path, std::process::id().to_string()).unwrap();
        assert_eq!(holder(dir.path(), Path::new("/nowhere")), None);
        let us = std::env::current_exe().unwrap();
        assert_eq!(holder(dir.path(), &us), Some(std::process::id()));
    }

    #[test]
    fn a_process_that_has_ended_is_not_there() {
        let mut child = Command::new("true").spawn().unwrap();
        assert!(process::until(READY, || !is_there(child.id())));
        assert!(is_there(std::process::id()));
        child.wait().unwrap();
        assert!(!is_there(child.id()));
    }

    #[test]
    fn those_who_wait_for_us_are_spared() {
        let ours = ourselves();
        assert!(ours.contains(&std::process::id()) && ours.contains(&std::os::unix::process::parent_id()));
    }
}
