//! The tier of the manifests: what their validators need, fetched and built into the cache, and the tests that call them.
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::setup;
use crate::tool::{self, Fault, Outcome, cargo, run as step};

const KUSTOMIZE: &str = "sigs.k8s.io/kustomize/kustomize/v5@v5.8.1";
const KUBECONFORM: &str = "github.com/yannh/kubeconform/cmd/kubeconform@v0.8.0";
/// Has the definitions of Istio's kinds.
const ISTIO_API: &str = "istio.io/api@v1.31.4";
/// Has the schemas of the built-in kinds.
const SCHEMAS: &str = "kubernetes-validate==1.37.0";
/// The Kubernetes of the tests' cluster.
const KUBERNETES: &str = "1.34.0";

/// Runs the tests of the manifests.
pub fn test() -> Result<(), Fault> {
    setup::manifests()?;
    let mut tests = cargo(&["test", "-p", "imageflow-tests", "--locked", "--test", "manifests"]);
    Ok(step("manifests", tests.env("IMAGEFLOW_MANIFEST_TOOLS", tools()?))?)
}

/// The folder with all validators.
fn tools() -> Result<PathBuf, Fault> {
    let tools = tool::cache().join("manifest-tools");
    std::fs::create_dir_all(&tools).map_err(|e| format!("{} cannot be made: {e}", tools.display()))?;
    for (name, package) in [("kustomize", KUSTOMIZE), ("kubeconform", KUBECONFORM)] {
        go_install(&tools, name, package)?;
    }
    let mut build = Command::new("go");
    build
        .args(["build", "-ldflags=-s -w", "-o"])
        .arg(tools.join("istio-validate"))
        .arg(".");
    // Some minutes the first time.
    step(
        "istio-validate",
        build.current_dir(tool::root().join("tests/manifests/istio")),
    )?;
    promtool(&tools)?;
    schemas(&tools)?;
    Ok(tools)
}

/// Installs a Go program, unless this very version is there.
fn go_install(tools: &Path, name: &str, package: &str) -> Outcome {
    let mark = tools.join(format!("{name}.version"));
    tool::once(&mark, package, || {
        step(name, Command::new("go").args(["install", package]).env("GOBIN", tools))
    })
}

/// The lists of packages may be old, or not there at all.
const DOWNLOAD: &str = "apt-get download -qq prometheus || { apt-get update -qq && apt-get download -qq prometheus; }";
/// A move on one disk: the program is there as a whole or not at all.
const UNPACK: &str = "dpkg -x prometheus_*.deb . && mv usr/bin/promtool .. && rm -r ../prometheus";

/// Out of Debian's package, without installing its service.
fn promtool(tools: &Path) -> Result<(), Fault> {
    if tool::output(Command::new(tools.join("promtool")).arg("--version")).is_ok() {
        return Ok(());
    }
    let folder = tools.join("prometheus");
    let cannot = |e| format!("{} cannot be made anew: {e}", folder.display());
    if folder.exists() {
        std::fs::remove_dir_all(&folder).map_err(cannot)?;
    }
    std::fs::create_dir_all(&folder).map_err(cannot)?;
    let shell = |script| {
        let mut shell = Command::new("sh");
        shell.args(["-ec", script]).current_dir(&folder);
        shell
    };
    step("download of promtool", &mut shell(DOWNLOAD)).map_err(Fault::Lacking)?;
    Ok(step("promtool", &mut shell(UNPACK))?)
}

/// JSON schemas of all kinds: made anew, for ours may have changed.
fn schemas(tools: &Path) -> Outcome {
    let venv = tools.join("python");
    tool::once(&tools.join("python.version"), SCHEMAS, || {
        step(
            "python environment",
            Command::new("python3").args(["-m", "venv"]).arg(&venv),
        )?;
        let mut pip = Command::new(venv.join("bin/pip"));
        step(
            "schemas of Kubernetes",
            pip.args(["install", "--quiet", "--disable-pip-version-check", SCHEMAS]),
        )
    })?;
    let download = tool::output(Command::new("go").args(["mod", "download", "-json", ISTIO_API]))?;
    let folder = download
        .lines()
        .find_map(|line| line.trim().strip_prefix("\"Dir\": \""));
    let folder = folder
        .and_then(|rest| rest.split('"').next())
        .ok_or_else(|| format!("go did not say where {ISTIO_API} is"))?;
    let mut python = Command::new(venv.join("bin/python"));
    python
        .arg("tests/manifests/schemas.py")
        .arg(tools.join("schemas"))
        .arg(KUBERNETES)
        .arg(Path::new(folder).join("kubernetes/customresourcedefinitions.gen.yaml"))
        .current_dir(tool::root());
    let own = std::fs::read_dir(tool::root().join("manifests/crds")).map_err(|e| e.to_string())?;
    for entry in own {
        let path = entry.map_err(|e| e.to_string())?.path();
        if path.file_name().is_some_and(|n| n != "kustomization.yaml") {
            python.arg(path);
        }
    }
    step("schemas", &mut python)
}
