//! The cluster as a whole: up, down, and what it can be asked.
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::node::{DNS, FIRST_NODE, NODES, Node};
use crate::process::{Servers, run, run_with};
use crate::{ClusterError, Result, binaries, cgroups, control, file, machine, pki, say, spaces};

const SYSTEM: &str = include_str!("../manifests/system.yaml");
/// Longest until a part of the cluster is ready. Measured 2 to 20 s each; a loaded machine is slower.
const READY: Duration = Duration::from_secs(180);
/// Which binaries a cluster was started from.
const BINARIES: &str = "binaries";
/// Where the servers write their logs. They stay until the next start.
const LOGS: &str = "log";

/// A cluster that is up. There is one at most for each cache folder, and it outlives this value.
#[derive(Debug, Clone)]
pub struct Cluster {
    binaries: PathBuf,
    run: PathBuf,
}

/// How a node is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeStatus {
    /// Its name.
    pub name: String,
    /// Whether it takes pods.
    pub ready: bool,
    /// The value of its label `node-type`.
    pub kind: String,
    /// Its address on the cluster's network.
    pub address: String,
    /// How many GPUs it offers.
    pub gpus: u32,
}

impl Cluster {
    /// Builds what is needed if need be, and starts the cluster; does neither when it is up and well.
    ///
    /// # Errors
    /// `Machine`, when this one cannot run it; else see [`ClusterError`]. What was started is stopped again.
    pub fn up() -> Result<Self> {
        if let Some(obstacle) = machine::obstacle() {
            return Err(ClusterError::Machine(obstacle));
        }
        let binaries = binaries::build()?;
        let run = folder()?;
        let _lock = binaries::lock(&run)?;
        let cluster = Self { binaries, run };
        if let Some(found) = Self::found()? {
            if found.binaries == cluster.binaries && found.is_well() {
                say("it is up already");
                return Ok(cluster);
            }
            say("there is one that is unwell or of other sources: it makes room");
        }
        remove(&cluster.run)?;
        let begun = Instant::now();
        if let Err(error) = cluster.start() {
            say("it did not start, and is taken down again");
            remove(&cluster.run)?;
            return Err(error);
        }
        say(&format!("up after {:.1} s", begun.elapsed().as_secs_f64()));
        Ok(cluster)
    }

    /// The cluster that is up.
    ///
    /// # Errors
    /// `Down` when there is none.
    pub fn find() -> Result<Self> {
        let cluster = Self::found()?.ok_or(ClusterError::Down)?;
        cluster.holder(FIRST_NODE)?;
        Ok(cluster)
    }

    /// Stops the cluster with all that runs in it and on its network. Only the servers' logs stay.
    ///
    /// # Errors
    /// `Failed` when something is left, `File`.
    pub fn down() -> Result<()> {
        let run = folder()?;
        let _lock = binaries::lock(&run)?;
        let begun = Instant::now();
        remove(&run)?;
        say(&format!("down after {:.1} s", begun.elapsed().as_secs_f64()));
        Ok(())
    }

    /// How the nodes are, in order of their names.
    ///
    /// # Errors
    /// `Failed` when the API server does not answer.
    pub fn status(&self) -> Result<Vec<NodeStatus>> {
        let said = run(
            "kubectl get nodes",
            self.kubectl()?.args(["get", "nodes", "-o", "json"]),
        )?;
        let list: Value = serde_json::from_str(&said).map_err(|e| ClusterError::Failed {
            what: "kubectl get nodes".to_owned(),
            said: e.to_string(),
        })?;
        Ok(list["items"]
            .as_array()
            .into_iter()
            .flatten()
            .map(node_status)
            .collect())
    }

    /// The administrator's kubeconfig. The address in it is one of the cluster's network: see [`network`](Self::network).
    #[must_use]
    pub fn kubeconfig(&self) -> PathBuf {
        self.run.join("pki/admin.conf")
    }

    /// The folder with the cluster's programs, `kubectl` among them.
    #[must_use]
    pub fn programs(&self) -> &Path {
        &self.binaries
    }

    /// The start of a command that runs in all namespaces of a node: the program and its arguments are to be added.
    ///
    /// # Errors
    /// `NoNode`, `Down`.
    pub fn enter(&self, node: &str) -> Result<Command> {
        Ok(spaces::enter(self.holder(node)?))
    }

    /// The start of a command that runs on the first node's network, and else on the machine as it is. Pods reach what it
    /// serves at [`FIRST_ADDRESS`](crate::FIRST_ADDRESS), and it reaches pods and services. KUBECONFIG and IMAGEFLOW_CLUSTER
    /// are set, and `kubectl` is found.
    ///
    /// # Errors
    /// `Down`.
    pub fn network(&self) -> Result<Command> {
        let mut command = spaces::network(self.holder(FIRST_NODE)?);
        let path = std::env::var_os("PATH").unwrap_or_default();
        let paths = std::iter::once(self.binaries.clone()).chain(std::env::split_paths(&path));
        if let Ok(path) = std::env::join_paths(paths) {
            command.env("PATH", path);
        }
        command.env("KUBECONFIG", self.kubeconfig());
        // How tests know that they are to run.
        command.env("IMAGEFLOW_CLUSTER", &self.run);
        Ok(command)
    }

    /// Puts the images of an archive on every node: see [`imageflow_images::Image::write`].
    ///
    /// # Errors
    /// `Failed`, with what containerd said.
    pub fn import(&self, archive: &Path) -> Result<()> {
        let archive = fs::canonicalize(archive).map_err(file(archive))?;
        self.import_on(&NODES, &[archive])
    }

    /// The one whose folder there is, be it up or not.
    fn found() -> Result<Option<Self>> {
        let run = folder()?;
        let binaries = fs::read_to_string(run.join(BINARIES));
        Ok(binaries.ok().map(|binaries| Self {
            binaries: binaries.into(),
            run,
        }))
    }

    fn dir(&self, node: &str) -> PathBuf {
        node_dir(&self.run, node)
    }

    fn holder(&self, node: &str) -> Result<u32> {
        if !NODES.iter().any(|n| n.name == node) {
            return Err(ClusterError::NoNode(node.to_owned()));
        }
        spaces::holder(&self.dir(node), &hold(&self.binaries)).ok_or(ClusterError::Down)
    }

    fn kubectl(&self) -> Result<Command> {
        let mut kubectl = self.network()?;
        kubectl.args(["kubectl", "--request-timeout=10s"]);
        Ok(kubectl)
    }

    fn is_well(&self) -> bool {
        let held = NODES.iter().all(|node| self.holder(node.name).is_ok());
        held && self.status().is_ok_and(|nodes| are_well(&nodes))
    }

    fn start(&self) -> Result<()> {
        let logs = self.run.join(LOGS);
        fs::create_dir_all(&logs).map_err(file(&logs))?;
        let mark = self.run.join(BINARIES);
        fs::write(&mark, self.binaries.display().to_string()).map_err(file(&mark))?;
        let mut servers = Servers::new(logs);
        self.make_nodes(&mut servers)?;
        pki::make(&self.run.join("pki"))?;
        for node in &NODES {
            self.start_runtime(&mut servers, node)?;
        }
        let enter = self.first()?;
        control::start_api(&mut servers, &self.run, &enter)?;
        say("nodes and certificates are made, etcd and the API server start");
        for node in &NODES {
            let what = format!("containerd on {}", node.name);
            servers.wait(&what, READY, || {
                self.ctr(node.name)
                    .is_ok_and(|mut ctr| run("ctr", ctr.arg("version")).is_ok())
            })?;
        }
        let image = |name: &str| self.binaries.join(format!("images/{name}.tar"));
        self.import_on(&NODES, &[image("pause"), image("probe")])?;
        self.import_on(&NODES[..1], &[image("coredns")])?;
        let answers = |path: &str| {
            self.kubectl()
                .is_ok_and(|mut kubectl| run("kubectl", kubectl.args(["get", "--raw", path])).is_ok())
        };
        servers.wait("the API server", READY, || answers("/readyz"))?;
        say("images are imported, the API server answers");
        control::start_controllers(&mut servers, &self.run, &enter)?;
        let system = SYSTEM.replace("@DNS@", DNS);
        run_with(
            "the cluster's own resources",
            self.kubectl()?.args(["apply", "-f", "-"]),
            &system,
        )?;
        for node in &NODES {
            self.start_node(&mut servers, node)?;
        }
        servers.wait("all nodes", READY, || self.status().is_ok_and(|nodes| are_well(&nodes)))?;
        say("all nodes are ready");
        let mut rollout = self.kubectl()?;
        rollout.args(["--namespace", "kube-system", "get", "deployment", "coredns"]);
        rollout.args(["-o", "jsonpath={.status.availableReplicas}"]);
        servers.wait("the name server", READY, || {
            run("kubectl", &mut rollout).is_ok_and(|said| said == "1")
        })
    }

    fn make_nodes(&self, servers: &mut Servers) -> Result<()> {
        let hold = hold(&self.binaries);
        for node in &NODES {
            spaces::make(servers, node, &self.dir(node.name), &hold)?;
        }
        for node in &NODES {
            spaces::wait(servers, node, &self.dir(node.name), &hold)?;
        }
        let holders: Vec<u32> = NODES.iter().map(|node| self.holder(node.name)).collect::<Result<_>>()?;
        spaces::connect(&holders)
    }

    /// What makes the commands of programs of ours on the first node.
    fn first(&self) -> Result<impl Fn(&str) -> Command> {
        self.programs_on(FIRST_NODE)
    }

    fn programs_on(&self, node: &str) -> Result<impl Fn(&str) -> Command + use<>> {
        let (holder, binaries) = (self.holder(node)?, self.binaries.clone());
        Ok(move |name: &str| {
            let mut command = spaces::enter(holder);
            command.arg(binaries.join(name));
            command
        })
    }

    fn ctr(&self, node: &str) -> Result<Command> {
        let mut ctr = self.enter(node)?;
        ctr.args(["ctr", "--namespace", "k8s.io"]);
        Ok(ctr)
    }

    fn start_runtime(&self, servers: &mut Servers, node: &Node) -> Result<()> {
        let dir = self.dir(node.name);
        node.write_settings(&dir, &self.run.join("pki"))?;
        let mut containerd = self.enter(node.name)?;
        containerd
            .args(["containerd", "--config"])
            .arg(dir.join("containerd.toml"));
        servers.start(&format!("{}-containerd", node.name), &containerd)
    }

    fn start_node(&self, servers: &mut Servers, node: &Node) -> Result<()> {
        let (name, dir) = (node.name, self.dir(node.name));
        let program = self.programs_on(name)?;
        cgroups::make(name)?;
        let mut kubelet = program("kubelet");
        kubelet.arg("--config").arg(dir.join("kubelet.yaml"));
        kubelet
            .arg("--kubeconfig")
            .arg(self.run.join(format!("pki/{name}.conf")));
        kubelet.args(["--hostname-override", name, "--node-ip", &node.address()]);
        kubelet.args(["--node-labels", &format!("node-type={}", node.kind)]);
        servers.start(&format!("{name}-kubelet"), &kubelet)?;
        let mut proxy = program("kube-proxy");
        proxy.arg("--config").arg(dir.join("kube-proxy.yaml"));
        servers.start(&format!("{name}-kube-proxy"), &proxy)?;
        if node.gpus > 0 {
            let mut plugin = program("fakegpu");
            plugin.args(["-devices", &node.gpus.to_string()]);
            servers.start(&format!("{name}-fakegpu"), &plugin)?;
        }
        Ok(())
    }

    /// On all of these nodes at once.
    fn import_on(&self, nodes: &[Node], archives: &[PathBuf]) -> Result<()> {
        std::thread::scope(|scope| {
            let each = |node: &Node| -> Result<()> {
                for archive in archives {
                    let mut ctr = self.ctr(node.name)?;
                    ctr.args(["images", "import"]).arg(archive);
                    run(
                        &format!("the import of {} on {}", archive.display(), node.name),
                        &mut ctr,
                    )?;
                }
                Ok(())
            };
            let imports: Vec<_> = nodes.iter().map(|node| scope.spawn(move || each(node))).collect();
            imports.into_iter().try_for_each(|import| {
                import.join().unwrap_or_else(|_| {
                    Err(ClusterError::Failed {
                        what: "an import".to_owned(),
                        said: "it panicked".to_owned(),
                    })
                })
            })
        })
    }
}

/// Where a running cluster keeps what it writes.
fn folder() -> Result<PathBuf> {
    Ok(binaries::cache()?.join("cluster-run"))
}

fn node_dir(run: &Path, node: &str) -> PathBuf {
    run.join("nodes").join(node)
}

/// The program that holds a node's namespaces.
fn hold(binaries: &Path) -> PathBuf {
    binaries.join("pause")
}

/// Ends what there is of a cluster, be it whole or half, and removes its folder but for the logs.
fn remove(run: &Path) -> Result<()> {
    let holders: Vec<u32> = match fs::read_to_string(run.join(BINARIES)) {
        Ok(binaries) => {
            let hold = hold(Path::new(&binaries));
            let found = NODES
                .iter()
                .filter_map(|node| spaces::holder(&node_dir(run, node.name), &hold));
            found.collect()
        }
        Err(_) => Vec::new(),
    };
    spaces::end(&holders)?;
    for entry in fs::read_dir(run).into_iter().flatten().flatten() {
        let path = entry.path();
        let removed = match entry.file_type() {
            _ if path.ends_with(LOGS) => continue,
            Ok(kind) if kind.is_dir() => fs::remove_dir_all(&path),
            _ => fs::remove_file(&path),
        };
        removed.map_err(file(&path))?;
    }
    Ok(())
}

fn are_well(nodes: &[NodeStatus]) -> bool {
    NODES.iter().all(|node| {
        nodes
            .iter()
            .any(|status| status.name == node.name && status.ready && status.gpus == node.gpus)
    })
}

fn node_status(node: &Value) -> NodeStatus {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let with = |list: &Value, kind: &str| {
        let mut entries = list.as_array().into_iter().flatten();
        entries.find(|entry| entry["type"] == kind).cloned().unwrap_or_default()
    };
    let gpus = node["status"]["allocatable"]["nvidia.com/gpu"].as_str();
    NodeStatus {
        name: text(&node["metadata"]["name"]),
        ready: with(&node["status"]["conditions"], "Ready")["status"] == "True",
        kind: text(&node["metadata"]["labels"]["node-type"]),
        address: text(&with(&node["status"]["addresses"], "InternalIP")["address"]),
        gpus: gpus.and_then(|count| count.parse().ok()).unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_node_is_read_from_what_the_api_says() {
        let status = node_status(&json!({
            "metadata": { "name": "gpu-1", "labels": { "node-type": "gpu-enabled" } },
            "status": {
                "allocatable": { "cpu": "2", "nvidia.com/gpu": "2" },
                "addresses": [{ "type": "InternalIP", "address": "10.77.0.2" }, { "type": "Hostname", "address": "gpu-1" }],
                "conditions": [{ "type": "PIDPressure", "status": "False" }, { "type": "Ready", "status": "True" }],
            },
        }));
        let expected = NodeStatus {
            name: "gpu-1".to_owned(),
            ready: true,
            kind: "gpu-enabled".to_owned(),
            address: "10.77.0.2".to_owned(),
            gpus: 2,
        };
        assert_eq!(status, expected);
        assert!(!node_status(&json!({ "metadata": { "name": "gpu-1" } })).ready);
    }

    #[test]
    fn a_cluster_is_well_with_all_nodes_ready_and_all_gpus_there() {
        let all: Vec<NodeStatus> = NODES
            .iter()
            .map(|node| NodeStatus {
                name: node.name.to_owned(),
                ready: true,
                kind: node.kind.to_owned(),
                address: node.address(),
                gpus: node.gpus,
            })
            .collect();
        assert!(are_well(&all));
        assert!(!are_well(&all[1..]));
        let changed = |change: &dyn Fn(&mut NodeStatus)| {
            let mut nodes = all.clone();
            change(&mut nodes[1]);
            are_well(&nodes)
        };
        assert!(!changed(&|node| node.ready = false));
        assert!(!changed(&|node| node.gpus = 0));
    }
}
