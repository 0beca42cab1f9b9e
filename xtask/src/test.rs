//! Everything that CI checks, in tiers.
use crate::tool::{self, Outcome, cargo, run as step};
use crate::{cluster, layers, manifests, map, setup, sizes, up};

const TIERS: [&str; 7] = ["lint", "unit", "docs", "manifests", "kafka", "peers", "cluster"];

/// What is tested but the cluster, whose tests are a tier of their own: their client has needs that would have most of the platform
/// built once more for them.
const PLATFORM: [&str; 4] = ["test", "--workspace", "--exclude", "imageflow-cluster"];

/// Runs the tiers named, else all.
pub fn run_tiers(tiers: &[&str]) -> Outcome {
    setup::packages()?;
    for tier in tiers {
        match *tier {
            "lint" => lint()?,
            "unit" => unit()?,
            "docs" => docs()?,
            "manifests" => manifests::test()?,
            "kafka" => kafka()?,
            "peers" => peers()?,
            _ => cluster::test()?,
        }
    }
    Ok(())
}

/// `cargo xtask test [TIER...]`.
pub fn run_args(args: &[String]) -> Outcome {
    let mut tiers = Vec::new();
    for arg in args {
        match TIERS.iter().find(|t| *t == arg) {
            Some(tier) => tiers.push(*tier),
            None => {
                return Err(format!(
                    "there is no tier \"{arg}\": the tiers are {}",
                    TIERS.join(", ")
                ));
            }
        }
    }
    run_tiers(if tiers.is_empty() { &TIERS } else { &tiers })
}

fn lint() -> Outcome {
    step("format", &mut cargo(&["fmt", "--all", "--check"]))?;
    layers::check()?;
    map::check()?;
    sizes::check()?;
    step(
        "clippy",
        &mut cargo(&[
            "clippy",
            "--workspace",
            "--all-targets",
            "--locked",
            "--",
            "-D",
            "warnings",
        ]),
    )
}

fn unit() -> Outcome {
    // The whole-system tests start the real binary.
    step("build", &mut cargo(&["build", "--workspace", "--bins", "--locked"]))?;
    // Tests that need real servers are a tier of their own.
    let mut tests = cargo(&PLATFORM);
    tests.args(["--locked", "--no-fail-fast"]);
    step("tests", tests.env("IMAGEFLOW_SKIP_SERVERS", "1"))
}

/// Apache Kafka and an S3 server as they are, fetched once into the cache.
fn kafka() -> Outcome {
    if let Err(reason) = setup::servers() {
        println!("kafka: skipped, {reason}");
        return Ok(());
    }
    step("build", &mut cargo(&["build", "--workspace", "--bins", "--locked"]))?;
    let mut tests = cargo(&PLATFORM);
    tests.args(["--locked", "--no-fail-fast"]);
    for name in [
        "kafka",
        "versitygw",
        "policies",
        "notifications",
        "faults",
        "external",
        "external_faults",
        "load",
        "roles",
        "connect",
    ] {
        tests.args(["--test", name]);
    }
    step("tests on servers", &mut tests)?;
    // How the servers themselves come and go.
    step(
        "tests of the servers",
        &mut cargo(&["test", "-p", "imageflow-servers", "--locked", "--lib"]),
    )?;
    // As somebody new to it sees it; it ends when the photographs are done.
    step(
        "the platform on Kafka and S3",
        up::with_tests(&tool::target().join("debug"), "up-roles").arg("--once"),
    )
}

fn docs() -> Outcome {
    let mut doc = cargo(&["doc", "--workspace", "--no-deps", "--locked"]);
    step("documentation", doc.env("RUSTDOCFLAGS", "-D warnings"))
}

fn peers() -> Outcome {
    let python = match setup::python_clients() {
        Ok(python) => python,
        Err(reason) => {
            println!("peers: skipped, {reason}");
            return Ok(());
        }
    };
    // The whole-system tests start the real binary.
    step("build", &mut cargo(&["build", "-p", "imageflow-cli", "--locked"]))?;
    let mut tests = cargo(&["test", "-p", "imageflow-tests", "--locked", "--test", "peers"]);
    tests.env("IMAGEFLOW_PEERS_PYTHON", python);
    match setup::servers().and_then(|()| setup::go_client()) {
        Ok(client) => {
            tests.args(["--test", "kafka_sdks"]).env("IMAGEFLOW_PEERS_GO", client);
        }
        Err(reason) => println!("peers: the SDKs over Kafka are skipped, {reason}"),
    }
    step("peers", tests.args(["--", "--nocapture"]))
}

/// `cargo xtask test`.
pub fn run(args: &[String]) -> Outcome {
    println!("building in {}", tool::target().display());
    run_args(args)
}
