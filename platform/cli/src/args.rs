//! The arguments of every command.
pub mod install;
pub mod manage;
pub mod serve;
pub mod stores;
pub mod up;
pub mod work;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Heading of the options of every command.
const GLOBAL: &str = "Global options";

/// Serverless image processing: functions, flows and the events that start them.
#[derive(Debug, Parser)]
#[command(
    name = "imageflow",
    version,
    propagate_version = true,
    after_help = "Examples:\n  imageflow up\n  imageflow deploy thumb --operation resize --param width=200\n  imageflow invoke thumb cat.jpg -o small.jpg\n  imageflow run thumbnails photos/*.jpg --out small\n\nExit codes: 0 ok, 1 failed, 64 usage, 66 input not readable, 69 server not reachable, 77 not allowed"
)]
pub struct Cli {
    /// Options of every command.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Options of every command.
#[derive(Debug, Clone, Args)]
pub struct Global {
    /// Base address of the platform
    #[arg(
        long,
        global = true,
        help_heading = GLOBAL,
        env = "IMAGEFLOW_SERVER",
        value_name = "URL",
        default_value = "http://127.0.0.1:8000"
    )]
    pub server: String,
    /// API key to send
    #[arg(
        long,
        global = true,
        help_heading = GLOBAL,
        env = "IMAGEFLOW_API_KEY",
        value_name = "KEY",
        hide_env_values = true
    )]
    pub api_key: Option<String>,
    /// No colours, as with the variable NO_COLOR
    #[arg(long, global = true, help_heading = GLOBAL)]
    pub no_color: bool,
    /// Results and errors only: no progress, no notes
    #[arg(short, long, global = true, help_heading = GLOBAL)]
    pub quiet: bool,
}

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Format {
    /// Columns for people
    #[default]
    Table,
    /// More columns
    Wide,
    /// JSON as the API gives it
    Json,
    /// The same as YAML
    Yaml,
    /// Names only, one a line
    Name,
}

/// The format flag.
#[derive(Debug, Clone, Copy, Default, Args)]
pub struct OutputArgs {
    /// How results are printed: table, wide, json, yaml or name
    #[arg(
        short = 'o',
        long = "output",
        value_enum,
        hide_possible_values = true,
        default_value_t,
        global = true,
        value_name = "FORMAT"
    )]
    pub output: Format,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Start the whole platform in this process
    Up(Box<up::UpArgs>),
    /// Run one role of the platform as a process of its own
    Serve(Box<serve::ServeArgs>),
    /// Install the platform on a Kubernetes cluster
    Install(install::InstallArgs),
    /// Say what is wrong with an installation
    Doctor(install::DoctorArgs),
    /// Create or change functions, flows and triggers from files
    Apply(manage::ApplyArgs),
    /// Delete functions, flows or triggers
    Delete(manage::DeleteArgs),
    /// Make or change one function without a file
    Deploy(Box<manage::DeployArgs>),
    /// Functions, their revisions and traffic
    #[command(alias = "function", visible_alias = "fn")]
    Functions(manage::FunctionsArgs),
    /// Flows
    #[command(alias = "flow")]
    Flows(manage::NamedArgs),
    /// Triggers
    #[command(alias = "trigger")]
    Triggers(manage::NamedArgs),
    /// Runs of flows
    Runs(work::RunsArgs),
    /// Run a flow over files and wait for the results
    Run(work::RunArgs),
    /// Call one function with one image
    Invoke(work::InvokeArgs),
    /// Images in the object store
    #[command(alias = "image")]
    Images(work::ImagesArgs),
    /// Objects whose event is missing
    #[command(alias = "object")]
    Objects(work::ObjectsArgs),
    /// Send CloudEvents
    #[command(alias = "event")]
    Events(work::EventsArgs),
    /// Work that failed for good
    #[command(alias = "dead-letter")]
    DeadLetters(work::DeadLettersArgs),
    /// How many pods, and why
    Scaling(manage::ScalingArgs),
    /// Output of a function's pods
    #[command(alias = "log")]
    Logs(work::LogsArgs),
    /// The image operations a function can be made of
    #[command(alias = "operation")]
    Operations(manage::OperationsArgs),
    /// The state of the platform
    Status(manage::StatusArgs),
    /// Print the completion script of a shell
    Completion {
        /// The shell
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
    /// Print the version
    Version,
    /// Be a function pod
    #[command(hide = true)]
    Pod,
    /// Watch over the pods of a platform
    #[command(hide = true)]
    Warden {
        /// Instance marker of the platform
        platform_id: String,
    },
}

impl Command {
    /// The format that was asked for, which errors follow too.
    #[must_use]
    pub fn format(&self) -> Format {
        match self {
            Self::Doctor(a) => a.out.output,
            Self::Apply(a) => a.out.output,
            Self::Deploy(a) => a.out.output,
            Self::Functions(a) => a.out.output,
            Self::Flows(a) | Self::Triggers(a) => a.out.output,
            Self::Runs(a) => a.out.output,
            Self::Run(a) => a.format.output,
            Self::Images(a) => a.format(),
            Self::Objects(a) => a.out.output,
            Self::DeadLetters(a) => a.out.output,
            Self::Scaling(a) => a.out.output,
            Self::Operations(a) => a.out.output,
            Self::Status(a) => a.out.output,
            Self::Logs(a) => a.out.output,
            _ => Format::Table,
        }
    }
}

/// A `key=value` argument whose value is JSON where it reads as JSON, text where not.
///
/// # Errors
/// When there is no `=` or no key.
pub fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(format!("\"{text}\" is not KEY=VALUE")),
    }
}

#[cfg(test)]
mod tests;
