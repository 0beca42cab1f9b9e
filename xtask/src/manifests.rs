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
fn tools() -> Result<PathBuf, String> {
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
    if std::fs::read_to_string(&mark).is_ok_and(|there| there == package) {
        return Ok(());
    }
    step(name, Command::new("go").args(["install", package]).env("GOBIN", tools))?;
    std::fs::write(&mark, package).map_err(|e| format!("{} cannot be written: {e}", mark.display()))
}

/// Out of Debian's package, without installing its service.
fn promtool(tools: &Path) -> Outcome {
    if tools.join("promtool").exists() {
        return Ok(());
    }
    let folder = tools.join("prometheus");
    std::fs::create_dir_all(&folder).map_err(|e| format!("{} cannot be made: {e}", folder.display()))?;
    let script = "apt-get download -qq prometheus && dpkg -x prometheus_*.deb . && cp usr/bin/promtool .. && rm -r ../prometheus";
    step(
        "promtool",
        Command::new("sh").args(["-ec", script]).current_dir(&folder),
    )
}

/// JSON schemas of all kinds: made anew, for ours may have changed.
fn schemas(tools: &Path) -> Outcome {
    let venv = tools.join("python");
    let mark = tools.join("python.version");
    if !std::fs::read_to_string(&mark).is_ok_and(|there| there == SCHEMAS) {
        step(
            "python environment",
            Command::new("python3").args(["-m", "venv"]).arg(&venv),
        )?;
        let mut pip = Command::new(venv.join("bin/pip"));
        step(
            "schemas of Kubernetes",
            pip.args(["install", "--quiet", "--disable-pip-version-check", SCHEMAS]),
        )?;
        std::fs::write(&mark, SCHEMAS).map_err(|e| format!("{} cannot be written: {e}", mark.display()))?;
    }
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
