//! Apache Kafka: one or three KRaft nodes on Java. The jars are fetched by Maven once, into the cache folder.
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};
use tempfile::TempDir;

mod install;

use crate::{free_ports, host};
use install::{FORMATTED, VERSION, cache_dir, install};

const LOGGING: &str = include_str!("../kafka/log4j2.yaml");
const NODE: &str = include_str!("../kafka/node.properties");
/// Any 22 characters of base64 that spell a uuid: fixed, so that no JVM has to be started to make one up.
const CLUSTER_ID: &str = "MkU3OEVBNTcwNTJENDM2Qk";
/// What a node writes to its log when it serves.
const SERVES: &str = "Kafka Server started";
/// Longest from the start of a node until it serves. Measured 4 to 15 s; a loaded machine is slower.
const READY: Duration = Duration::from_secs(120);
/// A free port may be taken by another process between the look and the start.
const TRIES: usize = 5;
/// The user that the brokers know, by SCRAM-SHA-512; for listeners that ask for one.
pub const USER: &str = "imageflow";
/// That user's password.
pub const PASSWORD: &str = "for tests only";
/// Less than it takes for a test of three nodes to press other processes out of a small machine's memory.
const HEAP: &str = "256m";

/// What a broker may have of it: more than [`HEAP`] for thousands of partitions, with which it would only collect garbage.
fn most_heap() -> String {
    std::env::var("IMAGEFLOW_KAFKA_HEAP").unwrap_or_else(|_| HEAP.to_owned())
}

/// Why the cluster is not there.
#[derive(Debug, thiserror::Error)]
pub enum KafkaServerError {
    /// A program that is needed is missing.
    #[error(
        "Kafka needs the program `{program}`, which was not found: install the package {package}, \
         or set IMAGEFLOW_SKIP_SERVERS=1 to leave out the tests that need real servers"
    )]
    Missing {
        /// The program.
        program: &'static str,
        /// The package that has it, as Debian and Ubuntu name it.
        package: &'static str,
        /// Why it cannot be run.
        #[source]
        source: io::Error,
    },
    /// The jars could not be fetched.
    #[error("Kafka {VERSION} could not be fetched by Maven: {0}")]
    Fetch(String),
    /// The cache folder or a node's folder cannot be used.
    #[error("{what} {} cannot be used: free space or set IMAGEFLOW_CACHE to a folder of yours", path.display())]
    Folder {
        /// What it is.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// No home folder, so no cache folder.
    #[error("there is no folder for the cache: set IMAGEFLOW_CACHE or HOME")]
    NoCache,
    /// A cluster has one node or three.
    #[error("a cluster of {0} nodes was asked for: it has 1 or 3")]
    Size(usize),
    /// There is no such node.
    #[error("there is no node {0}: the first one is node 0")]
    NoNode(usize),
    /// A node did not start, or a signal did not reach it.
    #[error("Kafka did not start: {0}")]
    Start(String),
}

/// Result of every call here.
pub type Result<T, E = KafkaServerError> = std::result::Result<T, E>;

/// A running cluster with folders and ports of its own; all of it goes with the drop, and with the death of this
/// process.
#[derive(Debug)]
pub struct Cluster {
    nodes: Mutex<Vec<Node>>,
    libs: PathBuf,
    /// Declared after the nodes: they are killed before the guard is told, and their folders go last.
    guard: Mutex<Guard>,
    dir: TempDir,
}

/// Whether tests are to do without; then it says so.
#[must_use]
pub fn is_skipped() -> bool {
    let skipped = std::env::var_os("IMAGEFLOW_SKIP_SERVERS").is_some();
    if skipped {
        eprintln!("skipped: IMAGEFLOW_SKIP_SERVERS is set, and this test needs Kafka");
    }
    skipped
}

#[derive(Debug)]
struct Node {
    dir: PathBuf,
    clients: u16,
    secure: u16,
    process: Option<Child>,
}

impl Cluster {
    /// Fetches Kafka if need be, starts `nodes` of it (1 or 3) and waits until all of them serve.
    ///
    /// # Errors
    /// See [`KafkaServerError`].
    pub async fn start(nodes: usize) -> Result<Self> {
        Self::start_with(nodes, &[]).await
    }

    /// The same with broker settings of the caller's, which come last and so win.
    ///
    /// # Errors
    /// See [`KafkaServerError`].
    pub async fn start_with(nodes: usize, settings: &[(&str, &str)]) -> Result<Self> {
        if nodes != 1 && nodes != 3 {
            return Err(KafkaServerError::Size(nodes));
        }
        let home = tokio::task::spawn_blocking(|| install(&cache_dir()?)).await;
        let home = home.map_err(|e| KafkaServerError::Fetch(e.to_string()))??;
        let mut last = None;
        for _ in 0..TRIES {
            let cluster = Self::lay_out(&home, nodes, settings)?;
            match cluster.start_all().await {
                Ok(()) => return Ok(cluster),
                Err(error) if cluster.said("Address already in use") => last = Some(error),
                Err(error) => return Err(error),
            }
        }
        Err(last.unwrap_or_else(|| KafkaServerError::Start("no port was free".to_owned())))
    }

    /// The same with one more listener that speaks TLS and asks for [`USER`] and [`PASSWORD`] by SCRAM-SHA-512.
    /// `keystore` is a PEM file with the brokers' key (PKCS#8) and its certificates, for 127.0.0.1.
    ///
    /// # Errors
    /// See [`KafkaServerError`].
    pub async fn start_secure(nodes: usize, keystore: &Path) -> Result<Self> {
        Self::start_secure_with(nodes, keystore, &[]).await
    }

    /// The same with broker settings of the caller's.
    ///
    /// # Errors
    /// See [`KafkaServerError`].
    pub async fn start_secure_with(nodes: usize, keystore: &Path, more: &[(&str, &str)]) -> Result<Self> {
        let both = "PLAINTEXT://@HOST@:@CLIENTS@,SASL_SSL://@HOST@:@SECURE@";
        let login = "org.apache.kafka.common.security.scram.ScramLoginModule required;";
        let settings = [
            ("listeners", &*format!("{both},CONTROLLER://@HOST@:@CONTROLLER@")),
            ("advertised.listeners", both),
            ("sasl.enabled.mechanisms", "SCRAM-SHA-512"),
            ("listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config", login),
            ("listener.name.sasl_ssl.ssl.keystore.type", "PEM"),
            (
                "listener.name.sasl_ssl.ssl.keystore.location",
                &keystore.display().to_string(),
            ),
        ];
        Self::start_with(nodes, &[&settings, more].concat()).await
    }

    /// For tests: a cluster; `None`, and a line that says so, when IMAGEFLOW_SKIP_SERVERS is set.
    ///
    /// # Panics
    /// When it does not start: a test that needs a cluster has failed without one.
    pub async fn for_test(nodes: usize) -> Option<Self> {
        if is_skipped() {
            return None;
        }
        match Self::start(nodes).await {
            Ok(cluster) => Some(cluster),
            Err(error) => panic!("{error}"),
        }
    }

    /// `host:port` of each node, with commas between them.
    #[must_use]
    pub fn bootstrap(&self) -> String {
        let addresses: Vec<String> = self
            .nodes()
            .iter()
            .map(|n| format!("{}:{}", host(), n.clients))
            .collect();
        addresses.join(",")
    }

    /// The same of the listener of [`start_secure`](Self::start_secure).
    #[must_use]
    pub fn secure_bootstrap(&self) -> String {
        let addresses: Vec<String> = self
            .nodes()
            .iter()
            .map(|n| format!("{}:{}", host(), n.secure))
            .collect();
        addresses.join(",")
    }

    /// The folder with the jars, fetched when they are not there, for what starts no brokers.
    ///
    /// # Errors
    /// [`KafkaServerError`] when they cannot be fetched.
    pub fn fetch_libs() -> Result<PathBuf> {
        Ok(install::install(&install::cache_dir()?)?.join("libs"))
    }

    /// The folder with the jars, for other programs of Kafka (`java -cp 'libs/*' ...`).
    #[must_use]
    pub fn libs(&self) -> &Path {
        &self.libs
    }

    /// The folder of the cluster: `node1/log`, `node1/data` and so on.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Process id of a node while it runs. The first one is node 0.
    #[must_use]
    pub fn pid(&self, node: usize) -> Option<u32> {
        self.nodes().get(node)?.process.as_ref().map(Child::id)
    }

    /// Kills a node (SIGKILL) and waits until it is gone. Its folder and its ports stay.
    ///
    /// # Errors
    /// `NoNode`.
    pub fn kill(&self, node: usize) -> Result<()> {
        let mut nodes = self.nodes();
        let process = nodes
            .get_mut(node)
            .ok_or(KafkaServerError::NoNode(node))?
            .process
            .take();
        // The guard must not know the id any more when it may become somebody else's.
        self.guard().watch(&nodes);
        if let Some(mut process) = process {
            end(&mut process);
        }
        Ok(())
    }

    /// Starts a node again with what it had, and waits until it serves; kills it first when it runs.
    ///
    /// # Errors
    /// `NoNode`; `Start`, with what it said.
    pub async fn restart(&self, node: usize) -> Result<()> {
        self.kill(node)?;
        self.spawn(node)?;
        self.wait_for(node).await
    }

    /// Shuts a node down as an operator does (SIGTERM): it hands its partitions over first. Waits until it is gone.
    ///
    /// # Errors
    /// `NoNode`; `Start` when it does not run or does not end.
    pub async fn stop(&self, node: usize) -> Result<()> {
        let pid = self.process_id(node)?;
        self.signal(node, Signal::TERM)?;
        let deadline = Instant::now() + READY;
        // Left unreaped: as long as it is there nobody else gets its id, which the guard still knows.
        let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        while matches!(waitid(WaitId::Pid(pid), look), Ok(None)) {
            if Instant::now() > deadline {
                return Err(KafkaServerError::Start(format!("node {node} does not end")));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        self.kill(node)
    }

    /// Stops a node where it is (SIGSTOP): its connections stay open and nothing answers.
    ///
    /// # Errors
    /// `NoNode`; `Start` when it does not run.
    pub fn pause(&self, node: usize) -> Result<()> {
        self.signal(node, Signal::STOP)
    }

    /// Lets a stopped node go on (SIGCONT).
    ///
    /// # Errors
    /// `NoNode`; `Start` when it does not run.
    pub fn resume(&self, node: usize) -> Result<()> {
        self.signal(node, Signal::CONT)
    }

    /// The end of what a node wrote to its output since its last start.
    #[must_use]
    pub fn log(&self, node: usize) -> String {
        let path = self.nodes().get(node).map(|n| n.dir.join("log"));
        let log = path.and_then(|path| std::fs::read(path).ok()).unwrap_or_default();
        String::from_utf8_lossy(&log[log.len().saturating_sub(4000)..]).into_owned()
    }

    /// Whether a node wrote this since its last start: what it writes at its end may be longer than [`log`](Self::log).
    fn said(&self, words: &str) -> bool {
        let logs = self
            .nodes()
            .iter()
            .map(|n| std::fs::read(n.dir.join("log")))
            .collect::<Vec<_>>();
        let mut texts = logs.into_iter().map(Result::unwrap_or_default);
        texts.any(|text| String::from_utf8_lossy(&text).contains(words))
    }

    fn nodes(&self) -> MutexGuard<'_, Vec<Node>> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn guard(&self) -> MutexGuard<'_, Guard> {
        self.guard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn process_id(&self, node: usize) -> Result<Pid> {
        let pid = self.pid(node).and_then(|pid| i32::try_from(pid).ok());
        pid.and_then(Pid::from_raw).ok_or(KafkaServerError::NoNode(node))
    }

    fn signal(&self, node: usize, signal: Signal) -> Result<()> {
        let pid = self.process_id(node)?;
        kill_process(pid, signal).map_err(|e| KafkaServerError::Start(format!("the signal {signal:?} failed: {e}")))
    }

    /// Folders and settings of all nodes. They are copies of what was formatted once, which saves a JVM for each node.
    fn lay_out(home: &Path, count: usize, settings: &[(&str, &str)]) -> Result<Self> {
        let dir = tempfile::tempdir().map_err(folder("the temporary folder", &std::env::temp_dir()))?;
        let ports = free_ports(count * 3).map_err(|e| KafkaServerError::Start(e.to_string()))?;
        let (clients, others) = ports.split_at(count);
        let (controllers, secure) = others.split_at(count);
        let voters: Vec<String> = (1..)
            .zip(controllers)
            .map(|(id, port)| format!("{id}@{}:{port}", host()))
            .collect();
        let mut nodes = Vec::new();
        for i in 0..count {
            let node = dir.path().join(format!("node{}", i + 1));
            let data = node.join("data");
            let fail = || folder("a node's folder", &node);
            std::fs::create_dir_all(&data).map_err(fail())?;
            let mut properties = NODE.to_owned();
            for (name, value) in settings {
                properties.push_str(&format!("{name}={value}\n"));
            }
            for (name, value) in [
                ("@HOST@", host()),
                ("@ID@", (i + 1).to_string()),
                ("@SECURE@", secure[i].to_string()),
                ("@VOTERS@", voters.join(",")),
                ("@CLIENTS@", clients[i].to_string()),
                ("@CONTROLLER@", controllers[i].to_string()),
                ("@DATA@", data.display().to_string()),
                ("@REPLICAS@", count.to_string()),
                ("@IN_SYNC@", if count == 1 { "1" } else { "2" }.to_owned()),
            ] {
                properties = properties.replace(name, &value);
            }
            std::fs::write(node.join("node.properties"), properties).map_err(fail())?;
            std::fs::write(node.join("log4j2.yaml"), LOGGING).map_err(fail())?;
            for entry in std::fs::read_dir(home.join(FORMATTED)).map_err(fail())? {
                let entry = entry.map_err(fail())?;
                std::fs::copy(entry.path(), data.join(entry.file_name())).map_err(fail())?;
            }
            let meta = format!(
                "version=1\ncluster.id={CLUSTER_ID}\nnode.id={}\ndirectory.id={}\n",
                i + 1,
                random_id()
            );
            std::fs::write(data.join("meta.properties"), meta).map_err(fail())?;
            nodes.push(Node {
                dir: node,
                clients: clients[i],
                secure: secure[i],
                process: None,
            });
        }
        let guard = Guard::spawn(dir.path()).map_err(|e| KafkaServerError::Start(e.to_string()))?;
        Ok(Self {
            nodes: Mutex::new(nodes),
            libs: home.join("libs"),
            guard: Mutex::new(guard),
            dir,
        })
    }

    async fn start_all(&self) -> Result<()> {
        let count = self.nodes().len();
        for node in 0..count {
            self.spawn(node)?;
        }
        for node in 0..count {
            self.wait_for(node).await?;
        }
        Ok(())
    }

    fn spawn(&self, node: usize) -> Result<()> {
        let mut nodes = self.nodes();
        let at = nodes.get_mut(node).ok_or(KafkaServerError::NoNode(node))?;
        let path = at.dir.join("log");
        let log = File::create(&path).map_err(folder("a node's log", &path))?;
        let errors = log.try_clone().map_err(folder("a node's log", &path))?;
        let mut command = Command::new("java");
        command
            .args([format!("-Xms{HEAP}"), format!("-Xmx{}", most_heap())])
            .args([
                "-XX:+UseSerialGC",
                "-XX:TieredStopAtLevel=1",
                "-Djava.awt.headless=true",
            ])
            .arg("-Dlog4j2.configurationFile=log4j2.yaml")
            .arg("-cp")
            .arg(self.libs.join("*"))
            .args(["kafka.Kafka", "node.properties"])
            .current_dir(&at.dir)
            // A group of its own: Ctrl-C ends the test, and the guard ends the node with its folder.
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors);
        at.process = Some(command.spawn().map_err(missing("java", JAVA))?);
        self.guard().watch(&nodes);
        Ok(())
    }

    async fn wait_for(&self, node: usize) -> Result<()> {
        let deadline = Instant::now() + READY;
        loop {
            let (path, ended) = {
                let mut nodes = self.nodes();
                let at = nodes.get_mut(node).ok_or(KafkaServerError::NoNode(node))?;
                let ended = at.process.as_mut().is_none_or(|p| !matches!(p.try_wait(), Ok(None)));
                (at.dir.join("log"), ended)
            };
            let log = std::fs::read(&path).unwrap_or_default();
            if String::from_utf8_lossy(&log).contains(SERVES) {
                return Ok(());
            }
            if ended || Instant::now() > deadline {
                let what = if ended { "ended" } else { "is not ready" };
                return Err(KafkaServerError::Start(format!(
                    "node {node} {what}: {}",
                    self.log(node)
                )));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let mut processes: Vec<Child> = self.nodes().iter_mut().filter_map(|n| n.process.take()).collect();
        self.guard().watch(&[]);
        for process in &mut processes {
            end(process);
        }
    }
}

/// A shell that outlives us just long enough to kill the nodes and delete their folder when we are killed and drop
/// nothing. It learns of that by the end of its input, so it does not matter which thread of ours started what.
#[derive(Debug)]
struct Guard {
    shell: Child,
    pids: Option<ChildStdin>,
}

impl Guard {
    fn spawn(dir: &Path) -> io::Result<Self> {
        const SCRIPT: &str =
            "pids=; while read -r line; do pids=$line; done; [ -z \"$pids\" ] || kill -9 $pids; rm -rf \"$1\"";
        let mut shell = Command::new("sh")
            .args(["-c", SCRIPT, "sh"])
            .arg(dir)
            .current_dir("/")
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let pids = shell.stdin.take();
        Ok(Self { shell, pids })
    }

    /// Says which processes there are now.
    fn watch(&mut self, nodes: &[Node]) {
        let pids: Vec<String> = nodes
            .iter()
            .filter_map(|n| n.process.as_ref().map(|p| p.id().to_string()))
            .collect();
        if let Some(stdin) = &mut self.pids {
            // A guard that was killed is only a net that is missing: the drop still ends the nodes.
            let _told = writeln!(stdin, "{}", pids.join(" "));
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.pids = None;
        let _reaped = self.shell.wait();
    }
}

const JAVA: &str = "default-jre-headless (Java 17 or later)";

fn missing(program: &'static str, package: &'static str) -> impl FnOnce(io::Error) -> KafkaServerError {
    move |source| KafkaServerError::Missing {
        program,
        package,
        source,
    }
}

fn end(child: &mut Child) {
    // Fails only for a child that was reaped before. SIGKILL reaches a stopped process too.
    let _gone = child.kill();
    let _reaped = child.wait();
}

fn folder(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> KafkaServerError {
    let path = path.to_owned();
    move |source| KafkaServerError::Folder { what, path, source }
}

/// A uuid as Kafka writes it: 22 characters of url-safe base64.
fn random_id() -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let bits = uuid::Uuid::new_v4().as_u128();
    // The last character holds two bits only.
    let mut id: String = (0..21)
        .map(|i| char::from(ALPHABET[(bits >> (122 - 6 * i)) as usize & 63]))
        .collect();
    id.push(char::from(ALPHABET[(bits << 4) as usize & 63]));
    id
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_as_kafka_writes_them() {
        let id = random_id();
        assert_eq!(id.len(), 22, "{id}");
        assert_ne!(id, random_id());
    }

    #[tokio::test]
    async fn other_sizes_are_refused() {
        assert!(matches!(Cluster::start(2).await, Err(KafkaServerError::Size(2))));
    }

    #[tokio::test]
    async fn a_node_is_killed_paused_and_started_again_and_all_of_it_goes_with_the_drop() {
        let Some(cluster) = Cluster::for_test(1).await else {
            return;
        };
        let dir = cluster.dir().to_owned();
        let first = cluster.pid(0).unwrap();
        cluster.pause(0).unwrap();
        cluster.resume(0).unwrap();
        cluster.kill(0).unwrap();
        assert_eq!(cluster.pid(0), None);
        cluster.restart(0).await.unwrap();
        let second = cluster.pid(0).unwrap();
        assert_ne!(first, second);
        drop(cluster);
        assert!(!dir.exists());
        assert!(!Path::new(&format!("/proc/{second}")).exists());
    }
}
