//! The cgroups below which a node's pods get theirs.
use std::fs;
use std::path::{Path, PathBuf};

use crate::{ClusterError, Result, file};

const ROOT: &str = "/sys/fs/cgroup";
/// Made and removed to see whether it can be.
const TRIAL: &str = "trial";

/// What a node's cgroup is called.
pub fn name(node: &str) -> String {
    format!("imageflow-cluster-{node}")
}

/// The folders that hold cgroups: one of version 2; or one for each controller of version 1, and one of version 2 beside them.
fn trees() -> Vec<PathBuf> {
    if Path::new(ROOT).join("cgroup.controllers").exists() {
        return vec![PathBuf::from(ROOT)];
    }
    let entries = fs::read_dir(ROOT).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
}

/// Why pods cannot be given limits here.
pub fn obstacle() -> Option<String> {
    let two = fs::read_to_string(Path::new(ROOT).join("cgroup.controllers"));
    for controller in ["cpu", "memory", "pids"] {
        let there = match &two {
            Ok(controllers) => controllers.split_whitespace().any(|c| c == controller),
            Err(_) => Path::new(ROOT).join(controller).exists(),
        };
        if !there {
            return Some(format!("{ROOT} has no controller \"{controller}\""));
        }
    }
    let refused = make(TRIAL).err();
    remove(TRIAL);
    let ClusterError::File { path, source } = refused? else {
        return None;
    };
    Some(format!("{} cannot be made: {source}", path.display()))
}

/// Makes a node's: the kubelet wants it to exist.
pub fn make(node: &str) -> Result<()> {
    for tree in trees() {
        let dir = tree.join(name(node));
        if tree == Path::new(ROOT) {
            for controller in ["cpu", "cpuset", "hugetlb", "io", "memory", "pids"] {
                // Those that are not there cannot be handed on, and are not asked for either.
                let _on = fs::write(tree.join("cgroup.subtree_control"), format!("+{controller}"));
            }
        }
        fs::create_dir_all(&dir).map_err(file(&dir))?;
        // One of version 1 takes no process before it has processors and memory.
        for name in ["cpuset.cpus", "cpuset.mems"] {
            if let (Ok(all), true) = (fs::read(tree.join(name)), tree.ends_with("cpuset")) {
                fs::write(dir.join(name), all).map_err(file(&dir))?;
            }
        }
    }
    Ok(())
}

/// Removes a node's with all below. False when there are still some: a process that has just been killed is in them for a moment.
pub fn remove(node: &str) -> bool {
    trees()
        .iter()
        .map(|tree| tree.join(name(node)))
        .all(|dir| remove_tree(&dir))
}

fn remove_tree(dir: &Path) -> bool {
    let Ok(entries) = fs::read_dir(dir) else {
        return !dir.exists();
    };
    for entry in entries.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir())) {
        remove_tree(&entry.path());
    }
    fs::remove_dir(dir).is_ok()
}
