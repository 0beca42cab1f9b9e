//! What a fresh machine needs: packages through apt when we are root, else a message that names them.
use std::process::{Command, Stdio};

use crate::tool::{self, Outcome};

/// Programs that the build calls, and the Debian packages that bring them.
const PROGRAMS: [(&str, &str); 4] = [
    ("cmake", "cmake"),
    ("nasm", "nasm"),
    ("cc", "build-essential"),
    ("git", "git"),
];

fn there(program: &str) -> bool {
    let mut probe = Command::new(program);
    probe.arg("--version").stdout(Stdio::null()).stderr(Stdio::null());
    probe.status().is_ok_and(|status| status.success())
}

fn root_user() -> bool {
    tool::output(Command::new("id").arg("-u")).is_ok_and(|id| id.trim() == "0")
}

/// Installs what is missing.
pub fn packages() -> Outcome {
    let missing: Vec<&str> = PROGRAMS
        .iter()
        .filter(|(p, _)| !there(p))
        .map(|(_, package)| *package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    if !root_user() {
        return Err(format!(
            "these packages are missing: {list}; install them, for example: sudo apt-get install {list}"
        ));
    }
    tool::run(
        "apt-get update",
        Command::new("apt-get").args(["update", "-qq"]).stdout(Stdio::null()),
    )?;
    let mut install = Command::new("apt-get");
    install
        .args(["install", "-y", "-qq", "--no-install-recommends"])
        .args(&missing)
        .stdout(Stdio::null());
    tool::run(
        &format!("apt-get install {list}"),
        install.env("DEBIAN_FRONTEND", "noninteractive"),
    )
}

/// A Python with the CloudEvents and S3 clients, cached. `None` with the reason when it cannot be had.
pub fn python_clients() -> Result<std::path::PathBuf, String> {
    let venv = tool::cache().join("python-clients");
    let python = venv.join("bin/python");
    let ready = venv.join("ready-1");
    if ready.exists() {
        return Ok(python);
    }
    if !there("python3") {
        return Err("python3 is not installed".to_owned());
    }
    tool::run(
        "python environment",
        Command::new("python3").args(["-m", "venv"]).arg(&venv),
    )?;
    let mut pip = Command::new(venv.join("bin/pip"));
    pip.args([
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "cloudevents>=1.11,<2",
        "boto3>=1.35",
    ]);
    tool::run("python clients (cloudevents, boto3)", &mut pip)?;
    std::fs::write(&ready, "").map_err(|e| format!("{} cannot be written: {e}", ready.display()))?;
    Ok(python)
}
