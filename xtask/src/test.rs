//! Everything that CI checks, in tiers.
use crate::tool::{self, Fault, Outcome, cargo, run as step};
use crate::{cluster, layers, manifests, map, setup, sizes, up};

const TIERS: [&str; 7] = ["lint", "unit", "docs", "manifests", "kafka", "peers", "cluster"];

/// What is tested but the cluster, whose tests are a tier of their own: their client has needs that would have most of the platform
/// built once more for them.
const PLATFORM: [&str; 4] = ["test", "--workspace", "--exclude", "imageflow-cluster"];

/// What this machine has no way to do is skipped where all tiers run, and told at the end. Whoever names a tier wants it done.
struct Skips {
    allowed: bool,
    made: Vec<String>,
}

impl Skips {
    /// What was done, or nothing where it is skipped.
    fn may_skip<T>(&mut self, what: &str, done: Result<T, Fault>) -> Result<Option<T>, String> {
        match done {
            Ok(done) => Ok(Some(done)),
            Err(Fault::Failed(message)) => Err(message),
            Err(Fault::Lacking(reason)) if self.allowed => {
                println!("{what}: skipped, {reason}");
                self.made.push(what.to_owned());
                Ok(None)
            }
            Err(Fault::Lacking(reason)) => Err(format!("{what}: not possible on this machine, {reason}")),
        }
    }
}

/// Runs the tiers named, else all.
fn run_tiers(named: &[&str]) -> Outcome {
    setup::packages()?;
    let mut skips = Skips {
        allowed: named.is_empty(),
        made: Vec::new(),
    };
    for name in if named.is_empty() { &TIERS } else { named } {
        let done = tier(name, &mut skips);
        skips.may_skip(name, done)?;
    }
    if !skips.made.is_empty() {
        println!("skipped on this machine: {}", skips.made.join("; "));
    }
    Ok(())
}

fn tier(name: &str, skips: &mut Skips) -> Result<(), Fault> {
    match name {
        "lint" => lint()?,
        "unit" => unit()?,
        "docs" => docs()?,
        "manifests" => manifests::test()?,
        "kafka" => kafka()?,
        "peers" => peers(skips)?,
        _ => cluster::test()?,
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
    run_tiers(&tiers)
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
fn kafka() -> Result<(), Fault> {
    setup::servers()?;
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
    let mut platform = up::with_tests(&tool::target().join("debug"), "up-roles");
    Ok(step("the platform on Kafka and S3", platform.arg("--once"))?)
}

fn docs() -> Outcome {
    let mut doc = cargo(&["doc", "--workspace", "--no-deps", "--locked"]);
    step("documentation", doc.env("RUSTDOCFLAGS", "-D warnings"))
}

fn peers(skips: &mut Skips) -> Result<(), Fault> {
    let python = setup::python_clients()?;
    // The whole-system tests start the real binary.
    step("build", &mut cargo(&["build", "-p", "imageflow-cli", "--locked"]))?;
    let mut tests = cargo(&["test", "-p", "imageflow-tests", "--locked", "--test", "peers"]);
    tests.env("IMAGEFLOW_PEERS_PYTHON", python);
    if let Some(client) = skips.may_skip("peers, the SDKs over Kafka", setup::go_client())? {
        tests.args(["--test", "kafka_sdks"]).env("IMAGEFLOW_PEERS_GO", client);
    }
    Ok(step("peers", tests.args(["--", "--nocapture"]))?)
}

/// `cargo xtask test`.
pub fn run(args: &[String]) -> Outcome {
    println!("building in {}", tool::target().display());
    run_args(args)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lacking() -> Result<(), Fault> {
        Err(Fault::Lacking("no Go".to_owned()))
    }

    #[test]
    fn what_the_machine_cannot_do_is_skipped_in_a_run_of_all_and_kept_in_mind() {
        let mut skips = Skips {
            allowed: true,
            made: Vec::new(),
        };
        assert_eq!(skips.may_skip("kafka", lacking()), Ok(None));
        assert_eq!(skips.may_skip("peers", Ok(())), Ok(Some(())));
        assert_eq!(skips.made, ["kafka"]);
    }

    #[test]
    fn a_tier_that_was_named_must_run() {
        let mut skips = Skips {
            allowed: false,
            made: Vec::new(),
        };
        let refused = skips.may_skip("kafka", lacking()).unwrap_err();
        assert!(refused.contains("kafka") && refused.contains("no Go"), "{refused}");
        assert!(skips.made.is_empty());
    }

    #[test]
    fn what_fails_is_never_skipped() {
        for allowed in [true, false] {
            let made = Vec::new();
            let failed: Result<(), Fault> = Err("go build failed".to_owned().into());
            let told = Skips { allowed, made }.may_skip("peers", failed);
            assert_eq!(told, Err("go build failed".to_owned()));
        }
    }
}
