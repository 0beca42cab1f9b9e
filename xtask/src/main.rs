//! `cargo xtask`: see `HELP`.
mod cluster;
mod image;
mod layers;
mod manifests;
mod map;
mod setup;
mod sizes;
mod test;
mod tool;
mod up;

use std::process::ExitCode;

const HELP: &str = "\
cargo xtask COMMAND

  up [--once] [ARGS]   build in release, start the platform, process the sample photos; stays up (not with --once)
  up --kafka --s3 [--once]   the same on three Kafka brokers and an S3 server, each role a process of its own
  test [TIER...]       everything that CI checks; tiers: lint unit docs manifests kafka peers cluster (default: all)
  cluster up           a Kubernetes cluster of three nodes on this machine, for tests; the first time takes about 10 minutes
  cluster down         stops it, with all that runs in it
  cluster status       its nodes and its kubeconfig; -o json
  cluster exec CMD...  runs on its network, with KUBECONFIG set and kubectl at hand
  cluster node NODE CMD... | import ARCHIVE
                       runs in a node; puts an image on all nodes
  image [--profile P] [--import] [--sbom]   container images as archives, and their bills of materials
  layers | map         no crate depends on a layer above it or beside it; the README's question-to-file table is true
  sizes                no file is over 600 lines before its tests, no main.rs over 60
  bench NAME [PART...] figures as JSON lines: platform, kafka, cluster, autoscaler
  soak [kill] [MINUTES | --rounds N]   all faults on brokers and S3 server, 20 times; kill: kill -9 of the platform in one process, for 10 minutes
";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let rest = args.get(1..).unwrap_or_default();
    let result = match args.first().map(String::as_str) {
        Some("up") => up::up(rest),
        Some("bench") => up::bench(rest),
        Some("soak") => up::soak(rest),
        Some("test") => test::run(rest),
        Some("cluster") => cluster::run(rest),
        Some("image") => image::run(rest),
        Some("layers") => layers::check(),
        Some("map") => map::check(),
        Some("sizes") => sizes::check(),
        None | Some("help" | "--help" | "-h") => {
            print!("{HELP}");
            return ExitCode::SUCCESS;
        }
        Some(other) => Err(format!("there is no command \"{other}\"\n\n{HELP}")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("xtask: {message}");
            ExitCode::FAILURE
        }
    }
}
