//! `cargo xtask image`: the container images, as archives, and beside each what is in it.
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use imageflow_images::Image;

use crate::tool::{self, Outcome, cargo, run as step};
use crate::{cluster, setup};

/// The version that writes the bill of materials: another one may word it otherwise.
const CYCLONEDX: &str = "0.5.9";
/// Of the image of CPU functions, which every node pulls (goal).
const MOST_BYTES: u64 = 40_000_000;

/// A program, the image of it, and what it is called with.
struct Made {
    package: &'static str,
    program: &'static str,
    image: &'static str,
}

const IMAGES: [Made; 2] = [
    Made {
        package: "imageflow-cli",
        program: "imageflow",
        image: "imageflow/imageflow",
    },
    Made {
        package: "imageflow-cpu",
        program: "imageflow-function-cpu",
        image: "imageflow/function-cpu",
    },
];

/// `cargo xtask image [--profile NAME] [--import] [--sbom]`.
pub fn run(args: &[String]) -> Outcome {
    let (mut profile, mut import, mut sbom) = ("release".to_owned(), false, false);
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--profile" => {
                profile = args.next().cloned().ok_or("--profile: name dev, release or dist")?;
            }
            "--import" => import = true,
            "--sbom" => sbom = true,
            odd => return Err(format!("\"{odd}\" is neither --profile NAME, --import nor --sbom")),
        }
    }
    setup::packages()?;
    let made = make(&profile)?;
    for archive in &made {
        println!("{}", archive.display());
    }
    if sbom {
        materials(&made)?;
    }
    if import {
        made.iter().try_for_each(|archive| cluster::import(archive))?;
    }
    Ok(())
}

/// Builds the programs and packs them. Returns the archives.
fn make(profile: &str) -> Result<Vec<PathBuf>, String> {
    let mut build = cargo(&["build", "--locked", "--profile", profile]);
    for made in &IMAGES {
        build.args(["-p", made.package, "--bin", made.program]);
    }
    step("build", &mut build)?;
    pack_all(if profile == "dev" { "debug" } else { profile })
}

/// Packs programs that are built already, into `debug`, `release` or `dist` of the build folder.
pub fn pack_all(folder: &str) -> Result<Vec<PathBuf>, String> {
    let built = tool::target().join(folder);
    let home = tool::target().join("images").join(folder);
    std::fs::create_dir_all(&home).map_err(|e| format!("{}: {e}", home.display()))?;
    IMAGES.iter().map(|made| pack(made, &built, &home)).collect()
}

fn pack(made: &Made, built: &Path, home: &Path) -> Result<PathBuf, String> {
    let version = env!("CARGO_PKG_VERSION");
    let program = home.join(made.program);
    // What people look into after a crash is what they build, not what they ship.
    let mut strip = Command::new("strip");
    strip
        .arg("--strip-all")
        .arg("-o")
        .arg(&program)
        .arg(built.join(made.program));
    tool::output(&mut strip)?;
    let mut image = Image::of(format!("{}:{version}", made.image), &program);
    image.labels = BTreeMap::from([
        ("org.opencontainers.image.title".to_owned(), made.program.to_owned()),
        ("org.opencontainers.image.version".to_owned(), version.to_owned()),
        ("org.opencontainers.image.licenses".to_owned(), "Apache-2.0".to_owned()),
    ]);
    let archive = home.join(format!("{}-{version}.tar", made.program));
    image.write(&archive).map_err(|e| e.to_string())?;
    let bytes = std::fs::metadata(&archive)
        .map_err(|e| format!("{}: {e}", archive.display()))?
        .len();
    #[expect(clippy::cast_precision_loss, reason = "shown with one digit")]
    let size = bytes as f64 / 1e6;
    eprintln!("{}: {size:.1} MB", image.name);
    if made.package == "imageflow-cpu" && bytes > MOST_BYTES && !home.ends_with("debug") {
        return Err(format!(
            "the image of CPU functions has {size:.1} MB; it is to have 40 at most"
        ));
    }
    Ok(archive)
}

/// A bill of materials beside each archive.
fn materials(archives: &[PathBuf]) -> Outcome {
    let tools = tool::cache().join("tools");
    let program = tools.join("bin/cargo-cyclonedx");
    std::fs::create_dir_all(&tools).map_err(|e| format!("{} cannot be made: {e}", tools.display()))?;
    tool::once(&tools.join("cargo-cyclonedx.version"), CYCLONEDX, || {
        let mut install = cargo(&[
            "install",
            "--locked",
            "cargo-cyclonedx",
            "--version",
            CYCLONEDX,
            "--root",
        ]);
        step("install cargo-cyclonedx", install.arg(&tools))
    })?;
    for (made, archive) in IMAGES.iter().zip(archives) {
        let name = format!("{}.cdx", made.program);
        let mut write = Command::new(&program);
        write
            .args([
                "cyclonedx",
                "--format",
                "json",
                "--override-filename",
                &name,
                "--manifest-path",
            ])
            .arg(manifest(made.package)?)
            .current_dir(tool::root());
        tool::forget_our_package(&mut write);
        step(&format!("bill of materials of {}", made.program), &mut write)?;
        let written = manifest(made.package)?.with_file_name(format!("{name}.json"));
        let kept = archive.with_extension("cdx.json");
        std::fs::rename(&written, &kept)
            .or_else(|_| std::fs::copy(&written, &kept).and_then(|_| std::fs::remove_file(&written)))
            .map_err(|e| format!("{}: {e}", written.display()))?;
        // The tool writes one for every member of the workspace, and only this one was asked for.
        for folder in members()? {
            let _ = std::fs::remove_file(folder.join(format!("{name}.json")));
        }
        println!("{}", kept.display());
    }
    Ok(())
}

/// The folders of all crates of the workspace.
fn members() -> Result<Vec<PathBuf>, String> {
    let mut metadata = cargo(&["metadata", "--format-version", "1", "--no-deps", "--locked"]);
    let metadata: serde_json::Value = serde_json::from_str(&tool::output(&mut metadata)?).map_err(|e| e.to_string())?;
    let packages = metadata["packages"].as_array().into_iter().flatten();
    let manifests = packages.filter_map(|package| package["manifest_path"].as_str());
    Ok(manifests
        .filter_map(|path| Some(Path::new(path).parent()?.to_path_buf()))
        .collect())
}

fn manifest(package: &str) -> Result<PathBuf, String> {
    let id = tool::output(&mut cargo(&["pkgid", "-p", package]))?;
    let path = id
        .trim()
        .strip_prefix("path+file://")
        .and_then(|rest| rest.split('#').next());
    let path = path.ok_or_else(|| format!("{package} is at {}, which is no folder", id.trim()))?;
    Ok(Path::new(path).join("Cargo.toml"))
}
