//! Running programs, and waiting for what they do.
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::{ClusterError, Result, file};

/// How often a state that can only be looked at is looked at.
const TICK: Duration = Duration::from_millis(100);
/// How much of a log goes into a message.
const TAIL: usize = 2000;

/// The cause of a program that cannot be run.
pub fn missing(command: &Command) -> impl FnOnce(std::io::Error) -> ClusterError {
    let program = command.get_program().to_string_lossy().into_owned();
    move |source| ClusterError::Program { program, source }
}

/// Runs a command to its end and returns what it prints.
pub fn run(what: &str, command: &mut Command) -> Result<String> {
    run_with(what, command, "")
}

/// The same with something to read.
pub fn run_with(what: &str, command: &mut Command, input: &str) -> Result<String> {
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().map_err(missing(command))?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that ends without reading says why by itself.
        let _read = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().map_err(missing(command))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat())
        .trim()
        .to_owned();
    Err(ClusterError::Failed {
        what: what.to_owned(),
        said: if said.is_empty() {
            output.status.to_string()
        } else {
            said
        },
    })
}

/// Looks until it is there; false when it is not in time.
pub fn until(patience: Duration, mut there: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + patience;
    while !there() {
        if Instant::now() > deadline {
            return false;
        }
        pause();
    }
    true
}

#[expect(
    clippy::disallowed_methods,
    reason = "processes and cgroups tell nobody when they are ready or gone, and there is no runtime here to hold a timer"
)]
fn pause() {
    std::thread::sleep(TICK);
}

/// Servers that were started, watched while the cluster comes up. They outlive this.
#[derive(Debug)]
pub struct Servers {
    logs: PathBuf,
    running: Vec<(String, Child)>,
}

impl Servers {
    /// None yet.
    pub fn new(logs: PathBuf) -> Self {
        Self {
            logs,
            running: Vec::new(),
        }
    }

    /// Starts one; what it writes goes to a log of its name.
    pub fn start(&mut self, name: &str, command: &Command) -> Result<()> {
        let path = self.log(name);
        let log = File::create(&path).map_err(file(&path))?;
        let errors = log.try_clone().map_err(file(&path))?;
        // A session of its own: Ctrl-C at the terminal is not for it.
        let mut server = Command::new("setsid");
        server.arg(command.get_program()).args(command.get_args());
        for (key, value) in command.get_envs() {
            if let Some(value) = value {
                server.env(key, value);
            }
        }
        server.current_dir("/").stdin(Stdio::null()).stdout(log).stderr(errors);
        let child = server.spawn().map_err(missing(&server))?;
        self.running.push((name.to_owned(), child));
        Ok(())
    }

    /// Waits until it is there. One server that ends is the end of the waiting.
    pub fn wait(&mut self, what: &str, patience: Duration, mut there: impl FnMut() -> bool) -> Result<()> {
        let mut ended = None;
        let found = until(patience, || {
            ended = self.ended();
            ended.is_some() || there()
        });
        if let Some(server) = ended {
            let log = tail(&self.log(&server));
            return Err(ClusterError::Ended { server, log });
        }
        if found {
            return Ok(());
        }
        Err(ClusterError::Late {
            what: what.to_owned(),
            seconds: patience.as_secs(),
            logs: self.logs.clone(),
        })
    }

    fn log(&self, name: &str) -> PathBuf {
        self.logs.join(format!("{name}.log"))
    }

    fn ended(&mut self) -> Option<String> {
        self.running.iter_mut().find_map(|(name, child)| {
            let ended = child.try_wait().ok().flatten().is_some();
            ended.then(|| name.clone())
        })
    }
}

/// The end of a log.
pub fn tail(path: &Path) -> String {
    let log = std::fs::read(path).unwrap_or_default();
    let end = log.get(log.len().saturating_sub(TAIL)..).unwrap_or_default();
    String::from_utf8_lossy(end).trim().to_owned()
}
