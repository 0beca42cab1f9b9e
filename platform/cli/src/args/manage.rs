//! Arguments of the commands about what is deployed.
use std::path::PathBuf;

use clap::{ArgGroup, Args, Subcommand};
use imageflow_types::HumanDuration;
use imageflow_types::function::KeyRef;

use super::{OutputArgs, key_value};

/// `imageflow apply`
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  imageflow apply -f flows.yaml\n  cat flows.yaml | imageflow apply -f - --dry-run")]
pub struct ApplyArgs {
    /// A file, a folder with *.yaml, *.yml and *.json, or - for standard input
    #[arg(short = 'f', long = "file", required = true, value_name = "FILE|DIR|-")]
    pub files: Vec<PathBuf>,
    /// Check everything, change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// How results are printed.
    #[command(flatten)]
    pub out: OutputArgs,
}

/// `imageflow delete`
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  imageflow delete flow thumbnails\n  imageflow delete -f flows.yaml")]
pub struct DeleteArgs {
    /// Delete what these files describe
    #[arg(short = 'f', long = "file", value_name = "FILE|DIR|-", conflicts_with_all = ["kind", "name"])]
    pub files: Vec<PathBuf>,
    /// function, flow or trigger
    #[arg(required_unless_present = "files", requires = "name", value_parser = kind)]
    pub kind: Option<&'static str>,
    /// Its name
    pub name: Option<String>,
}

fn kind(text: &str) -> Result<&'static str, String> {
    match text.to_ascii_lowercase().as_str() {
        "function" | "functions" | "fn" => Ok("functions"),
        "flow" | "flows" => Ok("flows"),
        "trigger" | "triggers" => Ok("triggers"),
        _ => Err("the kinds are function, flow and trigger".to_owned()),
    }
}

fn key_ref(text: &str) -> Result<(String, KeyRef), String> {
    let wrong = || format!("\"{text}\" is not of the form NAME=OBJECT:KEY");
    let (variable, rest) = text.split_once('=').ok_or_else(wrong)?;
    let (name, key) = rest.split_once(':').ok_or_else(wrong)?;
    if variable.is_empty() || name.is_empty() || key.is_empty() {
        return Err(wrong());
    }
    let key = KeyRef {
        name: name.to_owned(),
        key: key.to_owned(),
        optional: false,
    };
    Ok((variable.to_owned(), key))
}

/// `imageflow deploy`
#[derive(Debug, Args)]
#[command(
    group = ArgGroup::new("program").args(["operation", "command", "image", "argv"]).required(true).multiple(true),
    after_help = "Examples:\n  imageflow deploy thumb --operation resize --param width=200\n  imageflow deploy mine --command \"python3 ./handler.py\" --min 1 --wait\n  imageflow deploy mine --cpu 500m --memory 256Mi -- ./handler --fast\n  imageflow deploy mine --image registry.example/mine:1 --pull-secret registry --env-secret TOKEN=mine:token\n  imageflow deploy mine --command ./handler --image mine:1 --pack mine.tar"
)]
pub struct DeployArgs {
    /// Name of the function
    pub name: String,
    /// Operation of the catalogue (see `imageflow operations`)
    #[arg(long, conflicts_with_all = ["command", "argv"])]
    pub operation: Option<String>,
    /// Command line of your own program; quotes keep words together. Paths that begin with ./ or ../, and a program with
    /// a / in it, are those of the current directory; the platform gets them absolute
    #[arg(long, conflicts_with = "argv")]
    pub command: Option<String>,
    /// Container image that serves CloudEvents on $PORT (Kubernetes)
    #[arg(long, conflicts_with = "operation")]
    pub image: Option<String>,
    /// Packs the program of --command with its libraries into an image of the name --image, and writes it to this archive, which
    /// `ctr -n k8s.io images import`, K3s (in `agent/images`) and `docker load` read
    #[arg(long, value_name = "ARCHIVE", requires = "image")]
    pub pack: Option<PathBuf>,
    /// Secret with which the image is pulled
    #[arg(long = "pull-secret", value_name = "NAME", requires = "image")]
    pub pull_secrets: Vec<String>,
    /// Parameter of the operation; JSON values are taken as such
    #[arg(long = "param", value_name = "K=V", value_parser = key_value)]
    pub params: Vec<(String, String)>,
    /// Fewest pods
    #[arg(long)]
    pub min: Option<u32>,
    /// Most pods
    #[arg(long)]
    pub max: Option<u32>,
    /// Requests a pod takes at the same time
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub concurrency: Option<u32>,
    /// Processor share, such as 500m or 2
    #[arg(long)]
    pub cpu: Option<String>,
    /// Memory, such as 256Mi
    #[arg(long)]
    pub memory: Option<String>,
    /// Environment variable
    #[arg(long = "env", value_name = "K=V", value_parser = key_value)]
    pub env: Vec<(String, String)>,
    /// Environment variable out of a Secret (Kubernetes)
    #[arg(long = "env-secret", value_name = "K=SECRET:KEY", value_parser = key_ref)]
    pub env_secrets: Vec<(String, KeyRef)>,
    /// Environment variable out of a ConfigMap (Kubernetes)
    #[arg(long = "env-config", value_name = "K=CONFIGMAP:KEY", value_parser = key_ref)]
    pub env_configs: Vec<(String, KeyRef)>,
    /// Longest time for one request, such as 30s
    #[arg(long)]
    pub timeout: Option<HumanDuration>,
    /// Wait until the revision is there, with its fewest pods ready
    #[arg(long)]
    pub wait: bool,
    /// How results are printed.
    #[command(flatten)]
    pub out: OutputArgs,
    /// The command as separate arguments; paths as with --command
    #[arg(last = true, value_name = "COMMAND")]
    pub argv: Vec<String>,
}

/// `imageflow functions`
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  imageflow functions\n  imageflow fn describe thumb\n  imageflow fn traffic thumb thumb-00001=90 thumb-00002=10"
)]
pub struct FunctionsArgs {
    /// What to do; list without.
    #[command(subcommand)]
    pub command: Option<FunctionsCommand>,
    /// How results are printed.
    #[command(flatten)]
    pub out: OutputArgs,
}

/// What to do with functions.
#[derive(Debug, Subcommand)]
pub enum FunctionsCommand {
    /// All functions
    #[command(alias = "ls")]
    List,
    /// One function with its revisions, pods and parameters
    #[command(alias = "get")]
    Describe {
        /// Its name
        name: String,
    },
    /// Delete a function
    #[command(alias = "rm")]
    Delete {
        /// Its name
        name: String,
    },
    /// Go back to an earlier revision
    Rollback {
        /// Its name
        name: String,
        /// The revision; without, the one before the present
        #[arg(long, value_name = "REVISION")]
        to: Option<String>,
    },
    /// Split the requests between revisions
    Traffic {
        /// Its name
        name: String,
        /// Revision and its share; the shares add up to 100
        #[arg(required = true, value_name = "REVISION=PERCENT", value_parser = share)]
        shares: Vec<(String, u32)>,
    },
}

fn share(text: &str) -> Result<(String, u32), String> {
    let (revision, percent) = key_value(text)?;
    match percent.trim_end_matches('%').parse::<u32>() {
        Ok(percent) if percent <= 100 => Ok((revision, percent)),
        _ => Err(format!("\"{percent}\" is not a percentage from 0 to 100")),
    }
}

/// `imageflow flows` and `imageflow triggers`
#[derive(Debug, Args)]
pub struct NamedArgs {
    /// What to do; list without.
    #[command(subcommand)]
    pub command: Option<NamedCommand>,
    /// How results are printed.
    #[command(flatten)]
    pub out: OutputArgs,
}

/// What to do with flows or triggers.
#[derive(Debug, Subcommand)]
pub enum NamedCommand {
    /// All of them
    #[command(alias = "ls")]
    List,
    /// One of them
    #[command(alias = "get")]
    Describe {
        /// Its name
        name: String,
    },
    /// Delete one
    #[command(alias = "rm")]
    Delete {
        /// Its name
        name: String,
    },
}

/// `imageflow scaling`
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  imageflow scaling\n  imageflow scaling explain thumb --watch")]
pub struct ScalingArgs {
    /// What to do; list without.
    #[command(subcommand)]
    pub command: Option<ScalingCommand>,
    /// How results are printed.
    #[command(flatten)]
    pub out: OutputArgs,
}

/// What to do about scaling.
#[derive(Debug, Subcommand)]
pub enum ScalingCommand {
    /// Every function's pods, wanted and ready
    List,
    /// The last decisions about a function, with their reasons
    Explain {
        /// The function
        function: String,
        /// Go on with new decisions
        #[arg(short, long)]
        watch: bool,
    },
    /// What a function's settings would have done with a recorded load, and cost; nothing is applied
    #[command(
        after_help = "The trace is CSV with a header: at_ms (since its begin) and service_ms; other columns are not looked at.\n\nExamples:\n  imageflow scaling simulate -f thumb.yaml --trace monday.csv\n  imageflow scaling simulate -f thumb.yaml --trace monday.csv --callers --cold-start 600ms -o json"
    )]
    Simulate(SimulateArgs),
}

/// `imageflow scaling simulate`
#[derive(Debug, Args)]
pub struct SimulateArgs {
    /// File with the function
    #[arg(short, long, value_name = "FILE")]
    pub file: PathBuf,
    /// Which function of the file, when it has several
    #[arg(long, value_name = "NAME")]
    pub function: Option<String>,
    /// The recorded requests
    #[arg(long, value_name = "CSV")]
    pub trace: PathBuf,
    /// The requests are calls that somebody waits for, not records
    #[arg(long)]
    pub callers: bool,
    /// How long a pod takes to be ready
    #[arg(long, value_name = "DURATION", default_value = "600ms")]
    pub cold_start: HumanDuration,
    /// GPU cards there are, for a function that wants some
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub gpus: u32,
    /// Changes that are shown, from the first
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub changes: usize,
}

/// `imageflow operations`
#[derive(Debug, Args)]
pub struct OperationsArgs {
    /// Show the parameters of this one
    pub name: Option<String>,
    /// How results are printed.
    #[command(flatten)]
    pub out: OutputArgs,
}

/// `imageflow status`
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// How results are printed.
    #[command(flatten)]
    pub out: OutputArgs,
}
