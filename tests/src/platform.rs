//! `imageflow up` as a real process.
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;

use imageflow_objects::{ObjectStore, S3Config, S3Store};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::Api;

/// Longest from SIGTERM to the end: Kubernetes gives a pod 30 s.
const END_FOR: Duration = Duration::from_secs(30);

/// A platform in a folder; ended with its pods when dropped.
pub struct Platform {
    child: Child,
    data: PathBuf,
    /// Its API.
    pub api: Api,
    /// `endpoints.json` as the platform wrote it.
    pub endpoints: Value,
    stdout: Option<std::thread::JoinHandle<()>>,
}

/// The binary: `IMAGEFLOW_BIN`, else beside the test's own folder.
pub fn binary() -> PathBuf {
    if let Some(path) = std::env::var_os("IMAGEFLOW_BIN") {
        return PathBuf::from(path);
    }
    let own = std::env::current_exe().expect("the path of this program");
    let folder = own.ancestors().find(|p| p.join("imageflow").is_file());
    let folder = folder.expect("target/debug/imageflow: build it first with cargo build -p imageflow-cli");
    folder.join("imageflow")
}

impl Platform {
    /// Starts a platform on free loopback ports and waits until it says that it is up.
    pub fn start(data: &Path, args: &[&str]) -> Self {
        Self::start_with(data, args, &[])
    }

    /// The same with some environment.
    pub fn start_with(data: &Path, args: &[&str], env: &[(&str, &str)]) -> Self {
        let mut command = Command::new(binary());
        command.args(["up", "--listen", "127.0.0.1:0", "--data-dir"]).arg(data);
        if !args.contains(&"--s3") {
            command.args(["--s3-listen", "127.0.0.1:0"]);
        }
        command
            .args(args)
            .envs(env.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .env_remove("IMAGEFLOW_SERVER")
            .env("NO_COLOR", "1");
        if std::env::var_os("IMAGEFLOW_TEST_LOG").is_none() {
            let log = std::fs::File::options()
                .create(true)
                .append(true)
                .open(data.join("platform.log"));
            command.stderr(log.expect("a log file"));
        }
        let mut child = command.spawn().expect("imageflow starts");
        let mut lines = BufReader::new(child.stdout.take().expect("its output")).lines();
        let up = lines
            .by_ref()
            .map_while(Result::ok)
            .any(|line| line.contains("ImageFlow is up"));
        if !up {
            let status = child.wait();
            let log = std::fs::read_to_string(data.join("platform.log")).unwrap_or_default();
            panic!("imageflow up ended with {status:?}:\n{log}");
        }
        // The pipe is read to its end, else the platform would block on it one day.
        let stdout = std::thread::spawn(move || lines.map_while(Result::ok).for_each(drop));
        let endpoints = std::fs::read(data.join("endpoints.json")).expect("endpoints.json");
        let mut endpoints: Value = serde_json::from_slice(&endpoints).expect("JSON");
        // A secret that was given is not written down.
        if let Some((_, given)) = env.iter().find(|(name, _)| *name == "IMAGEFLOW_S3_SECRET_KEY") {
            assert_eq!(endpoints["secretKey"], Value::Null, "it is the caller's");
            endpoints["secretKey"] = (*given).into();
        }
        let api = Api::new(endpoints["api"].as_str().expect("the API's URL"));
        Self {
            child,
            data: data.to_owned(),
            api,
            endpoints,
            stdout: Some(stdout),
        }
    }

    /// An S3 client of the platform's object store.
    pub fn objects(&self) -> Arc<dyn ObjectStore> {
        let text = |name: &str| self.endpoints[name].as_str().expect("an endpoint").to_owned();
        Arc::new(S3Store::new(S3Config::new(
            text("s3"),
            text("accessKey"),
            text("secretKey"),
        )))
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its folder.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// Stops it where it is (SIGSTOP); its pods go on.
    pub fn pause(&self) {
        self.signal(Signal::STOP);
    }

    /// Lets it go on (SIGCONT).
    pub fn resume(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("the signal reaches it");
    }

    /// SIGKILL, and waits for its end.
    pub fn kill(mut self) {
        self.child.kill().expect("kill");
        self.child.wait().expect("its end");
    }

    /// SIGTERM, and waits for its end. Panics when it does not end well, or not soon.
    pub fn stop(mut self) {
        self.signal(Signal::TERM);
        let pid = Pid::from_child(&self.child);
        let (ended, end) = std::sync::mpsc::channel::<()>();
        let watchdog = std::thread::spawn(move || {
            if end.recv_timeout(END_FOR) == Err(RecvTimeoutError::Timeout) {
                let _already_gone = kill_process(pid, Signal::KILL);
            }
        });
        let status = self.child.wait().expect("its end");
        drop(ended);
        watchdog.join().expect("the watchdog ends");
        assert!(status.success(), "imageflow up ended with {status}; it has {END_FOR:?}");
    }
}

impl Drop for Platform {
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
