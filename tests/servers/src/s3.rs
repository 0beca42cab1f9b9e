//! versitygw: a real S3 server on a folder. It is built from its released source once, into the cache folder.
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::process::Process;
use crate::{free_ports, host};

/// What is built; the cache folder carries the version, so that another one does not take this binary for its own.
const MODULE: &str = "github.com/versity/versitygw/cmd/versitygw";
const VERSION: &str = "1.8.0";
/// Longest from the start of the process to its first healthy answer. Measured 0.15 s; a loaded machine is slower.
const READY: Duration = Duration::from_secs(30);
/// A free port may be taken by another process between the look and the start.
const TRIES: usize = 5;

/// Why the S3 server is not there.
#[derive(Debug, thiserror::Error)]
pub enum S3ServerError {
    /// No Go compiler.
    #[error(
        "versitygw is built by Go, which was not found: install Go 1.25 or later and put it first in PATH, \
         or set IMAGEFLOW_SKIP_SERVERS=1 to leave out the tests that need real servers"
    )]
    NoGo(#[source] io::Error),
    /// The build failed.
    #[error("`go install {MODULE}@v{VERSION}` failed: {0}\nit needs Go 1.25 or later and the Go module proxy")]
    Build(String),
    /// The cache folder or the server's folder cannot be used.
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
    /// It did not start.
    #[error("versitygw did not start: {0}")]
    Start(String),
}

/// Where events of objects go, besides the answer to the client. Sent as best effort, without a queue.
#[derive(Debug, Clone)]
pub enum EventTarget {
    /// A topic, which must exist; without the broker versitygw refuses to start.
    Kafka {
        /// `host:port` of one broker.
        bootstrap: String,
        /// Topic.
        topic: String,
    },
    /// An HTTP server that gets each event as a POST.
    Webhook(String),
}

/// How to start.
#[derive(Debug, Clone, Default)]
pub struct S3Options {
    /// Where events go.
    pub events: Option<EventTarget>,
    /// PEM files of the certificate and its key; then the server speaks TLS only.
    pub tls: Option<(PathBuf, PathBuf)>,
    /// Whether buckets can keep versions.
    pub versioning: bool,
}

/// A running server with a folder, a port and credentials of its own; all of it goes with the drop.
#[derive(Debug)]
pub struct S3Server {
    binary: PathBuf,
    options: S3Options,
    dir: TempDir,
    port: u16,
    access_key: String,
    secret_key: String,
    process: Option<Process>,
}

impl S3Server {
    /// Builds it if need be, starts it and waits until it is healthy.
    ///
    /// # Errors
    /// See [`S3ServerError`].
    pub async fn start() -> Result<Self, S3ServerError> {
        Self::start_with(S3Options::default()).await
    }

    /// The same with options.
    ///
    /// # Errors
    /// See [`S3ServerError`].
    pub async fn start_with(options: S3Options) -> Result<Self, S3ServerError> {
        let binary = tokio::task::spawn_blocking(|| install(&cache_dir()?)).await;
        let binary = binary.map_err(|e| S3ServerError::Build(e.to_string()))??;
        let dir = tempfile::tempdir().map_err(folder("the temporary folder", &std::env::temp_dir()))?;
        for name in ["iam", "data", "versions"] {
            let path = dir.path().join(name);
            std::fs::create_dir(&path).map_err(folder("the server's folder", &path))?;
        }
        let mut server = Self {
            binary,
            options,
            dir,
            port: 0,
            access_key: format!("test{}", &uuid::Uuid::new_v4().simple().to_string()[..16]),
            secret_key: uuid::Uuid::new_v4().simple().to_string(),
            process: None,
        };
        let mut outcome = Err(S3ServerError::Start("no port was free".to_owned()));
        for _ in 0..TRIES {
            server.port = free_port()?;
            outcome = server.restart().await;
            // It gives its topic 10 s from its own start, which brokers that have just started may need.
            let again = ["address already in use", "deadline exceeded"];
            if outcome.is_ok() || !again.iter().any(|why| server.log().contains(why)) {
                break;
            }
        }
        outcome.map(|()| server)
    }

    /// For tests: a server; `None`, and a line that says so, when IMAGEFLOW_SKIP_SERVERS is set.
    ///
    /// # Panics
    /// When it does not start: a test that needs a server has failed without one.
    pub async fn for_test(options: S3Options) -> Option<Self> {
        if std::env::var_os("IMAGEFLOW_SKIP_SERVERS").is_some() {
            eprintln!("skipped: IMAGEFLOW_SKIP_SERVERS is set, and this test needs versitygw");
            return None;
        }
        match Self::start_with(options).await {
            Ok(server) => Some(server),
            Err(error) => panic!("{error}"),
        }
    }

    /// `http://127.0.0.1:port`, or `https://localhost:port`.
    #[must_use]
    pub fn url(&self) -> String {
        match self.options.tls {
            None => format!("http://{}:{}", host(), self.port),
            Some(_) => format!("https://localhost:{}", self.port),
        }
    }

    /// The root account's access key.
    #[must_use]
    pub fn access_key(&self) -> &str {
        &self.access_key
    }

    /// The root account's secret key.
    #[must_use]
    pub fn secret_key(&self) -> &str {
        &self.secret_key
    }

    /// Process id while it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Process::id)
    }

    /// Makes an account that may do nothing until a bucket's policy says so.
    ///
    /// # Errors
    /// `Start`, with what the server's own tool said.
    pub fn add_user(&self, access_key: &str, secret_key: &str) -> Result<(), S3ServerError> {
        let made = Command::new(&self.binary)
            .env_clear()
            .args(["admin", "--access", &self.access_key, "--secret", &self.secret_key])
            .args(["--endpoint-url", &self.url(), "create-user", "--role", "user"])
            .args(["--access", access_key, "--secret", secret_key])
            .output();
        let made = made.map_err(|e| S3ServerError::Start(e.to_string()))?;
        if made.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&made.stderr);
        Err(S3ServerError::Start(format!("no user {access_key}: {}", said.trim())))
    }

    /// The folder in which each bucket is a folder and each object a file.
    #[must_use]
    pub fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// Kills it (SIGKILL). Its folder stays, and so do port and credentials.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Starts it again on the same port with what it had; kills it first when it runs.
    ///
    /// # Errors
    /// `Start`, with what it said.
    pub async fn restart(&mut self) -> Result<(), S3ServerError> {
        self.kill();
        self.process = Some(self.spawn()?);
        let deadline = Instant::now() + READY;
        loop {
            if let Some(process) = &mut self.process
                && let Some(status) = process.ended()
            {
                self.process = None;
                return Err(S3ServerError::Start(format!("{status}: {}", self.log())));
            }
            if self.is_healthy().await {
                return Ok(());
            }
            if Instant::now() > deadline {
                self.process = None;
                return Err(S3ServerError::Start(format!(
                    "not healthy in {READY:?}: {}",
                    self.log()
                )));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// The end of what it wrote to its output.
    #[must_use]
    pub fn log(&self) -> String {
        let log = std::fs::read(self.dir.path().join("log")).unwrap_or_default();
        String::from_utf8_lossy(&log[log.len().saturating_sub(4000)..]).into_owned()
    }

    fn spawn(&self) -> Result<Process, S3ServerError> {
        let path = self.dir.path().join("log");
        let log = File::options().create(true).append(true).open(&path);
        let log = log.map_err(folder("the server's log", &path))?;
        let errors = log.try_clone().map_err(folder("the server's log", &path))?;
        let mut command = Command::new(&self.binary);
        command
            .env_clear()
            .env("ROOT_ACCESS_KEY", &self.access_key)
            .env("ROOT_SECRET_KEY", &self.secret_key)
            .args(["--port", &format!("{}:{}", host(), self.port)])
            .args(["--health", "/healthz", "--quiet", "--iam-dir"])
            .arg(self.dir.path().join("iam"))
            // A group of its own: Ctrl-C ends the test, and the guard ends the server with its folder.
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors);
        if let Some((cert, key)) = &self.options.tls {
            command.arg("--cert").arg(cert).arg("--key").arg(key);
        }
        match &self.options.events {
            Some(EventTarget::Kafka { bootstrap, topic }) => {
                command.args(["--event-kafka-url", bootstrap, "--event-kafka-topic", topic]);
            }
            Some(EventTarget::Webhook(url)) => {
                command.args(["--event-webhook-url", url]);
            }
            None => {}
        }
        command.arg("posix");
        if self.options.versioning {
            command.arg("--versioning-dir").arg(self.dir.path().join("versions"));
        }
        command.arg(self.dir.path().join("data"));
        Process::spawn(&mut command, self.dir.path()).map_err(|e| S3ServerError::Start(e.to_string()))
    }

    /// Over TLS a connection is all that can be asked for here.
    async fn is_healthy(&self) -> bool {
        let ask = async {
            let mut stream = tokio::net::TcpStream::connect((host(), self.port)).await?;
            if self.options.tls.is_some() {
                return Ok(true);
            }
            let request = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
            stream.write_all(request).await?;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).await?;
            Ok::<_, io::Error>(answer.starts_with(b"HTTP/1.1 200"))
        };
        matches!(tokio::time::timeout(Duration::from_secs(2), ask).await, Ok(Ok(true)))
    }
}

fn folder(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> S3ServerError {
    let path = path.to_owned();
    move |source| S3ServerError::Folder { what, path, source }
}

fn free_port() -> Result<u16, S3ServerError> {
    let free = free_ports(1).map_err(|e| S3ServerError::Start(e.to_string()))?;
    Ok(free[0])
}

fn cache_dir() -> Result<PathBuf, S3ServerError> {
    let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    set("IMAGEFLOW_CACHE")
        .or_else(|| set("XDG_CACHE_HOME").map(|dir| dir.join("imageflow")))
        .or_else(|| set("HOME").map(|dir| dir.join(".cache/imageflow")))
        .ok_or(S3ServerError::NoCache)
}

/// The binary, built when it is not there. One process builds, the others wait for its lock.
fn install(cache: &Path) -> Result<PathBuf, S3ServerError> {
    let dir = cache.join(format!("versitygw-{VERSION}"));
    let binary = dir.join("versitygw");
    if binary.exists() {
        return Ok(binary);
    }
    let fail = || folder("the cache folder", &dir);
    std::fs::create_dir_all(&dir).map_err(fail())?;
    let lock = File::create(dir.join("lock")).map_err(fail())?;
    lock.lock().map_err(fail())?;
    if binary.exists() {
        return Ok(binary);
    }
    // To stderr past the capture of the test harness: the first build takes minutes.
    let _told = writeln!(
        io::stderr(),
        "building versitygw {VERSION}, once: this takes some minutes"
    );
    // Beside its place and then renamed: a build that is cut off leaves nothing that looks complete.
    let staging = tempfile::tempdir_in(&dir).map_err(fail())?;
    let built = Command::new("go")
        .args(["install", &format!("{MODULE}@v{VERSION}")])
        .env("GOBIN", staging.path())
        .current_dir(staging.path())
        .output()
        .map_err(S3ServerError::NoGo)?;
    if !built.status.success() {
        let said = String::from_utf8_lossy(&built.stderr);
        return Err(S3ServerError::Build(said.trim().to_owned()));
    }
    std::fs::rename(staging.path().join("versitygw"), &binary).map_err(fail())?;
    Ok(binary)
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};

    use super::*;
    use crate::kafka::Cluster;
    use crate::process::end;

    fn answers(server: &str) -> bool {
        let address = server.strip_prefix("http://").unwrap();
        std::net::TcpStream::connect(address).is_ok()
    }

    async fn until(what: &str, mut reached: impl FnMut() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !reached() {
            assert!(Instant::now() < deadline, "in 10 s not: {what}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    #[tokio::test]
    async fn it_starts_is_killed_starts_again_and_goes() {
        let Some(mut server) = S3Server::for_test(S3Options::default()).await else {
            return;
        };
        let (url, pid) = (server.url(), server.pid());
        let object = server.data_dir().join("kept");
        std::fs::write(&object, "x").unwrap();
        server.kill();
        assert!(server.pid().is_none() && !answers(&url));
        server.restart().await.unwrap();
        assert!(server.pid() != pid && server.url() == url && object.exists());
        drop(server);
        assert!(!answers(&url) && !object.exists());
    }

    #[tokio::test]
    async fn one_that_does_not_start_says_why() {
        if S3Server::for_test(S3Options::default()).await.is_none() {
            return;
        }
        let options = S3Options {
            tls: Some(("/nowhere/cert".into(), "/nowhere/key".into())),
            ..S3Options::default()
        };
        let error = S3Server::start_with(options).await.unwrap_err().to_string();
        assert!(error.contains("/nowhere/cert"), "{error}");
    }

    /// The other side of the next test: it prints the URL of a server and waits to be killed.
    #[tokio::test]
    #[ignore = "run by the next test"]
    async fn holds_a_server() {
        let server = S3Server::start().await.unwrap();
        println!("holding {} {}", server.url(), server.dir.path().display());
        std::future::pending::<()>().await;
    }

    #[tokio::test]
    async fn it_ends_with_a_test_that_is_killed() {
        if S3Server::for_test(S3Options::default()).await.is_none() {
            return;
        }
        let mut holder = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "s3::tests::holds_a_server", "--ignored", "--nocapture"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(holder.stdout.take().unwrap()).lines();
        let told = lines
            .map_while(Result::ok)
            .find_map(|line| Some(line.split_once("holding ")?.1.to_owned()));
        let told = told.unwrap();
        let (url, dir) = told.split_once(' ').unwrap();
        assert!(answers(url) && Path::new(dir).exists());
        end(&mut holder);
        until("the server is gone", || !answers(url)).await;
        until("its folder is gone", || !Path::new(dir).exists()).await;
    }

    /// Runs a program of Kafka and returns what it printed.
    fn kafka(cluster: &Cluster, args: &[&str]) -> String {
        let mut command = Command::new("java");
        command.args(["-Xmx128m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp"]);
        let ran = command.arg(cluster.libs().join("*")).args(args).output().unwrap();
        let printed = String::from_utf8_lossy(&ran.stdout).into_owned();
        assert!(
            ran.status.success(),
            "{printed}{}",
            String::from_utf8_lossy(&ran.stderr)
        );
        printed
    }

    #[tokio::test]
    async fn its_events_come_in_kafka_and_it_does_not_start_without() {
        let events = |bootstrap: &str| S3Options {
            events: Some(EventTarget::Kafka {
                bootstrap: bootstrap.to_owned(),
                topic: "s3-events".to_owned(),
            }),
            ..S3Options::default()
        };
        let Some(cluster) = Cluster::for_test(1).await else {
            return;
        };
        let bootstrap = cluster.bootstrap();
        let at = ["--bootstrap-server", &bootstrap, "--topic", "s3-events"];
        let create = ["org.apache.kafka.tools.TopicCommand", "--create"];
        kafka(&cluster, &[&create[..], &at].concat());
        let server = S3Server::start_with(events(&bootstrap)).await.unwrap();
        let first = ["--from-beginning", "--max-messages", "1", "--timeout-ms", "20000"];
        let consume = ["org.apache.kafka.tools.consumer.ConsoleConsumer"];
        let told = kafka(&cluster, &[&consume[..], &at, &first].concat());
        assert!(told.contains("s3:TestEvent"), "{told}");
        drop(server);
        drop(cluster);
        let error = S3Server::start_with(events(&bootstrap)).await.unwrap_err().to_string();
        assert!(error.contains("connection refused"), "{error}");
    }
}
