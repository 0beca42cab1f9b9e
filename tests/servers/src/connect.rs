//! Kafka Connect: one distributed worker on Java, with a plug-in that is compiled when the worker is made.
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::free_ports;
use crate::process::Process;

const LOGGING: &str = include_str!("../kafka/log4j2.yaml");
/// What the jars of a real worker and the plug-in need. Measured 200 to 242 MB of process.
const HEAP: &str = "256m";
/// Longest from the start until the worker has joined its group. Measured 9 s; a loaded machine is slower.
const READY: Duration = Duration::from_secs(120);
/// A free port may be taken by another process between the look and the start.
const TRIES: usize = 5;
/// The lint `path` tells of jars that name others in vain, `processing` and `classfile` of jars that are not ours.
const LINTS: &str = "-Xlint:all,-path,-processing,-classfile,-serial";

/// Why the worker is not there.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// A program that is needed is missing.
    #[error(
        "Kafka Connect needs the program `{program}`, which was not found: install a JDK of Java 17 or later (package openjdk-17-jdk-headless)"
    )]
    Missing {
        /// The program.
        program: &'static str,
        /// Why it cannot be run.
        #[source]
        source: io::Error,
    },
    /// The plug-in was not compiled.
    #[error("the plug-in in {} was not compiled: {said}", sources.display())]
    Compile {
        /// Its sources.
        sources: PathBuf,
        /// What the compiler said.
        said: String,
    },
    /// A folder cannot be used.
    #[error("{} cannot be used: free space or set TMPDIR to a folder of yours", path.display())]
    Folder {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It did not start.
    #[error("the Connect worker did not start: {0}")]
    Start(String),
}

/// Result of every call here.
pub type Result<T, E = ConnectError> = std::result::Result<T, E>;

/// A running worker with a folder and a REST port of its own; all of it goes with the drop, and with the death of this
/// process.
#[derive(Debug)]
pub struct Worker {
    libs: PathBuf,
    /// Before the folder: it is killed before its folder goes.
    process: Option<Process>,
    dir: TempDir,
    port: u16,
}

impl Worker {
    /// Compiles the plug-in, starts the worker with these settings and waits until it answers. `libs` are the jars of
    /// Kafka; `sources` is a folder of Java sources and of the files that go beside their classes.
    ///
    /// # Errors
    /// See [`ConnectError`].
    pub async fn start(libs: &Path, sources: &Path, settings: &BTreeMap<String, String>) -> Result<Self> {
        let dir = tempfile::tempdir().map_err(folder(&std::env::temp_dir()))?;
        compile(libs, sources, &dir.path().join("plugins/compiled"))?;
        let path = dir.path().join("log4j2.yaml");
        std::fs::write(&path, LOGGING).map_err(folder(&path))?;
        let mut worker = Self {
            libs: libs.to_owned(),
            process: None,
            dir,
            port: 0,
        };
        let mut outcome = Err(ConnectError::Start("no port was free".to_owned()));
        for _ in 0..TRIES {
            worker.port = free_port()?;
            worker.configure(settings)?;
            outcome = worker.restart().await;
            if outcome.is_ok() || !worker.log().contains("Address already in use") {
                break;
            }
        }
        outcome.map(|()| worker)
    }

    /// `http://127.0.0.1:port` of its REST interface.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Process id while it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Process::id)
    }

    /// Kills it (SIGKILL). Its folder stays, and so does its port.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Starts it again with what it had, and waits until it answers; kills it first when it runs.
    ///
    /// # Errors
    /// `Start`, with what it said; `Missing`.
    pub async fn restart(&mut self) -> Result<()> {
        self.kill();
        self.process = Some(self.spawn()?);
        let deadline = Instant::now() + READY;
        loop {
            if let Some(status) = self.process.as_mut().and_then(Process::ended) {
                self.process = None;
                return Err(ConnectError::Start(format!("{status}: {}", self.tail())));
            }
            if self.answers().await {
                return Ok(());
            }
            if Instant::now() > deadline {
                self.process = None;
                return Err(ConnectError::Start(format!("not ready in {READY:?}: {}", self.tail())));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// What it wrote to its output since its last start.
    #[must_use]
    pub fn log(&self) -> String {
        let log = std::fs::read(self.dir.path().join("log")).unwrap_or_default();
        String::from_utf8_lossy(&log).into_owned()
    }

    fn tail(&self) -> String {
        let log = self.log().into_bytes();
        String::from_utf8_lossy(&log[log.len().saturating_sub(4000)..]).into_owned()
    }

    fn configure(&self, settings: &BTreeMap<String, String>) -> Result<()> {
        let plugins = self.dir.path().join("plugins");
        let mut text = String::new();
        for (name, value) in settings {
            text.push_str(&format!("{name}={value}\n"));
        }
        text.push_str(&format!(
            "listeners=HTTP://127.0.0.1:{port}\nrest.advertised.host.name=127.0.0.1\nrest.advertised.port={port}\n\
             plugin.path={}\nplugin.discovery=service_load\n",
            plugins.display(),
            port = self.port,
        ));
        let path = self.dir.path().join("worker.properties");
        std::fs::write(&path, text).map_err(folder(&path))
    }

    fn spawn(&self) -> Result<Process> {
        let path = self.dir.path().join("log");
        let log = File::create(&path).map_err(folder(&path))?;
        let errors = log.try_clone().map_err(folder(&path))?;
        let mut command = Command::new("java");
        command
            .args([format!("-Xms{HEAP}"), format!("-Xmx{HEAP}")])
            .args([
                "-XX:+UseSerialGC",
                "-XX:TieredStopAtLevel=1",
                "-Djava.awt.headless=true",
            ])
            .arg("-Dlog4j2.configurationFile=log4j2.yaml")
            .arg("-cp")
            .arg(self.libs.join("*"))
            .args(["org.apache.kafka.connect.cli.ConnectDistributed", "worker.properties"])
            .current_dir(self.dir.path())
            // A group of its own: Ctrl-C ends the test, and the guard ends the worker with its folder.
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors);
        Process::spawn(&mut command, self.dir.path()).map_err(missing("java"))
    }

    /// The list of connectors comes only from a worker that has joined its group.
    async fn answers(&self) -> bool {
        let ask = async {
            let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", self.port)).await?;
            let request = b"GET /connectors HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
            stream.write_all(request).await?;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).await?;
            Ok::<_, io::Error>(answer.starts_with(b"HTTP/1.1 200"))
        };
        matches!(tokio::time::timeout(Duration::from_secs(5), ask).await, Ok(Ok(true)))
    }
}

/// Compiles the Java sources of a folder, and puts its other files beside the classes.
fn compile(libs: &Path, sources: &Path, into: &Path) -> Result<()> {
    std::fs::create_dir_all(into).map_err(folder(into))?;
    let mut java = Vec::new();
    let mut open = vec![PathBuf::new()];
    while let Some(below) = open.pop() {
        let from = sources.join(&below);
        for entry in std::fs::read_dir(&from).map_err(folder(&from))? {
            let path = entry.map_err(folder(&from))?.path();
            let Some(name) = path.file_name() else { continue };
            if path.is_dir() {
                open.push(below.join(name));
            } else if path.extension().is_some_and(|e| e == "java") {
                java.push(path);
            } else {
                let folder_of = into.join(&below);
                std::fs::create_dir_all(&folder_of).map_err(folder(&folder_of))?;
                std::fs::copy(&path, folder_of.join(name)).map_err(folder(&path))?;
            }
        }
    }
    let compiled = Command::new("javac")
        .args(["--release", "17", LINTS, "-Werror", "-d"])
        .arg(into)
        .arg("-cp")
        .arg(libs.join("*"))
        .args(java)
        .stdin(Stdio::null())
        .output()
        .map_err(missing("javac"))?;
    if compiled.status.success() {
        return Ok(());
    }
    let said = [compiled.stdout, compiled.stderr].concat();
    Err(ConnectError::Compile {
        sources: sources.to_owned(),
        said: String::from_utf8_lossy(&said).trim().to_owned(),
    })
}

fn missing(program: &'static str) -> impl FnOnce(io::Error) -> ConnectError {
    move |source| ConnectError::Missing { program, source }
}

fn folder(path: &Path) -> impl FnOnce(io::Error) -> ConnectError {
    let path = path.to_owned();
    move |source| ConnectError::Folder { path, source }
}

fn free_port() -> Result<u16> {
    let free = free_ports(1).map_err(|e| ConnectError::Start(e.to_string()))?;
    Ok(free[0])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kafka::Cluster;

    #[tokio::test]
    async fn what_does_not_compile_or_start_says_why() {
        let Some(cluster) = Cluster::for_test(1).await else {
            return;
        };
        let sources = tempfile::tempdir().unwrap();
        let class = sources.path().join("Plain.java");
        let start = || async {
            let worker = Worker::start(cluster.libs(), sources.path(), &BTreeMap::new()).await;
            worker.unwrap_err().to_string()
        };
        std::fs::write(&class, "class Plain { int x = nowhere; }").unwrap();
        let said = start().await;
        assert!(said.contains("nowhere"), "{said}");
        std::fs::write(&class, "class Plain { }").unwrap();
        let said = start().await;
        assert!(said.contains("Missing required configuration"), "{said}");
    }
}
