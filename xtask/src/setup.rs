//! What a fresh machine needs: packages through apt when we are root, else a message that names them.
mod room;

use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::tool::{self, Fault, Outcome};

/// Programs that the build calls, and the Debian packages that bring them.
const PROGRAMS: [(&str, &str); 5] = [
    ("cmake", "cmake"),
    ("nasm", "nasm"),
    // The linker of Rust is there where xtask runs, and says nothing of these two.
    ("make", "build-essential"),
    ("c++", "build-essential"),
    ("git", "git"),
];

fn there(program: &str) -> bool {
    // Java 17 and the network plugins take the option that all others have.
    let version: &[&str] = match program {
        "ip" => &["-V"],
        // Debian's has no environments before python3-venv is there.
        "python3" => &["-c", "import ensurepip, venv"],
        _ => &["--version"],
    };
    let mut probe = Command::new(program);
    probe.args(version).stdout(Stdio::null()).stderr(Stdio::null());
    probe.status().is_ok_and(|status| status.success())
}

fn root_user() -> bool {
    tool::output(Command::new("id").arg("-u")).is_ok_and(|id| id.trim() == "0")
}

/// Installs what is missing, and sees to it that there is room to build.
pub fn packages() -> Outcome {
    room::make()?;
    Ok(install(&PROGRAMS)?)
}

/// The packages, each once.
fn packages_of<'a>(programs: impl Iterator<Item = &'a (&'a str, &'a str)>) -> Vec<&'a str> {
    let mut packages: Vec<&str> = programs.map(|(_, package)| *package).collect();
    packages.sort_unstable();
    packages.dedup();
    packages
}

/// Whatever keeps us from installing, the machine goes without.
fn install(programs: &[(&str, &str)]) -> Result<(), Fault> {
    let missing = packages_of(programs.iter().filter(|(program, _)| !there(program)));
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    let lacking = |why: &str| {
        Fault::Lacking(format!(
            "these packages, as Debian calls them, are missing: {list} ({why}); install them, for example: sudo apt-get install {list}"
        ))
    };
    if !root_user() {
        return Err(lacking("xtask is not run by root"));
    }
    if !there("apt-get") {
        return Err(lacking("there is no apt-get"));
    }
    let mut update = Command::new("apt-get");
    update.args(["update", "-qq"]).stdout(Stdio::null());
    tool::run("apt-get update", &mut update).map_err(|e| lacking(&e))?;
    let mut install = Command::new("apt-get");
    install
        .args(["install", "-y", "-qq", "--no-install-recommends"])
        .args(&missing)
        .stdout(Stdio::null());
    tool::run(
        &format!("apt-get install {list}"),
        install.env("DEBIAN_FRONTEND", "noninteractive"),
    )
    .map_err(|e| lacking(&e))
}

/// Programs that the servers of tests need, and their Debian packages.
const SERVER_PROGRAMS: [(&str, &str); 3] = [
    ("java", "openjdk-17-jre-headless"),
    // The archive's test compiles its sink.
    ("javac", "openjdk-17-jdk-headless"),
    ("mvn", "maven"),
];

/// What Kafka and the S3 server of the tests need.
pub fn servers() -> Result<(), Fault> {
    recent_go("the S3 server", OLDEST_GO)?;
    install(&SERVER_PROGRAMS)
}

/// Programs that the cluster of tests runs or is built by, and their Debian packages.
const CLUSTER_PROGRAMS: [(&str, &str); 8] = [
    ("containerd", "containerd"),
    ("runc", "runc"),
    // The one of the network plugins that the pods' network uses.
    ("/usr/lib/cni/bridge", "containernetworking-plugins"),
    ("nft", "nftables"),
    // The kubelet calls it, whatever kube-proxy uses.
    ("iptables", "iptables"),
    ("ip", "iproute2"),
    ("unshare", "util-linux"),
    ("cc", "build-essential"),
];

/// What the cluster of tests needs.
pub fn cluster() -> Result<(), Fault> {
    recent_go("the cluster", OLDEST_GO)?;
    install(&CLUSTER_PROGRAMS)
}

/// Fails where there is no Go, or an older one than a module asks for. Asked before anything is installed that is of no use without.
fn recent_go(what: &str, oldest: u32) -> Result<(), Fault> {
    new_enough(what, oldest, tool::output(Command::new("go").arg("version")))
}

fn new_enough(what: &str, oldest: u32, version: Result<String, String>) -> Result<(), Fault> {
    let after = version.as_ref().ok().and_then(|text| text.split("go1.").nth(1));
    let minor = after.and_then(|rest| {
        let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
        digits.parse::<u32>().ok()
    });
    match minor {
        Some(minor) if minor >= oldest => Ok(()),
        // Debian's package is older than that.
        _ => Err(Fault::Lacking(format!(
            "{what} needs Go 1.{oldest}, found: {}; install Go 1.{oldest} or later and put it first in PATH",
            version.unwrap_or_else(|why| why).trim()
        ))),
    }
}

/// Programs that the validators of manifests are fetched by, and their Debian packages.
const MANIFEST_PROGRAMS: [(&str, &str); 2] = [PYTHON, ("dpkg", "dpkg")];

/// A Python that makes environments with a pip of their own.
const PYTHON: (&str, &str) = ("python3", "python3-venv");

/// The Go that Istio is written for.
const OLDEST_GO_ISTIO: u32 = 26;

/// What the validators of the manifests need.
pub fn manifests() -> Result<(), Fault> {
    recent_go("Istio's validator", OLDEST_GO_ISTIO)?;
    install(&MANIFEST_PROGRAMS)
}

/// The Go that versitygw and the cluster's modules are written for.
const OLDEST_GO: u32 = 25;

/// The Go program with the CloudEvents SDK for Kafka, built into the cache by the Go that the servers need.
pub fn go_client() -> Result<PathBuf, Fault> {
    servers()?;
    let program = tool::cache().join("go-client/sdk-kafka");
    let mut build = Command::new("go");
    build
        .args(["build", "-mod=mod", "-o"])
        .arg(&program)
        .arg(".")
        .current_dir(tool::root().join("tests/peers/go"));
    tool::run("go client (cloudevents)", &mut build)?;
    Ok(program)
}

/// A Python with the clients of CloudEvents, Kafka and S3, cached.
pub fn python_clients() -> Result<PathBuf, Fault> {
    let venv = tool::cache().join("python-clients");
    let python = venv.join("bin/python");
    let ready = venv.join("ready-2");
    if ready.exists() {
        return Ok(python);
    }
    install(&[PYTHON])?;
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
        "confluent-kafka>=2.6",
        "boto3>=1.35",
    ]);
    tool::run("python clients (cloudevents, confluent-kafka, boto3)", &mut pip)?;
    std::fs::write(&ready, "").map_err(|e| format!("{} cannot be written: {e}", ready.display()))?;
    Ok(python)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_of_two_programs_is_asked_for_once() {
        let packages = packages_of(PROGRAMS.iter());
        assert_eq!(packages, ["build-essential", "cmake", "git", "nasm"]);
    }

    #[test]
    fn a_go_that_is_new_enough_has_the_minor_version_or_a_later_one() {
        let of = |version: &str| new_enough("it", 25, Ok(version.to_owned()));
        assert_eq!(of("go version go1.25 linux/amd64\n"), Ok(()));
        assert_eq!(of("go version go1.26.8 linux/amd64\n"), Ok(()));
        assert_eq!(of("go version devel go1.30-2f3a1c5 linux/amd64\n"), Ok(()));
        let refused = [
            of("go version go1.19.8 linux/amd64\n"),
            of("go version go1.3 linux/amd64\n"),
            new_enough("it", 25, Err("\"go\" failed: /opt/go1.26 is no folder".to_owned())),
        ];
        for refused in refused {
            let Err(Fault::Lacking(reason)) = refused else {
                panic!("{refused:?}");
            };
            assert!(
                reason.ends_with("install Go 1.25 or later and put it first in PATH"),
                "{reason}"
            );
        }
    }
}
