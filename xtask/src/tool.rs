//! Running other programs, from the repository's root.
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

/// What every chore returns: nothing, or what to tell.
pub type Outcome = Result<(), String>;

/// Why something is not done that a machine may have no way to do.
#[derive(Debug, PartialEq, Eq)]
pub enum Fault {
    /// The machine cannot have what it needs.
    Lacking(String),
    /// It was tried, and failed.
    Failed(String),
}

impl From<String> for Fault {
    fn from(message: String) -> Self {
        Self::Failed(message)
    }
}

/// For who does not care which it is.
impl From<Fault> for String {
    fn from(fault: Fault) -> Self {
        let (Fault::Lacking(message) | Fault::Failed(message)) = fault;
        message
    }
}

/// The repository's root: the folder above this crate.
pub fn root() -> PathBuf {
    // Cargo says which checkout it runs for; the program may have been built for another one that shares the folder.
    let here = std::env::var_os("CARGO_MANIFEST_DIR");
    let here = here.map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    here.parent().unwrap_or(&here).to_path_buf()
}

/// Where heavy things are kept between checkouts.
pub fn cache() -> PathBuf {
    let base = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or_else(|| {
        let home = std::env::var_os("HOME")?;
        Some(PathBuf::from(home).join(".cache"))
    });
    base.unwrap_or_else(std::env::temp_dir).join("imageflow")
}

/// Where cargo builds: shared by all checkouts, unless the caller chose a place.
pub fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| cache().join("target"), PathBuf::from)
}

/// A cargo call with our target folder.
pub fn cargo(args: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(args).current_dir(root()).env("CARGO_TARGET_DIR", target());
    forget_our_package(&mut command);
    command
}

/// Takes away what the cargo that runs us has said of our package. The build script of ring looks at that: with it ring, and all
/// that uses it, would be built anew whenever cargo is called by xtask after it was called without, and the other way round.
pub fn forget_our_package(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
            command.env_remove(&name);
        }
    }
}

/// Runs a command and says what it is and how long it took. Stdout is the command's: figures come as lines of JSON, and nothing else.
pub fn run(what: &str, command: &mut Command) -> Outcome {
    eprintln!("==> {what}");
    let begun = Instant::now();
    let status = command
        .status()
        .map_err(|e| format!("{what}: {:?} cannot be started: {e}", command.get_program()))?;
    if status.success() {
        eprintln!("    {what}: {:.1} s", begun.elapsed().as_secs_f64());
        return Ok(());
    }
    Err(format!("{what} failed ({status})"))
}

/// Becomes that program, which is the last thing to do: signals reach it then and its exit code reaches who waits. As a child
/// it would outlive xtask, which a signal ends at once. Returns only when it cannot be started.
pub fn become_program(command: &mut Command) -> Outcome {
    let error = command.exec();
    Err(format!("{:?} cannot be started: {error}", command.get_program()))
}

/// Makes something of the cache, unless the file `mark` says that it is there in this version.
pub fn once(mark: &Path, version: &str, make: impl FnOnce() -> Outcome) -> Outcome {
    if std::fs::read_to_string(mark).is_ok_and(|there| there == version) {
        return Ok(());
    }
    // A run that is cut off leaves nothing that passes for one version or the other.
    let _ = std::fs::remove_file(mark);
    make()?;
    std::fs::write(mark, version).map_err(|e| format!("{} cannot be written: {e}", mark.display()))
}

/// What a command prints.
pub fn output(command: &mut Command) -> Result<String, String> {
    let program = format!("{:?}", command.get_program());
    let output = command
        .output()
        .map_err(|e| format!("{program} cannot be started: {e}"))?;
    if !output.status.success() {
        return Err(format!("{program} failed: {}", String::from_utf8_lossy(&output.stderr)));
    }
    String::from_utf8(output.stdout).map_err(|e| format!("{program} printed something that is not text: {e}"))
}

/// All Rust sources that git knows or would take.
pub fn sources() -> Result<Vec<PathBuf>, String> {
    let mut git = Command::new("git");
    git.args(["ls-files", "--cached", "--others", "--exclude-standard", "*.rs"])
        .current_dir(root());
    let list = output(&mut git)?;
    Ok(list
        .lines()
        .map(|line| root().join(line))
        .filter(|path| path.exists())
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs in a process of its own, which the test below starts.
    #[test]
    #[ignore = "it is the part of another process"]
    fn as_one_that_becomes_a_shell() {
        become_program(Command::new("sh").args(["-c", "echo \"I am $$\"; exit 7"])).unwrap();
    }

    #[test]
    fn the_last_program_has_our_pid_and_tells_its_exit_code() {
        let mut process = Command::new(std::env::current_exe().unwrap());
        process
            .args(["--ignored", "--exact", "tool::tests::as_one_that_becomes_a_shell"])
            .stdout(std::process::Stdio::piped());
        let process = process.spawn().unwrap();
        let told = format!("I am {}", process.id());
        let output = process.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.lines().any(|line| line.ends_with(&told)), "{told}: {text}");
        assert_eq!(output.status.code(), Some(7));
    }

    #[test]
    fn what_is_there_in_another_version_or_in_part_is_made_again() {
        let mark = std::env::temp_dir().join(format!("xtask-once-{}", std::process::id()));
        let mut made = Vec::new();
        for version in ["1", "1", "2", "1"] {
            once(&mark, version, || {
                made.push(version);
                Ok(())
            })
            .unwrap();
        }
        let failed = once(&mark, "2", || Err("cut off".to_owned()));
        let left = mark.exists();
        assert_eq!(
            (made, failed, left),
            (vec!["1", "2", "1"], Err("cut off".to_owned()), false)
        );
    }

    #[test]
    fn a_program_that_is_not_there_is_named() {
        let refused = become_program(&mut Command::new("./no-such-program")).unwrap_err();
        assert!(refused.contains("no-such-program"), "{refused}");
    }
}
