//! Starting the platform, measuring it, and killing it again and again.
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::tool::{self, Outcome, cargo, run};
use crate::{cluster, setup};

/// Of a broker in a bench, where there are thousands of partitions.
pub const HEAP: &str = "1g";

/// Builds `imageflow` in release and returns where it is.
fn build() -> Result<PathBuf, String> {
    setup::packages()?;
    run(
        "build imageflow (release)",
        &mut cargo(&["build", "--release", "--locked", "-p", "imageflow-cli"]),
    )?;
    Ok(tool::target().join("release/imageflow"))
}

/// Builds `imageflow` and all that measures or tests it, in release, in one go: what two builds ask for differs in features of what
/// they share, and would be built twice. Returns the folder.
pub fn build_all() -> Result<PathBuf, String> {
    setup::packages()?;
    let packages = ["-p", "imageflow-cli", "-p", "imageflow-cpu", "-p", "imageflow-tests"];
    run(
        "build (release)",
        cargo(&["build", "--release", "--locked", "--bins"]).args(packages),
    )?;
    Ok(tool::target().join("release"))
}

/// `cargo xtask up`: everything from nothing to processed photos. `--kafka` and `--s3` without an address start three brokers and
/// an S3 server, and each role of the platform as a process of its own.
pub fn up(args: &[String]) -> Outcome {
    if let Some(rest) = on_servers(args) {
        return up_on_servers(&rest?);
    }
    let program = build()?;
    let mut command = Command::new(program);
    command
        .arg("up")
        .arg("--demo")
        .arg(tool::root().join("manifests/samples"))
        .args(args)
        .current_dir(tool::root());
    tool::become_program(&mut command)
}

/// What stands beside `--kafka` and `--s3`, when one of them has no address.
fn on_servers(args: &[String]) -> Option<Result<Vec<String>, String>> {
    let bare = |flag: &str| {
        let at = args.iter().position(|a| a == flag)?;
        args.get(at + 1).is_none_or(|next| next.starts_with('-')).then_some(())
    };
    let (kafka, s3) = (bare("--kafka"), bare("--s3"));
    if kafka.is_none() && s3.is_none() {
        return None;
    }
    if kafka.is_none() || s3.is_none() {
        return Some(Err(
            "--kafka and --s3 without an address start servers, both of them; give both so, or both with an address"
                .to_owned(),
        ));
    }
    let rest = args.iter().filter(|a| *a != "--kafka" && *a != "--s3");
    Some(Ok(rest.cloned().collect()))
}

fn up_on_servers(args: &[String]) -> Outcome {
    if let Some(odd) = args.iter().find(|a| *a != "--once") {
        return Err(format!("\"{odd}\": with --kafka and --s3 there is --once only"));
    }
    setup::servers()?;
    let built = build_all()?;
    eprintln!("==> the platform on Kafka and S3");
    tool::become_program(with_tests(&built, "up-roles").args(args))
}

/// `cargo xtask bench NAME [PART...]`.
pub fn bench(args: &[String]) -> Outcome {
    let parts = args.get(1..).unwrap_or_default();
    match args.first().map(String::as_str) {
        Some("platform") => measure("bench-platform", parts),
        Some("kafka") => {
            setup::servers()?;
            measure("bench-kafka", parts)
        }
        Some("cluster") => cluster::bench(parts),
        Some("autoscaler") => autoscaler(parts),
        _ => Err("name what to measure: platform, kafka, cluster, autoscaler".to_owned()),
    }
}

/// All policies on all loads, or on those that are named. The tables and the chart of the documents are written when all were run.
fn autoscaler(loads: &[String]) -> Outcome {
    let build = ["build", "--release", "--locked", "-p", "imageflow-simulator", "--bins"];
    run("build", &mut cargo(&build))?;
    let mut simulate = Command::new(tool::target().join("release/simulate"));
    if loads.is_empty() {
        simulate.arg("--report").arg(tool::root().join("docs/autoscaler.md"));
    }
    run("simulate", simulate.args(loads))
}

/// Runs a program that measures the platform, both in release.
fn measure(name: &str, parts: &[String]) -> Outcome {
    let built = build_all()?;
    run(name, with_tests(&built, name).args(parts))
}

/// A program of the tests, which finds the platform and its own files.
pub fn with_tests(built: &Path, name: &str) -> Command {
    let mut command = Command::new(built.join(name));
    command
        .env("IMAGEFLOW_BIN", built.join("imageflow"))
        .env("IMAGEFLOW_KAFKA_HEAP", HEAP)
        .env("CARGO_MANIFEST_DIR", tool::root().join("tests"))
        .current_dir(tool::root());
    command
}

/// The tests of one round on brokers and an S3 server, the shortest first.
const EXTERNAL: [&str; 4] = ["external", "roles", "load", "external_faults"];

/// For how long a soak goes on.
#[derive(Debug, PartialEq, Eq)]
enum Long {
    Minutes(u64),
    Rounds(u64),
}

/// How a soak is asked for.
const SOAK: &str = "soak [kill] [MINUTES | --rounds N]";

/// `cargo xtask soak [kill] [MINUTES | --rounds N]`: tests of faults again and again. The first one that fails ends it.
pub fn soak(args: &[String]) -> Outcome {
    let (tests, long) = of_soak(args)?;
    setup::packages()?;
    if tests.len() > 1 {
        setup::servers()?;
    }
    let begun = std::time::Instant::now();
    let mut rounds = 0;
    run("build", &mut cargo(&["build", "--workspace", "--bins", "--locked"]))?;
    while match long {
        Long::Minutes(minutes) => begun.elapsed().as_secs() < minutes * 60,
        Long::Rounds(most) => rounds < most,
    } {
        rounds += 1;
        for test in tests {
            let mut round = cargo(&["test", "-q", "-p", "imageflow-tests", "--test", test]);
            round.args(["--locked", "--", "--nocapture"]);
            run(&format!("{test} test, round {rounds}"), &mut round)?;
        }
        println!("soak: round {rounds} passed, {} s", begun.elapsed().as_secs());
    }
    Ok(())
}

fn of_soak(args: &[String]) -> Result<(&'static [&'static str], Long), String> {
    let (tests, rest): (&[&str], _) = match args.split_first() {
        Some((first, rest)) if first == "kill" => (&["kill"], rest),
        _ => (&EXTERNAL, args),
    };
    let number = |text: &String| text.parse().map_err(|_| format!("\"{text}\" is no number: {SOAK}"));
    let long = match rest {
        [] if tests.len() > 1 => Long::Rounds(20),
        [] => Long::Minutes(10),
        [rounds, count] if rounds == "--rounds" => Long::Rounds(number(count)?),
        [minutes] => Long::Minutes(number(minutes)?),
        _ => return Err(SOAK.to_owned()),
    };
    Ok((tests, long))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_soak_is_of_minutes_or_of_rounds() {
        let of = |text: &str| {
            let args: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
            of_soak(&args)
        };
        assert_eq!(of(""), Ok((EXTERNAL.as_slice(), Long::Rounds(20))));
        assert_eq!(of("30"), Ok((EXTERNAL.as_slice(), Long::Minutes(30))));
        assert_eq!(of("--rounds 3"), Ok((EXTERNAL.as_slice(), Long::Rounds(3))));
        assert_eq!(of("kill"), Ok((["kill"].as_slice(), Long::Minutes(10))));
        assert_eq!(of("kill --rounds 5"), Ok((["kill"].as_slice(), Long::Rounds(5))));
        for wrong in ["kills", "--rounds", "kill --rounds x", "1 2"] {
            assert!(of(wrong).is_err(), "{wrong}");
        }
    }
}
