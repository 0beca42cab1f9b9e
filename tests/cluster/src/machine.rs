//! What a machine must have that no package brings.
use std::process::Command;

use crate::{ClusterError, cgroups, process};

/// Does for a moment what the cluster does, in namespaces that end with it. Each line of its output is what it tries next.
const TRIAL: &str = r#"
set -e
try() { echo "$1"; shift; "$@"; }
try "network bridges" ip link add lan0 type bridge
try "virtual network cards" ip link add one type veth peer name two
try "nftables" nft add table ip imageflow
try "file systems in memory" mount -t tmpfs none /tmp
mkdir /tmp/lower /tmp/upper /tmp/work /tmp/all
try "overlays of file systems" mount -t overlay none -o lowerdir=/tmp/lower,upperdir=/tmp/upper,workdir=/tmp/work /tmp/all
"#;

/// Why this machine cannot run the cluster, if so.
#[must_use]
pub fn obstacle() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("nodes are namespaces, which root makes".to_owned());
    }
    if let Some(obstacle) = cgroups::obstacle() {
        return Some(obstacle);
    }
    // Those that are built in or loaded already are no fault, and what is really missing shows in the trial.
    let mut modules = Command::new("modprobe");
    let _loaded = process::run(
        "modprobe",
        modules.args(["-a", "overlay", "bridge", "br_netfilter", "veth", "nf_tables"]),
    );
    let mut trial = Command::new("unshare");
    trial
        .args(["--net", "--mount", "--uts", "--ipc", "--pid", "--fork"])
        .args(["sh", "-c", TRIAL]);
    let said = match process::run("namespaces", &mut trial).err()? {
        ClusterError::Failed { said, .. } => said,
        other => other.to_string(),
    };
    // What was tried last, and what the kernel thinks of it.
    let lines: Vec<&str> = said.lines().collect();
    let last = lines.get(lines.len().saturating_sub(2)..).unwrap_or_default();
    Some(format!("nodes cannot be made here: {}", last.join(": ")))
}
