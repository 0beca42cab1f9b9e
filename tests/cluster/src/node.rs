//! The nodes: what each is called, what it is for, which addresses it has, and the settings of its servers.
use std::fs;
use std::path::Path;

use crate::{Result, cgroups, file};

/// Where services get their addresses.
pub const SERVICES: &str = "10.43.0.0/16";
/// The cluster's name server.
pub const DNS: &str = "10.43.0.10";
/// All pods.
pub const PODS: &str = "10.42.0.0/16";
/// Address of the first node, which has the control plane too. Pods reach what listens there.
pub const FIRST_ADDRESS: &str = "10.77.0.1";
/// Name of the first node.
pub const FIRST_NODE: &str = NODES[0].name;

/// A node of the cluster.
#[derive(Debug, Clone, Copy)]
pub struct Node {
    /// Its name.
    pub name: &'static str,
    /// The value of its label `node-type`.
    pub kind: &'static str,
    /// How many GPUs it says it has.
    pub gpus: u32,
    /// The last part of its address, and the third of its pods' addresses.
    number: u8,
}

/// All nodes.
pub const NODES: [Node; 3] = [
    Node {
        name: "cpu-1",
        kind: "cpu-intensive",
        gpus: 0,
        number: 1,
    },
    Node {
        name: "gpu-1",
        kind: "gpu-enabled",
        gpus: 2,
        number: 2,
    },
    Node {
        name: "storage-1",
        kind: "storage-optimized",
        gpus: 0,
        number: 3,
    },
];

impl Node {
    /// Its address on the cluster's network.
    #[must_use]
    pub fn address(&self) -> String {
        format!("10.77.0.{}", self.number)
    }

    /// Where its pods get their addresses.
    #[must_use]
    pub fn pods(&self) -> String {
        format!("10.42.{}.0/24", self.number)
    }

    /// Writes the settings of its servers into its folder.
    pub(crate) fn write_settings(&self, dir: &Path, pki: &Path) -> Result<()> {
        // Work that needs no GPU stays away from where the GPUs are.
        let taints = match self.gpus {
            0 => "[]",
            _ => "[{ key: nvidia.com/gpu, value: present, effect: NoSchedule }]",
        };
        let values = [
            ("@NAME@", self.name),
            ("@NODE@", &dir.display().to_string()),
            ("@PKI@", &pki.display().to_string()),
            ("@CGROUP@", &cgroups::name(self.name)),
            ("@TAINTS@", taints),
            ("@DNS@", DNS),
        ];
        let files = [
            ("containerd.toml", include_str!("../node/containerd.toml"), ""),
            ("kubelet.yaml", include_str!("../node/kubelet.yaml"), ""),
            ("kube-proxy.yaml", include_str!("../node/kube-proxy.yaml"), PODS),
            ("resolv.conf", "nameserver 127.0.0.1\n", ""),
            (
                "own/etc/cni/net.d/pods.conflist",
                include_str!("../node/pods.conflist"),
                &self.pods(),
            ),
        ];
        for (name, template, pods) in files {
            let filled = values
                .iter()
                .fold(template.replace("@PODS@", pods), |text, (from, to)| {
                    text.replace(from, to)
                });
            let path = dir.join(name);
            fs::write(&path, filled).map_err(file(&path))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_setting_is_left_open() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("own/etc/cni/net.d")).unwrap();
        for node in NODES {
            node.write_settings(dir.path(), Path::new("/pki")).unwrap();
            for name in [
                "containerd.toml",
                "kubelet.yaml",
                "kube-proxy.yaml",
                "own/etc/cni/net.d/pods.conflist",
            ] {
                let text = fs::read_to_string(dir.path().join(name)).unwrap();
                assert!(!text.contains('@'), "{name}: {text}");
            }
            let kubelet = fs::read_to_string(dir.path().join("kubelet.yaml")).unwrap();
            assert_eq!(kubelet.contains("NoSchedule"), node.gpus > 0, "{kubelet}");
        }
    }

    #[test]
    fn the_first_node_is_where_it_is_looked_for() {
        assert_eq!(NODES[0].address(), FIRST_ADDRESS);
    }
}
