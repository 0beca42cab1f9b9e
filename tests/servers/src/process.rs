//! A server's process, which does not outlive the test that started it.
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};

/// The server, and a shell that outlives us just long enough to end it and its folder when we are killed and drop nothing.
#[derive(Debug)]
pub struct Process {
    server: Child,
    guard: Child,
    /// Its end of file is how the guard learns that we are gone.
    _alive: Option<ChildStdin>,
}

impl Process {
    /// Starts it. Its folder goes too when we are killed.
    pub fn spawn(command: &mut Command, dir: &Path) -> io::Result<Self> {
        let mut server = command.spawn()?;
        let guard = Command::new("sh")
            .args(["-c", "read -r _; kill -9 \"$1\"; rm -rf -- \"$2\"", "sh"])
            .arg(server.id().to_string())
            .arg(dir)
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        match guard {
            Ok(mut guard) => Ok(Self {
                server,
                _alive: guard.stdin.take(),
                guard,
            }),
            Err(error) => {
                end(&mut server);
                Err(error)
            }
        }
    }

    /// Its id.
    pub fn id(&self) -> u32 {
        self.server.id()
    }

    /// How it ended, when it did.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.server.try_wait().ok().flatten()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // The guard first: once the server is reaped its id may be somebody else's.
        end(&mut self.guard);
        end(&mut self.server);
    }
}

/// Kills it and waits until it is gone.
pub fn end(child: &mut Child) {
    // Fails only for a child that was reaped before.
    let _gone = child.kill();
    let _reaped = child.wait();
}
