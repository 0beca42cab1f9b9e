//! Single roles of the platform, each a real process on the servers of a [`World`].
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use imageflow_servers::policies::secret;
use rustix::process::{Pid, Signal, kill_process};

use crate::external::World;
use crate::platform::binary;

const PATIENCE: Duration = Duration::from_secs(60);

/// A role as a process; ended when dropped.
pub struct Role {
    name: String,
    child: Child,
    stdout: Option<std::thread::JoinHandle<()>>,
    /// Where it serves its API, its health or other roles: the last address that it told.
    pub url: String,
    /// Where it serves `/healthz` and `/metrics`; the API's for a gateway.
    pub admin: String,
}

/// What a role is started with.
pub struct Settings<'a> {
    /// The key by which other roles know it.
    pub key: &'a str,
    /// What stands behind `imageflow serve`.
    pub args: &'a [&'a str],
    /// Where its log goes.
    pub folder: &'a Path,
    /// What else it finds in its environment.
    pub env: &'a [(&'a str, &'a str)],
}

impl Role {
    /// Starts `imageflow serve ...` and waits until it says that it is up.
    pub fn start(world: &World, settings: &Settings<'_>) -> Self {
        let role = settings.args[0];
        let mut command = Command::new(binary());
        command
            .arg("serve")
            .args(settings.args)
            .args(["--kafka", &world.cluster.bootstrap()])
            .env("IMAGEFLOW_ROLE_KEY", settings.key)
            .envs(settings.env.iter().copied())
            .env("NO_COLOR", "1")
            // A group of its own: Ctrl-C is for who started it, who ends it in order.
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        if role != "gateway" {
            command.args(["--admin-listen", "127.0.0.1:0"]);
        }
        if matches!(role, "gateway" | "router" | "dispatcher") {
            // Each with what `manifests/s3` says that it may.
            command
                .args(["--s3", &world.server.url()])
                .env("IMAGEFLOW_S3_ACCESS_KEY", role)
                .env("IMAGEFLOW_S3_SECRET_KEY", secret(role));
        }
        let log = log_file(settings.folder, settings.args);
        if std::env::var_os("IMAGEFLOW_TEST_LOG").is_none() {
            let file = std::fs::File::options().create(true).append(true).open(&log);
            command.stderr(file.expect("a log file"));
        }
        let mut child = command.spawn().expect("imageflow starts");
        let lines = BufReader::new(child.stdout.take().expect("its output")).lines();
        let (sender, receiver) = mpsc::channel();
        // The pipe is read to its end, else the role would block on it one day.
        let stdout = std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                // Nobody listens any more once it is up.
                let _ = sender.send(line);
            }
        });
        let mut role = Self {
            name: settings.args.join(" "),
            child,
            stdout: Some(stdout),
            url: String::new(),
            admin: String::new(),
        };
        loop {
            let Ok(line) = receiver.recv_timeout(PATIENCE) else {
                let text = std::fs::read_to_string(&log).unwrap_or_default();
                panic!("imageflow serve {} does not come up:\n{text}", role.name);
            };
            if let Some(at) = line.find("http://") {
                role.url = line[at..].trim().to_owned();
                if role.admin.is_empty() {
                    role.admin.clone_from(&role.url);
                }
            }
            if line.contains(" is up") {
                return role;
            }
        }
    }

    /// Whether it has ended by itself.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("its state").is_some()
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("the signal reaches it");
    }

    /// Stops it where it is (SIGSTOP).
    pub fn pause(&self) {
        self.signal(Signal::STOP);
    }

    /// Lets it go on (SIGCONT).
    pub fn resume(&self) {
        self.signal(Signal::CONT);
    }

    /// SIGKILL, and waits for its end.
    pub fn kill(mut self) {
        self.child.kill().expect("kill");
        self.child.wait().expect("its end");
    }

    /// SIGTERM, and waits for its end. Panics when it does not end well.
    pub fn stop(mut self) {
        self.signal(Signal::TERM);
        let status = self.child.wait().expect("its end");
        assert!(status.success(), "imageflow serve {} ended with {status}", self.name);
    }
}

fn log_file(folder: &Path, args: &[&str]) -> PathBuf {
    let member = args.iter().position(|a| *a == "--member").map(|i| args[i + 1]);
    folder.join(format!("{}.log", member.unwrap_or(args[0])))
}

impl Drop for Role {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        if let Some(reader) = self.stdout.take() {
            let _ = reader.join();
        }
    }
}
