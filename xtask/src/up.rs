//! Starting the platform, measuring it, and killing it again and again.
use std::path::PathBuf;

use crate::setup;
use crate::tool::{self, Outcome, cargo, run};

/// Builds `imageflow` in release and returns where it is.
fn build() -> Result<PathBuf, String> {
    setup::packages()?;
    run(
        "build imageflow (release)",
        &mut cargo(&["build", "--release", "--locked", "-p", "imageflow-cli"]),
    )?;
    Ok(tool::target().join("release/imageflow"))
}

/// `cargo xtask up`: everything from nothing to processed photos.
pub fn up(args: &[String]) -> Outcome {
    let program = build()?;
    let mut command = std::process::Command::new(program);
    command
        .arg("up")
        .arg("--demo")
        .arg(tool::root().join("manifests/samples"))
        .args(args)
        .current_dir(tool::root());
    let status = command
        .status()
        .map_err(|e| format!("imageflow cannot be started: {e}"))?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("imageflow up ended with {status}"))
    }
}

/// `cargo xtask bench NAME`.
pub fn bench(args: &[String]) -> Outcome {
    match args.first().map(String::as_str) {
        Some("platform") => {
            let program = build()?;
            let mut bench = cargo(&[
                "run",
                "--release",
                "--locked",
                "-p",
                "imageflow-tests",
                "--bin",
                "bench-platform",
            ]);
            run(
                "bench platform",
                bench
                    .env("IMAGEFLOW_BIN", program)
                    .args(args.get(1..).unwrap_or_default()),
            )
        }
        _ => Err("name what to measure: platform".to_owned()),
    }
}

/// `cargo xtask soak [MINUTES]`: the kill test until the time is over.
pub fn soak(args: &[String]) -> Outcome {
    let minutes: u64 = match args.first() {
        None => 10,
        Some(text) => text
            .parse()
            .map_err(|_| format!("\"{text}\" is not a number of minutes"))?,
    };
    let begun = std::time::Instant::now();
    let mut rounds = 0;
    run("build", &mut cargo(&["build", "--workspace", "--bins", "--locked"]))?;
    while begun.elapsed().as_secs() < minutes * 60 {
        rounds += 1;
        let mut test = cargo(&[
            "test",
            "-p",
            "imageflow-tests",
            "--test",
            "kill",
            "--locked",
            "--",
            "--nocapture",
        ]);
        run(&format!("kill test, round {rounds}"), &mut test)?;
    }
    println!("soak: {rounds} rounds passed");
    Ok(())
}
