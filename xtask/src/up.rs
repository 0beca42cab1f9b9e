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

/// `cargo xtask bench NAME [PART...]`.
pub fn bench(args: &[String]) -> Outcome {
    let parts = args.get(1..).unwrap_or_default();
    match args.first().map(String::as_str) {
        Some("platform") => measure("bench-platform", parts),
        Some("kafka") => {
            setup::servers().map_err(|reason| format!("bench kafka needs servers that cannot be had: {reason}"))?;
            measure("bench-kafka", parts)
        }
        _ => Err("name what to measure: platform, kafka".to_owned()),
    }
}

/// Runs a program that measures the platform, both in release.
fn measure(name: &str, parts: &[String]) -> Outcome {
    let program = build()?;
    let mut bench = cargo(&["run", "--release", "--locked", "-p", "imageflow-tests", "--bin", name]);
    bench.env("IMAGEFLOW_BIN", program).arg("--").args(parts);
    run(name, &mut bench)
}

/// `cargo xtask soak [external] [MINUTES]`: tests of faults until the time is over.
pub fn soak(args: &[String]) -> Outcome {
    let (test, rest) = match args.split_first() {
        Some((first, rest)) if first == "external" => ("external_faults", rest),
        _ => ("kill", args),
    };
    let minutes: u64 = match rest.first() {
        None => 10,
        Some(text) => text
            .parse()
            .map_err(|_| format!("\"{text}\" is neither \"external\" nor a number of minutes"))?,
    };
    if test == "external_faults" {
        setup::servers()?;
    }
    let begun = std::time::Instant::now();
    let mut rounds = 0;
    run("build", &mut cargo(&["build", "--workspace", "--bins", "--locked"]))?;
    while begun.elapsed().as_secs() < minutes * 60 {
        rounds += 1;
        let mut round = cargo(&["test", "-p", "imageflow-tests", "--test", test]);
        round.args(["--locked", "--", "--nocapture"]);
        run(&format!("{test} test, round {rounds}"), &mut round)?;
    }
    println!("soak: {rounds} rounds passed");
    Ok(())
}
