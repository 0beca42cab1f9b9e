//! The Kubernetes cluster of tests: `tests/cluster` does the work, this calls it.
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};

use crate::tool::{self, Fault, Outcome, cargo, run as step};
use crate::{image, setup, up};

/// Of the first node.
const FIRST_ADDRESS: &str = "10.77.0.1";

/// `cargo xtask cluster up|down|status|exec|node|import ...`.
pub fn run(args: &[String]) -> Outcome {
    if args.first().is_some_and(|word| word == "up") {
        setup::cluster()?;
    }
    let mut cluster = program()?;
    // In our place, so that its signals and its exit code are those of what it runs.
    Err(format!(
        "the cluster's program cannot be run: {}",
        cluster.args(args).exec()
    ))
}

/// Puts an image on all nodes.
pub fn import(archive: &Path) -> Outcome {
    step("import", program()?.arg("import").arg(archive))
}

/// The tier: a cluster, the tests that need one, and no cluster any more.
pub fn test() -> Result<(), Fault> {
    let crate_alone = ["test", "-p", "imageflow-cluster", "--locked", "--lib"];
    step("tests of imageflow-cluster", &mut cargo(&crate_alone))?;
    setup::cluster()?;
    obstacle()?;
    // While the machine's network is there.
    setup::servers()?;
    let of_cluster: &[&str] = &["test", "-p", "imageflow-cluster", "--locked", "--test", "cluster"];
    let of_platform: &[&str] = &[
        "test",
        "-p",
        "imageflow-tests",
        "--locked",
        "--test",
        "kubernetes",
        "--test",
        "installation",
        "--test",
        "kubernetes_faults",
    ];
    // As the tiers before have built them.
    step("build", &mut cargo(&["build", "--workspace", "--bins", "--locked"]))?;
    let mut images = image::pack_all("debug")?;
    images.push(kafka()?);
    for tests in [of_cluster, of_platform] {
        step("build", &mut cargo(&[tests, &["--no-run"]].concat()))?;
    }
    let keeper = Keeper::new().map_err(|e| format!("who takes the cluster down cannot be started: {e}"))?;
    let tested = step("cluster", program()?.arg("up")).and_then(|()| {
        step("tests of the cluster", &mut inside(of_cluster)?)?;
        images.iter().try_for_each(|archive| import(archive))?;
        step("tests on the cluster", &mut inside(of_platform)?)
    });
    Ok(tested.and(keeper.end())?)
}

/// An image of Kafka for the cluster, made once.
fn kafka() -> Result<PathBuf, String> {
    let archive = tool::cache().join("kafka-image-4.3.1-2.tar");
    if !archive.exists() {
        let part = archive.with_extension("part");
        let mut make = Command::new(tool::target().join("debug/kafka-image"));
        step("image of Kafka", make.arg(&part))?;
        std::fs::rename(&part, &archive).map_err(|e| format!("{}: {e}", archive.display()))?;
    }
    Ok(archive)
}

/// `cargo xtask bench cluster [PART...]`: all in release, on a cluster of its own.
pub fn bench(parts: &[String]) -> Outcome {
    setup::cluster()?;
    setup::servers()?;
    let built = up::build_all()?;
    let images = image::pack_all("release")?;
    let keeper = Keeper::new().map_err(|e| format!("who takes the cluster down cannot be started: {e}"))?;
    // Its nodes are no figures.
    let mut start = program()?;
    start.arg("up").stdout(io::stderr());
    let measured = step("cluster", &mut start).and_then(|()| {
        images.iter().try_for_each(|archive| import(archive))?;
        let mut exec = program()?;
        exec.arg("exec").arg(built.join("bench-cluster")).args(parts);
        exec.env("IMAGEFLOW_SERVERS_HOST", FIRST_ADDRESS)
            .env("IMAGEFLOW_KAFKA_HEAP", up::HEAP)
            .env("IMAGEFLOW_BIN", built.join("imageflow"))
            .env("CARGO_MANIFEST_DIR", tool::root().join("tests"));
        step("bench-cluster", &mut exec)
    });
    measured.and(keeper.end())
}

/// A cargo call on the network of the first node.
fn inside(args: &[&str]) -> Result<Command, String> {
    let mut exec = program()?;
    exec.current_dir(tool::root());
    exec.arg("exec").arg(cargo(&[]).get_program());
    exec.args(args).args(["--offline", "--", "--nocapture"]);
    // Where pods reach the brokers and the S3 server.
    exec.env("IMAGEFLOW_SERVERS_HOST", FIRST_ADDRESS);
    Ok(exec)
}

/// Whether this machine can run the cluster.
fn obstacle() -> Result<(), Fault> {
    let checked = program()?.arg("check").output();
    let checked = checked.map_err(|e| format!("the cluster's program cannot be run: {e}"))?;
    let said = String::from_utf8_lossy(&checked.stderr).trim().to_owned();
    match checked.status.code() {
        Some(0) => Ok(()),
        // What its main returns: it looked, and it cannot.
        Some(1) => Err(Fault::Lacking(said)),
        _ => Err(format!("the cluster's check failed ({}): {said}", checked.status).into()),
    }
}

/// The program, built.
fn program() -> Result<Command, String> {
    let mut build = cargo(&[
        "build",
        "--quiet",
        "--locked",
        "-p",
        "imageflow-cluster",
        "--bin",
        "imageflow-cluster",
    ]);
    let built = build.status().map_err(|e| format!("cargo cannot be started: {e}"))?;
    if !built.success() {
        return Err("the build of imageflow-cluster failed".to_owned());
    }
    let mut program = Command::new(tool::target().join("debug/imageflow-cluster"));
    program.env("CARGO_TARGET_DIR", tool::target());
    tool::forget_our_package(&mut program);
    Ok(program)
}

/// A shell that takes the cluster down when we end, however we end: it notices that its input is closed.
struct Keeper {
    shell: Child,
    input: Option<ChildStdin>,
}

impl Keeper {
    fn new() -> io::Result<Self> {
        let program = program().map_err(io::Error::other)?;
        let mut shell = Command::new("sh")
            .args(["-c", "read -r _; exec \"$1\" down", "sh"])
            .arg(program.get_program())
            .current_dir("/")
            // Ctrl-C at the terminal is not for it.
            .process_group(0)
            .stdin(Stdio::piped())
            .spawn()?;
        let input = shell.stdin.take();
        Ok(Self { shell, input })
    }

    /// Waits until the cluster is down.
    fn end(mut self) -> Outcome {
        self.input = None;
        let ended = self.shell.wait().map_err(|e| e.to_string())?;
        if ended.success() {
            return Ok(());
        }
        Err("the cluster was not taken down".to_owned())
    }
}
