//! What the cluster runs, built from Go modules and a little C once, into the cache folder.
use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use sha2::{Digest, Sha256};

use crate::process::{missing, run};
use imageflow_images::Image;

use crate::{ClusterError, Result, file, say};

/// The sources, by the names they get beside what is built of them.
const SOURCES: [(&str, &str); 9] = [
    ("kube/go.mod", include_str!("../go/kube/go.mod")),
    ("kube/go.sum", include_str!("../go/kube/go.sum")),
    ("kube/main.go", include_str!("../go/kube/main.go")),
    ("kube/fakegpu/main.go", include_str!("../go/kube/fakegpu/main.go")),
    ("kube/probe/main.go", include_str!("../go/kube/probe/main.go")),
    ("coredns/go.mod", include_str!("../go/coredns/go.mod")),
    ("coredns/go.sum", include_str!("../go/coredns/go.sum")),
    ("coredns/main.go", include_str!("../go/coredns/main.go")),
    ("pause.c", include_str!("../node/pause.c")),
];
/// Counted up when what is made of the sources changes and they do not.
const LAYOUT: &str = "1";
/// The names by which the one binary is called.
const LINKS: [&str; 7] = [
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-proxy",
    "kube-scheduler",
    "kubectl",
    "kubelet",
];
/// Written last.
const COMPLETE: &str = "complete";
/// How many packages are compiled between two words about it; there are some 2,700.
const WORD_EVERY: usize = 300;

/// Where heavy things are kept between checkouts.
pub fn cache() -> Result<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let base = set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache")));
    Ok(base.ok_or(ClusterError::NoCache)?.join("imageflow"))
}

/// The folder with all binaries and, below `images`, the archives of images. One process builds it, the others wait.
pub fn build() -> Result<PathBuf> {
    let cache = cache()?;
    let home = cache.join(format!("cluster-{}", digest()));
    if home.join(COMPLETE).exists() {
        return Ok(home);
    }
    fs::create_dir_all(&home).map_err(file(&home))?;
    let _lock = lock(&home)?;
    if home.join(COMPLETE).exists() {
        return Ok(home);
    }
    say("building Kubernetes, once: about 10 minutes on two idle cores, and 4 GB in Go's own caches");
    let begun = Instant::now();
    build_in(&home)?;
    fs::write(home.join(COMPLETE), "").map_err(file(&home))?;
    say(&format!("built in {} s: {}", begun.elapsed().as_secs(), home.display()));
    Ok(home)
}

/// A lock of a folder, in a file beside it; held until it is dropped.
pub fn lock(dir: &Path) -> Result<File> {
    let path = dir.with_extension("lock");
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(file(parent))?;
    }
    let lock = File::create(&path).map_err(file(&path))?;
    if lock.try_lock().is_err() {
        say("another process is at it: waiting for it");
        lock.lock().map_err(file(&path))?;
    }
    Ok(lock)
}

fn digest() -> String {
    let mut hash = Sha256::new();
    for text in SOURCES
        .iter()
        .flat_map(|(name, content)| [*name, *content])
        .chain([LAYOUT])
    {
        hash.update(text.len().to_le_bytes());
        hash.update(text);
    }
    hash.finalize()
        .iter()
        .take(6)
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn build_in(home: &Path) -> Result<()> {
    let sources = home.join("src");
    for (name, content) in SOURCES {
        let path = sources.join(name);
        let dir = path.parent().unwrap_or(&sources);
        fs::create_dir_all(dir).map_err(file(dir))?;
        fs::write(&path, content).map_err(file(&path))?;
    }
    let version = kubernetes_version();
    let mut minor = version.split('.');
    let minor = minor.nth(1).unwrap_or_default();
    // Without it the servers say that their version is an unexpanded variable, which no client understands.
    let stamps: String = ["k8s.io/component-base/version", "k8s.io/client-go/pkg/version"]
        .iter()
        .map(|package| {
            format!(" -X {package}.gitVersion={version} -X {package}.gitMajor=1 -X {package}.gitMinor={minor}")
        })
        .collect();
    let flags = format!("-s -w{stamps}");
    go_build(
        "Kubernetes",
        &sources.join("kube"),
        home,
        &flags,
        &[".", "./fakegpu", "./probe"],
    )?;
    go_build("CoreDNS", &sources.join("coredns"), home, "-s -w", &["."])?;
    let mut cc = Command::new("cc");
    cc.args(["-Os", "-static", "-s", "-o"])
        .arg(home.join("pause"))
        .arg(sources.join("pause.c"));
    run("the compilation of pause.c", &mut cc)?;
    for name in LINKS {
        let link = home.join(name);
        // What an interrupted build left.
        let _gone = fs::remove_file(&link);
        symlink("kube", &link).map_err(file(&link))?;
    }
    let images = home.join("images");
    fs::create_dir_all(&images).map_err(file(&images))?;
    for name in ["pause", "probe", "coredns"] {
        let archive = images.join(format!("{name}.tar"));
        let mut image = Image::of(format!("imageflow.test/{name}:1"), home.join(name));
        // The name server listens on a port that is not everybody's.
        image.user = 0;
        image.write(&archive)?;
    }
    Ok(())
}

/// The version as the module file has it, for example `v1.34.4`.
fn kubernetes_version() -> &'static str {
    let lines = SOURCES[0].1.lines();
    let mut versions = lines.filter_map(|line| line.trim().strip_prefix("k8s.io/kubernetes "));
    versions.next().unwrap_or_default()
}

/// Builds programs of a module, and says how far it is.
fn go_build(what: &str, module: &Path, into: &Path, flags: &str, packages: &[&str]) -> Result<()> {
    // The machine stays usable meanwhile.
    let mut go = Command::new("nice");
    go.args([
        "-n",
        "19",
        "go",
        "build",
        "-v",
        "-buildvcs=false",
        "-ldflags",
        flags,
        "-o",
    ])
    .arg(into)
    .args(packages)
    .current_dir(module)
    .env("CGO_ENABLED", "0")
    .stdin(Stdio::null())
    .stdout(Stdio::null())
    .stderr(Stdio::piped());
    let mut child = go.spawn().map_err(missing(&go))?;
    let mut last = VecDeque::new();
    let mut compiled = 0;
    if let Some(stderr) = child.stderr.take() {
        // One line for each package that had to be compiled, one for each module that had to be fetched, and the faults.
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            if !line.contains(' ') {
                compiled += 1;
                if compiled % WORD_EVERY == 0 {
                    say(&format!("{what}: {compiled} packages compiled"));
                }
            }
            last.push_back(line);
            if last.len() > 20 {
                last.pop_front();
            }
        }
    }
    let status = child.wait().map_err(missing(&go))?;
    if status.success() {
        return Ok(());
    }
    Err(ClusterError::Failed {
        what: format!("the build of {what} in {}", module.display()),
        said: Vec::from(last).join("\n"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_read_from_the_module_file() {
        let version = kubernetes_version();
        assert!(version.starts_with("v1."), "{version}");
        let counted = SOURCES[0].1.matches(&format!("k8s.io/kubernetes {version}")).count();
        assert_eq!(counted, 1, "{version}");
    }

    #[test]
    fn a_name_of_a_folder_is_twelve_digits() {
        assert_eq!(digest().len(), 12);
        assert_eq!(digest(), digest());
    }
}
